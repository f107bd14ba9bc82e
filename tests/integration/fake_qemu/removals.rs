//! How a removal comes to its end.

use serde_json::json;
use vcpud::names::error_name;

use crate::harness::*;

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn a_removal_outlives_the_call_that_asked_for_it() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(1, 4));
    let machine = world.machine("web").await;
    machine.set(3).await.unwrap();
    peer.model().removal = Removal::Held;

    let mark = world.signals.mark().await;
    let options = [("timeout-usec", 50_000u64.into())];
    let failure = machine.set_with(1, &options).await.unwrap_err();
    let parts = [
        "web",
        "requested: set the number of vCPUs to 1;",
        "still pending: vCPUs 1-2",
        "within 0.05 s",
    ];
    failure.assert(error_name::REMOVAL_PENDING, &parts);
    assert_eq!(machine.pending().await, [1, 2]);

    // The guest comes round, one CPU after the other.
    for n in [2, 1] {
        let path = peer.model().unplug(n);
        peer.send(&deleted(&path));
        machine.wait_for("Vcpus", n as u32).await;
    }
    // The signals follow the properties.
    let are_there = |told: &[Signal]| removed(told).len() == 2;
    let told = world.signals.wait("both signals", mark, are_there).await;
    let gone = [
        Vcpu::by_request("web", 2, "vcpu2"),
        Vcpu::by_request("web", 1, "vcpu1"),
    ];
    assert_eq!(removed(&told), gone);
    let pending = [json!([1, 2]), json!([1]), json!([])];
    assert_eq!(changes_of(&told, "PendingRemovals"), pending);
    assert_eq!(peer.count("device_del"), 2);
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn an_event_that_names_only_a_part_of_the_cpu_is_enough() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(1, 4));
    let machine = world.machine("web").await;
    machine.set(2).await.unwrap();
    peer.model().removal = Removal::Held;

    let waiting = machine.start_set(1);
    machine.wait_for("PendingRemovals", vec![1u32]).await;
    let path = peer.model().unplug(1);
    peer.send(&deleted(&format!("{path}/lapic")));
    assert_eq!(waiting.await.unwrap(), Ok(Outcome::removed([1])));
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn no_event_at_all_is_needed_for_a_removal_that_is_waited_for() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(2, 4));
    let machine = world.machine("web").await;
    peer.model().removal = Removal::Held;

    let waiting = machine.start_set(1);
    machine.wait_for("PendingRemovals", vec![1u32]).await;
    peer.model().unplug(1);
    assert_eq!(waiting.await.unwrap(), Ok(Outcome::removed([1])));
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn an_event_may_come_before_the_reply_of_its_command() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(1, 4));
    let machine = world.machine("web").await;
    machine.set(3).await.unwrap();
    peer.script(|model, call| {
        let mut messages = model.answer(call);
        messages.reverse();
        Some(messages)
    });

    let mark = world.signals.mark().await;
    let result = machine.set_patiently(1).await;
    assert_eq!(result, Ok(Outcome::removed([1, 2])));
    let told = world.signals.since(mark).await;
    let mut gone = removed(&told);
    gone.sort_by_key(|vcpu| vcpu.id);
    let expected = [1, 2].map(|id| Vcpu::by_request("web", id, &format!("vcpu{id}")));
    assert_eq!(gone, expected);
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn an_event_of_a_cpu_that_is_alive_changes_nothing() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(1, 4));
    let machine = world.machine("web").await;
    machine.set(2).await.unwrap();

    let mark = world.signals.mark().await;
    let looks = peer.count("query-hotpluggable-cpus");
    peer.send(&deleted(&peer.model().path(1)));
    peer.asked("query-hotpluggable-cpus", looks + 1).await;
    // Answered after the look that the event led to.
    assert_eq!(machine.set(3).await, Ok(Outcome::added([2])));
    let told = world.signals.since(mark).await;
    assert_eq!(removed(&told), []);
    assert_eq!(added(&told), [Vcpu::by_request("web", 2, "vcpu2")]);
    assert_eq!(machine.present().await, [0, 1, 2]);
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn a_reset_that_completes_a_removal_is_its_cause() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(2, 4));
    let machine = world.machine("web").await;
    peer.model().removal = Removal::Held;
    assert_eq!(machine.set_async(1).await, Ok(Outcome::pending([1])));

    let mark = world.signals.mark().await;
    let reset = event("RESET", json!({"guest": true, "reason": "guest-reset"}));
    // A refresh can be under way. QEMU reports the reset before it replies without the vCPU.
    let mut report = Some(reset.clone());
    peer.script(move |model, call| {
        if call.command != "query-hotpluggable-cpus" {
            return None;
        }
        let report = report.take()?;
        model.unplug(1);
        Some([vec![report], model.answer(call)].concat())
    });
    peer.send(&reset);
    let is_there = |told: &[Signal]| !removed(told).is_empty();
    let told = world.signals.wait("the signal", mark, is_there).await;
    assert_eq!(machine.vcpus().await.unwrap(), 1);
    let expected = Vcpu {
        cause: "reset".to_owned(),
        ..Vcpu::by_request("web", 1, "")
    };
    assert_eq!(removed(&told), [expected]);
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn a_run_state_that_ends_without_an_event_is_noticed() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(2, 4));
    let machine = world.machine("web").await;
    peer.model().status = "finish-migrate";
    peer.send(&event("STOP", json!({})));
    machine.wait_for("State", "finish-migrate").await;
    peer.model().status = "postmigrate";
    machine.wait_for("State", "postmigrate").await;
}
