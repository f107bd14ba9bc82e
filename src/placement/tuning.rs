//! The desired values of the placement of a machine's vCPUs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::bandwidth::Bandwidth;
use super::list::{CpuList, NodeList};
use super::scheduler::Scheduler;
use super::schemata::Schemata;
use crate::ids::VcpuId;

/// The desired values for the vCPUs of one machine, present or not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Tuning {
    /// The host CPUs of vCPUs without a pin of their own. `None`: all that are online and not isolated.
    pub affinity: Option<CpuList>,
    /// The host CPUs of some vCPUs.
    pub pins: BTreeMap<VcpuId, CpuList>,
    /// The memory nodes of all vCPUs. `None`: those of the unit.
    pub memory_nodes: Option<NodeList>,
    /// The CPU time of each vCPU. `None`: no limit.
    pub bandwidth: Option<Bandwidth>,
    /// The scheduler of vCPUs without one of their own. `None`: the one of the thread.
    pub scheduler: Option<Scheduler>,
    /// The scheduler of some vCPUs.
    pub schedulers: BTreeMap<VcpuId, Scheduler>,
    /// The cache allocation of some vCPUs.
    pub cache: BTreeMap<VcpuId, Schemata>,
}

/// The desired values for one vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted<'a> {
    /// Its host CPUs; `None`: the host's default.
    pub cpus: Option<&'a CpuList>,
    /// Its memory nodes; `None`: those of the unit.
    pub nodes: Option<&'a NodeList>,
    /// Its CPU time.
    pub bandwidth: Bandwidth,
    /// Its scheduler; `None`: the one of the thread.
    pub scheduler: Option<Scheduler>,
    /// Its cache allocation; `None`: the host's default.
    pub cache: Option<&'a Schemata>,
}

/// The CPUs and memory nodes of a host, as the kernel has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostCpus {
    /// The CPUs that are online.
    pub online: CpuList,
    /// The CPUs that exist or can be plugged.
    pub possible: CpuList,
    /// The CPUs that run only what is pinned to them (`isolcpus=`).
    pub isolated: CpuList,
    /// The memory nodes that have memory.
    pub nodes: NodeList,
}

/// The reason why the host CPUs or memory nodes of a list cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// The list is empty.
    #[error("the list of {0} is empty")]
    Nothing(&'static str),
    /// The host does not have some of the CPUs.
    #[error("the list has CPUs that this host does not have: {absent}; the host has {possible}")]
    NoSuchCpu {
        /// Those CPUs or nodes.
        absent: CpuList,
        /// Those of the host.
        possible: CpuList,
    },
    /// Some of the CPUs are offline.
    #[error("the list has offline host CPUs: {offline}; the online ones are {online}")]
    Offline {
        /// Those CPUs.
        offline: CpuList,
        /// The online CPUs of the host.
        online: CpuList,
    },
    /// The host has no memory on some of the nodes.
    #[error(
        "the list has memory nodes that this host does not have: {absent}; the host has {present}"
    )]
    NoSuchNode {
        /// Those CPUs or nodes.
        absent: NodeList,
        /// Those of the host.
        present: NodeList,
    },
}

impl HostCpus {
    /// Returns the CPUs of vCPUs without a pin: all that are online, without the isolated ones. If all are
    /// isolated, isolation is ignored.
    pub fn default_cpus(&self) -> CpuList {
        let shared = self.online.difference(&self.isolated);
        if shared.is_empty() {
            return self.online.clone();
        }
        shared
    }

    /// Checks that all `cpus` are online.
    ///
    /// # Errors
    ///
    /// Fails if the list is empty, or if some are offline or do not exist.
    pub fn check_cpus(&self, cpus: &CpuList) -> Result<(), Unavailable> {
        let absent = cpus.difference(&self.possible.union(&self.online));
        let offline = cpus.difference(&self.online);
        if cpus.is_empty() {
            Err(Unavailable::Nothing("host CPUs"))
        } else if !absent.is_empty() {
            let possible = self.possible.clone();
            Err(Unavailable::NoSuchCpu { absent, possible })
        } else if !offline.is_empty() {
            let online = self.online.clone();
            Err(Unavailable::Offline { offline, online })
        } else {
            Ok(())
        }
    }

    /// Checks that all `nodes` have memory.
    ///
    /// # Errors
    ///
    /// Fails if the list is empty, or if some have no memory or do not exist.
    pub fn check_nodes(&self, nodes: &NodeList) -> Result<(), Unavailable> {
        let absent = nodes.difference(&self.nodes);
        if nodes.is_empty() {
            Err(Unavailable::Nothing("memory nodes"))
        } else if !absent.is_empty() {
            let present = self.nodes.clone();
            Err(Unavailable::NoSuchNode { absent, present })
        } else {
            Ok(())
        }
    }
}

impl Tuning {
    /// Returns the CPU time of each vCPU.
    pub fn limit(&self) -> Bandwidth {
        self.bandwidth.unwrap_or(Bandwidth::UNLIMITED)
    }

    /// Returns the values for `vcpu`.
    pub fn of(&self, vcpu: VcpuId) -> Wanted<'_> {
        Wanted {
            cpus: self.pins.get(&vcpu).or(self.affinity.as_ref()),
            nodes: self.memory_nodes.as_ref(),
            bandwidth: self.limit(),
            scheduler: self.schedulers.get(&vcpu).copied().or(self.scheduler),
            cache: self.cache.get(&vcpu),
        }
    }

    /// Returns this tuning after the configuration changed from `before` to `after`: values that the
    /// configuration changed take precedence, and the others stay.
    #[must_use]
    pub fn rebased(&self, before: &Self, after: &Self) -> Self {
        fn pick<T: PartialEq + Clone>(own: &T, before: &T, after: &T) -> T {
            if before == after { own } else { after }.clone()
        }
        fn each<T: PartialEq + Clone>(
            own: &BTreeMap<VcpuId, T>,
            before: &BTreeMap<VcpuId, T>,
            after: &BTreeMap<VcpuId, T>,
        ) -> BTreeMap<VcpuId, T> {
            let all = own.keys().chain(after.keys());
            let picked = all.filter_map(|vcpu| {
                let [own, before, after] = [own, before, after].map(|map| map.get(vcpu));
                Some((*vcpu, pick(&own, &before, &after).cloned()?))
            });
            picked.collect()
        }
        Self {
            affinity: pick(&self.affinity, &before.affinity, &after.affinity),
            pins: each(&self.pins, &before.pins, &after.pins),
            memory_nodes: pick(
                &self.memory_nodes,
                &before.memory_nodes,
                &after.memory_nodes,
            ),
            bandwidth: pick(&self.bandwidth, &before.bandwidth, &after.bandwidth),
            scheduler: pick(&self.scheduler, &before.scheduler, &after.scheduler),
            schedulers: each(&self.schedulers, &before.schedulers, &after.schedulers),
            cache: each(&self.cache, &before.cache, &after.cache),
        }
    }

    /// Checks that the host has all CPUs and memory nodes. Call it before any change.
    ///
    /// # Errors
    ///
    /// Fails if some do not exist or are offline.
    pub fn check(&self, host: &HostCpus) -> Result<(), Unavailable> {
        for cpus in self.affinity.iter().chain(self.pins.values()) {
            host.check_cpus(cpus)?;
        }
        self.memory_nodes
            .iter()
            .try_for_each(|nodes| host.check_nodes(nodes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> HostCpus {
        HostCpus {
            online: "0-3,6".parse().unwrap(),
            possible: "0-7".parse().unwrap(),
            isolated: "3".parse().unwrap(),
            nodes: "0".parse().unwrap(),
        }
    }

    #[test]
    fn default_cpus_are_online_and_not_isolated() {
        assert_eq!(host().default_cpus().to_string(), "0-2,6");
        let isolated = HostCpus {
            isolated: "0-7".parse().unwrap(),
            ..host()
        };
        assert_eq!(isolated.default_cpus().to_string(), "0-3,6");
    }

    #[test]
    fn distinguishes_missing_from_offline_cpus() {
        for (cpus, wrong) in [
            ("0-3,6", None),
            ("3", None),
            (
                "4",
                Some("the list has offline host CPUs: 4; the online ones are 0-3,6"),
            ),
            (
                "2-9",
                Some("the list has CPUs that this host does not have: 8-9; the host has 0-7"),
            ),
            ("", Some("the list of host CPUs is empty")),
        ] {
            let cpus: CpuList = cpus.parse().unwrap();
            let as_default = Tuning {
                affinity: Some(cpus.clone()),
                ..Tuning::default()
            };
            let as_pin = Tuning {
                pins: [(VcpuId(7), cpus)].into(),
                ..Tuning::default()
            };
            for tuning in [as_default, as_pin] {
                let error = tuning.check(&host()).err().map(|e| e.to_string());
                assert_eq!(error.as_deref(), wrong);
            }
        }
        let nodes = Tuning {
            memory_nodes: Some("0-1".parse().unwrap()),
            ..Tuning::default()
        };
        let error = nodes.check(&host()).unwrap_err().to_string();
        assert_eq!(
            error,
            "the list has memory nodes that this host does not have: 1; the host has 0"
        );
    }

    #[test]
    fn a_value_of_a_vcpu_takes_precedence_over_the_default() {
        let tuning = Tuning {
            affinity: Some("0-1".parse().unwrap()),
            pins: [(VcpuId(2), "3".parse().unwrap())].into(),
            scheduler: Some(Scheduler::Batch),
            schedulers: [(VcpuId(2), Scheduler::Fifo(5))].into(),
            ..Tuning::default()
        };
        let cpus = |n| tuning.of(VcpuId(n)).cpus.unwrap().to_string();
        assert_eq!((cpus(0), cpus(2)), ("0-1".into(), "3".into()));
        assert_eq!(tuning.of(VcpuId(0)).scheduler, Some(Scheduler::Batch));
        assert_eq!(tuning.of(VcpuId(2)).scheduler, Some(Scheduler::Fifo(5)));
        assert_eq!(tuning.of(VcpuId(0)).bandwidth, Bandwidth::UNLIMITED);
        let json = serde_json::to_string(&tuning).unwrap();
        assert_eq!(serde_json::from_str::<Tuning>(&json).unwrap(), tuning);
    }

    #[test]
    fn changes_of_the_configuration_take_precedence_over_calls() {
        let cpus = |list: &str| Some(list.parse::<CpuList>().unwrap());
        let share = |schemata: &str| schemata.parse::<Schemata>().unwrap();
        let before = Tuning {
            affinity: cpus("0-1"),
            scheduler: Some(Scheduler::Batch),
            cache: [(VcpuId(0), share("L3:0=f")), (VcpuId(1), share("L3:0=f"))].into(),
            ..Tuning::default()
        };
        // Changed by calls.
        let changed = Tuning {
            affinity: cpus("2"),
            scheduler: Some(Scheduler::Idle),
            pins: [(VcpuId(1), "3".parse().unwrap())].into(),
            cache: [(VcpuId(0), share("L3:0=1")), (VcpuId(1), share("L3:0=1"))].into(),
            ..Tuning::default()
        };
        assert_eq!(changed.rebased(&before, &before), changed);
        let after = Tuning {
            affinity: None,
            scheduler: Some(Scheduler::Batch),
            cache: [(VcpuId(0), share("L3:0=f")), (VcpuId(2), share("L3:0=3"))].into(),
            ..Tuning::default()
        };
        let rebased = changed.rebased(&before, &after);
        assert_eq!(rebased.affinity, None);
        assert_eq!(rebased.scheduler, Some(Scheduler::Idle));
        assert_eq!(rebased.pins, changed.pins);
        let shares = [(VcpuId(0), share("L3:0=1")), (VcpuId(2), share("L3:0=3"))];
        assert_eq!(rebased.cache, shares.into());
        assert_eq!(before.rebased(&before, &after), after);
    }
}
