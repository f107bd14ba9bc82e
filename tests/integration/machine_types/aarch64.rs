//! ARM servers: the vCPUs that are there at the start are all there will be.

use serde_json::json;
use vcpud::names::error_name;

use crate::harness::*;

/// QEMU 10 says so to the query, 7.2 and others have it not enabled.
const TEXT: &str = "machine does not support hot-plugging CPUs";

/// Real QEMU (virt) with firmware only, dbus-daemon. QEMU 7.2 aborts when it is asked to unplug a
/// boot CPU of it, so it must never be asked.
#[tokio::test]
async fn the_vcpus_of_an_aarch64_stay_as_they_are_and_qemu_is_never_asked() {
    let world = World::without_polkit().await;
    let boot = Boot {
        hardware: Hardware::AARCH64,
        vcpus: 2,
        linux: false,
        ..Boot::default()
    };
    let mut qemu = Qemu::start(&world, "arm", &boot).await;
    let machine = world.machine("arm").await;
    assert_eq!(machine.architecture().await.unwrap(), "aarch64");
    assert_eq!(machine.hotplug_method().await.unwrap(), "none");
    assert_eq!(machine.vcpus().await.unwrap(), 2);
    assert_eq!(machine.max_vcpus().await.unwrap(), 2);

    let mark = world.signals.mark().await;
    let shrink = machine.set(1).await.unwrap_err();
    shrink.assert(error_name::NOT_SUPPORTED, &["arm", TEXT]);
    let unplug = machine.set_these(&[1], false).await.unwrap_err();
    unplug.assert(error_name::NOT_SUPPORTED, &["arm", TEXT]);
    let boot_cpu = machine.set_these(&[0], false).await.unwrap_err();
    boot_cpu.assert(error_name::NOT_SUPPORTED, &["arm", TEXT]);
    let grow = machine.set(3).await.unwrap_err();
    grow.assert(error_name::NOT_SUPPORTED, &["arm", TEXT]);
    assert_eq!(machine.set(2).await, Ok(Outcome::default()));
    assert_eq!(world.signals.since(mark).await, []);

    for row in machine.rows().await {
        assert_eq!(row["hotpluggable"], false, "{row:?}");
        assert_eq!(row["removable"], false, "{row:?}");
        assert_eq!(row["cluster-id"], 0, "{row:?}");
    }
    let text = qemu.refusal("query-hotpluggable-cpus", json!({})).await;
    assert_eq!(text, TEXT);
    assert_eq!(qemu.count("device_del") + qemu.count("device_add"), 0);
    assert_eq!(qemu.threads().await.len(), 2);
}
