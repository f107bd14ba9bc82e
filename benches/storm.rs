//! The duration of root's calls while another user floods the service: `cargo bench --bench storm`.
//!
//! root reads the id of the bus daemon, lists the vCPUs of a machine, and resizes it: first without, and then
//! during each flood. A flood is eight connections of the user `nobody` that send one kind of message as fast as
//! the bus daemon reads. The reply of the bus daemon itself is the baseline, because the flood also delays the bus
//! daemon and the host. Real dbus-daemon, polkitd and vcpud; scripted QEMUs.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a failed step ends the benchmark"
)]

#[path = "../tests/integration/harness/mod.rs"]
#[allow(
    dead_code,
    unused_imports,
    reason = "the integration tests use the rest"
)]
mod harness;
#[allow(dead_code, reason = "the other benches use the rest")]
mod timing;

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::fd::AsFd;

use harness::*;
use timing::{Report, Times, unless_brief};
use tokio::task::JoinSet;
use zbus::fdo::DBusProxy;
use zbus::{Fd, Message, Variant};

const CONNECTIONS: usize = 8;

/// The messages of a flood.
struct Flood {
    name: &'static str,
    /// The message that is sent repeatedly, without its serial.
    bytes: Vec<u8>,
    descriptors: usize,
    /// Whether the replies are read.
    reads: bool,
}

/// Measures the duration of a call of the bus daemon, of a read and of a change of a machine. Also returns the
/// number of calls that the bus daemon rejected because its queue for the service was full.
async fn measure(bus: &DBusProxy<'_>, machine: &Machine) -> ([Times; 3], usize) {
    let mut times: [Times; 3] = Default::default();
    let mut rejected = 0;
    for round in 0..unless_brief(40, 2) {
        let [floor, read, change] = &mut times;
        floor.take(bus.get_id()).await.expect("the bus answers");
        rejected += usize::from(read.take(machine.list_vcpus()).await.is_err());
        let count = 1 + (round + 1) % 2;
        rejected += usize::from(change.take(machine.set(count)).await.is_err());
    }
    (times, rejected)
}

/// Sends `bytes` over a connection of the user `nobody` until the task is aborted.
async fn flood(mut client: RawClient, mut bytes: Vec<u8>, descriptors: usize, reads: bool) {
    let file = File::open("/dev/null").expect("the file exists");
    let mut unread = vec![0; 64 << 10];
    loop {
        let serial = client.next_serial().get();
        bytes[8..12].copy_from_slice(&serial.to_le_bytes());
        client.send(&bytes, &vec![file.as_fd(); descriptors]).await;
        if reads {
            while client
                .socket
                .try_read(&mut unread)
                .is_ok_and(|length| length > 0)
            {}
        }
        tokio::task::yield_now().await;
    }
}

/// Returns the peak memory of the service, in MiB, and resets the peak.
fn peak(world: &World) -> u64 {
    let service = world.service.as_ref().expect("it runs");
    let peak = service.peak_memory();
    fs::write(format!("/proc/{}/clear_refs", service.pid()), "5").expect("root may");
    peak
}

/// Returns a call of `member` without options.
fn call(path: &str, interface: &str, member: &str) -> zbus::message::Builder<'static> {
    Message::method_call(path.to_owned(), member.to_owned())
        .destination("org.vcpud1")
        .interface(interface.to_owned())
}

fn floods(owner: &str) -> Vec<Flood> {
    const BIG: &str = "/org/vcpud1/machine/big";
    const MACHINE: &str = "org.vcpud1.Machine";
    const MANAGER: &str = "org.vcpud1.Manager";
    const ROOT: &str = "/org/vcpud1";
    let none: HashMap<&str, Variant<'_>> = HashMap::new();
    let list = call(BIG, MACHINE, "ListVcpus").build(&());
    let all = call(
        ROOT,
        "org.freedesktop.DBus.ObjectManager",
        "GetManagedObjects",
    )
    .build(&());
    let long = call(ROOT, MANAGER, "GetMachine").build(&("\u{1}".repeat(1 << 20),));
    let file = File::open("/dev/null").expect("the file exists");
    let fds: Vec<Fd<'_>> = (0..16).map(|_| Fd::from(&file)).collect();
    let descriptors = call(ROOT, MANAGER, "ListMachines").build(&(fds,));
    let change = call(BIG, MACHINE, "SetVcpus").build(&(3u32, none));
    let job = ("vcpud-big.scope", "done");
    let signal = Message::signal(ROOT, "org.freedesktop.systemd1.Manager", "JobRemoved")
        .destination(owner.to_owned())
        .build(&job);
    [
        ("ListVcpus of 1024, read", &list, 0, true),
        ("ListVcpus of 1024, unread", &list, 0, false),
        ("GetManagedObjects, read", &all, 0, true),
        ("GetManagedObjects, unread", &all, 0, false),
        ("calls of 1 MiB", &long, 0, true),
        ("16 descriptors each", &descriptors, 16, true),
        ("SetVcpus, denied", &change, 0, true),
        ("signals like systemd's", &signal, 0, true),
    ]
    .map(|(name, message, descriptors, reads)| Flood {
        name,
        bytes: message.as_ref().expect("a message").data().bytes().to_vec(),
        descriptors,
        reads,
    })
    .into()
}

#[tokio::main]
async fn main() {
    let world = World::with_polkit("").await;
    let mut peers = vec![world.peer("big", Model::x86(1024, 1024))];
    for number in 0..64 {
        peers.push(world.peer(&format!("vm{number}"), Model::x86(1, 4)));
        world.machine(&format!("vm{number}")).await;
    }
    world.machine("big").await;
    let machine = world.machine("vm0").await;
    let bus = DBusProxy::new(&world.connection).await.expect("the bus");
    let name = "org.vcpud1".try_into().expect("a name");
    let owner = bus.get_name_owner(name).await.expect("it is owned");
    let mut report = Report::new("storm");

    measure(&bus, &machine).await; // warms up
    let (quiet, _) = measure(&bus, &machine).await;
    report.figure("peak memory alone", peak(&world) as f64, "MiB");
    let mut results = vec![("alone", quiet)];
    let floods = floods(&owner);
    for kind in floods {
        let mut clients = JoinSet::new();
        for _ in 0..CONNECTIONS {
            let client = RawClient::nobody(&world.bus).await;
            let bytes = kind.bytes.clone();
            clients.spawn(flood(client, bytes, kind.descriptors, kind.reads));
        }
        measure(&bus, &machine).await; // until the flood is complete
        let (times, rejected) = measure(&bus, &machine).await;
        let name = kind.name;
        report.figure(format!("peak memory, {name}"), peak(&world) as f64, "MiB");
        report.figure(format!("rejected calls, {name}"), rejected as f64, "");
        results.push((name, times));
        clients.shutdown().await;
        measure(&bus, &machine).await;
    }
    for (call, title) in ["GetId of the bus daemon", "ListVcpus", "SetVcpus"]
        .iter()
        .enumerate()
    {
        let ways = results.iter().map(|(name, times)| (*name, &times[call]));
        report.compare(title, ways);
    }
    report.finish();
}
