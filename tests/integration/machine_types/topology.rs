//! Every level that a PC has: the numbers of vCPUs follow them, and the NUMA node is no level.

use serde_json::{Value, json};

use crate::harness::*;

/// The levels of a PC, outermost first, and the NUMA node.
const KEYS: [&str; 6] = [
    "socket-id",
    "die-id",
    "module-id",
    "core-id",
    "thread-id-in-core",
    "node-id",
];

/// Real QEMU (q35 with sockets, dies, modules, cores, threads and NUMA nodes) with firmware only,
/// dbus-daemon.
#[tokio::test]
async fn vcpus_are_numbered_by_socket_die_module_core_and_thread() {
    let world = World::without_polkit().await;
    let boot = Boot {
        hardware: Hardware::NUMA,
        vcpus: 2,
        linux: false,
        ..Boot::default()
    };
    let mut qemu = Qemu::start(&world, "wide", &boot).await;
    let machine = world.machine("wide").await;
    assert_eq!(machine.max_vcpus().await.unwrap(), 32);
    assert_eq!(machine.vcpus_per_slot().await.unwrap(), 1);

    let rows = machine.rows().await;
    assert_eq!(rows.len(), 32);
    for (id, row) in rows.iter().enumerate() {
        let bit = |n: usize| id >> n & 1;
        let expected = [bit(4), bit(3), bit(2), bit(1), bit(0), 1 - bit(4)];
        let place = KEYS.map(|key| row[key].clone());
        assert_eq!(json!(place), json!(expected), "vCPU {id}");
        for absent in ["cluster-id", "book-id", "drawer-id"] {
            assert!(!row.contains_key(absent), "vCPU {id} has a {absent}");
        }
    }

    // QEMU gets the properties that it returned.
    let result = machine.set_these(&[9, 22], true).await;
    assert_eq!(result, Ok(Outcome::added([9, 22])));
    let cpus = qemu.execute("query-cpus-fast", json!({})).await;
    let props = |alias: &str| -> Value {
        let path = format!("/machine/peripheral/{alias}");
        let mut cpus = cpus.as_array().unwrap().iter();
        let cpu = cpus.find(|cpu| cpu["qom-path"] == *path);
        cpu.unwrap_or_else(|| panic!("no {path} in {cpus:?}"))["props"].clone()
    };
    assert_eq!(
        props("vcpu9"),
        json!({"socket-id": 0, "die-id": 1, "module-id": 0, "core-id": 0, "thread-id": 1, "node-id": 1})
    );
    assert_eq!(
        props("vcpu22"),
        json!({"socket-id": 1, "die-id": 0, "module-id": 1, "core-id": 1, "thread-id": 0, "node-id": 0})
    );
    assert_eq!(machine.present().await, [0, 1, 9, 22]);
}
