//! Growing where something is in the way.

use std::collections::HashMap;

use serde_json::{Value, json};
use vcpud::names::error_name;

use crate::harness::*;

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn what_came_of_a_growth_that_fails_in_part_stays_and_is_told() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(1, 4));
    let machine = world.machine("web").await;
    peer.script(|_, call| {
        let is_second = call.arguments["socket-id"] == 2;
        is_second.then(|| vec![call.refusal("no room for CPU 2")])
    });

    let mark = world.signals.mark().await;
    let failure = machine.set(4).await.unwrap_err();
    let parts = [
        "web",
        "vCPU 2: ",
        "GenericError",
        "no room for CPU 2",
        "added: vCPUs 1,3",
    ];
    failure.assert(error_name::QMP_FAILED, &parts);
    let told = world.signals.since(mark).await;
    assert_eq!(ids(&added(&told)), [1, 3]);
    assert_eq!(changes_of(&told, "Vcpus"), [3]);
    assert_eq!(machine.present().await, [0, 1, 3]);
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn all_vcpus_are_asked_for_at_once_with_qemus_own_properties() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(1, 4));
    let machine = world.machine("web").await;
    // Answers none before it has been asked for all.
    let mut held: Vec<Value> = Vec::new();
    peer.script(move |model, call| {
        if call.command != "device_add" {
            return None;
        }
        held.extend(model.answer(call));
        let all = held.len() == 3;
        Some(if all {
            std::mem::take(&mut held)
        } else {
            vec![]
        })
    });

    let before = peer.all_calls();
    assert_eq!(machine.set(4).await, Ok(Outcome::added([1, 2, 3])));
    let commands = peer.commands_from(before);
    let added = ["device_add", "device_add", "device_add", "query-cpus-fast"].map(str::to_owned);
    let start = commands.iter().position(|command| command == "device_add");
    let start = start.expect("it is asked");
    // Later, the service looks whether the guest has started the vCPUs.
    assert!(commands[start..].starts_with(&added), "{commands:?}");
    let arguments = peer
        .calls("device_add")
        .into_iter()
        .map(|call| call.arguments);
    let expected = [1, 2, 3].map(|n| {
        json!({
            "driver": "qemu64-x86_64-cpu", "id": format!("vcpu{n}"),
            "socket-id": n, "core-id": 0, "thread-id": 0,
        })
    });
    assert_eq!(arguments.collect::<Vec<_>>(), expected);
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn an_id_that_is_taken_is_avoided() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(1, 4));
    let machine = world.machine("web").await;
    // A network card, say.
    peer.model().ids.insert("vcpu1".to_owned());

    let mark = world.signals.mark().await;
    assert_eq!(machine.set(3).await, Ok(Outcome::added([1, 2])));
    let came = added(&world.signals.since(mark).await);
    assert_eq!(ids(&came), [1, 2]);
    let alias = &came.iter().find(|vcpu| vcpu.id == 1).unwrap().alias;
    assert_ne!(alias, "vcpu1");
    assert_eq!(machine.rows().await[1]["alias"], alias.as_str());
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn a_vcpu_that_another_client_plugged_is_noticed() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(1, 4));
    let machine = world.machine("web").await;

    let mark = world.signals.mark().await;
    peer.model().plug(2, "other");
    peer.send(&ost(2, Some("other"), 1, 0));
    machine.wait_for("Vcpus", 2u32).await;
    let told = world
        .signals
        .wait("VcpuAdded", mark, |told| !added(told).is_empty());
    let came = added(&told.await);
    assert_eq!(came, [Vcpu::by_cause("web", 2, "other", "external")]);
    // The lowest free ones come first, and the gap is one.
    assert_eq!(machine.set(3).await, Ok(Outcome::added([1])));
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn the_reply_comes_after_all_that_the_call_caused() {
    let world = World::without_polkit().await;
    let _peer = world.peer("web", Model::x86(1, 4));
    let machine = world.machine("web").await;
    let mark = world.signals.mark().await;
    for (count, id) in [(2u32, "added"), (1, "removed")] {
        let options: HashMap<&str, zbus::Variant<'_>> = HashMap::new();
        let body = (count, options);
        let interface = Some("org.vcpud1.Machine");
        let service = Some("org.vcpud1");
        let call =
            world
                .connection
                .call_method(service, machine.path(), interface, "SetVcpus", &body);
        let reply = within("the reply", call).await.unwrap();
        let told = world.signals.all_before(reply.recv_position()).await;
        let told = &told[mark..];
        assert_eq!(
            changes_of(told, "Vcpus").last(),
            Some(&json!(count)),
            "{id}"
        );
        let (came, went) = (added(told).len(), removed(told).len());
        assert_eq!(came + went, 3 - count as usize, "{id}: {told:?}");
    }
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn a_thread_is_believed_only_where_it_is_one_of_the_leader() {
    let world = World::without_polkit().await;
    let peer = world.peer("good", Model::x86(2, 4));
    let mut lying = Model::x86(2, 4);
    lying.threads = Threads::Foreign;
    let _liar = world.peer("liar", lying);

    let good = world.machine("good").await;
    assert_eq!(good.leader().await.unwrap(), std::process::id());
    for (n, row) in good.rows().await.iter().enumerate().take(2) {
        assert_eq!(row["thread-id"], peer.model().threads_of(n)[0]);
    }
    let liar = world.machine("liar").await;
    assert_eq!(liar.vcpus().await.unwrap(), 2);
    for row in liar.rows().await {
        assert!(!row.contains_key("thread-id"), "{row:?}");
    }
}
