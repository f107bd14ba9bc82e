//! The cost of many machines: `cargo bench --bench many`. The environment variable `VCPUD_BENCH_MACHINES` has their
//! number (500 by default).
//!
//! The machines are fake QEMUs of one vCPU in other processes, which are there before the service starts. Real
//! dbus-daemon and vcpud; root, so without polkit; no systemd, so without control groups.
//!
//! - The start ends when the service owns its name: all machines are on the bus then.
//! - An idle service has no calls, and no vCPU changes. Its reviews of the machines are included.
//! - The floor of `GetManagedObjects` is a service of zbus that sends the same values.
//! - The floor of `SetVcpus` is the same call with one machine.

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
use std::env;
use std::fs;
use std::future::pending;
use std::path::Path;
use std::time::{Duration, Instant};

use harness::*;
use timing::{Times, heading, unless_brief};
use zbus::{Connection, OwnedObjectPath, OwnedVariant, interface};

/// The environment variable with the number of machines.
const MACHINES_VARIABLE: &str = "VCPUD_BENCH_MACHINES";
/// The number of fake QEMUs of a process. All of their vCPUs are threads of that process.
const SHARE: usize = 20;
type Objects = HashMap<OwnedObjectPath, HashMap<String, HashMap<String, OwnedVariant>>>;

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = env::args().collect();
    match &arguments[..] {
        [_, directory, first, count] => {
            let [first, count] = [first, count].map(|number| number.parse().expect("a number"));
            serve_peers(Path::new(directory), first, count).await;
        }
        _ => {
            let machines = env::var(MACHINES_VARIABLE);
            measure(machines.map_or(unless_brief(500, 20), |count| {
                count.parse().expect("a number")
            }))
            .await;
        }
    }
}

/// Runs `count` fake QEMUs, beginning with the number `first`.
async fn serve_peers(directory: &Path, first: usize, count: usize) {
    let socket = |n: usize| directory.join(format!("vm-{n}.sock"));
    let peers = (first..first + count).map(|n| Peer::start(&socket(n), Model::x86(1, 2)));
    let _peers: Vec<Peer> = peers.collect();
    pending().await
}

/// Starts processes with `count` fake QEMUs in all.
async fn start_peers(world: &World, count: usize) -> Vec<Process> {
    let sockets = world.socket("vm-0").with_file_name("");
    let start = |first: usize| {
        let own = SHARE.min(count - first);
        let mut peers = command(env::current_exe().expect("Linux has it"));
        peers
            .arg(&sockets)
            .args([first, own].map(|number| number.to_string()));
        Process::spawn("fake QEMUs", &mut peers)
    };
    let processes = (0..count).step_by(SHARE).map(start).collect();
    let listen = || fs::read_dir(&sockets).map_or(0, Iterator::count) == count;
    until("the fake QEMUs to listen", listen).await;
    processes
}

#[expect(clippy::print_stdout, reason = "the figures")]
async fn measure(count: usize) {
    let mut alone = World::without_service().await;
    let _one = start_peers(&alone, 1).await;
    alone.serve().await;
    let mut world = World::without_service().await;
    let _many = start_peers(&world, count).await;
    let start = Instant::now();
    world.serve().await;
    println!(
        "start with {count} machines: {:.2} s",
        start.elapsed().as_secs_f64()
    );

    let service = world.service.as_ref().expect("it runs");
    let pid = service.pid();
    let service_alone = alone.service.as_ref().expect("it runs");
    let each = |all: u64, one: u64| (all - one) as f64 / (count - 1) as f64;
    let memory = each(resident(pid), resident(service_alone.pid()));
    let descriptors = each(
        service.descriptors() as u64,
        service_alone.descriptors() as u64,
    );
    println!("each machine: {memory:.1} KiB resident, {descriptors:.1} descriptors");

    // The machines are announced after the start.
    while used_in(pid, Duration::from_secs(1)).await.0 > 50 {}
    let idle = Duration::from_secs(unless_brief(10, 1));
    let (used, wakes) = used_in(pid, idle).await;
    let percent = used as f64 / idle.as_secs_f64() / 10.0;
    let wakes = wakes as f64 / idle.as_secs_f64();
    println!("idle: {percent:.2} % of a CPU, {wakes:.0} wake-ups of threads a second");

    println!("\n{}", heading(&["floor", "vcpud"]));
    let (floor, own) = managed_objects(&world).await;
    println!("{}", floor.beside("GetManagedObjects", &own));
    let machines = (alone.machine("vm-0").await, world.machine("vm-0").await);
    let (mut floor, mut own) = (Times::default(), Times::default());
    for round in 0..rounds() {
        let count = 2 - round % 2;
        floor.take(machines.0.set(count)).await.expect("it is done");
        own.take(machines.1.set(count)).await.expect("it is done");
    }
    println!("{}", floor.beside("SetVcpus, to 2 and 1", &own));
}

/// Returns the number of calls that are measured.
fn rounds() -> u32 {
    unless_brief(30, 2)
}

/// Measures `GetManagedObjects` of the service, and of a service that only has the values.
async fn managed_objects(world: &World) -> (Times, Times) {
    let manager = "org.freedesktop.DBus.ObjectManager";
    let call = async |connection: &Connection, name: &str| {
        let reply = connection
            .call_method(
                Some(name),
                "/org/vcpud1",
                Some(manager),
                "GetManagedObjects",
                &(),
            )
            .await;
        reply.expect("it answers")
    };
    let values = call(&world.connection, "org.vcpud1").await;
    let values: Objects = values.body().deserialize().expect("the signature");
    // A bus without vcpud, which lets root own this name and call its owner.
    let other = World::without_service().await;
    let service = other.bus.connect().await;
    let served = service
        .object_server()
        .at("/org/vcpud1", Floor(values))
        .await;
    assert!(served.expect("a connection").is_none(), "the path is free");
    let name = "org.freedesktop.systemd1";
    service.request_name(name).await.expect("root may own it");
    let (mut floor, mut own) = (Times::default(), Times::default());
    for _ in 0..rounds() {
        floor.take(call(&other.connection, name)).await;
        own.take(call(&world.connection, "org.vcpud1")).await;
    }
    (floor, own)
}

/// A service that sends the values that it has.
struct Floor(Objects);

#[interface(name = "org.freedesktop.DBus.ObjectManager")]
impl Floor {
    fn get_managed_objects(&self) -> Objects {
        let interface = |(name, properties): (&String, &HashMap<String, OwnedVariant>)| {
            let properties = properties
                .iter()
                .map(|(name, value)| (name.clone(), value.try_clone().expect("no descriptor")));
            (name.clone(), properties.collect())
        };
        let object = |(path, interfaces): (&OwnedObjectPath, &HashMap<String, _>)| {
            (path.clone(), interfaces.iter().map(interface).collect())
        };
        self.0.iter().map(object).collect()
    }
}

/// Returns the CPU time in ms that a process uses in `time`, and how often its threads sleep.
async fn used_in(pid: u32, time: Duration) -> (u64, u64) {
    let before = (cpu_time(pid), wake_ups(pid));
    tokio::time::sleep(time).await;
    (cpu_time(pid) - before.0, wake_ups(pid) - before.1)
}

/// Returns the resident memory of a process, in KiB (`VmRSS` in `proc_pid_status(5)`).
fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status"));
    field(&status.expect("it runs"), "VmRSS:")
}

/// Returns how often the threads of a process slept so far (`proc_pid_status(5)`).
fn wake_ups(pid: u32) -> u64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let statuses =
        threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("status")).ok());
    statuses
        .map(|status| field(&status, "voluntary_ctxt_switches:"))
        .sum()
}

/// Returns the number in a line of a status file.
fn field(status: &str, name: &str) -> u64 {
    let line = status.lines().find(|line| line.starts_with(name));
    let number = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    number.expect("a number")
}

/// Returns the CPU time of a process so far, in ms (`proc_pid_stat(5)`; 100 ticks in a second).
fn cpu_time(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let (_, rest) = stat.rsplit_once(')').expect("a name in parentheses");
    let ticks = rest.split_whitespace().skip(11).take(2);
    10 * ticks
        .filter_map(|ticks| ticks.parse::<u64>().ok())
        .sum::<u64>()
}
