//! Changes of the tuning of a machine.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::VcpuId;
use crate::placement::{
    Bandwidth, CpuList, HostCpus, Scheduler, Schemata, Step, StepError, Tuning, Unavailable,
};

/// A change of the tuning of a machine. An empty list of vCPUs is the default, which applies to all vCPUs
/// without a value of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TuningChange {
    /// The host CPUs of some vCPUs; `None` restores the default.
    Pin(BTreeSet<VcpuId>, Option<CpuList>),
    /// The CPU time of every vCPU.
    Bandwidth(Bandwidth),
    /// The scheduler of some vCPUs; `None` restores the default.
    Scheduler(BTreeSet<VcpuId>, Option<Scheduler>),
    /// The caches of some vCPUs; `None` restores the default. There is no default for all vCPUs, so an
    /// empty list here is all vCPUs of the machine.
    Cache(BTreeSet<VcpuId>, Option<Schemata>),
}

/// The kind of a change of the tuning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TuningKind {
    /// The host CPUs of vCPUs.
    Pin,
    /// The CPU time of vCPUs.
    Bandwidth,
    /// The scheduler of vCPUs.
    Scheduler,
    /// The caches of vCPUs.
    Cache,
}

impl TuningKind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Pin, Self::Bandwidth, Self::Scheduler, Self::Cache];

    /// Returns the word for it: the detail `operation` of polkit, and the argument of `CanTune`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pin => "pin",
            Self::Bandwidth => "bandwidth",
            Self::Scheduler => "scheduler",
            Self::Cache => "cache",
        }
    }

    /// Returns the kind with this word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }
}

impl TuningChange {
    /// Returns its kind.
    pub fn kind(&self) -> TuningKind {
        match self {
            Self::Pin(..) => TuningKind::Pin,
            Self::Bandwidth(_) => TuningKind::Bandwidth,
            Self::Scheduler(..) => TuningKind::Scheduler,
            Self::Cache(..) => TuningKind::Cache,
        }
    }

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

    /// Returns the step that the host or the unit must support for this change, if any host may lack it.
    pub(in crate::machine) fn needs(&self) -> Option<Step> {
        match self {
            Self::Bandwidth(bandwidth) => bandwidth.quota().map(|_| Step::Bandwidth),
            Self::Cache(_, schemata) => schemata.as_ref().map(|_| Step::Cache),
            Self::Pin(..) | Self::Scheduler(..) => None,
        }
    }

    /// Returns whether `error` of `vcpu` means that a value of this change is not in force, with the
    /// resulting `tuning`.
    pub(in crate::machine) fn fails_with(
        &self,
        vcpu: VcpuId,
        error: &StepError,
        tuning: &Tuning,
    ) -> bool {
        let names = |vcpus: &BTreeSet<VcpuId>, has_own: bool| {
            if vcpus.is_empty() {
                !has_own
            } else {
                vcpus.contains(&vcpu)
            }
        };
        let (is_named, steps): (bool, &[Step]) = match self {
            Self::Pin(vcpus, _) => {
                let is_named = names(vcpus, tuning.pins.contains_key(&vcpu));
                (is_named, &[Step::Cpus, Step::Affinity])
            }
            // A vCPU outside of its group has no limit.
            Self::Bandwidth(bandwidth) if bandwidth.quota().is_none() => (true, &[Step::Bandwidth]),
            Self::Bandwidth(_) => (true, &[Step::Group, Step::Thread, Step::Bandwidth]),
            Self::Scheduler(vcpus, _) => {
                let is_named = names(vcpus, tuning.schedulers.contains_key(&vcpu));
                (is_named, &[Step::Scheduler])
            }
            Self::Cache(vcpus, _) => (names(vcpus, false), &[Step::Cache]),
        };
        is_named && (error.is_of_thread() || steps.contains(&error.step))
    }

    /// Returns `tuning` after the change, for a machine of at most `max` vCPUs.
    pub(in crate::machine) fn of(&self, tuning: &Tuning, max: u32) -> Tuning {
        let mut tuning = tuning.clone();
        match self {
            Self::Pin(vcpus, cpus) if vcpus.is_empty() => tuning.affinity.clone_from(cpus),
            Self::Pin(vcpus, cpus) => set(&mut tuning.pins, vcpus, cpus.as_ref()),
            Self::Bandwidth(bandwidth) => tuning.bandwidth = Some(*bandwidth),
            Self::Scheduler(vcpus, scheduler) if vcpus.is_empty() => {
                tuning.scheduler = *scheduler;
            }
            Self::Scheduler(vcpus, scheduler) => {
                set(&mut tuning.schedulers, vcpus, scheduler.as_ref());
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
    use crate::placement::Reason;

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
    fn a_scheduler_is_of_some_vcpus_or_the_default() {
        let change = |vcpus: &[u32], scheduler| {
            TuningChange::Scheduler(vcpus.iter().copied().map(VcpuId).collect(), scheduler)
        };
        let tuning = change(&[], Some(Scheduler::Idle)).of(&Tuning::default(), 4);
        let tuning = change(&[1, 2], Some(Scheduler::Batch)).of(&tuning, 4);
        let tuning = change(&[2], None).of(&tuning, 4);
        let of = |tuning: &Tuning| [1, 2].map(|vcpu| tuning.of(VcpuId(vcpu)).scheduler);
        assert_eq!(of(&tuning), [Some(Scheduler::Batch), Some(Scheduler::Idle)]);
        let tuning = change(&[], None).of(&tuning, 4);
        assert_eq!(of(&tuning), [Some(Scheduler::Batch), None]);
    }

    #[test]
    fn a_change_fails_with_the_steps_of_the_vcpus_that_it_names() {
        let tuning = Tuning {
            pins: [(VcpuId(2), "1".parse().unwrap())].into(),
            ..Tuning::default()
        };
        let failing = |change: &TuningChange, error: &StepError| {
            let fails = |vcpu: &VcpuId| change.fails_with(*vcpu, error, &tuning);
            let vcpus = (0..4).map(VcpuId);
            vcpus.filter(fails).collect::<Vec<_>>()
        };
        let fails = |change: &TuningChange, step: Step| {
            failing(change, &step.failed("/", Reason::NoGroups))
        };
        let default = TuningChange::Pin(BTreeSet::new(), None);
        assert_eq!(fails(&default, Step::Cpus), [0, 1, 3]);
        assert!(fails(&default, Step::Bandwidth).is_empty());
        assert!(fails(&default, Step::Thread).is_empty());
        let pin = TuningChange::Pin([VcpuId(2), VcpuId(3)].into(), None);
        assert_eq!(fails(&pin, Step::Affinity), [2, 3]);
        let ended = Step::Scheduler.failed("/", Reason::Ended);
        assert_eq!(failing(&pin, &ended), [2, 3]);
        let limit = TuningChange::Bandwidth(Bandwidth::new(100_000, 1_000).unwrap());
        for step in [Step::Group, Step::Thread, Step::Bandwidth] {
            assert_eq!(fails(&limit, step), [0, 1, 2, 3]);
        }
        assert!(fails(&limit, Step::Cpus).is_empty());
        let unlimited = TuningChange::Bandwidth(Bandwidth::UNLIMITED);
        assert!(fails(&unlimited, Step::Thread).is_empty());
        let scheduler = TuningChange::Scheduler(BTreeSet::new(), Some(Scheduler::Batch));
        assert_eq!(fails(&scheduler, Step::Scheduler), [0, 1, 2, 3]);
    }

    #[test]
    fn a_change_has_the_word_of_its_kind() {
        for (change, word) in [
            (TuningChange::Pin(BTreeSet::new(), None), "pin"),
            (TuningChange::Bandwidth(Bandwidth::UNLIMITED), "bandwidth"),
            (TuningChange::Scheduler(BTreeSet::new(), None), "scheduler"),
            (TuningChange::Cache(BTreeSet::new(), None), "cache"),
        ] {
            assert_eq!(change.kind().as_str(), word);
            assert_eq!(TuningKind::parse(word), Some(change.kind()));
        }
        assert_eq!(TuningKind::parse("Pin"), None);
    }

    #[test]
    fn only_a_limit_and_a_share_of_caches_need_support() {
        let limit = |quota| TuningChange::Bandwidth(Bandwidth::new(100_000, quota).unwrap());
        let cache = |share: Option<&str>| {
            TuningChange::Cache(BTreeSet::new(), share.map(|share| share.parse().unwrap()))
        };
        let none = BTreeSet::new;
        for (change, needed) in [
            (limit(1_000), Some(Step::Bandwidth)),
            (limit(-1), None),
            (cache(Some("L3:0=f")), Some(Step::Cache)),
            (cache(None), None),
            (TuningChange::Pin(none(), None), None),
            (
                TuningChange::Scheduler(none(), Some(Scheduler::Fifo(1))),
                None,
            ),
        ] {
            assert_eq!(change.needs(), needed, "{change:?}");
        }
    }
}
