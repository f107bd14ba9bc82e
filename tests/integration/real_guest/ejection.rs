//! A guest that gives a vCPU away by itself.

use crate::harness::*;

/// A guest that uses two boot vCPUs and one that was plugged.
async fn guest_of_three(world: &World) -> (Qemu, Machine) {
    let boot = Boot {
        vcpus: 2,
        ..Boot::default()
    };
    let mut qemu = Qemu::start(world, "web", &boot).await;
    let machine = world.machine("web").await;
    qemu.online("0-1").await;
    machine.set(3).await.unwrap();
    qemu.online("0-2").await;
    (qemu, machine)
}

/// Real QEMU with a Linux guest, dbus-daemon.
#[tokio::test]
async fn a_vcpu_that_the_guest_ejects_by_itself_is_reported() {
    let world = World::without_polkit().await;
    let (mut qemu, machine) = guest_of_three(&world).await;

    for (vcpu, alias) in [(2, "vcpu2"), (1, "")] {
        let mark = world.signals.mark().await;
        qemu.order(&format!("eject {vcpu}")).await;
        machine.wait_for("Vcpus", vcpu).await;
        let told = world
            .signals
            .wait("VcpuRemoved", mark, |told| !removed(told).is_empty());
        let gone = removed(&told.await);
        assert_eq!(gone, [Vcpu::by_cause("web", vcpu, alias, "guest")]);
    }
    assert_eq!(machine.present().await, [0]);
}

/// Real QEMU with a Linux guest, dbus-daemon.
#[tokio::test]
async fn a_vcpu_that_another_client_of_qemu_removes_is_not_laid_at_the_guests_door() {
    let world = World::without_polkit().await;
    let (mut qemu, _) = guest_of_three(&world).await;

    let mark = world.signals.mark().await;
    let vcpu = serde_json::json!({"id": "vcpu2"});
    qemu.execute("device_del", vcpu).await;
    let told = world
        .signals
        .wait("VcpuRemoved", mark, |told| !removed(told).is_empty());
    let gone = removed(&told.await);
    assert_eq!(gone, [Vcpu::by_cause("web", 2, "vcpu2", "external")]);
}
