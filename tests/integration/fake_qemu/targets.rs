//! Machines that cannot do everything.

use vcpud::names::error_name;

use crate::harness::*;

/// Scripted QEMU (s390x), dbus-daemon.
#[tokio::test]
async fn a_machine_that_cannot_unplug_is_not_asked_to() {
    let world = World::without_polkit().await;
    let mut model = Model::x86(2, 4);
    model.target = "s390x";
    let peer = world.peer("mainframe", model);
    let machine = world.machine("mainframe").await;
    assert_eq!(machine.set(3).await, Ok(Outcome::added([2])));
    let failure = machine.set(2).await.unwrap_err();
    failure.assert(error_name::NOT_SUPPORTED, &["mainframe", "s390x"]);
    assert_eq!(peer.count("device_del"), 0);
    assert_eq!(machine.rows().await[2]["removable"], false);
}

/// Scripted QEMU (as for ARM), dbus-daemon.
#[tokio::test]
async fn a_machine_whose_cpus_cannot_be_plugged_says_so_in_qemus_words() {
    const TEXT: &str = "machine does not support hot-plugging CPUs";
    let mut world = World::without_service().await;
    let peer = world.peer("arm", Model::x86(2, 2));
    peer.script(|_, call| {
        let is_query = call.command == "query-hotpluggable-cpus";
        is_query.then(|| vec![call.refusal(TEXT)])
    });
    world.serve().await;
    let machine = world.machine("arm").await;
    assert_eq!(machine.hotplug_method().await.unwrap(), "none");
    assert_eq!(machine.vcpus().await.unwrap(), 2);
    assert_eq!(machine.max_vcpus().await.unwrap(), 2);
    let failure = machine.set(1).await.unwrap_err();
    failure.assert(error_name::NOT_SUPPORTED, &["arm", TEXT]);
    assert_eq!(peer.count("device_del"), 0);
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn the_first_cpu_stays() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::pseries(1, 2));
    let machine = world.machine("web").await;
    // In range, but below what the boot entity brings.
    let failure = machine.set(1).await.unwrap_err();
    failure.assert(error_name::NOT_REMOVABLE, &["web", "4"]);
    assert_eq!(peer.count("device_del"), 0);
}

/// Scripted QEMU (loongarch64), dbus-daemon.
#[tokio::test]
async fn a_guest_of_a_loongarch64_refuses() {
    let world = World::without_polkit().await;
    let mut model = Model::x86(2, 4);
    model.target = "loongarch64";
    model.removal = Removal::Held;
    let peer = world.peer("dragon", model);
    let machine = world.machine("dragon").await;

    let waiting = machine.start_set(1);
    machine.wait_for("PendingRemovals", vec![1u32]).await;
    peer.send(&ost(1, None, 3, 0x82));
    let failure = waiting.await.unwrap().unwrap_err();
    let reason = "vCPU 1: the guest is busy with the CPU";
    failure.assert(error_name::GUEST_REFUSED, &["dragon", reason]);
    assert_eq!(machine.present().await, [0, 1]);
}
