//! The cost of 500 machines: `cargo bench --bench many`.
//!
//! 500 fake QEMUs of 4 vCPUs and a real dbus-daemon; root, so without polkit. The figures are the memory of
//! the service, and the CPU time that it uses in ten seconds in which no client calls and no vCPU
//! changes.

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

use std::fs;
use std::time::Duration;

use harness::*;

/// The number of machines.
const MACHINES: usize = 500;
/// The time without calls.
const IDLE: Duration = Duration::from_secs(10);

#[tokio::main]
#[expect(clippy::print_stdout, reason = "the figures")]
async fn main() {
    let world = World::without_polkit().await;
    let pid = world.service.as_ref().expect("it runs").pid();
    let mut peers = Vec::new();
    for n in 0..MACHINES {
        let name = format!("vm-{n}");
        peers.push(world.peer(&name, Model::x86(4, 8)));
    }
    for n in 0..MACHINES {
        let machine = world.machine(&format!("vm-{n}")).await;
        machine.wait_for("State", "running").await;
    }
    let before = cpu_time(pid);
    tokio::time::sleep(IDLE).await;
    let used = cpu_time(pid) - before;
    let [resident, peak] = ["VmRSS:", "VmHWM:"].map(|field| memory(pid, field) >> 10);
    println!("{MACHINES} machines: {resident} MiB resident, {peak} MiB at most");
    println!("{MACHINES} idle machines: {used} ms of CPU time in {IDLE:?}");
}

/// Returns a line of `/proc/PID/status`, in kB (`proc_pid_status(5)`).
fn memory(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with(field));
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
