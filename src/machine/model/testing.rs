//! Inventories for unit tests.

use serde_json::json;

use crate::inventory::{Inventory, Slots};

/// Returns an inventory of `slots` slots of one vCPU each. Those in `plugged` are present, with these
/// threads.
pub(in crate::machine) fn inventory(slots: u32, plugged: &[(u32, u32)]) -> Inventory {
    let path = |n: u32| format!("/machine/peripheral/vcpu{n}");
    let at = |n: u32| plugged.iter().any(|(p, _)| *p == n).then(|| path(n));
    let slots = (0..slots).rev().map(
        |n| json!({"type": "cpu", "vcpus-count": 1, "props": {"core-id": n}, "qom-path": at(n)}),
    );
    let slots = slots.map(|slot| serde_json::from_value(slot).unwrap());
    let cpus = plugged.iter().map(|&(n, thread)| {
        json!({"cpu-index": n, "qom-path": path(n), "thread-id": thread, "target": "x86_64"})
    });
    let cpus = cpus.map(|cpu| serde_json::from_value(cpu).unwrap());
    Inventory::read(Slots::Listed(slots.collect()), cpus.collect()).unwrap()
}
