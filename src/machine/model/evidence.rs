//! Evidence: QEMU's events since the last refresh, and the time of the next one.
//!
//! An event never changes the inventory. It causes a refresh, and explains what the refresh shows.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::event::Cause;
use super::refusal::RefusalReason;
use crate::ids::{SlotId, Uid};
use crate::qmp::AcpiOst;

/// A guest that ejects a CPU reports so after the CPU is gone, within this time.
const EJECTION_GRACE: Duration = Duration::from_millis(250);
/// Events cause one refresh in this time.
const REFRESH_INTERVAL: Duration = Duration::from_millis(10);
/// After a refresh, events cause the next one after so many times its cost.
const REST: u32 = 10;
/// But at the latest after this time.
const LONGEST_REST: Duration = Duration::from_secs(5);

/// The evidence since the last refresh.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    clues: Clues,
    refusals: Vec<(SlotId, Refused)>,
    due: Option<Instant>,
    refreshed: Option<Instant>,
    rests_until: Option<Instant>,
}

/// Why the inventory may differ from the last one.
#[derive(Clone, Debug, Default)]
pub(super) struct Clues {
    /// The connection was lost in the meantime, and the events with it.
    pub reconnected: bool,
    /// The guest was reset.
    pub reset: bool,
    /// The slots that the guest reported to have ejected without a request.
    pub ejected: BTreeSet<SlotId>,
    /// The slots that QEMU was asked to add, and the user who asked.
    pub plugged: Option<Plugging>,
}

/// Slots that QEMU is asked to add, and the requester.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plugging {
    #[serde(rename = "firsts")]
    pub slots: BTreeSet<SlotId>,
    pub uid: Uid,
}

/// A removal that the guest or QEMU refused.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    /// The cause, unless a caller of this service asked for the removal.
    pub cause: Cause,
    /// The reason.
    pub reason: RefusalReason,
    /// The refused request.
    pub request: RefusedRequest,
}

/// The request that is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RefusedRequest {
    /// The last one that QEMU took. A pending removal ends.
    Last,
    /// An earlier one: QEMU has a later request, so that a removal stays pending.
    Earlier,
    /// One of this user, which QEMU did not take.
    Rejected(Uid),
}

impl Refused {
    /// Returns the refusal that `ost` reports, if it reports one.
    pub(super) fn from_ost(ost: &AcpiOst) -> Option<Self> {
        let cause = if ost.is_guests_own() {
            Cause::Guest
        } else {
            Cause::External
        };
        Some(Self {
            cause,
            reason: RefusalReason::from_ost(ost)?,
            request: RefusedRequest::Last,
        })
    }
}

impl Evidence {
    /// Notes an event that needs a refresh.
    pub(super) fn note(&mut self, now: Instant) {
        self.note_later(now, now);
    }

    /// Notes that a device of the inventory is gone that nobody asked to remove.
    pub(super) fn note_departure(&mut self, now: Instant) {
        self.note_later(now, now + EJECTION_GRACE);
    }

    fn note_later(&mut self, now: Instant, earliest: Instant) {
        let refreshed = self.refreshed.map(|at| at + REFRESH_INTERVAL);
        let bounds = [Some(now), Some(earliest), refreshed, self.rests_until];
        let due = bounds.into_iter().flatten().max();
        // An earlier event may need an earlier refresh.
        self.due = [self.due, due].into_iter().flatten().min();
    }

    /// Notes a refusal to remove `slot`. QEMU reports some twice.
    pub(super) fn note_refusal(&mut self, slot: SlotId, refused: Refused) {
        self.refusals
            .retain(|(of, other)| *of != slot || other.request != refused.request);
        self.refusals.push((slot, refused));
    }

    /// Notes that QEMU is asked to remove `slot` now: a refusal that came before is about an earlier
    /// request.
    pub(super) fn begin_removal(&mut self, slot: SlotId) {
        for (of, refused) in &mut self.refusals {
            if *of == slot && refused.request == RefusedRequest::Last {
                refused.request = RefusedRequest::Earlier;
            }
        }
    }

    /// Notes that the guest ejected `slot` without a request.
    pub(super) fn note_ejection(&mut self, slot: SlotId) {
        self.clues.ejected.insert(slot);
    }

    /// Notes that the guest was reset.
    pub(super) fn note_reset(&mut self) {
        self.clues.reset = true;
    }

    /// Makes a refresh due at `at`, unless one is due before.
    pub(super) fn refresh_at(&mut self, at: Instant) {
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// Returns when a refresh is due because of events.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Returns when a refresh is due so long after the last one, or the rest after that.
    pub(super) fn due_after(&self, interval: Duration) -> Option<Instant> {
        let interval_ends = self.refreshed? + interval;
        Some(
            self.rests_until
                .map_or(interval_ends, |until| until.max(interval_ends)),
        )
    }

    /// Returns when QEMU can be queried for something else than events from `at` on: with or after the refresh
    /// that is due.
    pub(super) fn rested_at(&self, at: Instant) -> Instant {
        let bounds = [self.due, self.rests_until].into_iter().flatten();
        bounds.fold(at, Instant::max)
    }

    /// Returns whether the last refresh ended less than `age` ago.
    pub(super) fn is_recent(&self, now: Instant, age: Duration) -> bool {
        self.refreshed.is_some_and(|at| now < at + age)
    }

    /// Notes that QEMU is queried from now on. Events from here on need another refresh.
    pub(super) fn begin_refresh(&mut self) {
        self.due = None;
    }

    /// Takes what explains the refresh that ends now.
    pub(super) fn take(&mut self, now: Instant) -> (Clues, Vec<(SlotId, Refused)>) {
        self.refreshed = Some(now);
        // The refresh that is due then needs the clues again.
        let clues = if self.due.is_some() {
            self.clues.clone()
        } else {
            std::mem::take(&mut self.clues)
        };
        (clues, std::mem::take(&mut self.refusals))
    }

    /// Limits the share of a CPU that the events of a machine use: the next refresh waits in
    /// proportion to the `cost` of the last one.
    pub(super) fn rest(&mut self, now: Instant, cost: Duration) {
        let until = now + (REST * cost).min(LONGEST_REST);
        self.rests_until = Some(until);
        // Events that came during the refresh wait too.
        let earliest = self
            .refreshed
            .map_or(until, |at| until.max(at + REFRESH_INTERVAL));
        self.due = self.due.map(|due| due.max(earliest));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn events_cause_one_refresh_in_an_interval() {
        let (mut evidence, now) = (Evidence::default(), Instant::now());
        evidence.note(now);
        assert_eq!(evidence.due(), Some(now));
        evidence.begin_refresh();
        evidence.take(now + MS);
        evidence.note(now + 2 * MS);
        evidence.note(now + 3 * MS);
        assert_eq!(evidence.due(), Some(now + MS + REFRESH_INTERVAL));
    }

    #[test]
    fn an_event_during_a_refresh_waits_for_the_interval() {
        let (mut evidence, now) = (Evidence::default(), Instant::now());
        evidence.note(now);
        evidence.begin_refresh();
        evidence.note(now + MS);
        evidence.take(now + 2 * MS);
        evidence.rest(now + 3 * MS, Duration::ZERO);
        assert_eq!(evidence.due(), Some(now + 2 * MS + REFRESH_INTERVAL));
    }

    #[test]
    fn a_departure_waits_for_the_report_of_the_guest() {
        let (mut evidence, now) = (Evidence::default(), Instant::now());
        evidence.note_departure(now);
        assert_eq!(evidence.due(), Some(now + EJECTION_GRACE));
        evidence.note(now + MS);
        assert_eq!(evidence.due(), Some(now + MS));
    }

    #[test]
    fn clues_stay_for_an_event_that_came_after_the_replies() {
        let (mut evidence, now) = (Evidence::default(), Instant::now());
        evidence.note_reset();
        evidence.note(now);
        evidence.begin_refresh();
        evidence.note(now);
        let (clues, _) = evidence.take(now);
        assert!(clues.reset);
        evidence.begin_refresh();
        assert!(evidence.take(now).0.reset);
        assert!(!evidence.take(now).0.reset);
    }

    #[test]
    fn a_costly_refresh_delays_the_next_one() {
        let (mut evidence, now) = (Evidence::default(), Instant::now());
        evidence.note(now);
        evidence.rest(now, 20 * MS);
        assert_eq!(evidence.due(), Some(now + 200 * MS));
        evidence.note(now + MS);
        assert_eq!(evidence.due(), Some(now + 200 * MS));
        evidence.rest(now, Duration::from_secs(9));
        assert_eq!(evidence.due(), Some(now + LONGEST_REST));
    }
}
