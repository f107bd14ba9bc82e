//! A machine without an operating system.

use vcpud::names::error_name;

use crate::harness::*;

/// Real QEMU with firmware only, dbus-daemon.
#[tokio::test]
async fn what_qemu_says_reaches_the_caller_where_no_guest_can_give_up_a_cpu() {
    let world = World::without_polkit().await;
    let boot = Boot {
        linux: false,
        ..Boot::default()
    };
    let mut qemu = Qemu::start(&world, "bare", &boot).await;
    let machine = world.machine("bare").await;
    assert_eq!(machine.set(2).await, Ok(Outcome::added([1])));

    let mark = world.signals.mark().await;
    let failure = machine.set(1).await.unwrap_err();
    let text = "acpi: device unplug request for not supported device type: qemu64-x86_64-cpu";
    failure.assert(error_name::QMP_FAILED, &["bare", "vCPU 1", text]);
    let failed = removal_failed(&world.signals.since(mark).await);
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert_eq!(failed[0].0, Vcpu::by_request("bare", 1, "vcpu1"));
    assert!(failed[0].1.contains(text), "{failed:?}");
    assert_eq!(machine.pending().await, [] as [u32; 0]);
    assert_eq!(machine.vcpus().await.unwrap(), 2);
    assert_eq!(qemu.threads().await.len(), 2);
}
