//! What happens while there is no connection.

use serde_json::json;
use vcpud::names::error_name;

use crate::harness::*;

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn a_removal_that_completes_while_disconnected_is_found_and_told() {
    let world = World::without_polkit().await;
    let mut model = Model::x86(3, 4);
    model.removal = Removal::Held;
    let peer = world.peer("web", model);
    let machine = world.machine("web").await;
    let waiting = machine.start_set(1);
    machine.wait_for("PendingRemovals", vec![1u32, 2]).await;

    let mark = world.signals.mark().await;
    peer.hang_up();
    machine.wait_for("State", "disconnected").await;
    let failure = machine.set(4).await.unwrap_err();
    failure.assert(error_name::DISCONNECTED, &["web"]);
    assert_eq!(machine.pending().await, [1, 2]);
    peer.model().unplug(2);
    peer.model().plug(3, "other");
    peer.accept();
    machine.wait_for("State", "running").await;
    machine.wait_for("PendingRemovals", vec![1u32]).await;
    assert!(!waiting.is_finished());

    let path = peer.model().unplug(1);
    peer.send(&deleted(&path));
    assert_eq!(waiting.await.unwrap(), Ok(Outcome::removed([1, 2])));
    let told = world.signals.since(mark).await;
    let asked_for = [2, 1].map(|vcpu| Vcpu::by_request("web", vcpu, ""));
    assert_eq!(removed(&told), asked_for);
    assert_eq!(
        added(&told),
        [Vcpu::by_cause("web", 3, "other", "reconnect")]
    );
    let states = changes_of(&told, "State");
    assert_eq!(states, [json!("disconnected"), json!("running")]);
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn a_qemu_that_does_not_greet_is_there_and_disconnected_until_it_does() {
    let mut world = World::without_service().await;
    let peer = Peer::start_silent(&world.socket("web"), Model::x86(2, 4));
    world.serve().await;
    // Who sees the name of the service finds the machine.
    let manager = world.manager().await;
    manager.get_machine("web").await.unwrap();
    let machine = world.machine_in_any_state("web").await;
    assert_eq!(machine.state().await.unwrap(), "disconnected");
    assert_eq!(machine.leader().await.unwrap(), std::process::id());
    let failure = machine.set(3).await.unwrap_err();
    failure.assert(error_name::DISCONNECTED, &["web"]);

    let mark = world.signals.mark().await;
    peer.accept();
    machine.wait_for("State", "running").await;
    assert_eq!(machine.vcpus().await.unwrap(), 2);
    // No signal removed the vCPUs, so none adds them.
    assert_eq!(added(&world.signals.since(mark).await), []);
    assert_eq!(machine.set(3).await, Ok(Outcome::added([2])));
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn a_qemu_that_is_given_up_before_it_greets_is_there_too() {
    let mut world = World::without_service().await;
    // Sooner than a QEMU that has not greeted is shown otherwise.
    world.configure("vcpud.toml", "[defaults]\nqmp-timeout = \"100ms\"");
    let peer = Peer::start_silent(&world.socket("web"), Model::x86(2, 4));
    world.serve().await;
    let machine = world.machine_in_any_state("web").await;
    assert_eq!(machine.state().await.unwrap(), "disconnected");
    peer.accept();
    machine.wait_for("State", "running").await;
    assert_eq!(machine.vcpus().await.unwrap(), 2);
}

/// Scripted QEMUs, dbus-daemon.
#[tokio::test]
async fn a_reply_that_never_comes_ends_the_connection_and_others_never_notice() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(1, 4));
    let other = world.peer("other", Model::x86(1, 4));
    let machine = world.machine("web").await;
    let neighbour = world.machine("other").await;
    peer.script(|_, call| (call.command == "device_add").then(Vec::new));

    let waiting = machine.start_set(2);
    peer.asked("device_add", 1).await;
    assert_eq!(neighbour.set(3).await, Ok(Outcome::added([1, 2])));
    assert_eq!(machine.state().await.unwrap(), "running");
    assert!(!waiting.is_finished());
    let failure = waiting.await.unwrap().unwrap_err();
    failure.assert(error_name::QMP_TIMEOUT, &["web", "device_add", "10 s"]);

    peer.had_clients(2).await;
    machine.wait_for("State", "running").await;
    peer.script(|_, _| None);
    assert_eq!(machine.set(2).await, Ok(Outcome::added([1])));
    assert_eq!(other.clients(), 1);
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn a_refusal_that_came_while_disconnected_is_found_and_told() {
    let mut world = World::without_service().await;
    let mut model = Model::x86(3, 4);
    model.removal = Removal::Held;
    let peer = world.peer("web", model);
    let mut kept = vec![1];
    peer.script(move |model, call| {
        let value = match call.command.as_str() {
            "query-commands" => {
                let mut reply = model.answer(call).remove(0);
                let commands = reply["return"].as_array_mut().expect("a list");
                commands.push(json!({"name": "query-acpi-ospm-status"}));
                return Some(vec![reply]);
            }
            // CPU 1 was never asked for by us and refused long ago; 2 is refused now as busy.
            "query-acpi-ospm-status" => kept
                .iter()
                .map(|slot| ost(*slot, None, 3, 130)["data"]["info"].clone())
                .collect(),
            "device_del" => {
                kept.push(2);
                return None;
            }
            _ => return None,
        };
        Some(vec![call.reply(value)])
    });
    world.serve().await;
    let machine = world.machine("web").await;
    let waiting = machine.start_set(2);
    machine.wait_for("PendingRemovals", vec![2u32]).await;

    let mark = world.signals.mark().await;
    peer.hang_up();
    machine.wait_for("State", "disconnected").await;
    peer.accept();
    let failure = waiting.await.unwrap().unwrap_err();
    failure.assert(error_name::GUEST_REFUSED, &["web", "vCPU 2", "busy"]);
    let told = world.signals.since(mark).await;
    let failed = removal_failed(&told);
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert_eq!(failed[0].0, Vcpu::by_request("web", 2, ""));
    assert_eq!(machine.present().await, [0, 1, 2]);
    assert_eq!(machine.pending().await, [] as [u32; 0]);
}
