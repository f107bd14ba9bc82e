//! LoongArch servers: they grow, and shrink as a PC does, when the guest agrees.

use serde_json::json;
use vcpud::names::error_name;

use crate::harness::*;

const BOOT: Boot = Boot {
    hardware: Hardware::LOONGARCH64,
    vcpus: 1,
    accelerator: "tcg,thread=multi",
    linux: false,
    paused: false,
    agent: false,
};

/// Real QEMU (virt) with nothing to run, dbus-daemon.
#[tokio::test]
async fn a_loongarch64_grows() {
    let world = World::without_polkit().await;
    let mut qemu = Qemu::start(&world, "dragon", &BOOT).await;
    let machine = world.machine("dragon").await;
    assert_eq!(machine.architecture().await.unwrap(), "loongarch64");
    assert_eq!(machine.hotplug_method().await.unwrap(), "device-add");
    assert_eq!(machine.vcpus_per_slot().await.unwrap(), 1);

    let mark = world.signals.mark().await;
    assert_eq!(machine.set(3).await, Ok(Outcome::added([1, 2])));
    let result = machine.set_these(&[7], true).await;
    assert_eq!(result, Ok(Outcome::added([7])));
    let told = world.signals.since(mark).await;
    let expected = [1, 2, 7].map(|id| Vcpu::by_request("dragon", id, &format!("vcpu{id}")));
    assert_eq!(added(&told), expected);
    assert_eq!(qemu.threads().await.len(), 4);
}

/// Real QEMU (virt) with nothing to run, dbus-daemon. QEMU takes the request, and no guest is there
/// to agree or to refuse.
#[tokio::test]
async fn what_a_loongarch64_is_asked_to_give_up_is_pending() {
    let world = World::without_polkit().await;
    let mut qemu = Qemu::start(&world, "dragon", &BOOT).await;
    let machine = world.machine("dragon").await;
    machine.set(3).await.unwrap();

    let mark = world.signals.mark().await;
    assert_eq!(machine.set_async(2).await, Ok(Outcome::pending([2])));
    let told = world.signals.since(mark).await;
    assert_eq!(changes_of(&told, "PendingRemovals"), [json!([2])]);
    assert_eq!(removed(&told), []);
    let impatient = [("timeout-usec", 1000u64.into())];
    let failure = machine.set_with(2, &impatient).await.unwrap_err();
    failure.assert(error_name::REMOVAL_PENDING, &["dragon", "vCPU 2"]);
    assert_eq!(machine.present().await, [0, 1, 2]);
    assert_eq!(qemu.threads().await.len(), 3);

    let failure = machine.set_these(&[0], false).await.unwrap_err();
    failure.assert(error_name::NOT_REMOVABLE, &["dragon", "vCPU 0"]);
    assert_eq!(qemu.count("device_del"), 1);
    // It is as QEMU says.
    let boot_cpu = json!({"id": "/machine/unattached/device[0]"});
    let text = qemu.refusal("device_del", boot_cpu).await;
    assert!(text.starts_with("hot-unplug of boot cpu"), "{text}");
}
