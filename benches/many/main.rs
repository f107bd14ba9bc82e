//! The cost of many machines: `cargo bench --bench many`. The environment variable `VCPUD_BENCH_MACHINES` has their
//! number (500 by default).
//!
//! The machines are fake QEMUs of one vCPU in other processes, which are there before the service starts. Real
//! dbus-daemon and vcpud; root, so without polkit; no systemd, so without control groups.
//!
//! - The start ends when the service owns its name: all machines are on the bus then. A restart has the connections
//!   of the killed service (scripted systemd).
//! - An idle service has no calls, and no vCPU changes. Its reviews of the machines are included.
//! - The autoscaler samples one vCPU of each machine, and changes nothing.
//! - The floor of `GetManagedObjects` is a service of zbus that sends the same values.
//! - The floor of `SetVcpus` is the same call with one machine. A busy machine is one whose vCPUs another client
//!   changes.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a failed step ends the benchmark"
)]

mod busy;
#[path = "../../tests/integration/harness/mod.rs"]
#[allow(
    dead_code,
    unused_imports,
    reason = "the integration tests use the rest"
)]
mod harness;
mod objects;
#[path = "../timing/mod.rs"]
#[allow(dead_code, reason = "the other benches use the rest")]
mod timing;
mod usage;

use std::env;
use std::fs;
use std::future::pending;
use std::path::Path;
use std::time::Duration;

use harness::*;
use timing::{Report, Times, compare, exponent, timed, unless_brief};

/// The environment variable with the number of machines.
const MACHINES_VARIABLE: &str = "VCPUD_BENCH_MACHINES";
/// The number of fake QEMUs of a process. All of their vCPUs are threads of that process.
const SHARE: usize = 20;

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

/// A service with machines.
struct Host {
    machines: usize,
    world: World,
    _peers: Vec<Process>,
}

impl Host {
    /// Starts the service with `machines` machines. Returns how long it takes.
    async fn start(machines: usize) -> (Self, Duration) {
        let mut world = World::without_service().await;
        let peers = start_peers(&world, machines).await;
        let ((), time) = timed(world.serve()).await;
        let host = Self {
            machines,
            world,
            _peers: peers,
        };
        (host, time)
    }

    fn service(&self) -> &Service {
        self.world.service.as_ref().expect("it runs")
    }
}

async fn measure(count: usize) {
    let mut report = Report::new("many");
    let mut hosts = Vec::new();
    let mut starts = Vec::new();
    for machines in [1, (count / 25).max(2), count / 5, count] {
        let (host, time) = Host::start(machines).await;
        let name = format!("start, {}", number_of(machines));
        report.figure(name, time.as_secs_f64() * 1e3, "ms");
        if machines > 1 {
            starts.push((machines as f64, time.as_secs_f64()));
        }
        hosts.push(host);
    }
    let name = "exponent of the number of machines: start";
    report.figure(name, exponent(&starts), "");
    usage::measure(&hosts, &mut report).await;
    usage::measure_autoscaler(&hosts[2], &mut report).await;
    objects::measure(&hosts[3].world, &mut report).await;
    among_machines(&hosts, &mut report).await;
    busy::measure(&hosts[0], &mut report).await;
    drop(hosts);
    restart(count, &mut report).await;
    report.finish();
}

/// Measures the start after the service was killed, with the connections in the store of a scripted systemd. The
/// store is full before all connections are in it if there are thousands.
async fn restart(machines: usize, report: &mut Report) {
    let mut world = World::without_service().await;
    let _peers = start_peers(&world, machines).await;
    let mut systemd = Systemd::start(&world.bus);
    world.serve_under(&systemd).await;
    systemd.is_told("READY=1").await;
    world.service.take().expect("it runs").kill().await;
    let kept = systemd.kept().len();
    let ((), time) = timed(world.serve_under(&systemd)).await;
    let name = format!("restart, {}, {kept} descriptors kept", number_of(machines));
    report.figure(name, time.as_secs_f64() * 1e3, "ms");
}

/// Measures a change of one machine among the others, which are idle.
async fn among_machines(hosts: &[Host], report: &mut Report) {
    let mut machines = Vec::new();
    for host in hosts {
        machines.push(host.world.machine("vm-0").await);
    }
    let change = async |way: usize| [change(&machines[way]).await];
    let [times]: [[Times; 4]; 1] = compare(rounds(), change).await;
    let names: Vec<String> = hosts.iter().map(|host| number_of(host.machines)).collect();
    report.compare(
        "SetVcpus, others idle",
        names.iter().map(String::as_str).zip(&times),
    );
    let points = hosts.iter().zip(&times);
    let points: Vec<(f64, f64)> = points
        .map(|(host, times)| (host.machines as f64, times.median()))
        .collect();
    let name = "exponent of the number of machines: SetVcpus";
    report.figure(name, exponent(&points), "");
}

/// Returns "1 machine" or "2 machines".
fn number_of(machines: usize) -> String {
    match machines {
        1 => "1 machine".to_owned(),
        _ => format!("{machines} machines"),
    }
}

/// Changes the number of vCPUs from 1 to 2, or from 2 to 1. Returns the time until the reply.
async fn change(machine: &Machine) -> Duration {
    let count = 3 - machine.vcpus().await.expect("the property is there");
    let (result, time) = timed(machine.set(count)).await;
    result.expect("it is done");
    time
}

/// Returns the number of calls that are measured.
fn rounds() -> usize {
    unless_brief(40, 2)
}
