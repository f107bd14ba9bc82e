//! The counters of all machines at one moment.

use std::collections::{BTreeMap, HashMap};

use vcpud::proxy::Statistics;
use zbus::OwnedVariant;

use crate::render;

type Dict = HashMap<String, OwnedVariant>;

/// The machines and their names.
pub(crate) type Sample = BTreeMap<String, Machine>;

/// A machine with its properties. The times are in µs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Machine {
    pub time: u64,
    pub state: String,
    pub pending: Vec<u32>,
    pub max_vcpus: Option<u64>,
    pub usage: Option<u64>,
    pub vcpus: BTreeMap<u32, Vcpu>,
}

/// A present vCPU. The times are in µs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Vcpu {
    pub usage: Option<u64>,
    pub wait: Option<u64>,
    pub throttled: Option<u64>,
    pub host_cpu: Option<u64>,
}

impl Machine {
    /// Returns the machine with these statistics, and the properties if they are known.
    pub(crate) fn new((counters, vcpus): &Statistics, properties: Option<&Dict>) -> Self {
        let property = |name: &str| properties.and_then(|known| known.get(name));
        let pending = property("PendingRemovals").cloned();
        let vcpus = vcpus.iter().filter_map(|vcpu| {
            let id = render::number(vcpu.get("id"))?;
            Some((u32::try_from(id).ok()?, Vcpu::new(vcpu)))
        });
        Self {
            time: render::number(counters.get("timestamp-usec")).unwrap_or_default(),
            state: render::text(property("State")),
            pending: pending
                .and_then(|list| list.try_into().ok())
                .unwrap_or_default(),
            max_vcpus: render::number(counters.get("max-vcpus")),
            usage: render::number(counters.get("usage-usec")),
            vcpus: vcpus.collect(),
        }
    }
}

impl Vcpu {
    fn new(counters: &Dict) -> Self {
        let number = |key: &str| render::number(counters.get(key));
        Self {
            usage: number("usage-usec"),
            wait: number("wait-usec"),
            throttled: number("throttled-usec"),
            host_cpu: number("host-cpu"),
        }
    }
}

#[cfg(test)]
mod tests {
    use zbus::Variant;

    use super::*;

    fn dict<const N: usize>(entries: [(&str, Variant<'static>); N]) -> Dict {
        let owned = |(key, value): (&str, Variant<'static>)| {
            (key.to_owned(), OwnedVariant::try_from(value).unwrap())
        };
        entries.into_iter().map(owned).collect()
    }

    #[test]
    fn a_machine_has_its_counters_and_properties() {
        let counters = dict([
            ("timestamp-usec", 7_u64.into()),
            ("usage-usec", 90_u64.into()),
            ("max-vcpus", 8_u32.into()),
        ]);
        let vcpu = dict([
            ("id", 3_u32.into()),
            ("usage-usec", 50_u64.into()),
            ("host-cpu", 1_u32.into()),
        ]);
        let properties = dict([
            ("State", "running".into()),
            ("PendingRemovals", vec![3_u32].into()),
        ]);
        let statistics = (counters, vec![vcpu]);
        let machine = Machine::new(&statistics, Some(&properties));
        assert_eq!((machine.time, machine.usage), (7, Some(90)));
        assert_eq!(
            (machine.state.as_str(), machine.max_vcpus),
            ("running", Some(8))
        );
        assert_eq!(machine.pending, [3]);
        let vcpu = &machine.vcpus[&3];
        assert_eq!((vcpu.usage, vcpu.wait), (Some(50), None));
        assert_eq!(vcpu.host_cpu, Some(1));
        assert_eq!(Machine::new(&statistics, None).state, "-");
    }
}
