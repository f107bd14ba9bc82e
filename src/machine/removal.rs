//! The bookkeeping of removals: what QEMU was asked to unplug, and who waits for it.
//!
//! A removal is open from QEMU's consent to its end, which is one of *gone* (the inventory says
//! so) and *refused* (the guest or QEMU says so). It outlives the calls that wait for it: a
//! waiter that runs out of time leaves, the removal stays. Pure: no clock, no QEMU.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::error::{Error, Refusal, Report};
use super::handle::{Answer, Outcome};
use super::record::AskedRemoval;
use crate::ids::{SlotId, Uid, VcpuId};
use crate::inventory::Target;

/// All open removals of a machine, by the first vCPU of the entity, and all who wait.
#[derive(Debug, Default)]
pub(super) struct Removals {
    open: BTreeMap<SlotId, Removal>,
    /// Those that QEMU was asked for and has not answered. Where the connection breaks then, they
    /// explain what goes later.
    asking: BTreeMap<SlotId, Removal>,
    waiters: Vec<Waiting>,
}

/// An open removal.
#[derive(Clone, Debug)]
pub(super) struct Removal {
    /// The vCPUs of the entity.
    pub vcpus: Vec<VcpuId>,
    /// Who asked last.
    pub uid: Uid,
    /// When QEMU was last asked.
    pub asked: Instant,
    /// Whether the last that the guest had said of it then was a refusal, of a former request.
    /// Then QEMU's list tells nothing of this one: should its refusal be lost with the connection,
    /// it stays open until it is asked for again or the vCPU goes.
    pub refused_before: bool,
}

/// A call that waits until all of its removals have ended.
#[derive(Debug)]
pub(super) struct Waiter {
    /// What was asked for.
    pub asked: Target,
    /// The removals it waits for that are open.
    pub outstanding: BTreeSet<SlotId>,
    /// vCPUs that QEMU refused to unplug at once.
    pub rejected: Vec<Refusal>,
    /// How long it waits; `None` is not at all, and then what is open is no error.
    pub patience: Option<Duration>,
    /// Who asked.
    pub uid: Uid,
    pub answer: Answer,
}

/// A waiter and what it has seen end.
#[derive(Debug)]
struct Waiting {
    waiter: Waiter,
    removed: Vec<VcpuId>,
    refused: Vec<Refusal>,
    /// `None` is never.
    deadline: Option<Instant>,
}

/// Answers that are due. They are given after everything that led to them was told.
#[derive(Debug, Default)]
#[must_use]
pub(super) struct Due(Vec<Answered>);

/// Who asked, where the answer goes, and the answer.
type Answered = (Uid, Answer, Result<Outcome, Error>);

impl Due {
    /// Who asked, and the answers.
    pub(super) fn results(&self) -> impl Iterator<Item = (Uid, &Result<Outcome, Error>)> {
        self.0.iter().map(|(uid, _, result)| (*uid, result))
    }

    /// Gives the answers.
    pub(super) fn give(self) {
        for (_, answer, result) in self.0 {
            // A caller that went away does not mind.
            let _ = answer.send(result);
        }
    }
}

impl Removals {
    /// QEMU is about to be asked to unplug the entity of vCPU `first`.
    pub(super) fn ask(&mut self, first: SlotId, removal: Removal) {
        self.asking.insert(first, removal);
    }

    /// The last that the guest said of the entity of vCPU `first`, about which QEMU is being
    /// asked, is a refusal of a former request.
    pub(super) fn refused_before(&mut self, first: SlotId) {
        if let Some(removal) = self.asking.get_mut(&first) {
            removal.refused_before = true;
        }
    }

    /// QEMU agreed to unplug the entity of vCPU `first`, as it was asked to.
    pub(super) fn agreed(&mut self, first: SlotId) {
        if let Some(removal) = self.asking.remove(&first) {
            self.open.insert(first, removal);
        }
    }

    /// QEMU did not take the request for the entity of vCPU `first`. One that it took before
    /// stands.
    pub(super) fn rejected(&mut self, first: SlotId) {
        self.asking.remove(&first);
    }

    /// Who asked that the entity of vCPU `first` goes, though QEMU may not have heard.
    pub(super) fn asked_by(&self, first: SlotId) -> Option<Uid> {
        let removal = self.open.get(&first).or_else(|| self.asking.get(&first));
        removal.map(|removal| removal.uid)
    }

    /// The open removal of the entity of vCPU `first`.
    pub(super) fn get(&self, first: SlotId) -> Option<&Removal> {
        self.open.get(&first)
    }

    /// The first vCPUs of all entities that are leaving.
    pub(super) fn leaving(&self) -> BTreeSet<SlotId> {
        self.open.keys().copied().collect()
    }

    /// All vCPUs that are leaving, in ascending order.
    pub(super) fn pending_vcpus(&self) -> Vec<VcpuId> {
        self.open.values().flat_map(|r| r.vcpus.clone()).collect()
    }

    /// Lets a call wait. Whether it has to is seen when its answer is due.
    pub(super) fn wait(&mut self, waiter: Waiter) {
        // There is nothing to wait for where the call failed already.
        let patience = waiter.patience.filter(|_| waiter.rejected.is_empty());
        self.waiters.push(Waiting {
            deadline: Instant::now().checked_add(patience.unwrap_or_default()),
            waiter,
            removed: Vec::new(),
            refused: Vec::new(),
        });
    }

    /// The entity is gone. Returns its removal, if one was open.
    pub(super) fn gone(&mut self, first: SlotId) -> Option<Removal> {
        let removal = self.close(first)?;
        for waiting in &mut self.waiters {
            if waiting.waiter.outstanding.remove(&first) {
                waiting.removed.extend(&removal.vcpus);
                waiting.removed.sort_unstable();
            }
        }
        Some(removal)
    }

    /// The guest refused to give up the entity. Returns its removal, if one was open.
    pub(super) fn refused(&mut self, first: SlotId, reason: &str) -> Option<Removal> {
        let removal = self.close(first)?;
        for waiting in &mut self.waiters {
            if waiting.waiter.outstanding.remove(&first) {
                waiting.refused.push(Refusal {
                    vcpus: removal.vcpus.clone(),
                    reason: reason.to_owned(),
                });
            }
        }
        Some(removal)
    }

    fn close(&mut self, first: SlotId) -> Option<Removal> {
        let unanswered = self.asking.remove(&first);
        self.open.remove(&first).or(unanswered)
    }

    /// What is to be remembered over a restart.
    pub(super) fn record(&self) -> Vec<AskedRemoval> {
        let row = |removal: &Removal, agreed| AskedRemoval {
            vcpus: removal.vcpus.clone(),
            uid: removal.uid,
            agreed,
            refused_before: removal.refused_before,
        };
        let open = self.open.values().map(|removal| row(removal, true));
        let asking = self.asking.values().map(|removal| row(removal, false));
        open.chain(asking).collect()
    }

    /// Takes up what a former run of the service remembered.
    pub(super) fn recall(&mut self, recorded: Vec<AskedRemoval>) {
        for row in recorded {
            let Some(&first) = row.vcpus.first() else {
                continue;
            };
            let first = SlotId(first.get());
            let removal = Removal {
                vcpus: row.vcpus,
                uid: row.uid,
                asked: Instant::now(),
                refused_before: row.refused_before,
            };
            match row.agreed {
                true => self.open.insert(first, removal),
                false => self.asking.insert(first, removal),
            };
        }
    }

    /// Whether no removal is open.
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Whether a call waits.
    pub(super) fn is_waited_for(&self) -> bool {
        !self.waiters.is_empty()
    }

    /// When the next waiter runs out of time.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.waiters.iter().filter_map(|w| w.deadline).min()
    }

    /// Takes out the waiters that have nothing to wait for any more, or no time.
    pub(super) fn take_due(&mut self, now: Instant) -> Due {
        let is_due = |w: &Waiting| {
            let is_late = w.deadline.is_some_and(|deadline| deadline <= now);
            w.waiter.outstanding.is_empty() || is_late
        };
        let waiters = std::mem::take(&mut self.waiters).into_iter();
        let (due, waiting) = waiters.partition(is_due);
        self.waiters = waiting;
        Due(due.into_iter().map(|w: Waiting| self.result(w)).collect())
    }

    /// Takes out all waiters because the machine is gone, and forgets all removals.
    pub(super) fn take_all(&mut self) -> Due {
        self.open.clear();
        self.asking.clear();
        let all = std::mem::take(&mut self.waiters).into_iter();
        let gone = |w: Waiting| (w.waiter.uid, w.waiter.answer, Err(Error::Gone));
        Due(all.map(gone).collect())
    }

    fn result(&self, waiting: Waiting) -> Answered {
        let Waiting {
            waiter,
            removed,
            mut refused,
            ..
        } = waiting;
        let Waiter {
            asked,
            outstanding,
            rejected,
            patience,
            uid,
            answer,
        } = waiter;
        let open = outstanding.iter().filter_map(|first| self.open.get(first));
        let pending: Vec<VcpuId> = open.flat_map(|removal| removal.vcpus.clone()).collect();
        let was_rejected = !rejected.is_empty();
        refused.splice(0..0, rejected);
        let patience = patience.filter(|_| !pending.is_empty());
        if !was_rejected && refused.is_empty() && patience.is_none() {
            return (
                uid,
                answer,
                Ok(Outcome {
                    added: Vec::new(),
                    removed,
                    pending,
                }),
            );
        }
        let report = Box::new(Report {
            asked,
            added: Vec::new(),
            removed,
            pending,
            refused,
        });
        let error = match patience {
            _ if was_rejected => Error::QmpFailed(report),
            Some(waited) => Error::RemovalPending { report, waited },
            None => Error::GuestRefused(report),
        };
        (uid, answer, Err(error))
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    type Answered = oneshot::Receiver<Result<Outcome, Error>>;

    fn open(removals: &mut Removals, first: u32, width: u32) {
        let first = SlotId(first);
        let removal = Removal {
            vcpus: (first.get()..first.get() + width).map(VcpuId).collect(),
            uid: Uid(7),
            asked: Instant::now(),
            refused_before: false,
        };
        removals.ask(first, removal);
        removals.agreed(first);
    }

    fn wait(removals: &mut Removals, outstanding: &[u32]) -> Answered {
        wait_for(removals, outstanding, Some(Duration::from_secs(60)), vec![])
    }

    fn wait_for(
        removals: &mut Removals,
        outstanding: &[u32],
        patience: Option<Duration>,
        rejected: Vec<Refusal>,
    ) -> Answered {
        let (answer, answered) = oneshot::channel();
        let outstanding = outstanding.iter().copied().map(SlotId).collect();
        let asked = Target::Count(1);
        removals.wait(Waiter {
            asked,
            outstanding,
            rejected,
            patience,
            uid: Uid(7),
            answer,
        });
        answered
    }

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(61)
    }

    #[test]
    fn a_waiter_is_answered_when_all_of_its_removals_have_ended() {
        let mut removals = Removals::default();
        open(&mut removals, 4, 4);
        open(&mut removals, 8, 1);
        let mut first = wait(&mut removals, &[4, 8]);
        let mut second = wait(&mut removals, &[8]);
        assert_eq!(removals.pending_vcpus(), [4, 5, 6, 7, 8]);

        assert_eq!(removals.gone(SlotId(8)).unwrap().uid, 7);
        removals.take_due(Instant::now()).give();
        assert_eq!(second.try_recv().unwrap().unwrap().removed, [8]);
        assert!(first.try_recv().is_err(), "still waits for 4");

        removals.gone(SlotId(4)).unwrap();
        removals.take_due(Instant::now()).give();
        assert_eq!(first.try_recv().unwrap().unwrap().removed, [4, 5, 6, 7, 8]);
        assert!(!removals.is_waited_for() && removals.leaving().is_empty());
    }

    #[test]
    fn a_refusal_reaches_the_waiter_with_what_went() {
        let mut removals = Removals::default();
        open(&mut removals, 1, 1);
        open(&mut removals, 2, 1);
        let mut waiter = wait(&mut removals, &[1, 2]);
        removals.refused(SlotId(2), "busy").unwrap();
        removals.gone(SlotId(1)).unwrap();
        removals.take_due(Instant::now()).give();
        let Err(Error::GuestRefused(report)) = waiter.try_recv().unwrap() else {
            panic!("not refused");
        };
        assert_eq!(report.removed, [1]);
        assert_eq!(
            report.refused,
            [Refusal {
                vcpus: vec![VcpuId(2)],
                reason: "busy".into()
            }]
        );
    }

    #[test]
    fn at_the_deadline_the_waiter_leaves_and_the_removal_stays() {
        let mut removals = Removals::default();
        open(&mut removals, 1, 1);
        let mut waiter = wait(&mut removals, &[1]);
        removals.take_due(Instant::now()).give();
        assert!(waiter.try_recv().is_err(), "there is time left");
        removals.take_due(later()).give();
        let Err(Error::RemovalPending { report, .. }) = waiter.try_recv().unwrap() else {
            panic!("not pending");
        };
        assert_eq!(report.pending, [1]);
        assert_eq!(removals.leaving(), BTreeSet::from([SlotId(1)]));
    }

    #[test]
    fn what_was_never_asked_for_is_no_removal() {
        let mut removals = Removals::default();
        assert!(removals.gone(SlotId(3)).is_none());
        assert!(removals.refused(SlotId(3), "busy").is_none());
    }

    #[test]
    fn a_wait_without_end_has_no_deadline() {
        let mut removals = Removals::default();
        open(&mut removals, 1, 1);
        let _answered = wait_for(&mut removals, &[1], Some(Duration::MAX), vec![]);
        assert_eq!(removals.next_deadline(), None);
        assert!(removals.is_waited_for());
    }

    #[test]
    fn who_does_not_wait_is_told_what_is_open_and_what_was_refused() {
        let mut removals = Removals::default();
        open(&mut removals, 1, 1);
        open(&mut removals, 2, 1);
        let mut patient = wait_for(&mut removals, &[1, 2], None, vec![]);
        removals.take_due(Instant::now()).give();
        assert_eq!(patient.try_recv().unwrap().unwrap().pending, [1, 2]);

        let mut told = wait_for(&mut removals, &[1, 2], None, vec![]);
        removals.refused(SlotId(2), "busy").unwrap();
        removals.take_due(Instant::now()).give();
        let Err(Error::GuestRefused(report)) = told.try_recv().unwrap() else {
            panic!("not refused");
        };
        assert_eq!(report.pending, [1]);
    }

    #[test]
    fn what_qemu_rejects_is_told_at_once() {
        let mut removals = Removals::default();
        open(&mut removals, 1, 1);
        let rejected = vec![Refusal {
            vcpus: vec![VcpuId(2)],
            reason: "no".into(),
        }];
        let patience = Some(Duration::from_secs(60));
        let mut waiter = wait_for(&mut removals, &[1], patience, rejected.clone());
        removals.take_due(Instant::now()).give();
        let Err(Error::QmpFailed(report)) = waiter.try_recv().unwrap() else {
            panic!("not rejected");
        };
        assert_eq!(
            (report.pending, report.refused),
            (vec![VcpuId(1)], rejected)
        );
    }
}
