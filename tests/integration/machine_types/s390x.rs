//! Mainframes: vCPUs come, and stay.

use serde_json::json;
use vcpud::names::error_name;

use crate::harness::*;

const BOOT: Boot = Boot {
    hardware: Hardware::S390X,
    vcpus: 1,
    accelerator: "tcg,thread=multi",
    linux: false,
    paused: false,
    agent: false,
};

/// Real QEMU (s390-ccw-virtio) with firmware only, dbus-daemon.
#[tokio::test]
async fn an_s390x_grows() {
    let world = World::without_polkit().await;
    let mut qemu = Qemu::start(&world, "frame", &BOOT).await;
    let machine = world.machine("frame").await;
    // It had nothing to boot.
    machine.wait_for("State", "guest-panicked").await;
    assert_eq!(machine.architecture().await.unwrap(), "s390x");
    assert_eq!(machine.hotplug_method().await.unwrap(), "device-add");
    assert_eq!(machine.vcpus_per_slot().await.unwrap(), 1);

    let mark = world.signals.mark().await;
    assert_eq!(machine.set(3).await, Ok(Outcome::added([1, 2])));
    // Drawer 1 starts at 32.
    assert_eq!(
        machine.set_these(&[40], true).await,
        Ok(Outcome::added([40]))
    );
    let told = world.signals.since(mark).await;
    let expected = [1, 2, 40].map(|id| Vcpu::by_request("frame", id, &format!("vcpu{id}")));
    assert_eq!(added(&told), expected);
    assert_eq!(changes_of(&told, "Vcpus"), [3, 4]);
    assert_eq!(qemu.threads().await.len(), 4);

    let rows = machine.rows().await;
    let place = ["drawer-id", "book-id", "socket-id", "core-id"].map(|key| rows[40][key].clone());
    assert_eq!(place, [1, 0, 1, 40]);
    assert_eq!(rows[40]["alias"], "vcpu40");
}

/// Real QEMU (s390-ccw-virtio) with firmware only, dbus-daemon.
#[tokio::test]
async fn an_s390x_does_not_shrink() {
    let world = World::without_polkit().await;
    let mut qemu = Qemu::start(&world, "frame", &BOOT).await;
    let machine = world.machine("frame").await;
    machine.set(3).await.unwrap();

    let mark = world.signals.mark().await;
    let parts = ["frame", "s390x cannot unplug vCPUs"];
    let failure = machine.set(2).await.unwrap_err();
    failure.assert(error_name::NOT_SUPPORTED, &parts);
    let failure = machine.set_these(&[1], false).await.unwrap_err();
    failure.assert(error_name::NOT_SUPPORTED, &parts);
    assert_eq!(removal_failed(&world.signals.since(mark).await), []);
    assert_eq!(machine.rows().await[2]["removable"], false);
    assert_eq!(qemu.count("device_del"), 0);

    // It is as QEMU says.
    let text = qemu.refusal("device_del", json!({"id": "vcpu2"})).await;
    assert_eq!(text, "CPU hot unplug not supported on this machine");
    assert_eq!(machine.present().await, [0, 1, 2]);
}
