//! Peers that break the protocol, or lie.

use futures_util::future::join_all;
use serde_json::{Value, json};
use vcpud::names::error_name;
use zbus::fdo::PropertiesProxy;
use zbus::names::InterfaceName;

use crate::harness::*;

/// Scripted peer that is no QEMU, dbus-daemon.
#[tokio::test]
async fn a_peer_that_does_not_speak_qmp_is_no_machine() {
    let mut world = World::without_service().await;
    let mail = Peer::start_with(&world.socket("mail"), "220 mail.example ESMTP\r\n");
    world.serve().await;
    // It is tried again and again.
    mail.had_clients(4).await;
    let manager = world.manager().await;
    assert_eq!(manager.list_machines().await.unwrap(), []);
    assert_eq!(world.signals.since(0).await, []);
    assert_eq!(mail.count("qmp_capabilities"), 0);
}

/// Scripted QEMUs, dbus-daemon.
#[tokio::test]
async fn who_breaks_the_protocol_is_disconnected_and_others_never_notice() {
    let world = World::without_polkit().await;
    let other = world.peer("other", Model::x86(1, 4));
    let neighbour = world.machine("other").await;

    let too_long = vec![b'x'; (4 << 20) + 1];
    let flood = format!("{}\n", event("RESET", json!({}))).repeat(20_000);
    // A refresh begins, and QEMU is not connected any more.
    let after_events: String = (0..100)
        .map(|n| format!("{}\r\n", deleted(&format!("/{n}"))))
        .collect();
    let breaches: [(&str, Vec<u8>); 6] = [
        ("no JSON", b"hello\r\n".to_vec()),
        ("no message", b"{\"answer\": 42}\r\n".to_vec()),
        (
            "a reply to no command",
            b"{\"return\": {}, \"id\": 18446744073709551615}\r\n".to_vec(),
        ),
        ("a line without an end", too_long),
        (
            "no JSON after events",
            format!("{after_events}hello\r\n").into_bytes(),
        ),
        (
            "a name with a NUL",
            format!("{}\r\n", deleted("/a\0b")).into_bytes(),
        ),
    ];
    let mut peers = Vec::new();
    for (n, (breach, bytes)) in breaches.into_iter().enumerate() {
        let name = format!("web{n}");
        let peer = world.peer(&name, Model::x86(2, 4));
        world
            .machine(&name)
            .await
            .wait_for("State", "running")
            .await;
        world.signals.addition_of(&name, 0).await;
        let mark = world.signals.mark().await;
        peer.send_raw(bytes);
        peer.had_clients(2).await;
        let is_back = |told: &[Signal]| changes_of(told, "State").last() == Some(&json!("running"));
        let told = world.signals.wait(breach, mark, is_back).await;
        let states = changes_of(&told, "State");
        assert_eq!(
            states,
            [json!("disconnected"), json!("running")],
            "{breach}"
        );
        assert_eq!(told.len(), 2, "{breach}: {told:?}");
        let service = world.service.as_ref().expect("it runs");
        service
            .has_logged(&format!(
                "{name}: disconnected: QEMU broke the QMP protocol"
            ))
            .await;
        peers.push(peer);
    }
    // A flood may cost the connection or not, but nothing else.
    let peer = world.peer("web", Model::x86(2, 4));
    let machine = world.machine("web").await;
    machine.wait_for("State", "running").await;
    peer.send_raw(flood);
    assert_eq!(neighbour.set(2).await, Ok(Outcome::added([1])));
    assert_eq!(other.clients(), 1);
    peer.model().unplug(1);
    machine.wait_for("Vcpus", 1u32).await;
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn a_peer_that_breaks_the_protocol_repeatedly_is_left_alone_across_restarts() {
    let mut world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(1, 4));
    let machine = world.machine("web").await;
    for breach in 1..=3 {
        peer.had_clients(breach).await;
        machine.wait_for("State", "running").await;
        peer.send_raw("hello\r\n");
    }
    machine.wait_for("State", "disconnected").await;
    world.service.take().expect("it runs").kill().await;
    world.serve().await;
    let failure = machine.set(2).await.unwrap_err();
    let parts = ["web", "broke the limits of the protocol 3 times"];
    failure.assert(error_name::DISCONNECTED, &parts);
    // After a pause it is tried again.
    machine.wait_for("State", "running").await;
    assert_eq!(machine.set(2).await, Ok(Outcome::added([1])));
}

/// Control sequences of a terminal, and text that looks like other text.
const EVIL: &str = "/machine/../../etc/passwd\n\u{1b}]0;owned\u{7}\u{202e}";

/// Answers of QEMU that cannot be true.
fn lies() -> Vec<(&'static str, Value)> {
    let slots = |entry: Value| ("query-hotpluggable-cpus", entry);
    let cpus = |entry: Value| ("query-cpus-fast", entry);
    let slot = |n: u64, count: u64, path: &str| {
        let props = json!({"socket-id": n, "core-id": 0, "thread-id": 0});
        json!({"type": "qemu64-x86_64-cpu", "vcpus-count": count, "props": props, "qom-path": path})
    };
    let cpu = |index: Value, thread: Value, path: &str| {
        json!({"cpu-index": index, "thread-id": thread, "qom-path": path, "target": "x86_64",
            "props": {"socket-id": 0, "core-id": 0, "thread-id": 0}})
    };
    let (one, two) = (
        "/machine/unattached/device[0]",
        "/machine/unattached/device[1]",
    );
    let evil = EVIL;
    let own = std::process::id();
    vec![
        slots(json!([slot(0, 4_000_000_000, one)])),
        slots(json!([slot(0, 0, one)])),
        slots(json!([slot(0, u64::MAX, one), slot(1, 1, two)])),
        slots(json!([slot(0, 1, one), slot(0, 1, one)])),
        slots(json!([slot(0, 1, one), slot(1, 1, one)])),
        slots(json!([slot(0, 1, evil), slot(1, 1, two)])),
        slots(json!([slot(0, 1, &"x".repeat(100_000))])),
        slots(
            (0..20_000)
                .map(|n| slot(n, 1, &format!("/machine/{n}")))
                .collect(),
        ),
        slots(json!([{"type": evil, "vcpus-count": 1, "props": {evil: evil}}])),
        slots(json!([{"type": "cpu", "vcpus-count": -1, "props": [1, 2]}])),
        slots(json!({"return": []})),
        slots(json!([])),
        cpus(json!([])),
        cpus(json!([cpu(json!(4_000_000_000u32), json!(own), one)])),
        cpus(json!([cpu(json!(-1), json!(own), one)])),
        cpus(json!([cpu(json!("0"), json!(own), one)])),
        cpus(json!([
            cpu(json!(0), json!(1), one),
            cpu(json!(1), json!(1), two)
        ])),
        cpus(json!([
            cpu(json!(0), json!(0), one),
            cpu(json!(1), json!(-1), two)
        ])),
        cpus(json!([cpu(json!(0), json!(u64::MAX), one)])),
        cpus(json!([
            cpu(json!(0), json!(own), one),
            cpu(json!(0), json!(own), one)
        ])),
        cpus(json!([
            cpu(json!(0), json!(own), one),
            cpu(json!(1), json!(own), two)
        ])),
        cpus(json!([cpu(json!(0), json!(own), evil)])),
        ("query-status", json!({"status": evil})),
        ("query-status", json!("running")),
        ("query-uuid", json!({"UUID": evil})),
        ("query-target", json!({"arch": evil})),
        ("query-kvm", json!({"enabled": "yes"})),
        (
            "query-version",
            json!({"qemu": {"major": u64::MAX, "minor": -1, "micro": 0.5}}),
        ),
        ("query-commands", json!([{"name": evil}, {"name": 7}, {}])),
        ("query-commands", json!(null)),
        REFUSED,
    ]
}

/// QEMU refuses this, in words that are [`EVIL`].
const REFUSED: (&str, Value) = ("device_add", Value::Null);

/// Whether nothing in `text` is of what makes [`EVIL`] so.
fn is_printable(text: &str) -> bool {
    !text.contains(|c: char| c.is_control() || c == '\u{202e}')
}

/// All properties of the machine, as JSON without its escapes.
async fn properties(world: &World, machine: &Machine) -> String {
    let builder = PropertiesProxy::builder(&world.connection);
    let builder = builder.destination("org.vcpud1");
    let proxy = builder.path(machine.path().to_owned()).build();
    let interface = InterfaceName::try_from("org.vcpud1.Machine").unwrap();
    let all = proxy.await.unwrap().get_all(interface).await;
    let all = dict(&all.unwrap()).into_iter();
    all.map(|(key, value)| format!("{key} {}, ", value.as_str().unwrap_or_default()))
        .collect()
}

/// Scripted QEMUs, dbus-daemon.
#[tokio::test]
async fn who_lies_harms_himself_only_and_is_believed_again_when_he_tells_the_truth() {
    let world = World::without_polkit().await;
    let neighbour = world.peer("neighbour", Model::x86(1, 4));
    let service = world.service.as_ref().unwrap();
    let story = async |n: usize, command: &'static str, lie: Value| {
        let name = format!("liar{n}");
        let peer = world.peer(&name, Model::x86(2, 4));
        let machine = world.machine(&name).await;
        machine.wait_for("State", "running").await;
        let asked = peer.count(command);
        peer.script(move |_, call| {
            (call.command == command).then(|| {
                let refused = command == REFUSED.0;
                let reply = || call.reply(lie.clone());
                vec![if refused { call.refusal(EVIL) } else { reply() }]
            })
        });
        if command != REFUSED.0 {
            // All other commands are sent again.
            peer.hang_up();
            peer.accept();
            peer.had_clients(2).await;
        }
        if let Err(failure) = machine.set(4).await {
            assert!(is_printable(&failure.text), "{name}: {}", failure.text);
        }
        peer.asked(command, asked + 1).await;
        assert!(is_printable(&properties(&world, &machine).await), "{name}");
        peer.script(|_, _| None);
        machine.wait_for("State", "running").await;
        assert!(is_printable(&properties(&world, &machine).await), "{name}");
        peer.send(&event("RESET", json!({})));
        machine.wait_for("MaxVcpus", 4u32).await;
        machine.set_patiently(3).await.unwrap();
        assert_eq!(machine.present().await.len(), 3, "{name}");
    };
    let stories = lies().into_iter().enumerate();
    join_all(stories.map(|(n, (command, lie))| story(n, command, lie))).await;
    assert_eq!(neighbour.clients(), 1);
    let log = service.log();
    assert!(
        !log.contains(['\u{1b}', '\u{202e}']) && !log.contains("panicked"),
        "{log}"
    );
}

/// Returns the answers of a QEMU with 1,500 slots, where all are plugged or one is.
fn crowd(call: &Call, is_full: bool) -> Option<Vec<Value>> {
    let path = |n: u32| format!("/machine/peripheral/vcpu{n}");
    let is_plugged = |n: &u32| is_full || *n == 0;
    let value: Value = match call.command.as_str() {
        "query-hotpluggable-cpus" => (0..1500u32)
            .rev()
            .map(|n| {
                let path = is_plugged(&n).then(|| path(n));
                json!({"type": "cpu", "vcpus-count": 1, "props": {"core-id": n}, "qom-path": path})
            })
            .collect(),
        "query-cpus-fast" => (0..1500u32)
            .filter(is_plugged)
            .map(|n| json!({"cpu-index": n, "qom-path": path(n), "thread-id": 0}))
            .collect(),
        _ => return None,
    };
    Some(vec![call.reply(value)])
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn a_machine_that_changes_by_itself_does_not_flood_the_log() {
    let world = World::without_polkit().await;
    let mut model = Model::x86(1, 4);
    model.starts = Starts::None;
    let peer = world.peer("web", model);
    let machine = world.machine("web").await;
    let mark = world.signals.mark().await;
    for is_full in [true, false, true] {
        peer.script(move |_, call| crowd(call, is_full));
        peer.send(&event("RESET", json!({})));
        let count: u32 = if is_full { 1500 } else { 1 };
        machine.wait_for("Vcpus", count).await;
    }
    // Signals are complete. vCPU 0 is another one in the crowd.
    let (came, went) = (1500 + 1499, 1 + 1499);
    let is_complete = |told: &[Signal]| (added(told).len(), removed(told).len()) == (came, went);
    world.signals.wait("all signals", mark, is_complete).await;
    // The log has some of them, and how many it has not.
    let service = world.service.as_ref().unwrap();
    let numbers = |log: &str, before: &str| {
        let rest = log.split(before).skip(1);
        let number = |rest: &str| rest.split(' ').next()?.parse::<usize>().ok();
        rest.filter_map(number).sum::<usize>()
    };
    let complete = async {
        loop {
            let log = service.log();
            let logged = log.matches("web: vCPU ").count();
            let dropped = numbers(&log, "web: dropped ");
            assert!(logged < came + went, "nothing was dropped");
            if logged + dropped == came + went {
                return;
            }
            let asked = peer.count("query-status");
            peer.send(&event("RESET", json!({})));
            peer.asked("query-status", asked + 1).await;
        }
    };
    within("the number of dropped lines", complete).await;
}
