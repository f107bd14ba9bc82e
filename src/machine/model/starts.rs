//! The vCPUs that the guest has started, and the requests that wait for it.
//!
//! QEMU adds a vCPU without the guest, and does not report whether the guest ever runs code on it. The evidence
//! is the number of the vCPU's exits, which KVM counts only when it leaves guest code, or the CPU time of its
//! thread: a thread whose vCPU was never started sleeps, except when QEMU wakes it for a moment. A vCPU is
//! started until it is removed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::error::Error;
use super::event::VcpuChange;
use super::request::{Answer, AwaitStart, Outcome, RequestId};
use super::snapshot::Snapshot;
use crate::ids::VcpuId;
use crate::inventory::Inventory;

/// The pause before the first look at a new vCPU. Linux takes note of it after 20 ms at the earliest.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// The looks end after this time, unless a request waits.
const LONGEST_WATCH: Duration = Duration::from_secs(60);
/// The longest pause while a request waits.
const AWAITED_PAUSE: Duration = Duration::from_secs(1);
/// QEMU wakes a thread whose vCPU is not started for 0.03 to 0.4 ms, for example when another vCPU is added, or
/// the guest is paused or reset (measured with QEMU 10.0). To start a vCPU takes Linux more than this in all.
const NOISE: Duration = Duration::from_millis(5);
/// The share of a CPU that such wake-ups may use for a long time is one part of this.
const NOISE_SHARE: u32 = 10_000;

/// The evidence about one vCPU that a look found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// The number of its exits, if KVM counts them.
    pub exits: Option<u64>,
    /// The CPU time of its thread, if it has one of its own.
    pub cpu_time: Option<Duration>,
}

/// A vCPU without evidence that it is started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Awaited {
    /// How it was added. `None`: it was present when the machine was seen for the first time.
    pub added: Option<VcpuChange>,
    /// The number of exits without evidence: KVM gives the counters of a removed vCPU to the next one in its
    /// slot. `None`: that of the first look.
    pub exits: Option<u64>,
    /// The CPU time without evidence, and when it was read.
    #[serde(skip)]
    cpu_time: Option<(Duration, Instant)>,
}

/// The vCPUs that are not started yet, by number.
pub type AwaitedVcpus = BTreeMap<VcpuId, Awaited>;

/// The present vCPUs without evidence, and the requests that wait for it.
#[derive(Debug, Default)]
pub(super) struct Starts {
    awaited: AwaitedVcpus,
    /// Those that the guest agent reports as online.
    online: BTreeSet<VcpuId>,
    watch: Option<Watch>,
    looked: Option<Instant>,
    waiters: Vec<StartWaiter>,
}

/// The looks that are due without a request.
#[derive(Debug)]
struct Watch {
    due: Instant,
    pause: Duration,
    end: Instant,
}

/// A request that waits.
#[derive(Debug)]
struct StartWaiter {
    id: RequestId,
    request: AwaitStart,
    deadline: Instant,
}

impl Starts {
    /// Begins with the vCPUs of a machine that is seen for the first time. The counters of a vCPU from the start
    /// of QEMU are its own.
    pub(super) fn begin(&mut self, inventory: &Inventory) {
        let rows = inventory.present().flat_map(|(slot, presence)| {
            let path = presence.qom_path.as_str();
            let exits = path.starts_with("/machine/unattached/").then_some(0);
            let awaited = Awaited {
                exits,
                ..Awaited::default()
            };
            slot.vcpus().map(move |vcpu| (vcpu, awaited.clone()))
        });
        self.awaited = rows.collect();
    }

    /// Restores the vCPUs of a previous instance.
    pub(super) fn restore(&mut self, awaited: AwaitedVcpus) {
        self.awaited = awaited;
    }

    /// Returns the persisted form.
    pub(super) fn to_saved(&self) -> AwaitedVcpus {
        self.awaited.clone()
    }

    /// Returns the vCPUs without evidence, in ascending order.
    pub(super) fn awaited(&self) -> Vec<VcpuId> {
        self.awaited.keys().copied().collect()
    }

    /// Looks for evidence from now on, with growing pauses.
    pub(super) fn watch(&mut self, now: Instant) {
        self.watch = Some(Watch {
            due: now + FIRST_PAUSE,
            pause: FIRST_PAUSE,
            end: now + LONGEST_WATCH,
        });
    }

    /// Notes that QEMU may have woken the threads in the meantime.
    pub(super) fn discard_times(&mut self) {
        for awaited in self.awaited.values_mut() {
            awaited.cpu_time = None;
        }
    }

    /// Notes that vCPUs were added.
    pub(super) fn added(&mut self, now: Instant, changes: impl Iterator<Item = VcpuChange>) {
        // QEMU wakes the threads of the others.
        self.discard_times();
        self.awaited.extend(changes.map(|change| {
            let vcpu = change.id;
            let added = Some(change);
            (
                vcpu,
                Awaited {
                    added,
                    ..Awaited::default()
                },
            )
        }));
        self.watch(now);
    }

    /// Notes that vCPUs were removed.
    pub(super) fn removed(&mut self, vcpus: &[VcpuId]) {
        for vcpu in vcpus {
            self.awaited.remove(vcpu);
            self.online.remove(vcpu);
        }
    }

    /// Notes vCPUs that the guest agent reports as online. The next refresh reports them as started. Returns
    /// whether one is news.
    pub(super) fn note_online(&mut self, vcpus: impl Iterator<Item = VcpuId>) -> bool {
        let before = self.online.len();
        let news = vcpus.filter(|vcpu| self.awaited.contains_key(vcpu));
        self.online.extend(news);
        self.online.len() != before
    }

    /// Takes the evidence of a look, while the guest ran or not. Returns how the vCPUs were added that are
    /// started.
    pub(super) fn note(
        &mut self,
        now: Instant,
        readings: &BTreeMap<VcpuId, Reading>,
        is_running: bool,
    ) -> Vec<VcpuChange> {
        for (vcpu, reading) in readings {
            if let Some(awaited) = self.awaited.get_mut(vcpu)
                && awaited.is_started(now, *reading, is_running)
            {
                self.online.insert(*vcpu);
            }
        }
        if !is_running && !readings.is_empty() {
            // The guest starts nothing before it runs, and `watch` is called again then.
            self.watch = None;
        }
        let started = std::mem::take(&mut self.online).into_iter();
        let started = started.filter_map(|vcpu| self.awaited.remove(&vcpu)?.added);
        started.collect()
    }

    /// Returns when the next look is due without a request.
    pub(super) fn look_due(&self) -> Option<Instant> {
        let watch = self.watch.as_ref().filter(|_| !self.awaited.is_empty());
        watch.map(|watch| watch.due)
    }

    /// Returns whether a look began less than `age` ago, or no vCPU needs one.
    pub(super) fn is_recent(&self, now: Instant, age: Duration) -> bool {
        self.awaited.is_empty() || self.looked.is_some_and(|at| now < at + age)
    }

    /// Returns the vCPUs to look at, and makes the next look due later.
    pub(super) fn begin_look(&mut self, now: Instant) -> BTreeSet<VcpuId> {
        self.looked = Some(now);
        let is_awaited = !self.waiters.is_empty();
        if let Some(watch) = self.watch.as_mut().filter(|watch| watch.due <= now) {
            let longest = if is_awaited {
                AWAITED_PAUSE
            } else {
                LONGEST_WATCH
            };
            watch.pause = (watch.pause * 2).min(longest);
            watch.due = now + watch.pause;
            if watch.due > watch.end && !is_awaited {
                self.watch = None;
            }
        }
        self.awaited.keys().copied().collect()
    }

    /// Lets a request wait.
    pub(super) fn wait(&mut self, now: Instant, id: RequestId, request: AwaitStart) {
        // A deadline that the clock does not have is as late as any.
        let longest = Duration::from_secs(u32::MAX.into());
        let deadline = now + request.left.min(longest);
        if self.watch.is_none() {
            self.watch(now);
        }
        self.waiters.push(StartWaiter {
            id,
            request,
            deadline,
        });
    }

    /// Returns when the time of the next request runs out.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.waiters.iter().map(|waiter| waiter.deadline).min()
    }

    /// Takes out the requests whose vCPUs are started according to `snapshot`, and those whose time ran out.
    pub(super) fn take_due(
        &mut self,
        now: Instant,
        snapshot: &Snapshot,
    ) -> Vec<(RequestId, Answer)> {
        let waiters = std::mem::take(&mut self.waiters).into_iter();
        let outstanding = |waiter: &StartWaiter| -> Vec<VcpuId> {
            let awaited = snapshot.awaited.iter().copied();
            let awaited = awaited.filter(|vcpu| waiter.request.vcpus.contains(vcpu));
            awaited.collect()
        };
        let (due, waiting) =
            waiters.partition(|waiter| waiter.deadline <= now || outstanding(waiter).is_empty());
        self.waiters = waiting;
        let due: Vec<StartWaiter> = due;
        let answers = due.into_iter().map(|waiter| {
            let vcpus = outstanding(&waiter);
            let answer = if vcpus.is_empty() {
                Ok(Outcome::default())
            } else {
                Err(waiter.error(vcpus, snapshot))
            };
            (waiter.id, answer)
        });
        answers.collect()
    }

    /// Takes out all requests, because the machine is gone.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = RequestId> {
        let all = std::mem::take(&mut self.waiters).into_iter();
        all.map(|waiter| waiter.id)
    }
}

impl StartWaiter {
    fn error(&self, vcpus: Vec<VcpuId>, snapshot: &Snapshot) -> Error {
        let AwaitStart {
            asked,
            added,
            patience,
            ..
        } = self.request.clone();
        Error::DidNotStart {
            asked,
            added,
            vcpus,
            waited: patience,
            stopped: snapshot.stopped(),
        }
    }
}

impl Awaited {
    /// Returns whether `reading` is evidence. If not, it is what later readings are compared with.
    fn is_started(&mut self, now: Instant, reading: Reading, is_running: bool) -> bool {
        if let Some(exits) = reading.exits {
            return exits > *self.exits.get_or_insert(exits);
        }
        let Some(cpu_time) = reading.cpu_time else {
            return false;
        };
        match self.cpu_time {
            Some((before, at)) if is_running => {
                cpu_time > before + NOISE + (now - at) / NOISE_SHARE
            }
            _ => {
                self.cpu_time = Some((cpu_time, now));
                false
            }
        }
    }
}

#[cfg(test)]
mod tests;
