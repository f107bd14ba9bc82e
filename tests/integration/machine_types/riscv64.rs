//! RISC-V boards: the vCPUs that are there at the start are all there will be.

use serde_json::json;
use vcpud::names::error_name;

use crate::harness::*;

/// Real QEMU (virt) with nothing to run, dbus-daemon.
#[tokio::test]
async fn the_vcpus_of_a_riscv64_stay_as_they_are() {
    const TEXT: &str = "machine does not support hot-plugging CPUs";
    let world = World::without_polkit().await;
    let boot = Boot {
        hardware: Hardware::RISCV64,
        vcpus: 2,
        linux: false,
        ..Boot::default()
    };
    let mut qemu = Qemu::start(&world, "board", &boot).await;
    let machine = world.machine("board").await;
    assert_eq!(machine.architecture().await.unwrap(), "riscv64");
    assert_eq!(machine.hotplug_method().await.unwrap(), "none");
    assert_eq!(machine.max_vcpus().await.unwrap(), 2);

    let failure = machine.set(1).await.unwrap_err();
    failure.assert(error_name::NOT_SUPPORTED, &["board", TEXT]);
    let failure = machine.set_these(&[1], false).await.unwrap_err();
    failure.assert(error_name::NOT_SUPPORTED, &["board", TEXT]);
    let failure = machine.set(3).await.unwrap_err();
    failure.assert(error_name::NOT_SUPPORTED, &["board", TEXT]);
    assert_eq!(qemu.count("device_add") + qemu.count("device_del"), 0);

    let text = qemu.refusal("query-hotpluggable-cpus", json!({})).await;
    assert_eq!(text, TEXT);
    assert_eq!(qemu.threads().await.len(), 2);
}
