//! Peers that break the protocol.

use serde_json::json;

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
    let peer = world.peer("web", Model::x86(2, 4));
    let other = world.peer("other", Model::x86(1, 4));
    let machine = world.machine("web").await;
    let neighbour = world.machine("other").await;

    let too_long = vec![b'x'; (4 << 20) + 1];
    let flood = format!("{}\n", event("RESET", json!({}))).repeat(20_000);
    let breaches: [(&str, Vec<u8>); 5] = [
        ("no JSON", b"hello\r\n".to_vec()),
        ("no message", b"{\"answer\": 42}\r\n".to_vec()),
        (
            "a reply to no command",
            b"{\"return\": {}, \"id\": 4711}\r\n".to_vec(),
        ),
        ("a line without an end", too_long),
        (
            "a name with a NUL",
            format!("{}\r\n", deleted("/a\0b")).into_bytes(),
        ),
    ];
    let mut clients = 1;
    for (breach, bytes) in breaches {
        let mark = world.signals.mark().await;
        peer.send_raw(bytes);
        clients += 1;
        peer.had_clients(clients).await;
        let is_back = |told: &[Signal]| changes_of(told, "State").last() == Some(&json!("running"));
        let told = world.signals.wait(breach, mark, is_back).await;
        let states = changes_of(&told, "State");
        assert_eq!(
            states,
            [json!("disconnected"), json!("running")],
            "{breach}"
        );
        assert_eq!(told.len(), 2, "{breach}: {told:?}");
    }
    // A flood may cost the connection or not, but nothing else.
    peer.send_raw(flood);
    assert_eq!(neighbour.set(2).await, Ok((vec![1], vec![], vec![])));
    assert_eq!(other.clients(), 1);
    peer.model().unplug(1);
    peer.had_clients(clients).await;
    machine.wait_for("Vcpus", 1u32).await;
}
