//! Tests the inventory with replies of real QEMUs (`tests/recorded`), and the planner with generated
//! inventories.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde::Deserialize;
use serde_json::json;

use super::*;
use crate::ids::{Pid, SlotId, Tid, VcpuId};
use crate::text::Text;

#[derive(Deserialize)]
struct Recorded {
    #[serde(rename = "query-hotpluggable-cpus")]
    hotpluggable: Option<Vec<HotpluggableCpu>>,
    #[serde(rename = "query-cpus-fast")]
    cpus: Vec<CpuInfoFast>,
}

/// The slots that are present, with alias and order.
fn present(inventory: &Inventory) -> Vec<(u32, Option<&str>, u32)> {
    let present = inventory.present();
    let row = present.map(|(slot, presence)| (slot.id.get(), slot.alias(), presence.order));
    row.collect()
}

/// Recording → present vCPUs, maximum, vCPUs in a slot, can grow, can shrink.
#[test]
fn counts_the_vcpus_of_recorded_machines() {
    for (name, vcpus, max, width, grows, shrinks) in [
        ("x86-7.2", 2, 4, 1, true, true),
        ("x86-gaps", 5, 8, 1, true, true),
        ("x86-modules", 1, 8, 1, true, true),
        ("x86-numa", 4, 4, 1, true, true),
        ("x86-threads2", 2, 8, 1, true, true),
        ("pseries", 4, 16, 4, true, true),
        ("s390x", 1, 4, 1, true, false),
        ("aarch64", 2, 2, 1, false, false),
    ] {
        let inventory = recorded(name);
        assert!(!inventory.is_torn(), "{name}");
        assert_eq!(inventory.vcpu_count(), vcpus, "{name}");
        assert_eq!(inventory.max_vcpus(), max, "{name}");
        assert_eq!(inventory.vcpus_per_slot(), width, "{name}");
        assert_eq!(
            inventory.method() == HotplugMethod::DeviceAdd,
            grows,
            "{name}"
        );
        assert_eq!(inventory.can_unplug(), shrinks, "{name}");
    }
}

fn replies(name: &str) -> Recorded {
    let path = format!("{}/tests/fixtures/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn recorded(name: &str) -> Inventory {
    let Recorded { hotpluggable, cpus } = replies(name);
    let slots = hotpluggable.map_or(Slots::Fixed, Slots::Listed);
    Inventory::read(slots, cpus).unwrap()
}

#[test]
fn the_slots_that_are_in_use_follow_from_the_cpus() {
    for (name, is_certain) in [
        ("x86-7.2", true),
        ("x86-gaps", true),
        ("x86-modules", true),
        ("x86-numa", true),
        ("x86-threads2", true),
        ("s390x", true),
        ("pseries", false),
        ("aarch64", false),
    ] {
        let cpus = replies(name).cpus;
        let whole = recorded(name);
        assert_eq!(
            whole.with_cpus(&cpus),
            is_certain.then_some(whole.clone()),
            "{name}"
        );
        if is_certain {
            let first = first_only(name);
            assert_eq!(first.vcpu_count(), 1, "{name}");
            assert_eq!(first.with_cpus(&cpus), Some(whole.clone()), "{name}");
            let back = whole.with_cpus(&cpus[..1]);
            assert_eq!(back.is_none(), cpus.len() > 1, "{name}: a CPU went");
        }
    }
}

/// Returns the inventory of a recorded machine with its first CPU only.
fn first_only(name: &str) -> Inventory {
    let Recorded { hotpluggable, cpus } = replies(name);
    let first = &cpus[0];
    let mut slots = hotpluggable.unwrap();
    for slot in &mut slots {
        slot.qom_path = slot.qom_path.take().filter(|path| *path == first.qom_path);
    }
    Inventory::read(Slots::Listed(slots), vec![first.clone()]).unwrap()
}

#[test]
fn cpus_whose_slots_are_not_certain_are_not_believed() {
    let whole = recorded("x86-gaps");
    let with = |change: fn(&mut Vec<CpuInfoFast>)| {
        let mut cpus = replies("x86-gaps").cpus;
        change(&mut cpus);
        whole.with_cpus(&cpus)
    };
    assert_eq!(with(|cpus| cpus[1].props = None), None);
    assert_eq!(with(|cpus| cpus[1].props = cpus[0].props.clone()), None);
    assert_eq!(with(|cpus| cpus[1].props = Some(Props::default())), None);
    assert_eq!(
        with(|cpus| cpus[1].qom_path = cpus[0].qom_path.clone()),
        None
    );
    let thread = |cpus: &mut Vec<CpuInfoFast>| {
        cpus[1].qom_path = Text::lossy("/machine/peripheral/c5/thread[0]");
    };
    assert_eq!(with(thread), None);
}

#[test]
fn numbers_vcpus_by_topology() {
    assert_eq!(
        present(&recorded("x86-gaps")),
        [
            (0, None, 1),
            (1, None, 2),
            (3, Some("c3"), 4),
            (4, Some("c4"), 5),
            (5, Some("c5"), 3)
        ]
    );
    // The NUMA node does not matter: socket 1 comes after socket 0.
    assert_eq!(
        present(&recorded("x86-numa")),
        [
            (0, None, 1),
            (1, None, 2),
            (2, Some("n3"), 4),
            (3, Some("n1"), 3)
        ]
    );
}

#[test]
fn a_pseries_core_has_four_vcpus() {
    let mut inventory = recorded("pseries");
    let core = &inventory.slots()[0];
    assert_eq!(core.vcpus().collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!(core.presence.as_ref().unwrap().threads.len(), 4);
    assert_eq!(inventory.slot(SlotId(4)).unwrap().topology.node(), Some(0));

    let foreign = inventory.trust_threads(Pid(1), |thread| (thread != 8845).then_some(thread));
    assert_eq!(foreign, [8845]);
    let threads: Vec<_> = inventory.vcpus().take(5).map(|v| v.thread).collect();
    let trusted = [Some(8844), None, Some(8846), Some(8847), None];
    assert_eq!(threads, trusted.map(|thread| thread.map(Tid)));
}

/// The next version of the service reads the files of this one, and the previous version does so too.
#[test]
fn saved_slots_keep_their_member_names() {
    let saved = recorded("x86-7.2").to_saved();
    let row = serde_json::to_value(&saved[1]).unwrap();
    let path = "/machine/peripheral/X";
    let saved = json!({"first": 1, "width": 1, "slot": 1, "qom_path": path, "threads": [22934]});
    assert_eq!(row, saved);
}

#[test]
fn does_not_trust_a_thread_of_several_vcpus() {
    let mut inventory = recorded("x86-single-thread");
    assert!(inventory.trust_threads(Pid(1), Some).is_empty());
    assert!(inventory.vcpus().all(|vcpu| vcpu.thread.is_none()));
    let reported = inventory.vcpus().filter_map(|vcpu| vcpu.reported);
    assert!(
        reported
            .into_iter()
            .all(|thread| thread.host == HostThread::Shared)
    );
}

/// QEMU reports the numbers of its own PID namespace.
#[test]
fn a_reported_thread_has_another_number_on_the_host() {
    let mut inventory = recorded("x86-gaps");
    let reported: Vec<Tid> = inventory.present().map(|(_, p)| p.threads[0].id).collect();
    let on_host = |thread: Tid| Tid(thread.get() + 100_000);
    let (main, missing) = (on_host(reported[0]), reported[1]);
    let task = |thread: Tid| (thread != missing).then(|| on_host(thread));
    assert_eq!(inventory.trust_threads(Pid(main.get()), task), [missing]);
    let present = inventory
        .vcpus()
        .filter(|vcpu| vcpu.slot.presence.is_some());
    let threads: Vec<_> = present
        .map(|vcpu| (vcpu.thread, vcpu.reported.unwrap()))
        .collect();
    assert_eq!(threads[0].1.host, HostThread::Shared, "the main thread");
    assert_eq!(threads[1].1.host, HostThread::Missing);
    assert_eq!(threads[2].0, Some(on_host(reported[2])));
    // A replacement is recognized by what QEMU reports.
    let (_, presence) = inventory.present().nth(2).unwrap();
    assert_eq!(presence.threads[0].id, reported[2]);
}

#[test]
fn does_not_trust_the_main_thread() {
    let mut inventory = recorded("x86-7.2");
    let threads: Vec<Tid> = inventory.present().map(|(_, p)| p.threads[0].id).collect();
    inventory.trust_threads(Pid(threads[0].get()), Some);
    let trusted: Vec<_> = inventory.vcpus().filter_map(|v| v.thread).collect();
    assert_eq!(trusted, threads[1..]);
}

#[test]
fn a_cpu_in_one_reply_only_is_torn() {
    // Recorded with a device_add between the two queries.
    assert!(recorded("x86-anonymous").is_torn());
    assert!(recorded("x86-single-thread").is_torn());
}

#[test]
fn a_qemu_before_2_7_can_grow() {
    // As QEMU 2.6 answers query-cpus.
    let cpu = |n: u32| {
        let path = format!("/machine/unattached/device[{n}]");
        json!({"CPU": n, "current": n == 0, "halted": false, "arch": "x86", "qom_path": path, "thread_id": 100 + n})
    };
    let cpus = [0, 2].map(|n| serde_json::from_value(cpu(n)).unwrap());
    let inventory = Inventory::read(Slots::Counted(4), cpus.into()).unwrap();
    assert_eq!(present(&inventory), [(0, None, 1), (2, None, 2)]);
    assert_eq!(inventory.method(), HotplugMethod::CpuAdd);
    let none = BTreeSet::new();
    assert_eq!(
        plan(&inventory, &none, &Target::Count(4)).unwrap().add,
        [1, 3]
    );
    let error = plan(&inventory, &none, &Target::Count(1)).unwrap_err();
    assert!(matches!(error, PlanError::NoUnplug { .. }), "{error}");
    let too_many = Inventory::read(Slots::Counted(u32::MAX), vec![]);
    assert_eq!(too_many, Err(InconsistentReply::Count));
}

#[test]
fn refuses_impossible_replies() {
    let slot = |count: u64, path: Option<&str>| -> HotpluggableCpu {
        let value = json!({"type": "cpu", "vcpus-count": count, "props": {}, "qom-path": path});
        serde_json::from_value(value).unwrap()
    };
    for counts in [&[0][..], &[4_000_000_000], &[u64::MAX], &[1, 16_384]] {
        let slots = counts.iter().map(|&count| slot(count, None)).collect();
        assert_eq!(
            Inventory::read(Slots::Listed(slots), vec![]),
            Err(InconsistentReply::Count)
        );
    }
    let twins = vec![slot(1, Some("/a")), slot(1, Some("/a"))];
    let result = Inventory::read(Slots::Listed(twins), vec![]);
    assert!(
        matches!(result, Err(InconsistentReply::SharedPath(_))),
        "{result:?}"
    );
}

#[test]
fn only_peripherals_have_an_alias() {
    let alias = |path: &str| {
        let value = json!({"type": "cpu", "vcpus-count": 1, "props": {}, "qom-path": path});
        let slots = vec![serde_json::from_value(value).unwrap()];
        let inventory = Inventory::read(Slots::Listed(slots), vec![]).unwrap();
        inventory.slots()[0].alias().map(str::to_owned)
    };
    assert_eq!(alias("/machine/peripheral/vcpu3").as_deref(), Some("vcpu3"));
    assert_eq!(alias("/machine/peripheral-anon/device[0]"), None);
    assert_eq!(alias("/machine/unattached/device[2]"), None);
    assert_eq!(alias("/machine/peripheral/a/b"), None);
}

#[test]
fn plans_a_number_on_recorded_machines() {
    let none = BTreeSet::new();
    let gaps = recorded("x86-gaps");
    assert_eq!(
        plan(&gaps, &none, &Target::Count(7)).unwrap().add,
        [2, 6],
        "lowest free first"
    );
    assert_eq!(
        plan(&gaps, &none, &Target::Count(2)).unwrap().remove,
        [5, 4, 3],
        "highest first"
    );
    assert_eq!(
        plan(&gaps, &none, &Target::Count(1)).unwrap().remove,
        [5, 4, 3, 1],
        "boot vCPUs too"
    );
    assert_eq!(plan(&gaps, &none, &Target::Count(5)), Ok(Plan::default()));
    for count in [0, 9] {
        let error = PlanError::OutOfRange { max: 8 };
        assert_eq!(plan(&gaps, &none, &Target::Count(count)), Err(error));
    }

    let pseries = recorded("pseries");
    assert_eq!(
        plan(&pseries, &none, &Target::Count(12)).unwrap().add,
        [4, 8]
    );
    let error = plan(&pseries, &none, &Target::Count(6)).unwrap_err();
    assert!(error.to_string().contains("4 and 8"), "{error}");

    let s390x = recorded("s390x");
    assert_eq!(plan(&s390x, &none, &Target::Count(2)).unwrap().add, [1]);
    let aarch64 = recorded("aarch64");
    assert_eq!(
        plan(&aarch64, &none, &Target::Count(1)),
        Err(PlanError::NoHotplug { present: 2 })
    );
}

#[test]
fn refuses_more_than_64_vcpus_in_a_slot() {
    let read = |count: u32| {
        let value = json!({"type": "cpu", "vcpus-count": count, "props": {}});
        let slots = vec![serde_json::from_value(value).unwrap()];
        Inventory::read(Slots::Listed(slots), vec![])
    };
    assert_eq!(read(MAX_VCPUS_PER_SLOT).unwrap().max_vcpus(), 64);
    assert_eq!(read(MAX_VCPUS_PER_SLOT + 1), Err(InconsistentReply::Count));
}

#[test]
fn a_machine_before_its_creation_has_no_vcpu() {
    // As with `-preconfig`.
    let none = BTreeSet::new();
    let inventory = Inventory::read(Slots::Fixed, vec![]).unwrap();
    let error = plan(&inventory, &none, &Target::Absent([VcpuId(0)].into())).unwrap_err();
    assert_eq!(
        error.to_string(),
        "vCPU 0 does not exist; the machine has no vCPUs"
    );
}

#[test]
fn slots_with_pending_removals_count_as_absent() {
    let gaps = recorded("x86-gaps");
    let leaving = BTreeSet::from([SlotId(5)]);
    let same = plan(&gaps, &leaving, &Target::Count(4)).unwrap();
    assert_eq!(
        same,
        Plan {
            leaving: vec![SlotId(5)],
            ..Plan::default()
        },
        "no further removal"
    );
    assert_eq!(
        plan(&gaps, &leaving, &Target::Count(5)).unwrap().add,
        [2],
        "another slot"
    );
    let further = plan(&gaps, &leaving, &Target::Count(3)).unwrap();
    assert_eq!(
        (further.remove, further.leaving),
        (vec![SlotId(4)], vec![SlotId(5)])
    );
    let error = PlanError::Busy {
        leaving: vec![VcpuId(5)],
    };
    assert_eq!(plan(&gaps, &leaving, &Target::Count(8)), Err(error));
}

#[test]
fn plans_exactly_the_vcpus_of_a_list() {
    let list = |vcpus: &[u32]| vcpus.iter().copied().map(VcpuId).collect::<BTreeSet<_>>();
    let none = BTreeSet::new();
    let gaps = recorded("x86-gaps");
    let present = |vcpus| plan(&gaps, &none, &Target::Present(list(vcpus)));
    let absent = |vcpus| plan(&gaps, &none, &Target::Absent(list(vcpus)));
    assert_eq!(
        present(&[7, 2, 3]).unwrap().add,
        [2, 7],
        "3 is there already"
    );
    assert_eq!(absent(&[1, 4, 6]).unwrap().remove, [4, 1], "6 is not there");
    assert_eq!(present(&[]), Ok(Plan::default()));
    assert_eq!(absent(&[0, 5]), Err(PlanError::NotRemovable { lowest: 1 }));
    assert_eq!(
        present(&[8]),
        Err(PlanError::NoSuchVcpu {
            vcpu: VcpuId(8),
            max: 8
        })
    );

    let leaving = BTreeSet::from([SlotId(5)]);
    let again = plan(&gaps, &leaving, &Target::Absent(list(&[4, 5]))).unwrap();
    assert_eq!(
        (again.remove, again.leaving),
        (vec![SlotId(4)], vec![SlotId(5)])
    );
    let back = plan(&gaps, &leaving, &Target::Present(list(&[2, 5])));
    assert_eq!(
        back,
        Err(PlanError::Busy {
            leaving: vec![VcpuId(5)],
        })
    );

    let pseries = recorded("pseries");
    let core = plan(&pseries, &none, &Target::Present(list(&[4, 5, 6, 7]))).unwrap();
    assert_eq!(core.add, [4]);
    assert_eq!(count_after(&pseries, &none, &core), 8);
    let part = plan(&pseries, &none, &Target::Present(list(&[4, 5])));
    assert_eq!(
        part,
        Err(PlanError::PartOfGroup {
            group: [4, 5, 6, 7].map(VcpuId).into()
        })
    );

    let s390x = recorded("s390x");
    let error = plan(&s390x, &none, &Target::Absent(list(&[0]))).unwrap_err();
    assert!(matches!(error, PlanError::NoUnplug { .. }));
}

#[test]
fn nearest_numbers_are_reachable() {
    let none = BTreeSet::new();
    assert_eq!(nearest(&recorded("pseries"), &none, 6), [4, 8]);
    assert_eq!(nearest(&recorded("pseries"), &none, 1000), [16]);
    assert_eq!(nearest(&recorded("x86-gaps"), &none, 0), [1]);
    assert_eq!(nearest(&recorded("x86-gaps"), &none, 3), [2, 3, 4]);
    assert_eq!(nearest(&recorded("s390x"), &none, 4), [3, 4]);
    assert_eq!(nearest(&recorded("aarch64"), &none, 1), [2]);
}

/// Any machine: slots of any widths, plugged or not, leaving or not.
fn any_machine() -> impl Strategy<Value = (Inventory, BTreeSet<SlotId>)> {
    let slot = (
        prop_oneof![4 => Just(1u64), 1 => 1u64..9],
        any::<bool>(),
        any::<bool>(),
    );
    let architecture = prop_oneof![4 => Just("x86_64"), 1 => Just("s390x")];
    (prop::collection::vec(slot, 1..24), architecture).prop_map(|(all, architecture)| {
        let slot = |(i, &(width, plugged, _)): (usize, &(u64, bool, bool))| {
            // QEMU never unplugs the first slot.
            let path = (plugged || i == 0).then(|| format!("/machine/peripheral/c{i}"));
            let props = json!({"core-id": i});
            let value =
                json!({"type": "cpu", "vcpus-count": width, "props": props, "qom-path": path});
            serde_json::from_value(value).unwrap()
        };
        let slots: Vec<HotpluggableCpu> = all.iter().enumerate().rev().map(slot).collect();
        let cpus = slots
            .iter()
            .filter_map(|s| s.qom_path.clone())
            .map(|path| CpuInfoFast {
                cpu_index: 0,
                qom_path: path,
                thread_id: 7,
                props: None,
                target: Some(Text::lossy(architecture)),
                qom_type: None,
            });
        let inventory = Inventory::read(Slots::Listed(slots.clone()), cpus.collect()).unwrap();
        let leaving = inventory.slots().iter().zip(&all);
        let leaving = leaving.filter(|(e, (_, _, leaves))| *leaves && inventory.is_removable(e));
        let leaving = leaving.map(|(slot, _)| slot.id).collect();
        (inventory, leaving)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    /// A plan reaches exactly the wanted number with allowed changes. The numbers in an error are correct.
    #[test]
    fn a_plan_reaches_the_number_or_its_error_is_correct((inventory, leaving) in any_machine(), wanted in 0u32..100) {
        let width = |id: &SlotId| inventory.slot(*id).unwrap().width;
        let staying = inventory.present().filter(|(slot, _)| !leaving.contains(&slot.id));
        let current: u32 = staying.map(|(e, _)| e.width).sum();
        match plan(&inventory, &leaving, &Target::Count(wanted)) {
            Ok(plan) => {
                let added: u32 = plan.add.iter().map(width).sum();
                let removed: u32 = plan.remove.iter().map(width).sum();
                prop_assert_eq!(current + added - removed, wanted);
                prop_assert!(plan.add.is_empty() || plan.remove.is_empty());
                prop_assert!(plan.add.is_sorted() && plan.remove.is_sorted_by(|a, b| a > b));
                for id in &plan.add {
                    prop_assert!(inventory.slot(*id).unwrap().presence.is_none());
                }
                for id in &plan.remove {
                    prop_assert!(inventory.is_removable(inventory.slot(*id).unwrap()));
                    prop_assert!(!leaving.contains(id));
                }
                let waits = wanted <= current;
                prop_assert_eq!(plan.leaving, leaving.into_iter().filter(|_| waits).collect::<Vec<_>>());
            }
            Err(PlanError::OutOfRange { max, .. }) => prop_assert!(wanted == 0 || wanted > max),
            Err(PlanError::Unreachable { nearest, .. }) => {
                for number in nearest {
                    prop_assert!(plan(&inventory, &leaving, &Target::Count(number)).is_ok(), "{}", number);
                }
            }
            Err(PlanError::Busy { .. }) => prop_assert!(wanted > current && !leaving.is_empty()),
            Err(PlanError::NotRemovable { lowest, .. }) => {
                prop_assert!(wanted < lowest);
                prop_assert!(plan(&inventory, &leaving, &Target::Count(lowest)).is_ok());
            }
            Err(PlanError::NoUnplug { present, .. }) => {
                prop_assert!(wanted < present && inventory.architecture() == "s390x");
            }
            Err(error) => prop_assert!(false, "not for a number on this machine: {}", error),
        }
    }

    #[test]
    fn numbers_do_not_depend_on_the_order_of_replies(
        (slots, shuffled) in prop::collection::vec((0i64..4, 0i64..4, 0i64..2), 1..20)
            .prop_map(|places| places.into_iter().collect::<BTreeSet<_>>())
            .prop_map(|places| places.into_iter().collect::<Vec<_>>())
            .prop_flat_map(|places| (Just(places.clone()), Just(places).prop_shuffle()))
    ) {
        let read = |places: &[(i64, i64, i64)]| {
            let slot = |(socket, core, thread): &(i64, i64, i64)| {
                let props = json!({"socket-id": socket, "core-id": core, "thread-id": thread});
                let value = json!({"type": "cpu", "vcpus-count": 1, "props": props});
                serde_json::from_value(value).unwrap()
            };
            let slots = places.iter().map(slot).collect();
            let inventory = Inventory::read(Slots::Listed(slots), vec![]).unwrap();
            inventory.slots().iter().map(|e| e.props.clone()).collect::<Vec<_>>()
        };
        prop_assert_eq!(read(&slots), read(&shuffled));
    }
}
