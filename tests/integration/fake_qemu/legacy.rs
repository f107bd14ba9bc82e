//! QEMU before 2.7, which knows no `device_add` for CPUs.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use vcpud::names::error_name;

use crate::harness::*;

/// A QEMU 2.6 with `max` CPUs at most; returns how many it has.
fn make_legacy(peer: &Peer, max: usize) -> Arc<Mutex<usize>> {
    let there = Arc::new(Mutex::new(2));
    let count = there.clone();
    peer.script(move |_, call| {
        let mut count = count.lock().unwrap();
        let cpu = |n: usize| {
            json!({"CPU": n, "current": n == 0, "halted": false, "arch": "x86",
                "qom_path": format!("/machine/unattached/device[{n}]"), "thread_id": 1000 + n})
        };
        let value = match call.command.as_str() {
            "query-commands" => [
                "cpu-add",
                "query-cpus",
                "query-status",
                "query-kvm",
                "query-uuid",
            ]
            .map(|name| json!({"name": name}))
            .into_iter()
            .collect(),
            "query-cpus" => (0..*count).map(cpu).collect::<Value>(),
            "query-version" => json!({"qemu": {"major": 2, "minor": 6, "micro": 2}, "package": ""}),
            "query-target" => return None,
            "cpu-add" => {
                let id = call.arguments["id"].as_u64().unwrap() as usize;
                if id >= max {
                    let text = format!("Unable to add CPU: {id}, max allowed: {}", max - 1);
                    return Some(vec![call.refusal(&text)]);
                }
                assert_eq!(id, *count, "in order");
                *count += 1;
                json!({})
            }
            "query-hotpluggable-cpus" | "query-cpus-fast" | "device_add" | "device_del" => {
                panic!("QEMU 2.6 was asked {}", call.command)
            }
            _ => return None,
        };
        Some(vec![call.reply(value)])
    });
    there
}

/// Scripted QEMU (2.6), dbus-daemon.
#[tokio::test]
async fn a_qemu_before_2_7_grows_by_cpu_add_and_does_not_shrink() {
    let mut world = World::without_service().await;
    let peer = world.peer("old", Model::x86(2, 2));
    let there = make_legacy(&peer, 4);
    world.serve().await;
    let machine = world.machine("old").await;
    assert_eq!(machine.hotplug_method().await.unwrap(), "cpu-add");
    assert_eq!(machine.qemu_version().await.unwrap(), "2.6.2");
    assert_eq!(machine.max_vcpus().await.unwrap(), 4);

    let mark = world.signals.mark().await;
    assert_eq!(machine.set(4).await, Ok(Outcome::added([2, 3])));
    assert_eq!(*there.lock().unwrap(), 4);
    assert_eq!(ids(&added(&world.signals.since(mark).await)), [2, 3]);
    let failure = machine.set(5).await.unwrap_err();
    failure.assert(error_name::OUT_OF_RANGE, &["old", "1 to 4"]);
    let failure = machine.set(3).await.unwrap_err();
    failure.assert(error_name::NOT_SUPPORTED, &["old", "QEMU before 2.7"]);
}
