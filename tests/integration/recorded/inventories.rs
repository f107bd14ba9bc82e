//! Inventories of every kind.

use std::process;

use serde_json::{Value, json};

use super::player::{Player, play_each};
use crate::harness::*;

/// Scripted QEMU (recordings of 7.2 and 11.1), dbus-daemon.
#[tokio::test]
async fn gaps_are_filled_in_any_order() {
    for player in play_each(&["gaps-7.2-q35", "gaps-11.1-q35"]).await {
        // The last two were plugged by number, and there is one gap left.
        assert_eq!(player.machine.present().await, [0, 1, 3, 4, 5, 6, 7]);
        let rows = player.machine.rows().await;
        let order = [0, 1, 5, 3, 4, 6, 7].map(|id: usize| rows[id]["order"].clone());
        assert_eq!(json!(order), json!([1, 2, 3, 4, 5, 6, 7]));
    }
}

/// Scripted QEMU (recordings of 7.2 and 11.1), dbus-daemon.
#[tokio::test]
async fn places_are_listed_and_passed_on_as_qemu_has_them() {
    let recordings = [
        "numa-7.2-q35",
        "numa-11.1-q35",
        "numa-cpu-7.2-q35",
        "numa-cpu-11.1-q35",
        "threads2-7.2-q35",
        "threads2-11.1-q35",
        "errors-7.2-q35",
        "errors-11.1-q35",
    ];
    for player in play_each(&recordings).await {
        let rows = player.machine.rows().await;
        let calls = player.replay.peer.calls("device_add");
        assert!(!calls.is_empty());
        for call in calls {
            let alias = call.arguments["id"].as_str().unwrap();
            let row = rows
                .iter()
                .find(|row| row.get("alias").is_some_and(|a| a == alias));
            let row = row.unwrap_or_else(|| panic!("no {alias} in {rows:?}"));
            for (key, value) in call.arguments.as_object().unwrap() {
                let key = match key.as_str() {
                    "driver" | "id" => continue,
                    "thread-id" => "thread-id-in-core",
                    key => key,
                };
                assert_eq!(row[key], *value, "{key} of {alias}");
            }
        }
    }
}

/// Scripted QEMU (a recording of 11.1), dbus-daemon.
#[tokio::test]
async fn modules_are_listed() {
    let player = Player::start("modules-11.1-q35").await;
    let rows = player.machine.rows().await;
    let modules: Vec<Value> = rows.iter().map(|row| row["module-id"].clone()).collect();
    assert_eq!(modules, [0, 0, 0, 0, 1, 1, 1, 1]);
}

/// Scripted QEMU (recordings of 7.2, 10.0 and 11.1), dbus-daemon.
#[tokio::test]
async fn a_thread_of_its_own_is_told_and_a_shared_one_is_not() {
    for player in play_each(&["threads-7.2-kvm", "threads-10.0-kvm", "threads-11.1-kvm"]).await {
        assert_eq!(player.machine.leader().await.unwrap(), process::id());
        let mut threads = Vec::new();
        for row in &player.machine.rows().await[..3] {
            threads.push(row["thread-id"].as_u64().unwrap());
        }
        threads.dedup();
        assert_eq!(threads.len(), 3);
    }
    for player in play_each(&["threads-7.2-single", "threads-11.1-single"]).await {
        for row in player.machine.rows().await {
            assert!(!row.contains_key("thread-id"), "{row:?}");
        }
    }
}

/// Scripted QEMU (recordings of 7.2 and 11.1), dbus-daemon.
#[tokio::test]
async fn a_cpu_without_an_id_is_unplugged_by_its_path() {
    for recording in ["anonymous-7.2-q35", "anonymous-11.1-q35"] {
        let mut player = Player::start_late(recording, 1).await;
        assert_eq!(player.machine.present().await, [0, 3]);
        let row = &player.machine.rows().await[3];
        let path = "/machine/peripheral-anon/device[0]";
        assert_eq!(row["qom-path"], path);
        assert!(!row.contains_key("alias"), "{row:?}");
        player.play_rest().await;
        assert_eq!(
            player.replay.peer.calls("device_del")[0].arguments["id"],
            path
        );
    }
}

/// Scripted QEMU, dbus-daemon. As large as QEMU 11.1 with `maxcpus=1024`: its list of CPUs had
/// 111 kB.
#[tokio::test]
async fn a_thousand_cpus_are_one_look() {
    let world = World::without_polkit().await;
    let peer = world.peer("huge", Model::x86(1, 1024));
    let machine = world.machine("huge").await;
    assert_eq!(machine.max_vcpus().await.unwrap(), 1024);
    assert_eq!(machine.rows().await.len(), 1024);
    let mark = world.signals.mark().await;
    let before = peer.all_calls();
    let hundred: Vec<u32> = (1..100).collect();
    assert_eq!(machine.set(100).await, Ok(Outcome::added(hundred.clone())));
    let commands = peer.commands_from(before);
    let start = commands.iter().position(|command| command == "device_add");
    let commands = &commands[start.expect("it is asked")..];
    let (additions, looks) = commands.split_at(hundred.len());
    assert!(additions.iter().all(|command| command == "device_add"));
    // Later, the service looks whether the guest has started the vCPUs.
    assert!(looks.starts_with(&["query-cpus-fast", "query-status"].map(str::to_owned)));
    assert_eq!(peer.count("device_add"), hundred.len());
    let told = world.signals.since(mark).await;
    assert_eq!(ids(&added(&told)), hundred);
    assert_eq!(changes_of(&told, "Vcpus"), [100]);
    let result = machine.set_these(&[1023], true).await;
    assert_eq!(result, Ok(Outcome::added([1023])));
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn the_order_of_qemus_list_is_of_no_consequence_and_holes_in_it_neither() {
    let mut world = World::without_service().await;
    let peer = world.peer("web", Model::x86(2, 8));
    let mut asked = 0;
    peer.script(move |model, call| {
        if call.command != "query-hotpluggable-cpus" {
            return None;
        }
        let mut answer = model.answer(call);
        let list = answer[0]["return"].as_array_mut().expect("a list");
        // QEMU 11 may not list what cannot be plugged; here sockets 3 and 4.
        list.retain(|slot| slot["props"]["socket-id"] != 3 && slot["props"]["socket-id"] != 4);
        list.rotate_left(asked % 6);
        asked += 1;
        Some(answer)
    });
    world.serve().await;
    let machine = world.machine("web").await;
    assert_eq!(machine.max_vcpus().await.unwrap(), 6);
    let mark = world.signals.mark().await;
    for (count, socket) in [(3, 2), (4, 5), (5, 6)] {
        let vcpu = count - 1;
        assert_eq!(machine.set(count).await, Ok(Outcome::added([vcpu])));
        assert_eq!(machine.rows().await[vcpu as usize]["socket-id"], socket);
    }
    assert_eq!(machine.set(2).await, Ok(Outcome::removed([2, 3, 4])));
    let told = world.signals.since(mark).await;
    assert_eq!(ids(&added(&told)), [2, 3, 4]);
    assert_eq!(ids(&removed(&told)), [2, 3, 4]);
    assert_eq!(peer.count("device_del"), 3);
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn passes_on_properties_that_it_does_not_know() {
    let mut world = World::without_service().await;
    let peer = world.peer("web", Model::x86(1, 2));
    let (ring, label) = (json!(7), json!("two"));
    let (known, unknown) = (ring.clone(), label.clone());
    peer.script(move |model, call| {
        if call.command != "query-hotpluggable-cpus" {
            return None;
        }
        let mut answer = model.answer(call);
        for slot in answer[0]["return"].as_array_mut().expect("a list") {
            slot["props"]["ring-id"] = known.clone();
            slot["props"]["label"] = unknown.clone();
        }
        Some(answer)
    });
    world.serve().await;
    let machine = world.machine("web").await;
    assert_eq!(machine.set(2).await, Ok(Outcome::added([1])));
    let arguments = &peer.calls("device_add")[0].arguments;
    assert_eq!(arguments["ring-id"], ring);
    assert_eq!(arguments["label"], label);
}
