//! Statistics, and their limits.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vcpud::names::error_name;
use zbus::Variant;

use crate::harness::*;

/// The age of a reply of QEMU that the service still uses.
const FRESH: Duration = Duration::from_millis(500);
/// The same of a reply that QEMU gave late.
const LONGEST: Duration = Duration::from_secs(5);

const KVM: [(&str, Variant<'static>); 1] = [("kvm", Variant::Bool(true))];

/// Returns an element of the reply of `query-stats`.
fn element(path: &str, exits: u64) -> Value {
    let stats = [("halt_exits", 2), ("exits", exits), ("halt_wait_ns", 3_000)];
    let stats = stats.map(|(name, value)| json!({"name": name, "value": value}));
    json!({"provider": "kvm", "qom-path": path, "stats": stats})
}

/// Returns the queries of all counters. Others are for evidence of started vCPUs.
fn queries(peer: &Peer) -> Vec<Call> {
    let calls = peer.calls("query-stats").into_iter();
    let is_for_all = |call: &Call| call.arguments.get("vcpus").is_none();
    calls.filter(is_for_all).collect()
}

/// Returns the values of `key`, in the order of the vCPUs.
fn column(rows: &[Dict], key: &str) -> Vec<Option<u64>> {
    let value = |row: &Dict| row.get(key).map(|value| value.as_u64().expect("a number"));
    rows.iter().map(value).collect()
}

/// Uses a fake QEMU and dbus-daemon. QEMU reports the vCPUs in reverse order, and is asked only with the option,
/// once for several calls.
#[tokio::test]
async fn counters_of_kvm_are_those_of_the_vcpu_and_are_shared() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(3, 4));
    let machine = world.machine("web").await;
    let (_, rows) = machine.statistics(&[]).await.unwrap();
    assert_eq!(column(&rows, "exits"), [None; 3]);
    assert_eq!(queries(&peer).len(), 0);

    {
        let mut model = peer.model();
        let last = element(&model.path(2), 0);
        model.stats = json!([last, element(&model.path(0), 700)]);
    }
    let (_, rows) = machine.statistics(&KVM).await.unwrap();
    assert_eq!(column(&rows, "exits"), [Some(700), None, Some(0)]);
    assert_eq!(column(&rows, "halt-exits"), [Some(2), None, Some(2)]);
    assert_eq!(column(&rows, "halt-wait-usec"), [Some(3), None, Some(3)]);
    let arguments = &queries(&peer)[0].arguments;
    assert_eq!(arguments["providers"][0]["provider"], "kvm");

    let manager = world.manager().await;
    let shared = async {
        loop {
            let (start, asked) = (Instant::now(), queries(&peer).len());
            let (_, rows) = machine.statistics(&KVM).await.unwrap();
            assert_eq!(column(&rows, "exits"), [Some(700), None, Some(0)]);
            let all = manager.get_statistics(KVM.into()).await.unwrap();
            let (_, rows) = &all[machine.inner().path()];
            assert_eq!(dict(&rows[0])["exits"], 700);
            if start.elapsed() < FRESH {
                let asked = queries(&peer).len() - asked;
                assert!(asked <= 1, "the reply is shared");
                return;
            }
        }
    };
    within("two calls within the age of a reply", shared).await;
}

/// Uses a fake QEMU and dbus-daemon. QEMU owes the replies to `device_del` and `query-stats`.
#[tokio::test]
async fn a_stalled_qemu_stalls_no_reader_and_is_not_asked_again() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(4, 6));
    peer.script(|_, call| {
        let is_statistics = call.command == "query-stats" && call.arguments.get("vcpus").is_none();
        (is_statistics || call.command == "device_del").then(Vec::new)
    });
    let machine = world.machine("web").await;
    let removal = machine.start_set(3);
    peer.asked("device_del", 1).await;
    let start = Instant::now();
    for _ in 0..2 {
        let (counters, rows) = machine.statistics(&KVM).await.unwrap();
        assert_eq!(counters["vcpus"], 4);
        assert_eq!(column(&rows, "exits"), [None; 4]);
    }
    assert_eq!(queries(&peer).len(), 1);
    assert!(!removal.is_finished());
    // The next reader gets the late reply. If it is outdated, the service sends another query, which is answered too.
    let mut answered = 0;
    let read = async {
        loop {
            for query in queries(&peer).into_iter().skip(answered) {
                let reply = json!([element(&peer.model().path(0), 5)]);
                peer.send(&query.reply(reply));
                answered += 1;
            }
            let (_, rows) = machine.statistics(&KVM).await.unwrap();
            let exits = column(&rows, "exits");
            if exits != [None; 4] {
                return exits;
            }
        }
    };
    let exits = within("the late reply", read).await;
    assert_eq!(exits, [Some(5), None, None, None]);
    assert!(queries(&peer).len() == 1 || start.elapsed() > LONGEST);
    drop(peer);
    removal.await.unwrap().unwrap_err();
}

/// Uses a fake QEMU and dbus-daemon. QEMU names threads of another process, which are not read.
#[tokio::test]
async fn a_thread_of_another_process_has_no_counters() {
    let world = World::without_polkit().await;
    let mut model = Model::x86(2, 4);
    model.threads = Threads::Foreign;
    let _peer = world.peer("web", model);
    let machine = world.machine("web").await;
    let (counters, rows) = machine.statistics(&[]).await.unwrap();
    let only_ids = [json!({"id": 0}), json!({"id": 1})];
    assert_eq!(
        rows.into_iter().map(Value::from).collect::<Vec<_>>(),
        only_ids
    );
    assert!(
        !counters.contains_key("emulator-usage-usec"),
        "{counters:?}"
    );
}

/// Uses a fake QEMU and dbus-daemon.
#[tokio::test]
async fn a_disconnected_machine_has_the_counters_of_the_kernel() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(1, 4));
    let machine = world.machine("web").await;
    peer.model().stats = json!([element("/machine/unattached/device[0]", 1)]);
    let (_, rows) = machine.statistics(&KVM).await.unwrap();
    assert_eq!(column(&rows, "exits"), [Some(1)]);
    peer.hang_up();
    machine.wait_for("State", "disconnected").await;
    let (counters, rows) = machine.statistics(&KVM).await.unwrap();
    assert_eq!(
        (&counters["vcpus"], &counters["max-vcpus"]),
        (&json!(1), &json!(4))
    );
    assert!(counters["usage-usec"].is_u64(), "{counters:?}");
    assert_eq!(rows.len(), 1);
    assert!(rows[0]["usage-usec"].is_u64(), "{rows:?}");
    assert_eq!(column(&rows, "exits"), [None]);
}

/// Uses a fake QEMU, dbus-daemon, polkitd and busctl as the user `nobody`.
#[tokio::test]
async fn all_users_read_statistics_and_wrong_options_are_refused() {
    let world = World::with_polkit("").await;
    let _peer = world.peer("web", Model::x86(2, 4));
    let machine = world.machine("web").await;
    for (path, interface) in [
        (machine.path(), "org.vcpud1.Machine"),
        ("/org/vcpud1", "org.vcpud1.Manager"),
    ] {
        let call = async |options: &[&str]| {
            let method = ["org.vcpud1", path, interface, "GetStatistics", "a{sv}"];
            let call = [&method[..], options].concat();
            world.as_nobody(Interaction::Forbidden, &call).await
        };
        let reply = call(&["1", "kvm", "b", "true"]).await.unwrap();
        assert!(reply.contains("\"timestamp-usec\" t "), "{reply}");
        let error = call(&["1", "kvm", "s", "yes"]).await.unwrap_err();
        error.assert(error_name::INVALID_ARGS, &["kvm", "type"]);
        let error = call(&["1", "all", "b", "true"]).await.unwrap_err();
        error.assert(error_name::INVALID_ARGS, &["all", "kvm"]);
    }
}

/// Uses a fake QEMU and dbus-daemon.
#[tokio::test]
async fn requests_their_results_and_connections_are_counted() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(1, 4));
    let machine = world.machine("web").await;
    let counted = async || {
        let (counters, _) = machine.statistics(&[]).await.unwrap();
        assert!(counters["request-usec"].is_u64(), "{counters:?}");
        let keys = ["requests", "failed-requests", "added", "removed", "refused"];
        let numbers = keys.map(|key| counters[key].as_u64().unwrap());
        (numbers, counters["connections"].as_u64().unwrap())
    };
    assert_eq!(counted().await, ([0; 5], 1));
    machine.set(3).await.unwrap();
    machine.set_patiently(2).await.unwrap();
    assert_eq!(counted().await, ([2, 0, 2, 1, 0], 1));

    peer.model().removal = Removal::Held;
    let waiting = machine.start_set(1);
    machine.wait_for("PendingRemovals", vec![1u32]).await;
    assert_eq!(counted().await.0, [2, 0, 2, 1, 0], "it has not ended");
    peer.send(&ost(1, Some("vcpu1"), 3, 0x82));
    waiting.await.unwrap().unwrap_err();
    machine.set(9).await.unwrap_err();
    assert_eq!(counted().await, ([4, 2, 2, 1, 1], 1));

    peer.hang_up();
    machine.wait_for("State", "disconnected").await;
    peer.accept();
    machine.wait_for("State", "running").await;
    assert_eq!(counted().await, ([4, 2, 2, 1, 1], 2));
}
