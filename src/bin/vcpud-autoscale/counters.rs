//! From two readings of the counters of a machine to a sample for the policy. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use vcpud::autoscale::{Load, MachineState, Sample};
use vcpud::proxy::{Statistics, number};

/// The counters of a machine at one time.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Reading {
    pub(crate) at: Duration,
    pub(crate) present: u32,
    pub(crate) max: u32,
    /// `None` if there can be no evidence.
    pub(crate) started: Option<u32>,
    pending: u32,
    vcpus: BTreeMap<u32, Times>,
}

/// The counters of a vCPU, in µs. CPU time and wait are absent if the kernel does not count them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Times {
    used: Option<u64>,
    stolen: Option<u64>,
    throttled: u64,
}

impl Reading {
    pub(crate) fn new((machine, vcpus): &Statistics) -> Self {
        let small = |key: &str| number(machine, key).and_then(|value| u32::try_from(value).ok());
        let times = vcpus.iter().filter_map(|vcpu| {
            let id = u32::try_from(number(vcpu, "id")?).ok()?;
            let times = Times {
                used: number(vcpu, "usage-usec"),
                stolen: number(vcpu, "wait-usec"),
                throttled: number(vcpu, "throttled-usec").unwrap_or_default(),
            };
            Some((id, times))
        });
        Self {
            at: Duration::from_micros(number(machine, "timestamp-usec").unwrap_or_default()),
            present: small("vcpus").unwrap_or_default(),
            max: small("max-vcpus").unwrap_or_default(),
            started: small("started"),
            pending: small("pending").unwrap_or_default(),
            vcpus: times.collect(),
        }
    }

    /// Returns the sample of this reading and the one before it.
    pub(crate) fn sample(&self, before: Option<&Self>, state: MachineState) -> Sample {
        Sample {
            at: self.at,
            present: self.present,
            started: self.started,
            pending: self.pending,
            state,
            load: before.and_then(|before| self.load(before)),
        }
    }

    /// Returns the mean load since `before`, if each present vCPU was counted all the time.
    fn load(&self, before: &Self) -> Option<Load> {
        let time = self.at.checked_sub(before.at)?;
        if time.is_zero() || self.vcpus.len() != self.present as usize {
            return None;
        }
        let mut sum = [0_u64; 3];
        for (id, now) in &self.vcpus {
            let before = before.vcpus.get(id)?;
            let growth = [
                now.used?.checked_sub(before.used?)?,
                now.stolen?.checked_sub(before.stolen?)?,
                now.throttled.saturating_sub(before.throttled),
            ];
            for (sum, growth) in sum.iter_mut().zip(growth) {
                *sum = sum.saturating_add(growth);
            }
        }
        let cpus = |time_used| Duration::from_micros(time_used).div_duration_f64(time);
        let [used, stolen, throttled] = sum.map(cpus);
        Some(Load {
            used,
            stolen,
            throttled,
        })
    }
}

/// Returns the state for the policy of a run state of QEMU.
pub(crate) fn state(word: &str) -> MachineState {
    match word {
        "running" => MachineState::Running,
        "prelaunch" => MachineState::Starting,
        "inmigrate" | "postmigrate" | "finish-migrate" | "colo" => MachineState::Migrating,
        "disconnected" | "shutdown" | "internal-error" | "guest-panicked" => {
            MachineState::Disconnected
        }
        _ => MachineState::Paused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(seconds: u64, vcpus: &[(u32, u64, u64)]) -> Reading {
        let times = vcpus.iter().map(|(id, used, stolen)| {
            let times = Times {
                used: Some(*used),
                stolen: Some(*stolen),
                throttled: 0,
            };
            (*id, times)
        });
        let vcpus: BTreeMap<u32, Times> = times.collect();
        Reading {
            at: Duration::from_secs(seconds),
            present: u32::try_from(vcpus.len()).unwrap(),
            vcpus,
            ..Reading::default()
        }
    }

    #[test]
    fn a_load_is_the_growth_of_all_vcpus() {
        let before = reading(10, &[(0, 0, 0), (1, 5_000_000, 0)]);
        let now = reading(12, &[(0, 2_000_000, 0), (1, 6_000_000, 500_000)]);
        let load = now.load(&before).unwrap();
        assert_eq!((load.used, load.stolen, load.throttled), (1.5, 0.25, 0.0));
    }

    #[test]
    fn a_load_needs_each_counter_twice() {
        let now = reading(12, &[(0, 2_000_000, 0), (1, 6_000_000, 0)]);
        assert_eq!(now.load(&reading(10, &[(0, 0, 0)])), None, "a new vCPU");
        let later = reading(10, &[(0, 3_000_000, 0), (1, 0, 0)]);
        assert_eq!(now.load(&later), None, "a new thread");
        assert_eq!(now.load(&now), None, "no time");
        let mut lacking = now.clone();
        lacking.present = 3;
        assert_eq!(lacking.load(&reading(10, &[(0, 0, 0), (1, 0, 0)])), None);
    }
}
