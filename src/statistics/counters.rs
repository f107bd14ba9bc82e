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
    /// The number of vCPUs that the guest has started, as far as there is evidence.
    pub started: u32,
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
    emulator: Option<(Pid, Duration)>,
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
        let usages = sample.threads.values().filter_map(|thread| thread.times);
        let usages: Vec<Duration> = usages.map(|times| times.usage).collect();
        let is_complete = usages.len() == vcpus as usize;
        let process = sample.process.filter(|_| is_complete);
        self.emulator = process.map(|process| {
            let emulator = process.saturating_sub(usages.iter().sum());
            (sample.pid, at_least(self.emulator, sample.pid, emulator))
        });
        Usage {
            all: sample.process,
            emulator: self.emulator.map(|(_, emulator)| emulator),
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
