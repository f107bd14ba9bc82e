//! The older PC, `pc` or i440FX; the newer one, `q35`, is that of the tests in `guest`.

use vcpud::names::error_name;

use crate::harness::*;

/// Real QEMU (pc) with a Linux guest, dbus-daemon.
#[tokio::test]
async fn a_pc_grows_and_shrinks() {
    let world = World::without_polkit().await;
    let boot = Boot {
        hardware: Hardware::PC,
        ..Boot::default()
    };
    let mut qemu = Qemu::start(&world, "old", &boot).await;
    let machine = world.machine("old").await;
    qemu.online("0").await;
    assert_eq!(machine.hotplug_method().await.unwrap(), "device-add");
    assert_eq!(machine.vcpus_per_slot().await.unwrap(), 1);

    let mark = world.signals.mark().await;
    assert_eq!(machine.set(3).await, Ok(Outcome::added([1, 2])));
    qemu.online("0-2").await;
    let result = machine.set_patiently(1).await;
    assert_eq!(result, Ok(Outcome::removed([1, 2])));
    qemu.online("0").await;
    let told = world.signals.since(mark).await;
    assert_eq!(ids(&added(&told)), [1, 2]);
    assert_eq!(ids(&removed(&told)), [1, 2]);
    let failure = machine.set_these(&[0], false).await.unwrap_err();
    failure.assert(error_name::NOT_REMOVABLE, &["old", "vCPU 0"]);
}

/// Real QEMU (pc) with a Linux guest, dbus-daemon.
#[tokio::test]
async fn a_guest_of_a_pc_refuses() {
    let world = World::without_polkit().await;
    let boot = Boot {
        hardware: Hardware::PC,
        vcpus: 2,
        ..Boot::default()
    };
    let mut qemu = Qemu::start(&world, "old", &boot).await;
    let machine = world.machine("old").await;
    qemu.online("0-1").await;
    qemu.order("refuse 1").await;

    let mark = world.signals.mark().await;
    let failure = machine.set_patiently(1).await.unwrap_err();
    let reason = "vCPU 1: the guest is busy with the CPU";
    failure.assert(error_name::GUEST_REFUSED, &["old", reason]);
    let failed = removal_failed(&world.signals.since(mark).await);
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert_eq!(failed[0].0, Vcpu::by_request("old", 1, ""));
    assert_eq!(machine.present().await, [0, 1]);
}

/// Uses a real QEMU (pc without ACPI) with firmware only, and dbus-daemon.
#[tokio::test]
async fn a_pc_without_acpi_does_not_shrink() {
    let world = World::without_polkit().await;
    let boot = Boot {
        hardware: Hardware {
            options: &["-machine", "pc,acpi=off", "-cpu", "qemu64", "-m", "256"],
            ..Hardware::PC
        },
        vcpus: 2,
        linux: false,
        ..Boot::default()
    };
    let _qemu = Qemu::start(&world, "old", &boot).await;
    let machine = world.machine("old").await;
    let failure = machine.set(1).await.unwrap_err();
    let text = ["old", "not supported without ACPI"];
    failure.assert(error_name::NOT_SUPPORTED, &text);
    assert_eq!(machine.present().await, [0, 1]);
}

/// Uses a real QEMU (pc-i440fx-2.6, without hot-unplug) with a Linux guest, and dbus-daemon.
#[tokio::test]
async fn an_old_machine_type_is_named_as_a_cause() {
    let world = World::without_polkit().await;
    let boot = Boot {
        hardware: Hardware {
            options: &["-machine", "pc-i440fx-2.6", "-cpu", "qemu64", "-m", "256"],
            ..Hardware::PC
        },
        vcpus: 2,
        ..Boot::default()
    };
    let mut qemu = Qemu::start(&world, "old", &boot).await;
    let machine = world.machine("old").await;
    qemu.online("0-1").await;
    let failure = machine.set(1).await.unwrap_err();
    let text = ["old", "a machine type of QEMU 2.6 or older"];
    failure.assert(error_name::QMP_FAILED, &text);
}
