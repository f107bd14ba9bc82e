//! The counters of a machine at one moment.

use std::collections::BTreeMap;
use std::time::Duration;

use super::activity::Activity;
use super::kernel::{Throttling, Times};
use super::kvm::KvmCounters;
use crate::ids::{Pid, Tid, VcpuId};

/// The counters of a machine and its present vCPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Those of the machine.
    pub machine: MachineCounters,
    /// Those of the vCPUs, by number.
    pub vcpus: Vec<VcpuCounters>,
}

/// The counters of a machine. `None`: no value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MachineCounters {
    /// The time of the sample (`CLOCK_MONOTONIC`).
    pub timestamp: Duration,
    /// The CPU times.
    pub usage: Usage,
    /// The number of present vCPUs.
    pub vcpus: u32,
    /// The maximum number of vCPUs.
    pub max_vcpus: u32,
    /// The number of vCPUs with a pending removal.
    pub pending: u32,
    /// The number of vCPUs that the guest has started. `None`: there can be no evidence.
    pub started: Option<u32>,
    /// The counters of the service.
    pub activity: Activity,
}

/// The CPU times of a machine. `None`: no value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// That of all threads.
    pub all: Option<Duration>,
    /// That of the threads that are not vCPUs.
    pub emulator: Option<Duration>,
}

/// The counters of a vCPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VcpuCounters {
    /// Its number.
    pub id: VcpuId,
    /// How long it was runnable and did not run, without the time in which its control group was throttled.
    /// `None`: it has no thread of its own.
    pub wait: Option<Duration>,
    /// Those of its thread.
    pub thread: ThreadCounters,
    /// Those of KVM, if they were asked for.
    pub kvm: KvmCounters,
}

/// The kernel's counters of one thread. `None`: no value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThreadCounters {
    /// The thread.
    pub id: Tid,
    /// Its times.
    pub times: Option<Times>,
    /// The host CPU on which it ran last.
    pub host_cpu: Option<u32>,
    /// The throttling of its control group, if it has one of its own.
    pub throttling: Option<Throttling>,
}

/// The kernel's counters of a QEMU process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// The process.
    pub pid: Pid,
    /// The time at which the sample began (`CLOCK_MONOTONIC`).
    pub timestamp: Duration,
    /// The CPU time of the process.
    pub process: Option<Duration>,
    /// The CPU times of its control groups, if its vCPUs have groups of their own.
    pub groups: Usage,
    /// The threads of its vCPUs.
    pub threads: BTreeMap<VcpuId, ThreadCounters>,
}

impl Sample {
    /// Returns a sample that has only the time.
    pub fn at(timestamp: Duration) -> Self {
        Self {
            timestamp,
            ..Self::default()
        }
    }
}

/// The differences of counters that were reported last. The kernel changes the two sides of a difference one
/// after the other, so a sample in between can be too small, and no counter must decrease.
#[derive(Debug, Default)]
pub struct Reported {
    waits: BTreeMap<VcpuId, (Tid, Duration)>,
    emulator: Option<Emulator>,
}

/// The CPU time of the threads that are not vCPUs, without control groups.
#[derive(Debug, Default)]
struct Emulator {
    pid: Pid,
    time: Duration,
    /// The CPU times of the threads of vCPUs.
    vcpus: BTreeMap<Tid, Duration>,
    /// That of vCPUs that were removed, as far as it was sampled.
    removed: Duration,
}

impl Emulator {
    /// Takes the next sample of the process `pid`: its CPU time, and those of the threads of `vcpus`.
    fn next(self, pid: Pid, process: Duration, vcpus: BTreeMap<Tid, Duration>) -> Self {
        let before = if self.pid == pid {
            self
        } else {
            Self::default()
        };
        let removed = before
            .vcpus
            .iter()
            .filter(|(tid, _)| !vcpus.contains_key(tid));
        let removed = before.removed + removed.map(|(_, time)| *time).sum::<Duration>();
        let others = vcpus.values().sum::<Duration>() + removed;
        Self {
            pid,
            time: process.saturating_sub(others).max(before.time),
            vcpus,
            removed,
        }
    }
}

impl Reported {
    /// Returns the wait of each thread of `sample` that has times. Forgets all other threads.
    ///
    /// A thread counts as throttled when its group may run again, and as delayed only when it runs.
    pub fn waits(&mut self, sample: &Sample) -> BTreeMap<VcpuId, Duration> {
        let wait = |(vcpu, thread): (&VcpuId, &ThreadCounters)| {
            let throttled = thread.throttling.unwrap_or_default().time;
            let wait = thread.times?.delay.saturating_sub(throttled);
            let last = self.waits.get(vcpu).copied();
            Some((*vcpu, (thread.id, at_least(last, thread.id, wait))))
        };
        self.waits = sample.threads.iter().filter_map(wait).collect();
        let waits = self.waits.iter();
        waits.map(|(vcpu, (_, wait))| (*vcpu, *wait)).collect()
    }

    /// Returns the CPU times of a machine with `vcpus` present vCPUs. Without control groups, the threads that
    /// are not vCPUs have what the vCPUs have not.
    pub fn usage(&mut self, sample: &Sample, vcpus: u32) -> Usage {
        if sample.groups.all.is_some() {
            return sample.groups;
        }
        let threads = sample.threads.values();
        let usages = threads.filter_map(|thread| Some((thread.id, thread.times?.usage)));
        let usages: BTreeMap<Tid, Duration> = usages.collect();
        let process = sample.process.filter(|_| usages.len() == vcpus as usize);
        let time = process.map(|process| {
            let before = self.emulator.take().unwrap_or_default();
            let emulator = self
                .emulator
                .insert(before.next(sample.pid, process, usages));
            emulator.time
        });
        Usage {
            all: sample.process,
            emulator: time,
        }
    }
}

/// Returns `new`, or the `last` value of the same `owner` if that is greater.
fn at_least<T: PartialEq>(last: Option<(T, Duration)>, owner: T, new: Duration) -> Duration {
    match last {
        Some((of, last)) if of == owner => new.max(last),
        _ => new,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VCPU: VcpuId = VcpuId(3);

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Returns a sample with a vCPU.
    fn sample(thread: u32, delay: u64, throttled: Option<u64>) -> Sample {
        let counters = ThreadCounters {
            id: Tid(thread),
            times: Some(Times {
                usage: ms(900),
                delay: ms(delay),
            }),
            throttling: throttled.map(|time| Throttling {
                time: ms(time),
                ..Throttling::default()
            }),
            ..ThreadCounters::default()
        };
        Sample {
            pid: Pid(6),
            threads: [(VCPU, counters)].into(),
            ..Sample::default()
        }
    }

    #[test]
    fn throttling_is_not_steal() {
        let wait = |sample| Reported::default().waits(&sample)[&VCPU];
        assert_eq!(wait(sample(7, 500, None)), ms(500));
        assert_eq!(wait(sample(7, 500, Some(480))), ms(20));
        // A group that is older than the thread.
        assert_eq!(wait(sample(7, 500, Some(600))), ms(0));
    }

    #[test]
    fn the_wait_of_a_thread_never_decreases() {
        let mut reported = Reported::default();
        let mut wait = |sample| reported.waits(&sample)[&VCPU];
        assert_eq!(wait(sample(7, 500, Some(400))), ms(100));
        assert_eq!(wait(sample(7, 510, Some(480))), ms(100));
        assert_eq!(wait(sample(7, 600, Some(480))), ms(120));
        // Another thread begins at 0.
        assert_eq!(wait(sample(8, 5, None)), ms(5));
        assert_eq!(wait(sample(7, 50, None)), ms(50));
    }

    #[test]
    fn without_groups_the_emulator_has_what_the_vcpus_have_not() {
        let mut reported = Reported::default();
        let mut usage = |pid, process, vcpus| {
            let sample = Sample {
                pid: Pid(pid),
                process: Some(ms(process)),
                ..sample(7, 0, None)
            };
            reported.usage(&sample, vcpus)
        };
        let (all, emulator) = (Some(ms(1000)), Some(ms(100)));
        assert_eq!(usage(6, 1000, 1), Usage { all, emulator });
        assert_eq!(usage(6, 990, 1).emulator, emulator, "it never decreases");
        assert_eq!(usage(5, 990, 1).emulator, Some(ms(90)), "another process");
        let emulator = None;
        assert_eq!(usage(6, 1000, 2), Usage { all, emulator });
    }

    #[test]
    fn a_removed_vcpu_is_not_a_part_of_the_emulator() {
        let mut reported = Reported::default();
        let mut usage = |process, threads: &[u32]| {
            let thread = |tid: &u32| {
                let (_, thread) = sample(*tid, 0, None).threads.pop_first().unwrap();
                (VcpuId(*tid), thread)
            };
            let sample = Sample {
                pid: Pid(6),
                process: Some(ms(process)),
                threads: threads.iter().map(thread).collect(),
                ..Sample::default()
            };
            let vcpus = threads.len() as u32;
            reported.usage(&sample, vcpus).emulator
        };
        // Each thread has 900 ms.
        assert_eq!(usage(1900, &[7, 8]), Some(ms(100)));
        assert_eq!(usage(1910, &[7]), Some(ms(110)));
        assert_eq!(usage(2810, &[7, 9]), Some(ms(110)));
    }

    #[test]
    fn control_groups_are_preferred() {
        let groups = Usage {
            all: Some(ms(2000)),
            emulator: Some(ms(3)),
        };
        let sample = Sample {
            process: Some(ms(1000)),
            groups,
            ..sample(7, 0, None)
        };
        assert_eq!(Reported::default().usage(&sample, 1), groups);
    }

    #[test]
    fn a_vcpu_without_times_has_no_wait() {
        let mut sample = sample(7, 0, None);
        sample.threads.insert(VCPU, ThreadCounters::default());
        assert_eq!(Reported::default().waits(&sample), BTreeMap::new());
    }
}
