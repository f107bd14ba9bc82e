//! vCPUs that nobody plugged.

use vcpud::names::error_name;

use crate::harness::*;

/// Real QEMU with a Linux guest, dbus-daemon.
#[tokio::test]
async fn boot_vcpus_are_removed_but_for_the_first() {
    let world = World::without_polkit().await;
    let boot = Boot {
        vcpus: 4,
        ..Boot::default()
    };
    let mut qemu = Qemu::start(&world, "web", &boot).await;
    let machine = world.machine("web").await;
    qemu.online("0-3").await;

    let mark = world.signals.mark().await;
    let result = machine.set_patiently(2).await;
    assert_eq!(result, Ok(Outcome::removed([2, 3])));
    qemu.online("0-1").await;
    let gone = removed(&world.signals.since(mark).await);
    assert_eq!(ids(&gone), [2, 3]);
    assert!(gone.contains(&Vcpu::by_request("web", 3, "")), "{gone:?}");
    assert_eq!(machine.present().await, [0, 1]);

    // One that came in the place of a boot vCPU goes as any other.
    assert_eq!(machine.set(3).await, Ok(Outcome::added([2])));
    qemu.online("0-2").await;
    let result = machine.set_patiently(1).await;
    assert_eq!(result, Ok(Outcome::removed([1, 2])));
    let failure = machine.set(0).await.unwrap_err();
    failure.assert(error_name::OUT_OF_RANGE, &["1 to 64"]);
}
