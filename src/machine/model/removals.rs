//! Pending removals, and the requests that wait for them.
//!
//! A removal is pending from QEMU's consent to its end: the vCPUs are removed (the inventory shows
//! it), or the removal is refused (the guest or QEMU says so). It outlives the requests that wait for
//! it: a request whose time runs out is answered, and the removal stays pending.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::error::{Error, Report};
use super::refusal::{Refusal, RefusalReason};
use super::request::{Answer, Outcome, RequestId};
use super::saved_state::AskedRemoval;
use crate::ids::{SlotId, Uid, VcpuId};
use crate::inventory::Target;

/// All pending removals of a machine, and all requests that wait.
#[derive(Debug, Default)]
pub(super) struct Removals {
    pending: BTreeMap<SlotId, Removal>,
    /// Removals that QEMU has not answered. If the connection is lost then, QEMU may not have received
    /// them: they are not pending, and explain why vCPUs are removed or refused later.
    requested: BTreeMap<SlotId, Removal>,
    waiters: Vec<Waiting>,
}

/// A removal that QEMU was asked for.
#[derive(Clone, Debug)]
pub(super) struct Removal {
    /// The vCPUs of the slot.
    pub vcpus: Vec<VcpuId>,
    /// The user who asked last.
    pub uid: Uid,
    /// The time of the last request to QEMU.
    pub asked: Instant,
    /// Whether the last report of the guest before that was a refusal of an earlier request. QEMU's
    /// list then shows nothing about this one: if the event of its refusal is lost with the
    /// connection, the removal stays pending until it is requested again or the vCPU is removed.
    pub refused_before: bool,
    /// The user of an earlier request for the slot, if QEMU may have that one without having answered it.
    pub earlier: Option<Uid>,
}

/// A request that waits until all of its removals have ended.
#[derive(Debug)]
pub(super) struct Waiter {
    /// The request.
    pub id: RequestId,
    /// The wanted vCPUs.
    pub target: Target,
    /// The pending removals that it waits for.
    pub outstanding: BTreeSet<SlotId>,
    /// vCPUs that QEMU refused to remove at once.
    pub rejected: Vec<Refusal>,
    /// How long it waits; `None` is not at all, and then a pending removal is a success.
    pub patience: Option<Duration>,
    /// The end of that time; `None` is never.
    pub deadline: Option<Instant>,
    /// When it is answered even if what it waits for has happened and is not reported; `None` is never.
    pub limit: Option<Instant>,
    /// The user who asked.
    pub uid: Uid,
}

/// A waiter, and the removals that have ended for it.
#[derive(Debug)]
struct Waiting {
    waiter: Waiter,
    removed: Vec<VcpuId>,
    refused: Vec<Refusal>,
    /// The same since the last report: the events are not emitted.
    unreported_removed: Vec<VcpuId>,
    unreported_refused: Vec<Refusal>,
}

/// A request that is answered, the user who made it, and the answer.
pub(super) type Answered = (RequestId, Uid, Answer);

impl Removals {
    /// Notes that QEMU is about to be asked to remove `slot`.
    pub(super) fn request(&mut self, slot: SlotId, mut removal: Removal) {
        removal.earlier = self.requested.get(&slot).map(|earlier| earlier.uid);
        self.requested.insert(slot, removal);
    }

    /// Notes that the last report of the guest about `slot`, which QEMU is being asked to remove, is a
    /// refusal of an earlier request.
    pub(super) fn note_refused_before(&mut self, slot: SlotId) {
        if let Some(removal) = self.requested.get_mut(&slot) {
            removal.refused_before = true;
        }
    }

    /// Notes that QEMU accepted the request for `slot`.
    pub(super) fn accept(&mut self, slot: SlotId) {
        if let Some(mut removal) = self.requested.remove(&slot) {
            removal.earlier = None;
            self.pending.insert(slot, removal);
        }
    }

    /// Notes that QEMU did not accept the request for `slot`. An earlier one stays pending, or may have
    /// reached QEMU.
    pub(super) fn reject(&mut self, slot: SlotId) {
        let rejected = self.requested.remove(&slot);
        if let Some(mut removal) = rejected
            && let Some(uid) = removal.earlier.take()
        {
            removal.uid = uid;
            self.requested.insert(slot, removal);
        }
    }

    /// Returns the user who asked for the removal of `slot`, even if QEMU may not have received it.
    pub(super) fn asked_by(&self, slot: SlotId) -> Option<Uid> {
        let removal = self.pending.get(&slot);
        let removal = removal.or_else(|| self.requested.get(&slot));
        removal.map(|removal| removal.uid)
    }

    /// Returns the pending removal of `slot`.
    pub(super) fn get(&self, slot: SlotId) -> Option<&Removal> {
        self.pending.get(&slot)
    }

    /// Returns the slots that are being removed.
    pub(super) fn pending_slots(&self) -> BTreeSet<SlotId> {
        self.pending.keys().copied().collect()
    }

    /// Returns the vCPUs that are being removed, in ascending order.
    pub(super) fn pending_vcpus(&self) -> Vec<VcpuId> {
        let removals = self.pending.values();
        removals.flat_map(|r| r.vcpus.iter().copied()).collect()
    }

    /// Lets a request wait. [`Self::take_due`] answers it, even if it need not wait.
    pub(super) fn wait(&mut self, mut waiter: Waiter) {
        if !waiter.rejected.is_empty() {
            // The request has failed already.
            waiter.patience = None;
        }
        self.waiters.push(Waiting {
            waiter,
            removed: Vec::new(),
            refused: Vec::new(),
            unreported_removed: Vec::new(),
            unreported_refused: Vec::new(),
        });
    }

    /// Ends the removal of `slot` because the slot is free. Returns it, if there was one.
    pub(super) fn removed(&mut self, slot: SlotId) -> Option<Removal> {
        let removal = self.end(slot)?;
        for waiting in self.waiting_for(slot) {
            waiting.unreported_removed.extend(&removal.vcpus);
        }
        Some(removal)
    }

    /// Ends the removal of `slot` because the guest refused it. Returns it, if there was one.
    pub(super) fn refused(&mut self, slot: SlotId, reason: &RefusalReason) -> Option<Removal> {
        let removal = self.end(slot)?;
        for waiting in self.waiting_for(slot) {
            waiting.unreported_refused.push(Refusal {
                vcpus: removal.vcpus.clone(),
                reason: reason.clone(),
            });
        }
        Some(removal)
    }

    fn end(&mut self, slot: SlotId) -> Option<Removal> {
        let unanswered = self.requested.remove(&slot);
        self.pending.remove(&slot).or(unanswered)
    }

    fn waiting_for(&mut self, slot: SlotId) -> impl Iterator<Item = &mut Waiting> {
        let waiters = self.waiters.iter_mut();
        waiters.filter_map(move |waiting| {
            let waits = waiting.waiter.outstanding.remove(&slot);
            waits.then_some(waiting)
        })
    }

    /// Returns the persisted form of the removals.
    pub(super) fn to_saved(&self) -> Vec<AskedRemoval> {
        let row = |removal: &Removal, agreed| AskedRemoval {
            vcpus: removal.vcpus.clone(),
            uid: removal.uid,
            agreed,
            refused_before: removal.refused_before,
        };
        let pending = self.pending.values().map(|removal| row(removal, true));
        let requested = self.requested.values().map(|removal| row(removal, false));
        pending.chain(requested).collect()
    }

    /// Restores the removals of a previous instance.
    pub(super) fn restore(&mut self, now: Instant, saved: Vec<AskedRemoval>) {
        for row in saved {
            let Some(&first) = row.vcpus.first() else {
                continue;
            };
            let removals = if row.agreed {
                &mut self.pending
            } else {
                &mut self.requested
            };
            let removal = Removal {
                vcpus: row.vcpus,
                uid: row.uid,
                asked: now,
                refused_before: row.refused_before,
                earlier: None,
            };
            removals.insert(SlotId(first.get()), removal);
        }
    }

    /// Returns whether a removal is pending.
    pub(super) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Returns whether a request waits.
    pub(super) fn is_awaited(&self) -> bool {
        !self.waiters.is_empty()
    }

    /// Returns when the time of the next waiter runs out.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.waiters.iter().filter_map(Waiting::deadline).min()
    }

    /// Takes out the waiters whose removals have all ended, whose time ran out, and that do not wait.
    /// To be called when all events that led to this were emitted.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<Answered> {
        self.waiters.iter_mut().for_each(Waiting::note_report);
        self.take(|w| w.has_finished() || !w.is_patient() || w.is_late(now))
    }

    /// Takes out the waiters whose time ran out.
    pub(super) fn take_late(&mut self, now: Instant) -> Vec<Answered> {
        self.take(|w| w.is_late(now))
    }

    fn take(&mut self, is_due: impl Fn(&Waiting) -> bool) -> Vec<Answered> {
        let waiters = std::mem::take(&mut self.waiters).into_iter();
        let (due, waiting) = waiters.partition(is_due);
        self.waiters = waiting;
        due.into_iter().map(|w: Waiting| self.answer(w)).collect()
    }

    /// Takes out all waiters, because the machine is gone.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = RequestId> {
        let all = std::mem::take(&mut self.waiters).into_iter();
        all.map(|waiting| waiting.waiter.id)
    }

    fn answer(&self, waiting: Waiting) -> Answered {
        let Waiting {
            waiter,
            removed,
            mut refused,
            unreported_removed,
            unreported_refused,
        } = waiting;
        let outstanding = waiter.outstanding.iter();
        let pending = outstanding.filter_map(|slot| self.pending.get(slot));
        let mut pending: Vec<VcpuId> = pending.flat_map(|removal| removal.vcpus.clone()).collect();
        // Their events follow.
        pending.extend(unreported_removed);
        pending.extend(unreported_refused.into_iter().flat_map(|r| r.vcpus));
        pending.sort_unstable();
        let was_rejected = !waiter.rejected.is_empty();
        refused.splice(0..0, waiter.rejected);
        let waited = waiter.patience.filter(|_| !pending.is_empty());
        let answer = if !was_rejected && refused.is_empty() && waited.is_none() {
            Ok(Outcome {
                added: Vec::new(),
                removed,
                pending,
            })
        } else {
            let report = Box::new(Report {
                asked: waiter.target,
                added: Vec::new(),
                removed,
                pending,
                refused,
            });
            Err(match waited {
                _ if was_rejected => Error::QmpFailed(report),
                Some(waited) => Error::RemovalPending {
                    report,
                    waited,
                    stopped: None,
                },
                None => Error::GuestRefused(report),
            })
        };
        (waiter.id, waiter.uid, answer)
    }
}

impl Waiting {
    fn is_patient(&self) -> bool {
        self.waiter.patience.is_some()
    }

    fn has_finished(&self) -> bool {
        self.waiter.outstanding.is_empty()
    }

    fn deadline(&self) -> Option<Instant> {
        if self.has_finished() || !self.is_patient() {
            self.waiter.limit
        } else {
            self.waiter.deadline
        }
    }

    fn is_late(&self, now: Instant) -> bool {
        self.deadline().is_some_and(|deadline| deadline <= now)
    }

    /// Notes that the events of all removals that have ended were emitted.
    fn note_report(&mut self) {
        self.removed.append(&mut self.unreported_removed);
        self.removed.sort_unstable();
        self.refused.append(&mut self.unreported_refused);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: Uid = Uid(7);

    fn slots(numbers: &[u32]) -> BTreeSet<SlotId> {
        numbers.iter().copied().map(SlotId).collect()
    }

    fn begin(removals: &mut Removals, now: Instant, slot: u32, width: u32) {
        let removal = Removal {
            vcpus: (slot..slot + width).map(VcpuId).collect(),
            uid: UID,
            asked: now,
            refused_before: false,
            earlier: None,
        };
        removals.request(SlotId(slot), removal);
        removals.accept(SlotId(slot));
    }

    fn wait(removals: &mut Removals, now: Instant, id: u64, outstanding: &[u32]) {
        wait_for(removals, now, id, outstanding, Some(60), vec![]);
    }

    fn wait_for(
        removals: &mut Removals,
        now: Instant,
        id: u64,
        outstanding: &[u32],
        seconds: Option<u64>,
        rejected: Vec<Refusal>,
    ) {
        let patience = seconds.map(Duration::from_secs);
        removals.wait(Waiter {
            id: RequestId(id),
            target: Target::Count(1),
            outstanding: slots(outstanding),
            rejected,
            patience,
            deadline: now.checked_add(patience.unwrap_or_default()),
            limit: patience.and_then(|patience| now.checked_add(patience)),
            uid: UID,
        });
    }

    fn ids(vcpus: &[VcpuId]) -> Vec<u32> {
        vcpus.iter().map(|vcpu| vcpu.get()).collect()
    }

    #[test]
    fn answers_a_waiter_when_all_of_its_removals_have_ended() {
        let (mut removals, now) = (Removals::default(), Instant::now());
        begin(&mut removals, now, 4, 4);
        begin(&mut removals, now, 8, 1);
        wait(&mut removals, now, 1, &[4, 8]);
        wait(&mut removals, now, 2, &[8]);
        assert_eq!(ids(&removals.pending_vcpus()), [4, 5, 6, 7, 8]);

        assert_eq!(removals.removed(SlotId(8)).unwrap().uid, UID);
        let due = removals.take_due(now);
        let [(RequestId(2), UID, Ok(outcome))] = &due[..] else {
            panic!("{due:?}");
        };
        assert_eq!(ids(&outcome.removed), [8]);

        removals.removed(SlotId(4)).unwrap();
        let due = removals.take_due(now);
        let [(RequestId(1), UID, Ok(outcome))] = &due[..] else {
            panic!("{due:?}");
        };
        assert_eq!(ids(&outcome.removed), [4, 5, 6, 7, 8]);
        assert!(!removals.is_awaited() && !removals.has_pending());
    }

    #[test]
    fn reports_a_refusal_with_what_was_removed() {
        let (mut removals, now) = (Removals::default(), Instant::now());
        begin(&mut removals, now, 1, 1);
        begin(&mut removals, now, 2, 1);
        wait(&mut removals, now, 1, &[1, 2]);
        removals.refused(SlotId(2), &"busy".into()).unwrap();
        removals.removed(SlotId(1)).unwrap();
        let due = removals.take_due(now);
        let [(_, _, Err(Error::GuestRefused(report)))] = &due[..] else {
            panic!("{due:?}");
        };
        assert_eq!(ids(&report.removed), [1]);
        let reason = RefusalReason::from("busy");
        let vcpus = vec![VcpuId(2)];
        assert_eq!(report.refused, [Refusal { vcpus, reason }]);
    }

    #[test]
    fn keeps_a_removal_pending_whose_waiter_is_late() {
        let (mut removals, now) = (Removals::default(), Instant::now());
        begin(&mut removals, now, 1, 1);
        wait(&mut removals, now, 1, &[1]);
        assert_eq!(removals.take_late(now), []);
        let due = removals.take_late(now + Duration::from_secs(61));
        let [(_, _, Err(Error::RemovalPending { report, .. }))] = &due[..] else {
            panic!("{due:?}");
        };
        assert_eq!(ids(&report.pending), [1]);
        assert_eq!(removals.pending_slots(), slots(&[1]));
    }

    #[test]
    fn a_removal_whose_event_is_not_emitted_is_pending_for_a_late_waiter() {
        let (mut removals, now) = (Removals::default(), Instant::now());
        begin(&mut removals, now, 1, 1);
        begin(&mut removals, now, 2, 1);
        wait(&mut removals, now, 1, &[1, 2]);
        removals.removed(SlotId(2)).unwrap();
        assert_eq!(removals.take_late(now), []);
        assert_eq!(removals.take_due(now), []);
        removals.removed(SlotId(1)).unwrap();
        let due = removals.take_late(now + Duration::from_secs(61));
        let [(_, _, Err(Error::RemovalPending { report, .. }))] = &due[..] else {
            panic!("{due:?}");
        };
        assert_eq!(
            (ids(&report.removed), ids(&report.pending)),
            (vec![2], vec![1])
        );
    }

    #[test]
    fn knows_no_removal_that_was_not_requested() {
        let mut removals = Removals::default();
        assert!(removals.removed(SlotId(3)).is_none());
        assert!(removals.refused(SlotId(3), &"busy".into()).is_none());
    }

    #[test]
    fn an_endless_wait_has_no_deadline() {
        let (mut removals, now) = (Removals::default(), Instant::now());
        begin(&mut removals, now, 1, 1);
        wait_for(&mut removals, now, 1, &[1], Some(u64::MAX), vec![]);
        assert_eq!(removals.next_deadline(), None);
        assert!(removals.is_awaited());
    }

    #[test]
    fn a_request_that_does_not_wait_gets_what_is_pending_and_what_was_refused() {
        let (mut removals, now) = (Removals::default(), Instant::now());
        begin(&mut removals, now, 1, 1);
        begin(&mut removals, now, 2, 1);
        wait_for(&mut removals, now, 1, &[1, 2], None, vec![]);
        assert_eq!(removals.next_deadline(), None);
        assert_eq!(removals.take_late(now), []);
        let due = removals.take_due(now);
        let [(_, _, Ok(outcome))] = &due[..] else {
            panic!("{due:?}");
        };
        assert_eq!(ids(&outcome.pending), [1, 2]);

        wait_for(&mut removals, now, 2, &[1, 2], None, vec![]);
        removals.refused(SlotId(2), &"busy".into()).unwrap();
        let due = removals.take_due(now);
        let [(_, _, Err(Error::GuestRefused(report)))] = &due[..] else {
            panic!("{due:?}");
        };
        assert_eq!(ids(&report.pending), [1]);
    }

    #[test]
    fn reports_at_once_what_qemu_rejects() {
        let (mut removals, now) = (Removals::default(), Instant::now());
        begin(&mut removals, now, 1, 1);
        let rejected = Refusal {
            vcpus: vec![VcpuId(2)],
            reason: "no".into(),
        };
        wait_for(&mut removals, now, 1, &[1], Some(60), vec![rejected]);
        let due = removals.take_due(now);
        let [(_, _, Err(Error::QmpFailed(report)))] = &due[..] else {
            panic!("{due:?}");
        };
        assert_eq!(ids(&report.pending), [1]);
    }

    #[test]
    fn a_rejected_request_leaves_an_earlier_one_pending() {
        let (mut removals, now) = (Removals::default(), Instant::now());
        begin(&mut removals, now, 1, 1);
        let again = removals.get(SlotId(1)).unwrap().clone();
        removals.request(SlotId(1), again);
        removals.reject(SlotId(1));
        assert_eq!(removals.pending_slots(), slots(&[1]));
    }

    #[test]
    fn an_unanswered_request_explains_what_is_gone_later() {
        let (mut removals, now) = (Removals::default(), Instant::now());
        let removal = Removal {
            vcpus: vec![VcpuId(3)],
            uid: UID,
            asked: now,
            refused_before: false,
            earlier: None,
        };
        removals.request(SlotId(3), removal);
        assert_eq!(removals.asked_by(SlotId(3)), Some(UID));
        assert!(!removals.has_pending());
        let mut restored = Removals::default();
        restored.restore(now, removals.to_saved());
        assert_eq!(restored.asked_by(SlotId(3)), Some(UID));
        assert_eq!(restored.removed(SlotId(3)).unwrap().uid, UID);
    }
    #[test]
    fn a_rejected_request_leaves_an_earlier_one_that_qemu_may_have() {
        let (mut removals, now) = (Removals::default(), Instant::now());
        let removal = |uid| Removal {
            vcpus: vec![VcpuId(3)],
            uid: Uid(uid),
            asked: now,
            refused_before: false,
            earlier: None,
        };
        removals.request(SlotId(3), removal(7));
        removals.request(SlotId(3), removal(8));
        removals.reject(SlotId(3));
        assert_eq!(removals.asked_by(SlotId(3)), Some(Uid(7)));
        removals.reject(SlotId(3));
        assert_eq!(removals.asked_by(SlotId(3)), None);
    }
}
