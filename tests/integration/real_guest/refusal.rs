//! A guest that keeps a vCPU.

use vcpud::names::error_name;

use crate::harness::*;

/// Real QEMU with a Linux guest, dbus-daemon.
#[tokio::test]
async fn a_guest_that_refuses_can_be_asked_again() {
    let world = World::without_polkit().await;
    let mut qemu = Qemu::start(&world, "web", &Boot::default()).await;
    let machine = world.machine("web").await;
    qemu.online("0").await;
    machine.set(3).await.unwrap();
    qemu.online("0-2").await;
    qemu.order("refuse 1").await;

    let mark = world.signals.mark().await;
    let failure = machine.set_patiently(1).await.unwrap_err();
    failure.assert(
        error_name::GUEST_REFUSED,
        &[
            "web",
            "vCPU 1: the guest is busy with the CPU",
            "removed: vCPU 2",
        ],
    );
    let told = world.signals.since(mark).await;
    let failed = removal_failed(&told);
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert_eq!(failed[0].0, Vcpu::by_request("web", 1, "vcpu1"));
    assert_eq!(ids(&removed(&told)), [2]);
    assert_eq!(machine.pending().await, [] as [u32; 0]);
    assert_eq!(machine.present().await, [0, 1]);
    assert_eq!(qemu.threads().await.len(), 2);

    qemu.order("unrefuse 1").await;
    let result = machine.set_patiently(1).await;
    assert_eq!(result, Ok(Outcome::removed([1])));
    qemu.online("0").await;
}
