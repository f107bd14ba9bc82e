//! Calls that are too long, and texts of callers in errors.

use std::collections::HashMap;

use vcpud::names::error_name;
use zbus::Variant;

use super::Served;
use crate::harness::*;

const ROOT: &str = "/org/vcpud1";
const MANAGER: &str = "org.vcpud1.Manager";
const MIB: usize = 1 << 20;

/// Scripted QEMU, dbus-daemon, a raw client.
#[tokio::test]
async fn a_call_that_is_too_long_is_refused_before_any_work() {
    let served = Served::start().await;
    let mut nobody = served.nobody().await;
    for length in [64 << 10, MIB, 8 * MIB] {
        let name = "\u{1}".repeat(length);
        let options: HashMap<&str, Variant<'_>> = HashMap::from([(name.as_str(), true.into())]);
        let web = served.machine.path();
        let calls = [
            nobody.call_of(ROOT, MANAGER, "GetMachine", &(&name,)),
            nobody.call_of(web, "org.vcpud1.Machine", "Plan", &(1u32, &options)),
            nobody.call_of(ROOT, MANAGER, "RegisterMachine", &("x", "/x", &options)),
        ];
        for (serial, bytes) in calls {
            nobody.send(&bytes, &[]).await;
            let reply = nobody.reply(serial).await;
            assert_eq!(reply.error.as_deref(), Some(error_name::LIMIT_EXCEEDED));
            assert!(
                reply.text.contains("too long") && reply.length < 1024,
                "{reply:?}"
            );
        }
    }
    served.assert_untouched("long calls").await;
    assert!(served.resident() < 64, "{} MiB", served.resident());
}

/// Scripted QEMU, dbus-daemon, a raw client. The error text of zbus quotes the path.
#[tokio::test]
async fn an_object_path_as_long_as_the_bus_allows_harms_nothing() {
    let served = Served::start().await;
    let mut nobody = served.nobody().await;
    for length in [1 << 10, 60 << 10, MIB, 32 * MIB - 200] {
        let path = format!("/{}", "x".repeat(length));
        let (serial, bytes) = nobody.call_of(&path, MANAGER, "ListMachines", &());
        nobody.send(&bytes, &[]).await;
        let reply = nobody.reply(serial).await;
        assert!(reply.error.is_some(), "{length}");
    }
    served.assert_untouched("long paths").await;
    assert!(served.resident() < 64, "{} MiB", served.resident());
}

/// Scripted QEMU, dbus-daemon, a raw client.
#[tokio::test]
async fn an_error_quotes_a_little_of_what_the_caller_sent() {
    let served = Served::start().await;
    let mut root = RawClient::connect(&served.world.bus, 0).await;
    let long = "\u{1}".repeat(60_000);
    let options: HashMap<&str, Variant<'_>> = HashMap::from([(long.as_str(), true.into())]);
    let none: HashMap<&str, Variant<'_>> = HashMap::new();
    let value: HashMap<&str, Variant<'_>> = HashMap::from([("affinity", long.as_str().into())]);
    let (web, machine) = (served.machine.path(), "org.vcpud1.Machine");
    let all: Vec<u32> = vec![];
    let calls = [
        root.call_of(ROOT, MANAGER, "GetMachine", &(&long,)),
        root.call_of(ROOT, MANAGER, "RegisterMachine", &(&long, "/x", &none)),
        root.call_of(ROOT, MANAGER, "RegisterMachine", &("x", &long, &none)),
        root.call_of(ROOT, MANAGER, "RegisterMachine", &("x", "/x", &options)),
        root.call_of(ROOT, MANAGER, "RegisterMachine", &("x", "/x", &value)),
        root.call_of(ROOT, MANAGER, "UnregisterMachine", &(&long,)),
        root.call_of(web, machine, "Plan", &(1u32, &options)),
        root.call_of(web, machine, "SetVcpus", &(1u32, &options)),
        root.call_of(web, machine, "PinVcpus", &(&all, &long, &none)),
        root.call_of(web, machine, "SetScheduler", &(&all, &long, 0i32, &none)),
        root.call_of(web, machine, "SetCacheAllocation", &(&all, &long, &none)),
    ];
    for (index, (serial, bytes)) in calls.into_iter().enumerate() {
        root.send(&bytes, &[]).await;
        let reply = root.reply(serial).await;
        assert!(reply.error.is_some(), "call {index} succeeds");
        // 80 characters, each escaped.
        assert!(
            reply.text.len() < 800,
            "call {index}: {} bytes",
            reply.text.len()
        );
    }
    served.assert_untouched("long texts").await;
}
