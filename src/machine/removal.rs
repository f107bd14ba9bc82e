//! The bookkeeping of removals: what QEMU was asked to unplug, and who waits for it.
//!
//! A removal is open from QEMU's consent to its end, which is one of *gone* (the inventory says
//! so) and *refused* (the guest or QEMU says so). It outlives the calls that wait for it: a
//! waiter that runs out of time leaves, the removal stays. Pure: no clock, no QEMU.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::error::{Error, Refusal};
use super::handle::{Answer, Outcome};

/// All open removals of a machine, by the first vCPU of the entity, and all who wait.
#[derive(Debug, Default)]
pub(super) struct Removals {
    open: BTreeMap<u32, Removal>,
    waiters: Vec<Waiter>,
}

/// An open removal.
#[derive(Clone, Debug)]
pub(super) struct Removal {
    /// The vCPUs of the entity.
    pub vcpus: Vec<u32>,
    /// Who asked last.
    pub uid: u32,
    /// When QEMU was last asked.
    pub asked: Instant,
}

/// A call that waits until all of its removals have ended.
#[derive(Debug)]
struct Waiter {
    asked: u32,
    /// The removals it waits for that are open.
    outstanding: BTreeSet<u32>,
    removed: Vec<u32>,
    refused: Vec<Refusal>,
    waited: Duration,
    /// `None` is never.
    deadline: Option<Instant>,
    answer: Answer,
}

/// Answers that are due. They are given after everything that led to them was told.
#[derive(Debug, Default)]
#[must_use]
pub(super) struct Due(Vec<(Answer, Result<Outcome, Error>)>);

impl Due {
    /// Gives the answers.
    pub(super) fn give(self) {
        for (answer, result) in self.0 {
            // A caller that went away does not mind.
            let _ = answer.send(result);
        }
    }
}

impl Removals {
    /// QEMU agreed to unplug the entity of vCPU `first`.
    pub(super) fn open(&mut self, first: u32, removal: Removal) {
        self.open.insert(first, removal);
    }

    /// The open removal of the entity of vCPU `first`.
    pub(super) fn get(&self, first: u32) -> Option<&Removal> {
        self.open.get(&first)
    }

    /// The first vCPUs of all entities that are leaving.
    pub(super) fn leaving(&self) -> BTreeSet<u32> {
        self.open.keys().copied().collect()
    }

    /// All vCPUs that are leaving, in ascending order.
    pub(super) fn pending_vcpus(&self) -> Vec<u32> {
        self.open.values().flat_map(|r| r.vcpus.clone()).collect()
    }

    /// Lets a call for `asked` vCPUs wait for the entities `outstanding`, which are all open;
    /// `removed` went already.
    pub(super) fn wait(
        &mut self,
        asked: u32,
        outstanding: BTreeSet<u32>,
        removed: Vec<u32>,
        waited: Duration,
        answer: Answer,
    ) {
        self.waiters.push(Waiter {
            asked,
            outstanding,
            removed,
            refused: Vec::new(),
            waited,
            deadline: Instant::now().checked_add(waited),
            answer,
        });
    }

    /// The entity is gone. Returns its removal, if one was open.
    pub(super) fn gone(&mut self, first: u32) -> Option<Removal> {
        let removal = self.open.remove(&first)?;
        for waiter in &mut self.waiters {
            if waiter.outstanding.remove(&first) {
                waiter.removed.extend(&removal.vcpus);
                waiter.removed.sort_unstable();
            }
        }
        Some(removal)
    }

    /// The guest refused to give up the entity. Returns its removal, if one was open.
    pub(super) fn refused(&mut self, first: u32, reason: &str) -> Option<Removal> {
        let removal = self.open.remove(&first)?;
        for waiter in &mut self.waiters {
            if waiter.outstanding.remove(&first) {
                waiter.refused.push(Refusal {
                    vcpus: removal.vcpus.clone(),
                    reason: reason.to_owned(),
                });
            }
        }
        Some(removal)
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
        let is_due = |w: &Waiter| {
            w.outstanding.is_empty() || w.deadline.is_some_and(|deadline| deadline <= now)
        };
        let (due, waiting) = std::mem::take(&mut self.waiters)
            .into_iter()
            .partition(is_due);
        self.waiters = waiting;
        Due(due.into_iter().map(|w: Waiter| self.result(w)).collect())
    }

    /// Takes out all waiters because the machine is gone, and forgets all removals.
    pub(super) fn take_all(&mut self) -> Due {
        self.open.clear();
        let all = std::mem::take(&mut self.waiters);
        Due(all
            .into_iter()
            .map(|w| (w.answer, Err(Error::Gone)))
            .collect())
    }

    fn result(&self, waiter: Waiter) -> (Answer, Result<Outcome, Error>) {
        let Waiter {
            asked,
            outstanding,
            removed,
            refused,
            waited,
            answer,
            ..
        } = waiter;
        let pending: Vec<u32> = outstanding
            .iter()
            .filter_map(|first| self.open.get(first))
            .flat_map(|removal| removal.vcpus.clone())
            .collect();
        let result = if !pending.is_empty() {
            Err(Error::RemovalPending {
                asked,
                removed,
                refused,
                pending,
                waited,
            })
        } else if !refused.is_empty() {
            Err(Error::GuestRefused {
                asked,
                removed,
                refused,
            })
        } else {
            Ok(Outcome {
                removed,
                ..Outcome::default()
            })
        };
        (answer, result)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    type Answered = oneshot::Receiver<Result<Outcome, Error>>;

    fn open(removals: &mut Removals, first: u32, width: u32) {
        let removal = Removal {
            vcpus: (first..first + width).collect(),
            uid: 7,
            asked: Instant::now(),
        };
        removals.open(first, removal);
    }

    fn wait(removals: &mut Removals, outstanding: &[u32]) -> Answered {
        let (answer, answered) = oneshot::channel();
        let outstanding = outstanding.iter().copied().collect();
        removals.wait(1, outstanding, vec![9], Duration::from_secs(60), answer);
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

        assert_eq!(removals.gone(8).unwrap().uid, 7);
        removals.take_due(Instant::now()).give();
        assert_eq!(second.try_recv().unwrap().unwrap().removed, [8, 9]);
        assert!(first.try_recv().is_err(), "still waits for 4");

        removals.gone(4).unwrap();
        removals.take_due(Instant::now()).give();
        assert_eq!(
            first.try_recv().unwrap().unwrap().removed,
            [4, 5, 6, 7, 8, 9]
        );
        assert!(!removals.is_waited_for() && removals.leaving().is_empty());
    }

    #[test]
    fn a_refusal_reaches_the_waiter_with_what_went() {
        let mut removals = Removals::default();
        open(&mut removals, 1, 1);
        open(&mut removals, 2, 1);
        let mut waiter = wait(&mut removals, &[1, 2]);
        removals.refused(2, "busy").unwrap();
        removals.gone(1).unwrap();
        removals.take_due(Instant::now()).give();
        let Err(Error::GuestRefused {
            removed, refused, ..
        }) = waiter.try_recv().unwrap()
        else {
            panic!("not refused");
        };
        assert_eq!(removed, [1, 9]);
        assert_eq!(
            refused,
            [Refusal {
                vcpus: vec![2],
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
        let Err(Error::RemovalPending { pending, .. }) = waiter.try_recv().unwrap() else {
            panic!("not pending");
        };
        assert_eq!(pending, [1]);
        assert_eq!(removals.leaving(), BTreeSet::from([1]));
    }

    #[test]
    fn what_was_never_asked_for_is_no_removal() {
        let mut removals = Removals::default();
        assert!(removals.gone(3).is_none());
        assert!(removals.refused(3, "busy").is_none());
    }

    #[test]
    fn a_wait_without_end_has_no_deadline() {
        let mut removals = Removals::default();
        open(&mut removals, 1, 1);
        let (answer, _answered) = oneshot::channel();
        removals.wait(1, BTreeSet::from([1]), vec![], Duration::MAX, answer);
        assert_eq!(removals.next_deadline(), None);
        assert!(removals.is_waited_for());
    }
}
