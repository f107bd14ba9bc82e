//! The counters of KVM, as QEMU reports them (`query-stats`, QEMU 7.1 and later).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::ids::{MAX_VCPUS, VcpuId};
use crate::inventory::Inventory;
use crate::limited::Limited;
use crate::text::Text;

/// The reply: one element for each vCPU, in any order.
pub(crate) type KvmReply = Limited<VcpuKvm, { MAX_VCPUS as usize }>;

/// The names of the counters in KVM.
const EXITS: &str = "exits";
const HALT_EXITS: &str = "halt_exits";
const HALT_WAIT: &str = "halt_wait_ns";

/// Returns the arguments of `query-stats` for the counters.
pub(crate) fn kvm_query() -> Value {
    json!({
        "target": "vcpu",
        "providers": [{"provider": "kvm", "names": [EXITS, HALT_EXITS, HALT_WAIT]}],
    })
}

/// Returns the arguments of `query-stats` for the exits of those of `vcpus` that are present in `inventory`. QEMU
/// wakes no other vCPU for them, and ignores paths that it does not have.
pub(crate) fn exits_query(inventory: &Inventory, vcpus: &BTreeSet<VcpuId>) -> Value {
    let asked = paths(inventory).filter(|(vcpu, _)| vcpus.contains(vcpu));
    let asked: Vec<String> = asked.flat_map(|(_, paths)| paths).collect();
    json!({
        "target": "vcpu",
        "vcpus": asked,
        "providers": [{"provider": "kvm", "names": [EXITS]}],
    })
}

/// The counters of one vCPU. `None`: the kernel does not have the counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvmCounters {
    /// How often the vCPU left the guest. It stays 0 until the guest has started the vCPU.
    pub exits: Option<u64>,
    /// How often it left the guest because the guest halted it.
    pub halt_exits: Option<u64>,
    /// How long it was halted, in ns.
    pub halt_wait_ns: Option<u64>,
}

/// One element of the reply of `query-stats`.
#[derive(Clone, Debug, Deserialize)]
pub struct VcpuKvm {
    /// The QOM path of the vCPU, which may be one thread of a slot.
    #[serde(rename = "qom-path")]
    qom_path: Text,
    #[serde(rename = "stats")]
    counters: KvmCounters,
}

/// Returns the counters of each vCPU of `inventory` in the reply.
pub fn by_vcpu(inventory: &Inventory, reply: &[VcpuKvm]) -> BTreeMap<VcpuId, KvmCounters> {
    if reply.is_empty() {
        return BTreeMap::new();
    }
    let reply = reply.iter();
    let by_path: HashMap<&str, KvmCounters> = reply
        .map(|vcpu| (vcpu.qom_path.as_str(), vcpu.counters))
        .collect();
    let counters = paths(inventory).filter_map(|(vcpu, paths)| {
        let counters = paths.iter().find_map(|path| by_path.get(path.as_str()))?;
        Some((vcpu, *counters))
    });
    counters.collect()
}

/// Returns the QOM paths that each present vCPU can have: that of its slot, or that of a child. A core of pseries
/// has its vCPUs as children.
fn paths(inventory: &Inventory) -> impl Iterator<Item = (VcpuId, [String; 2])> {
    inventory.present().flat_map(|(slot, presence)| {
        let path = presence.qom_path.as_str();
        let paths = move |n| [path.to_owned(), format!("{path}/thread[{n}]")];
        slot.vcpus().zip(0..).map(move |(vcpu, n)| (vcpu, paths(n)))
    })
}

impl<'de> Deserialize<'de> for KvmCounters {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Counters)
    }
}

struct Counters;

#[derive(Deserialize)]
struct Counter {
    name: Text,
    /// A number, or a list or a boolean for counters that are not used here.
    value: Box<RawValue>,
}

impl<'de> Visitor<'de> for Counters {
    type Value = KvmCounters;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of counters")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<KvmCounters, A::Error> {
        let mut counters = KvmCounters::default();
        while let Some(Counter { name, value }) = seq.next_element()? {
            let counter = match name.as_str() {
                EXITS => &mut counters.exits,
                HALT_EXITS => &mut counters.halt_exits,
                HALT_WAIT => &mut counters.halt_wait_ns,
                _ => continue,
            };
            *counter = value.get().parse().ok();
        }
        Ok(counters)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::PresentSlot;

    fn inventory(slots: &[(u32, u32, &str)]) -> Inventory {
        let slot = |(id, width, path): &(u32, u32, &str)| PresentSlot {
            id: (*id).into(),
            width: *width,
            acpi_slot: 0,
            qom_path: Text::lossy(path),
            threads: Vec::new(),
        };
        Inventory::from_saved(slots.iter().map(slot).collect())
    }

    fn reply(text: &str) -> serde_json::Result<Vec<VcpuKvm>> {
        serde_json::from_str::<KvmReply>(text).map(|reply| reply.0)
    }

    /// As QEMU 10.0 replied, in reverse order.
    const RECORDED: &str = r#"[
        {"provider": "kvm", "stats": [{"name": "halt_exits", "value": 0},
            {"name": "exits", "value": 0}, {"name": "halt_wait_ns", "value": 0}],
            "qom-path": "/machine/peripheral/vcpu1"},
        {"provider": "kvm", "stats": [{"name": "halt_exits", "value": 3},
            {"name": "exits", "value": 16}, {"name": "halt_wait_ns", "value": 7001}],
            "qom-path": "/machine/unattached/device[0]"}
    ]"#;

    #[test]
    fn vcpus_are_found_by_their_paths() {
        let paths = [
            (0, 1, "/machine/unattached/device[0]"),
            (1, 1, "/machine/peripheral/vcpu1"),
            (2, 1, "/machine/peripheral/vcpu2"),
        ];
        let counters = by_vcpu(&inventory(&paths), &reply(RECORDED).unwrap());
        let numbers = |n: u32| {
            let counters = counters.get(&VcpuId(n))?;
            Some([counters.exits, counters.halt_exits, counters.halt_wait_ns])
        };
        assert_eq!(numbers(0), Some([Some(16), Some(3), Some(7001)]));
        assert_eq!(numbers(1), Some([Some(0); 3]));
        assert_eq!(numbers(2), None);
    }

    #[test]
    fn the_vcpus_of_a_core_are_its_threads() {
        let thread = |n| {
            let exits = r#"[{"name": "exits", "value": 5}]"#;
            format!(r#"{{"qom-path": "/machine/peripheral/core4/thread[{n}]", "stats": {exits}}}"#)
        };
        let reply = reply(&format!("[{}, {}]", thread(3), thread(1))).unwrap();
        let core = [(4, 4, "/machine/peripheral/core4")];
        let counters = by_vcpu(&inventory(&core), &reply);
        assert_eq!(counters.into_keys().collect::<Vec<_>>(), [5, 7]);
    }

    #[test]
    fn a_counter_that_is_no_number_is_ignored() {
        let stats = r#"[{"name": "exits", "value": [1, 2]}, {"name": "halt_exits", "value": -1},
            {"name": "halt_wait_ns", "value": true}, {"name": "x", "value": {"y": []}}]"#;
        let text = format!(r#"[{{"qom-path": "/p", "stats": {stats}}}]"#);
        assert_eq!(reply(&text).unwrap()[0].counters, KvmCounters::default());
        for wrong in [r#"[{"qom-path": "/p"}]"#, r#"[{"stats": []}]"#, "{}", "[3]"] {
            assert!(reply(wrong).is_err(), "{wrong}");
        }
    }
}
