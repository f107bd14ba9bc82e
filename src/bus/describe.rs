//! vCPUs as `ListVcpus` shows them.

use std::collections::{BTreeMap, HashMap};

use zbus::Variant;

use crate::ids::{SlotId, VcpuId};
use crate::inventory::{HotplugMethod, HotplugSlot, Plan, Vcpu};
use crate::machine::Snapshot;
use crate::placement::{Tuning, Wanted};
use crate::placer::Observed;

/// A dictionary of type `a{sv}`.
pub(super) type Dict = HashMap<&'static str, Variant<'static>>;

/// Returns where the thread of a vCPU runs.
pub(super) fn place(place: &Observed) -> Dict {
    let mut dict = Dict::from([
        ("affinity", place.affinity.to_string().into()),
        ("scheduler", place.scheduler.into()),
        ("priority", place.priority.into()),
    ]);
    if let Some(group) = &place.control_group {
        dict.insert("control-group", group.clone().into());
    }
    if let Some(bandwidth) = place.bandwidth {
        dict.insert("bandwidth-period-usec", bandwidth.period().into());
        dict.insert("bandwidth-quota-usec", bandwidth.signed_quota().into());
    }
    dict
}

/// Returns the desired tuning of a machine. A key without a value is absent.
pub(super) fn tuning(tuning: &Tuning) -> Dict {
    let limit = tuning.limit();
    let mut dict = Dict::from([
        ("bandwidth-period-usec", limit.period().into()),
        ("bandwidth-quota-usec", limit.signed_quota().into()),
        ("pins", texts(&tuning.pins).into()),
        ("cache", texts(&tuning.cache).into()),
    ]);
    let schedulers = tuning.schedulers.iter();
    let schedulers: Vec<(u32, &str, i32)> = schedulers
        .map(|(vcpu, scheduler)| (vcpu.get(), scheduler.policy(), scheduler.priority()))
        .collect();
    dict.insert("schedulers", schedulers.into());
    if let Some(cpus) = &tuning.affinity {
        dict.insert("affinity", cpus.to_string().into());
    }
    if let Some(nodes) = &tuning.memory_nodes {
        dict.insert("memory-nodes", nodes.to_string().into());
    }
    if let Some(scheduler) = tuning.scheduler {
        dict.insert("scheduler", scheduler.policy().into());
        dict.insert("priority", scheduler.priority().into());
    }
    dict
}

/// Returns the values of some vCPUs, as text.
fn texts(values: &BTreeMap<VcpuId, impl ToString>) -> Vec<(u32, String)> {
    let values = values.iter();
    values
        .map(|(vcpu, value)| (vcpu.get(), value.to_string()))
        .collect()
}

/// Returns the desired values of a vCPU. A key without a value is absent.
pub(super) fn desired(wanted: Wanted<'_>) -> Dict {
    let mut dict = Dict::new();
    if let Some(cpus) = wanted.cpus {
        dict.insert("desired-affinity", cpus.to_string().into());
    }
    if let Some(scheduler) = wanted.scheduler {
        dict.insert("desired-scheduler", scheduler.policy().into());
        dict.insert("desired-priority", scheduler.priority().into());
    }
    if let Some(schemata) = wanted.cache {
        dict.insert("desired-cache", schemata.to_string().into());
    }
    dict
}

/// Returns the changes of a plan, with what the caller should know before an addition.
pub(super) fn plan(snapshot: &Snapshot, plan: Plan) -> Dict {
    let vcpus = |slots: &[SlotId]| -> Variant<'static> {
        let slots = slots.iter().filter_map(|id| snapshot.inventory.slot(*id));
        let mut vcpus: Vec<u32> = slots
            .flat_map(HotplugSlot::vcpus)
            .map(VcpuId::get)
            .collect();
        vcpus.sort_unstable();
        vcpus.into()
    };
    let removed = [plan.remove, plan.leaving].concat();
    let mut dict = Dict::from([("added", vcpus(&plan.add)), ("removed", vcpus(&removed))]);
    let warnings = snapshot.warnings();
    if !plan.add.is_empty() && !warnings.is_empty() {
        let codes: Vec<&str> = warnings.iter().map(|it| it.code.as_str()).collect();
        let texts: Vec<String> = warnings.into_iter().map(|it| it.text).collect();
        dict.insert("warnings", texts.into());
        dict.insert("warning-codes", codes.into());
    }
    dict
}

/// Returns the row of a vCPU. A key without a value is absent.
pub(super) fn vcpu(snapshot: &Snapshot, vcpu: Vcpu<'_>) -> Dict {
    let started = snapshot.is_started(&vcpu);
    let Vcpu {
        id, slot, thread, ..
    } = vcpu;
    let inventory = &snapshot.inventory;
    let hotpluggable = inventory.method() != HotplugMethod::None;
    let pending = snapshot.pending.contains(&id);
    let mut dict = Dict::from([
        ("id", id.get().into()),
        ("present", slot.presence.is_some().into()),
        ("hotpluggable", hotpluggable.into()),
        ("removable", inventory.is_removable(slot).into()),
        ("pending", pending.into()),
    ]);
    if let Some(started) = started {
        dict.insert("started", started.into());
    }
    if !slot.driver.as_str().is_empty() {
        dict.insert("type", slot.driver.to_string().into());
    }
    if let Some(presence) = &slot.presence {
        dict.insert("qom-path", presence.qom_path.to_string().into());
        if presence.order != 0 {
            dict.insert("order", presence.order.into());
        }
    }
    if let Some(thread) = thread {
        dict.insert("thread-id", thread.get().into());
    }
    if let Some(alias) = slot.alias() {
        dict.insert("alias", alias.to_owned().into());
    }
    if let Some(node) = slot.topology.node() {
        dict.insert("node-id", node.into());
    }
    for (level, number) in slot.topology.levels() {
        dict.insert(level.dbus_name(), number.into());
    }
    dict
}
