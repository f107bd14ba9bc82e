//! Requests while QEMU owes replies.

use serde_json::json;
use vcpud::names::error_name;

use crate::harness::*;

/// A machine of four vCPUs of six whose QEMU accepts `device_del`, and never answers it.
async fn stalled_machine(world: &World) -> (Peer, Machine) {
    let peer = world.peer("web", Model::x86(4, 6));
    peer.script(|_, call| (call.command == "device_del").then(Vec::new));
    let machine = world.machine("web").await;
    (peer, machine)
}

const ONE_SECOND: [(&str, zbus::Variant<'static>); 1] =
    [("timeout-usec", zbus::Variant::U64(1_000_000))];

/// Uses a fake QEMU and dbus-daemon. Without its own limit the call would end with the time limit for
/// replies, as a lost connection.
#[tokio::test]
async fn a_removal_is_answered_at_its_limit_although_qemu_owes_the_reply() {
    let world = World::without_polkit().await;
    let (peer, machine) = stalled_machine(&world).await;
    let failure = machine.set_with(3, &ONE_SECOND).await.unwrap_err();
    failure.assert(
        error_name::REMOVAL_PENDING,
        &["web", "still pending: vCPU 3"],
    );
    assert_eq!(peer.count("device_del"), 1);
}

/// Uses a fake QEMU and dbus-daemon. QEMU replies to the first of two commands, and to the second later.
#[tokio::test]
async fn an_addition_is_answered_at_its_limit_and_its_end_is_reported() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(1, 4));
    peer.script(|model, call| {
        let is_held = call.command == "device_add" && call.arguments["socket-id"] == 2;
        is_held.then(|| {
            // QEMU has done it, and does not say so.
            model.plug(2, "vcpu2");
            Vec::new()
        })
    });
    let machine = world.machine("web").await;
    let mark = world.signals.mark().await;
    let failure = machine.set_with(3, &ONE_SECOND).await.unwrap_err();
    let text = ["web", "within 1 s", "may still add vCPUs 1-2", "VcpuAdded"];
    failure.assert(error_name::QMP_TIMEOUT, &text);
    // The connection goes on, and the later truth comes over it.
    assert_eq!(machine.state().await.unwrap(), "running");
    let held = peer.calls("device_add").pop().expect("it was sent");
    peer.send(&held.reply(json!({})));
    let both = |told: &[Signal]| ids(&added(told)) == [1, 2];
    world.signals.wait("VcpuAdded", mark, both).await;
    assert_eq!(machine.vcpus().await.unwrap(), 3);
    assert_eq!(peer.clients(), 1);
}

/// Uses a fake QEMU and dbus-daemon.
#[tokio::test]
async fn a_request_behind_a_stalled_one_is_answered_at_its_limit_and_not_begun() {
    let world = World::without_polkit().await;
    let (peer, machine) = stalled_machine(&world).await;
    let stalled = machine.start_set(3);
    peer.asked("device_del", 1).await;
    let failure = machine.set_with(5, &ONE_SECOND).await.unwrap_err();
    failure.assert(error_name::QMP_TIMEOUT, &["web", "nothing was changed"]);
    assert_eq!(peer.count("device_add"), 0);
    // The first one has no limit of its own.
    let failure = stalled.await.unwrap().unwrap_err();
    failure.assert(error_name::QMP_TIMEOUT, &["web", "device_del"]);
}
