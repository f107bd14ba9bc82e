//! Callers that do not read their replies, and callers that call as fast as they can.

use std::collections::HashMap;

use serde_json::json;
use zbus::Variant;

use super::Served;
use crate::harness::*;

const MACHINE: &str = "org.vcpud1.Machine";

/// A client of the user `nobody` that has sent `count` calls of `ListVcpus` and read no reply.
async fn caller(served: &Served, count: usize) -> RawClient {
    let mut nobody = served.nobody().await;
    for _ in 0..count {
        let path = served.machine.path();
        let (_, bytes) = nobody.call_of(path, MACHINE, "ListVcpus", &());
        nobody.send(&bytes, &[]).await;
    }
    nobody
}

/// Scripted QEMU that owes a reply, dbus-daemon, raw clients. A call for all machines is one read, as one for a
/// machine.
#[tokio::test]
async fn statistics_have_the_limits_of_other_reads() {
    let served = Served::start().await;
    served
        .peer
        .script(|_, call| (call.command == "query-stats").then(Vec::new));
    let options = HashMap::from([("kvm", Variant::Bool(true))]);
    let path = served.machine.path();
    let mut clients = Vec::new();
    for n in 0..6 {
        let mut nobody = served.nobody().await;
        let (path, interface) = match n % 2 {
            0 => (path, MACHINE),
            _ => ("/org/vcpud1", "org.vcpud1.Manager"),
        };
        for _ in 0..128 {
            let (_, bytes) = nobody.call_of(path, interface, "GetStatistics", &options);
            nobody.send(&bytes, &[]).await;
        }
        clients.push(nobody);
    }
    let last = clients.last_mut().expect("a client").receive().await;
    let refused = last.error.expect("more calls wait than may");
    assert!(refused.ends_with("LimitExceeded"), "{refused}");
    served.assert_untouched("many calls").await;

    let query = served.peer.calls("query-stats").remove(0);
    served.peer.script(|_, _| None);
    served.peer.send(&query.reply(json!([])));
    let (mut answered, mut refused) = (0, 1);
    for (n, nobody) in clients.iter_mut().enumerate() {
        for _ in 0..if n == 5 { 127 } else { 128 } {
            match nobody.receive().await.error {
                None => answered += 1,
                Some(_) => refused += 1,
            }
        }
    }
    assert_eq!(answered + refused, 6 * 128);
    assert!(answered >= 512, "{answered} are answered");
    let queries = served.peer.count("query-stats");
    assert!(queries < 100, "{queries} queries for {answered} calls");
}

/// Scripted QEMU of 1024 vCPUs, dbus-daemon with its own limits, raw clients. A reply is about 300
/// KiB, and the bus daemon stops reading from the service at 127 MiB of unread replies.
#[tokio::test]
async fn unread_replies_do_not_stop_the_service() {
    let served = Served::with(Model::x86(2, 1024)).await;
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(caller(&served, 128).await);
    }
    for count in [3, 4, 2] {
        let outcome = served.machine.set(count).await;
        outcome.unwrap_or_else(|failure| panic!("{}: {}", failure.name, failure.text));
    }
    served.assert_untouched("unread replies").await;
    assert!(served.resident() < 128, "{} MiB", served.resident());
}

/// Scripted QEMU of 1024 vCPUs, dbus-daemon, a raw client.
#[tokio::test]
async fn a_caller_that_reads_again_is_answered_again() {
    let served = Served::with(Model::x86(2, 1024)).await;
    let mut nobody = caller(&served, 100).await;
    served.assert_untouched("unread replies").await;
    for _ in 0..100 {
        let reply = nobody.receive().await;
        assert!(
            reply.error.is_none() && reply.length > 64 << 10,
            "{reply:?}"
        );
    }
}

/// Scripted QEMU, dbus-daemon, raw clients: more calls than wait at a time.
#[tokio::test]
async fn calls_beyond_the_limit_are_refused_and_root_is_served() {
    let served = Served::with(Model::x86(2, 256)).await;
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(caller(&served, 128).await);
    }
    assert_eq!(served.machine.set(3).await.unwrap().added, [2]);
    assert_eq!(served.machine.set(2).await.unwrap().removed, [2]);
    let (mut answered, mut refused) = (0, 0);
    for nobody in &mut clients {
        for _ in 0..128 {
            match nobody.receive().await.error {
                None => answered += 1,
                Some(_) => refused += 1,
            }
        }
    }
    assert_eq!(answered + refused, 8 * 128);
    assert!(answered >= 512, "{answered} are answered");
    served.assert_untouched("many calls").await;
}
