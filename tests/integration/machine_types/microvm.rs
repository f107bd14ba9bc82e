//! PCs without slots for CPUs.

use serde_json::json;
use vcpud::names::error_name;

use crate::harness::*;

/// Real QEMU (microvm) with firmware only, dbus-daemon. QEMU 10 takes a `device_add`, and the guest
/// never sees the CPU; so it must not be asked.
#[tokio::test]
async fn a_microvm_stays_as_it_is() {
    const TEXT: &str = "machine does not support hot-plugging CPUs";
    let world = World::without_polkit().await;
    let boot = Boot {
        hardware: Hardware::MICROVM,
        vcpus: 2,
        linux: false,
        ..Boot::default()
    };
    let mut qemu = Qemu::start(&world, "micro", &boot).await;
    let machine = world.machine("micro").await;
    assert_eq!(machine.architecture().await.unwrap(), "x86_64");
    assert_eq!(machine.hotplug_method().await.unwrap(), "none");
    assert_eq!(machine.max_vcpus().await.unwrap(), 2);

    let failure = machine.set(1).await.unwrap_err();
    failure.assert(error_name::NOT_SUPPORTED, &["micro", TEXT, "stays 2"]);
    let failure = machine.set_these(&[1], false).await.unwrap_err();
    failure.assert(error_name::NOT_SUPPORTED, &["micro", TEXT]);
    let failure = machine.set(3).await.unwrap_err();
    failure.assert(error_name::NOT_SUPPORTED, &["micro", TEXT, "stays 2"]);
    assert_eq!(qemu.count("device_add") + qemu.count("device_del"), 0);
    assert!(qemu.count("query-cpus-fast") > 0);

    let text = qemu.refusal("query-hotpluggable-cpus", json!({})).await;
    assert_eq!(text, TEXT);
}
