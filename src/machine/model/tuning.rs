//! Changes of the tuning of a machine.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::VcpuId;
use crate::placement::{
    Bandwidth, CpuList, HostCpus, Scheduler, Schemata, Step, Tuning, Unavailable,
};

/// A change of the tuning of a machine. An empty list of vCPUs is the default, which applies to all vCPUs
/// without a value of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TuningChange {
    /// The host CPUs of some vCPUs; `None` restores the default.
    Pin(BTreeSet<VcpuId>, Option<CpuList>),
    /// The CPU time of every vCPU.
    Bandwidth(Bandwidth),
    /// The scheduler of some vCPUs.
    Scheduler(BTreeSet<VcpuId>, Scheduler),
    /// The caches of some vCPUs; `None` restores the default. There is no default for all vCPUs, so an
    /// empty list here is all vCPUs of the machine.
    Cache(BTreeSet<VcpuId>, Option<Schemata>),
}

impl TuningChange {
    /// Returns the vCPUs that it names, if it is about single vCPUs.
    pub(in crate::machine) fn vcpus(&self) -> Option<&BTreeSet<VcpuId>> {
        match self {
            Self::Pin(vcpus, _) | Self::Scheduler(vcpus, _) | Self::Cache(vcpus, _) => Some(vcpus),
            Self::Bandwidth(_) => None,
        }
    }

    /// Checks that the host has the CPUs of this change. Earlier settings may name CPUs that are offline.
    ///
    /// # Errors
    /// Names the CPUs that the host does not have.
    pub(in crate::machine) fn check(&self, host: &HostCpus) -> Result<(), Unavailable> {
        match self {
            Self::Pin(_, Some(cpus)) => host.check_cpus(cpus),
            _ => Ok(()),
        }
    }

    /// Returns whether this change determines the value of `step` for `vcpu`, in the resulting `tuning`.
    pub(in crate::machine) fn decides(&self, vcpu: VcpuId, step: Step, tuning: &Tuning) -> bool {
        let names = |vcpus: &BTreeSet<VcpuId>, has_own: bool| {
            if vcpus.is_empty() {
                !has_own
            } else {
                vcpus.contains(&vcpu)
            }
        };
        match (self, step) {
            (Self::Pin(vcpus, _), Step::Cpus | Step::Affinity) => {
                names(vcpus, tuning.pins.contains_key(&vcpu))
            }
            (Self::Bandwidth(_), Step::Bandwidth) => true,
            (Self::Scheduler(vcpus, _), Step::Scheduler) => {
                names(vcpus, tuning.schedulers.contains_key(&vcpu))
            }
            (Self::Cache(vcpus, _), Step::Cache) => names(vcpus, false),
            _ => false,
        }
    }

    /// Returns `tuning` after the change, for a machine of at most `max` vCPUs.
    pub(in crate::machine) fn of(&self, tuning: &Tuning, max: u32) -> Tuning {
        let mut tuning = tuning.clone();
        match self {
            Self::Pin(vcpus, cpus) if vcpus.is_empty() => tuning.affinity.clone_from(cpus),
            Self::Pin(vcpus, cpus) => set(&mut tuning.pins, vcpus, cpus.as_ref()),
            Self::Bandwidth(bandwidth) => tuning.bandwidth = Some(*bandwidth),
            Self::Scheduler(vcpus, scheduler) if vcpus.is_empty() => {
                tuning.scheduler = Some(*scheduler);
            }
            Self::Scheduler(vcpus, scheduler) => {
                set(&mut tuning.schedulers, vcpus, Some(scheduler));
            }
            Self::Cache(vcpus, schemata) if vcpus.is_empty() => {
                set(
                    &mut tuning.cache,
                    &(0..max).map(VcpuId).collect(),
                    schemata.as_ref(),
                );
            }
            Self::Cache(vcpus, schemata) => set(&mut tuning.cache, vcpus, schemata.as_ref()),
        }
        tuning
    }
}

/// Gives each of `vcpus` this value of its own, or none.
fn set<T: Clone>(of: &mut BTreeMap<VcpuId, T>, vcpus: &BTreeSet<VcpuId>, value: Option<&T>) {
    for vcpu in vcpus {
        match value {
            Some(value) => of.insert(*vcpu, value.clone()),
            None => of.remove(vcpu),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_of_some_vcpus_or_of_all() {
        let cpus = |list: &str| Some(list.parse::<CpuList>().unwrap());
        let pin = |vcpus: &[u32], list| {
            TuningChange::Pin(vcpus.iter().copied().map(VcpuId).collect(), list)
        };
        let tuning = pin(&[1, 9], cpus("0-1")).of(&Tuning::default(), 4);
        assert_eq!(tuning.pins.keys().copied().collect::<Vec<_>>(), [1, 9]);
        let tuning = pin(&[], cpus("2")).of(&tuning, 4);
        assert_eq!(tuning.affinity, cpus("2"));
        assert_eq!(tuning.pins.len(), 2);
        let tuning = pin(&[9], None).of(&tuning, 4);
        assert_eq!(tuning.pins.keys().copied().collect::<Vec<_>>(), [1]);
        assert_eq!(pin(&[], None).of(&tuning, 4).affinity, None);

        let share: Schemata = "L3:0=f".parse().unwrap();
        let cache = TuningChange::Cache(BTreeSet::new(), Some(share));
        assert_eq!(cache.of(&tuning, 4).cache.len(), 4);
    }

    #[test]
    fn a_change_decides_over_what_it_names() {
        let tuning = Tuning {
            pins: [(VcpuId(2), "1".parse().unwrap())].into(),
            ..Tuning::default()
        };
        let decides = |change: &TuningChange, step| {
            let decides = |vcpu: &VcpuId| change.decides(*vcpu, step, &tuning);
            let vcpus = (0..4).map(VcpuId);
            vcpus.filter(decides).collect::<Vec<_>>()
        };
        let default = TuningChange::Pin(BTreeSet::new(), None);
        assert_eq!(decides(&default, Step::Cpus), [0, 1, 3]);
        assert!(decides(&default, Step::Bandwidth).is_empty());
        let pin = TuningChange::Pin([VcpuId(2), VcpuId(3)].into(), None);
        assert_eq!(decides(&pin, Step::Affinity), [2, 3]);
        let bandwidth = TuningChange::Bandwidth(Bandwidth::UNLIMITED);
        assert_eq!(decides(&bandwidth, Step::Bandwidth), [0, 1, 2, 3]);
        assert!(decides(&bandwidth, Step::Cpus).is_empty());
        let scheduler = TuningChange::Scheduler(BTreeSet::new(), Scheduler::Batch);
        assert_eq!(decides(&scheduler, Step::Scheduler), [0, 1, 2, 3]);
    }
}
