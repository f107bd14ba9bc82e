//! How a guest refuses.

use serde_json::{Value, json};
use vcpud::names::error_name;

use crate::harness::*;

/// Asks for the removal of vCPU 1 and lets the guest answer with `events`.
async fn refuse(world: &World, machine: &Machine, peer: &Peer, events: &[Value], reason: &str) {
    let requests = peer.count("device_del");
    let mark = world.signals.mark().await;
    let waiting = machine.start_set(1);
    machine.wait_for("PendingRemovals", vec![1u32]).await;
    for event in events {
        peer.send(event);
    }
    let failure = waiting.await.unwrap().unwrap_err();
    failure.assert(error_name::GUEST_REFUSED, &["web", "vCPU 1", reason]);

    let told = world.signals.since(mark).await;
    let alias = machine.rows().await[1].get("alias").map_or("", |alias| {
        assert_eq!(alias, "vcpu1");
        "vcpu1"
    });
    let expected = (Vcpu::by_request("web", 1, alias), reason.to_owned());
    assert_eq!(removal_failed(&told), [expected]);
    assert_eq!(machine.pending().await, [] as [u32; 0]);
    assert_eq!(peer.count("device_del"), requests + 1);
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn a_refusal_of_linux_reaches_the_caller_and_can_be_asked_again() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(1, 4));
    let machine = world.machine("web").await;
    machine.set(2).await.unwrap();
    peer.model().removal = Removal::Held;

    // In progress, then busy.
    let device = Some("vcpu1");
    let linux = [ost(1, device, 3, 0x84), ost(1, device, 3, 0x82)];
    let reason = "the guest is busy with the CPU";
    refuse(&world, &machine, &peer, &linux, reason).await;
    let other = [ost(1, device, 0x103, 0x81)];
    let reason = "the CPU is in use by the guest";
    refuse(&world, &machine, &peer, &other, reason).await;

    peer.model().removal = Removal::Willing;
    let result = machine.set_patiently(1).await;
    assert_eq!(result, Ok(Outcome::removed([1])));
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn a_refusal_that_names_only_the_slot_is_understood() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(2, 4));
    let machine = world.machine("web").await;
    peer.model().removal = Removal::Held;
    let reason = "another device of the guest depends on the CPU";
    refuse(&world, &machine, &peer, &[ost(1, None, 3, 0x83)], reason).await;
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn a_guest_error_is_a_refusal() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(1, 4));
    let machine = world.machine("web").await;
    machine.set(2).await.unwrap();
    peer.model().removal = Removal::Held;
    let data = json!({"device": "vcpu1", "path": "/machine/peripheral/vcpu1"});
    let events = [event("DEVICE_UNPLUG_GUEST_ERROR", data)];
    let reason = "the guest refused to give up the CPU";
    refuse(&world, &machine, &peer, &events, reason).await;
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn a_refusal_that_comes_before_the_reply_is_a_refusal() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(1, 4));
    let machine = world.machine("web").await;
    machine.set(2).await.unwrap();
    peer.script(|_, call| {
        let refusal = ost(1, Some("vcpu1"), 3, 0x82);
        (call.command == "device_del").then(|| vec![refusal, call.reply(json!({}))])
    });

    let mark = world.signals.mark().await;
    let failure = machine.set_patiently(1).await.unwrap_err();
    let reason = "vCPU 1: the guest is busy with the CPU";
    failure.assert(error_name::GUEST_REFUSED, &["web", reason]);
    let told = world.signals.since(mark).await;
    assert_eq!(removal_failed(&told).len(), 1, "{told:?}");
    assert_eq!(machine.pending().await, [] as [u32; 0]);
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn what_is_refused_and_what_goes_is_told_apart() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(1, 4));
    let machine = world.machine("web").await;
    machine.set(4).await.unwrap();
    peer.model().removal = Removal::Held;

    let waiting = machine.start_set(1);
    machine.wait_for("PendingRemovals", vec![1u32, 2, 3]).await;
    peer.send(&ost(2, Some("vcpu2"), 3, 1));
    machine.wait_for("PendingRemovals", vec![1u32, 3]).await;
    for n in [3, 1] {
        let path = peer.model().unplug(n);
        peer.send(&deleted(&path));
    }
    let failure = waiting.await.unwrap().unwrap_err();
    let parts = [
        "vCPU 2: the guest failed",
        "removed: vCPUs 1,3",
        "requested: set the number of vCPUs to 1;",
    ];
    failure.assert(error_name::GUEST_REFUSED, &parts);
    assert_eq!(machine.present().await, [0, 2]);
}
