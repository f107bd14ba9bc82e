//! Replies of QEMU about its CPUs (`vcpud::inventory`), correct or not.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use vcpud::ids::{Pid, SlotId, Tid, VcpuId};
use vcpud::inventory::{
    CpuInfoFast, HotplugSlot, HotpluggableCpu, InconsistentReply, Inventory, MAX_VCPUS,
    MAX_VCPUS_PER_SLOT, PlanError, Slots, Target, count_after, nearest, plan,
};
use vcpud::statistics::{VcpuKvm, by_vcpu};

use super::choice::Choices;

/// An accepted inventory is consistent, and every plan leads to its target.
///
/// The bytes are replies as JSON (as in `tests/fixtures`), or choices that result in replies.
pub fn inventory(data: &[u8]) {
    let (answers, mut choices) = match data.first() {
        Some(b'{') => {
            let Ok(answers) = serde_json::from_slice::<Value>(data) else {
                return;
            };
            (answers, Choices::new(&data[data.len() / 2..]))
        }
        _ => {
            let mut choices = Choices::new(data);
            (made_up(&mut choices), choices)
        }
    };
    let Some((slots, cpus)) = read(&answers) else {
        return;
    };
    match Inventory::read(slots.clone(), cpus.clone()) {
        Ok(inventory) => {
            adds_up(&inventory, &slots);
            survives(&inventory);
            statistics(&inventory, &answers);
            threads(inventory.clone(), &mut choices);
            plans(&inventory, &mut choices);
        }
        Err(contradiction) => is_one(&contradiction, &slots),
    }
}

/// Returns both replies, if they have the right types.
fn read(answers: &Value) -> Option<(Slots, Vec<CpuInfoFast>)> {
    let answer = |name: &str| answers.get(name).cloned();
    let slots = match answer("query-hotpluggable-cpus") {
        None => Slots::Fixed,
        Some(Value::Number(count)) => Slots::Counted(u32::try_from(count.as_u64()?).ok()?),
        Some(list) => Slots::Listed(serde_json::from_value::<Vec<HotpluggableCpu>>(list).ok()?),
    };
    let cpus = serde_json::from_value(answer("query-cpus-fast")?).ok()?;
    Some((slots, cpus))
}

/// The counters of a reply of `query-stats` are those of present vCPUs.
fn statistics(inventory: &Inventory, answers: &Value) {
    let reply = answers.get("query-stats").cloned();
    let reply = reply.and_then(|reply| serde_json::from_value::<Vec<VcpuKvm>>(reply).ok());
    let counters = by_vcpu(inventory, &reply.unwrap_or_default());
    assert!(counters.keys().all(|vcpu| inventory.is_present(*vcpu)));
}

/// Replies of any machine, and replies that no machine sends.
fn made_up(choices: &mut Choices<'_>) -> Value {
    let architecture = choices.one(&["x86_64", "ppc64", "s390x", "aarch64", ""]);
    let mut paths: Vec<String> = Vec::new();
    let entities = choices.below(40);
    let mut slots = Vec::new();
    for n in 0..entities {
        let width = choices.one(&[
            1,
            1,
            1,
            1,
            1,
            1,
            1,
            1,
            2,
            3,
            4,
            8,
            0,
            64,
            65,
            4_000_000_000,
            u64::MAX,
        ]);
        let mut slot = json!({"type": "cpu", "vcpus-count": width, "props": props(choices, n)});
        if choices.byte() % 2 == 1 {
            let path = path(choices, n);
            slot["qom-path"] = path.as_str().into();
            paths.push(path);
        }
        slots.push(slot);
    }
    let mut cpus = Vec::new();
    for n in 0..choices.below(40) {
        let path = match choices.below(8) {
            0 => path(choices, n),
            _ => paths
                .get(n % paths.len().max(1))
                .cloned()
                .unwrap_or_default(),
        };
        let thread = match choices.below(8) {
            0 => choices.one(&[0, -1, 1, i64::MIN, i64::MAX, 4_294_967_296]),
            _ => 100 + i64::from(choices.byte()),
        };
        let index = choices.one(&[n as i64, n as i64, n as i64, 0, -1, i64::MAX]);
        cpus.push(json!({
            "cpu-index": index, "qom-path": path, "thread-id": thread, "target": architecture,
            "props": props(choices, n),
        }));
    }
    let slots = match choices.below(16) {
        0 => Value::Null,
        1 => choices
            .one(&[0, 1, 4, 255, MAX_VCPUS, MAX_VCPUS + 1, u32::MAX])
            .into(),
        _ => Value::Array(slots),
    };
    let mut answers = json!({"query-cpus-fast": cpus});
    if !slots.is_null() {
        answers["query-hotpluggable-cpus"] = slots;
    }
    answers
}

fn props(choices: &mut Choices<'_>, n: usize) -> Value {
    let mut props = Map::new();
    for level in ["socket-id", "core-id", "thread-id", "node-id", "die-id"] {
        let value = match choices.below(8) {
            0 => continue,
            1 => choices.one(&[json!(-1), json!(i64::MAX), json!("1")]),
            2 => choices.byte().into(),
            _ => n.into(),
        };
        props.insert(level.to_owned(), value);
    }
    props.into()
}

fn path(choices: &mut Choices<'_>, n: usize) -> String {
    match choices.below(8) {
        0 => "/machine/peripheral/same".to_owned(),
        1 => format!("/machine/peripheral/vcpu{n}/thread[{}]", choices.byte()),
        2 => choices
            .one(&[
                "",
                "/",
                "//",
                "thread[0]",
                "/thread[0]",
                "/machine/peripheral/",
            ])
            .into(),
        3 => format!("/machine/unattached/device[{n}]"),
        _ => format!("/machine/peripheral/vcpu{n}"),
    }
}

/// The numbers of an inventory.
fn adds_up(inventory: &Inventory, slots: &Slots) {
    let max = inventory.max_vcpus();
    assert!(max <= MAX_VCPUS);
    match slots {
        Slots::Listed(list) => assert_eq!(inventory.slots().len(), list.len()),
        Slots::Counted(count) => assert_eq!(max, *count),
        Slots::Fixed => assert_eq!(inventory.vcpu_count(), max),
    }
    let mut next = 0;
    let mut places = BTreeSet::new();
    let mut paths = BTreeSet::new();
    for slot in inventory.slots() {
        assert!((1..=MAX_VCPUS_PER_SLOT).contains(&slot.width));
        assert_eq!(slot.id, next, "numbers have no gaps");
        next += slot.width;
        assert!(slot.vcpus().eq((slot.id.get()..next).map(VcpuId)));
        assert!(
            places.insert(slot.acpi_slot) && (slot.acpi_slot as usize) < inventory.slots().len()
        );
        assert_eq!(inventory.slot(slot.id), Some(slot));
        if let Some(presence) = &slot.presence {
            assert!(
                paths.insert(presence.qom_path.clone()),
                "a path is one slot"
            );
            assert!(presence.is_same(presence));
            if let Some(alias) = slot.alias() {
                assert!(!alias.is_empty() && !alias.contains('/'));
            }
        }
        assert!(!inventory.is_removable(slot) || (slot.id > SlotId(0) && slot.presence.is_some()));
    }
    assert_eq!(next, max);
    assert!(
        inventory
            .vcpus()
            .map(|vcpu| vcpu.id)
            .eq((0..max).map(VcpuId))
    );
    assert!(inventory.vcpu_count() <= max && inventory.vcpus_per_slot() <= max);
    assert!(
        inventory.vcpus().all(|vcpu| vcpu.thread.is_none()),
        "no thread is verified yet"
    );
}

/// The persisted form of an inventory is equal to it.
fn survives(inventory: &Inventory) {
    let recalled = Inventory::from_saved(inventory.to_saved());
    let row = |slot: &HotplugSlot| {
        let presence = slot.presence.clone()?;
        let threads: Vec<Tid> = presence.threads.iter().map(|thread| thread.id).collect();
        Some((
            slot.id,
            slot.width,
            slot.acpi_slot,
            presence.qom_path,
            threads,
        ))
    };
    let before = inventory.slots().iter().filter_map(row);
    assert!(
        recalled
            .slots()
            .iter()
            .map(|slot| row(slot).expect("the row exists"))
            .eq(before)
    );
    assert_eq!(recalled.to_saved(), inventory.to_saved());
}

/// No thread is used that does not belong to the leader, is the leader, or belongs to two vCPUs.
fn threads(mut inventory: Inventory, choices: &mut Choices<'_>) {
    let leader = Pid(100 + u32::from(choices.byte()));
    let foreign = Tid(100 + u32::from(choices.byte()));
    let said = |inventory: &Inventory| {
        let threads = inventory
            .present()
            .flat_map(|(_, presence)| presence.threads.clone());
        threads.map(|thread| thread.id).collect::<Vec<Tid>>()
    };
    let before = said(&inventory);
    // QEMU may be in a PID namespace of its own, where all threads have other numbers.
    let offset = u32::from(choices.byte());
    let on_host = |thread: Tid| Tid(thread.get().wrapping_add(offset));
    let task = |thread: Tid| (thread != foreign).then(|| on_host(thread));
    let refused = inventory.trust_threads(leader, task);
    assert_eq!(said(&inventory), before);
    assert!(refused.iter().all(|thread| *thread == foreign));
    let used: Vec<Tid> = inventory.vcpus().filter_map(|vcpu| vcpu.thread).collect();
    for thread in &used {
        assert!(![leader.main_thread(), on_host(foreign)].contains(thread));
        let said = before.iter().filter(|said| on_host(**said) == *thread);
        assert_eq!(said.count(), 1);
    }
}

fn some<T: Copy + Ord>(choices: &mut Choices<'_>, of: &[T]) -> BTreeSet<T> {
    of.iter().copied().filter(|_| choices.once_in(3)).collect()
}

fn plans(inventory: &Inventory, choices: &mut Choices<'_>) {
    let max = inventory.max_vcpus();
    let slots: Vec<SlotId> = inventory.slots().iter().map(|slot| slot.id).collect();
    // After a change of the machine, pending removals may name slots that do not exist.
    let leaving = some(choices, &slots);
    let wanted = [0, 1, max, max + 1, u32::MAX, u32::from(choices.byte())];
    for count in wanted {
        reaches(inventory, &leaving, &Target::Count(count));
        for near in nearest(inventory, &leaving, count) {
            assert!((1..=max).contains(&near), "{near} of {max}");
        }
    }
    let vcpus: Vec<VcpuId> = (0..max.min(64)).map(VcpuId).collect();
    let mut whole = BTreeSet::new();
    for id in some(choices, &slots) {
        whole.extend(inventory.slot(id).expect("the slot exists").vcpus());
    }
    let any = some(choices, &vcpus);
    for list in [
        whole,
        any,
        BTreeSet::new(),
        [VcpuId(0)].into(),
        [VcpuId(max)].into(),
        [VcpuId(u32::MAX)].into(),
    ] {
        reaches(inventory, &leaving, &Target::Present(list.clone()));
        reaches(inventory, &leaving, &Target::Absent(list));
    }
}

/// The plan leads to the target, or there is an error with a text.
fn reaches(inventory: &Inventory, leaving: &BTreeSet<SlotId>, target: &Target) {
    let _ = target.to_string();
    let plan = match plan(inventory, leaving, target) {
        Ok(plan) => plan,
        Err(denial) => return is_right(&denial, inventory),
    };
    let presence = |id: &SlotId| {
        let slot = inventory.slot(*id).expect("the slot exists");
        slot.presence.is_some()
    };
    assert!(plan.add.iter().all(|id| !presence(id)));
    for id in &plan.remove {
        assert!(!leaving.contains(id), "slot {id} is removed once");
        let slot = inventory.slot(*id).expect("the slot exists");
        assert!(inventory.is_removable(slot), "slot {id} is removable");
    }
    assert!(plan.add.is_empty() || plan.remove.is_empty());
    let count = count_after(inventory, leaving, &plan);
    assert!(count <= inventory.max_vcpus());
    if let Target::Count(wanted) = target {
        assert_eq!(count, *wanted);
    }
}

fn is_right(denial: &PlanError, inventory: &Inventory) {
    assert!(!denial.to_string().is_empty());
    let max = inventory.max_vcpus();
    match denial {
        PlanError::OutOfRange { max: told } => assert_eq!(*told, max),
        PlanError::NoSuchVcpu { vcpu, max: told } => assert!(vcpu.get() >= *told && *told == max),
        PlanError::PartOfGroup { group } => assert!(group.len() > 1),
        PlanError::NotRemovable { lowest } => assert!(*lowest <= max),
        PlanError::NoHotplug { present } | PlanError::NoUnplug { present, .. } => {
            assert!(*present <= max);
        }
        PlanError::Unreachable { .. } | PlanError::Busy { .. } => {}
    }
}

/// Replies are refused only if they cannot be correct.
fn is_one(contradiction: &InconsistentReply, slots: &Slots) {
    let Slots::Listed(list) = slots else {
        return;
    };
    match contradiction {
        InconsistentReply::Count => {
            let sum: u128 = list.iter().map(|slot| u128::from(slot.vcpus_count)).sum();
            let possible = 1..=u64::from(MAX_VCPUS_PER_SLOT);
            let is_wrong = list
                .iter()
                .any(|slot| !possible.contains(&slot.vcpus_count));
            assert!(is_wrong || sum > u128::from(MAX_VCPUS), "{sum} is possible");
        }
        InconsistentReply::SharedPath(path) => {
            let there = list
                .iter()
                .filter(|slot| slot.qom_path.as_ref() == Some(path));
            assert!(there.count() > 1, "{path} is the path of one slot");
        }
    }
}
