//! The cost of changes with raw QMP, libvirt-dbus, libvirt and vcpud: `make bench-lab`, which runs this in the host of
//! the lab.
//!
//! This process is the only client of all peers, and keeps its connections. Each way changes a guest of its own; the
//! guests are equal, and libvirt starts all of them. The guests with Linux report the CPUs that they use every 20 ms,
//! and only one of them runs at a time. The paused guests are new for each addition. root calls, so without polkit.
//!
//! - raw QMP: all commands at once, and no query. A removal ends when the guest has ejected the last vCPU.
//! - libvirt-dbus: `SetVcpus` with zbus.
//! - libvirt: `setvcpus` in one `virsh` that reads commands.
//! - vcpud: `SetVcpus` with zbus.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a failed step ends the benchmark"
)]

mod chart;
mod domain;
mod guest;
mod peers;
#[path = "../raw_qmp/mod.rs"]
#[allow(dead_code, reason = "the other benches use the rest")]
mod raw_qmp;
#[path = "../timing/mod.rs"]
#[allow(dead_code, reason = "the other benches use the rest")]
mod timing;

use std::process::Command;

use guest::Guest;
use peers::{Peers, Way};
use timing::{Report, Times, compare, unless_brief};

/// Numbers of vCPUs that are added to a guest with one and removed, and of the rounds. An emulated host cannot run
/// guests with many more than four: their kernels stall.
const CHANGES: [(u32, usize); 1] = [(3, 10)];
/// Numbers of vCPUs that are added to a paused guest with one, and of the rounds.
const ADDITIONS: [(u32, usize); 3] = [(16, 5), (64, 3), (254, 3)];
/// The largest numbers of vCPUs of a guest that runs, and of one that is paused.
const MAX_RUNNING: u32 = 8;
const MAX_PAUSED: u32 = 255;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut peers = Peers::connect().await;
    let mut report = Report::new("hotplug");
    let versions = ["virsh --version", "dpkg-query --show libvirt-dbus"].map(output);
    report.note(format!("libvirt {}, {}", versions[0], versions[1]));
    change_running_guests(&mut peers, &mut report).await;
    add_to_paused_guests(&mut peers, &mut report).await;
    compare_overheads(&mut report);
    report.write("svg", &chart::draw(&report));
    report.finish();
}

async fn change_running_guests(peers: &mut Peers, report: &mut Report) {
    let mut guests = Vec::new();
    for way in Way::ALL {
        let mut guest = Guest::start(peers, way, MAX_RUNNING, false).await;
        guest.online(1).await;
        guest.pause().await;
        guests.push(guest);
    }
    let works = unless_brief(CHANGES.len(), 1);
    for (count, rounds) in CHANGES.into_iter().take(works) {
        let change = async |way: usize| {
            let guest = &mut guests[way];
            guest.resume().await;
            let [added, used] = guest.set_and_wait(peers, 1 + count).await;
            let [removed, unused] = guest.set_and_wait(peers, 1).await;
            guest.pause().await;
            [added, used, removed, unused]
        };
        let times: [[Times; 4]; 4] = compare(unless_brief(rounds, 1), change).await;
        let parts = [
            format!("1 → {}, reply", 1 + count),
            format!("1 → {}, guest", 1 + count),
            format!("{} → 1, reply", 1 + count),
            format!("{} → 1, guest", 1 + count),
        ];
        for (work, times) in parts.iter().zip(&times) {
            report.compare(work, Way::NAMES.into_iter().zip(times));
        }
    }
    for guest in guests {
        guest.end(peers).await;
    }
}

async fn add_to_paused_guests(peers: &mut Peers, report: &mut Report) {
    let works = unless_brief(ADDITIONS.len(), 1);
    for (count, rounds) in ADDITIONS.into_iter().take(works) {
        let add = async |way: usize| {
            let mut guest = Guest::start(peers, Way::ALL[way], MAX_PAUSED, true).await;
            let time = guest.set(peers, 1 + count).await;
            assert_eq!(guest.vcpus().await, 1 + count, "{way}");
            guest.end(peers).await;
            [time]
        };
        let [times]: [[Times; 4]; 1] = compare(unless_brief(rounds, 1), add).await;
        let work = format!("+{count}, paused");
        report.compare(&work, Way::NAMES.into_iter().zip(&times));
    }
}

/// Adds how many times the overhead of vcpud the overheads of the others are, where vcpud is slower than raw QMP.
fn compare_overheads(report: &mut Report) {
    let mut figures = Vec::new();
    for rows in report.rows.chunks(Way::ALL.len()) {
        let [_, others @ .., vcpud] = rows else {
            panic!("a row for each way")
        };
        for other in others.iter().filter(|_| vcpud.overhead_ms > 0.0) {
            let name = format!("{}: overhead of {} / vcpud", other.work, other.way);
            figures.push((name, other.overhead_ms / vcpud.overhead_ms));
        }
    }
    for (name, value) in figures {
        report.figure(name, value, "");
    }
}

/// Returns the output of a command, with single spaces.
fn output(command: &str) -> String {
    let mut words = command.split_whitespace();
    let program = words.next().expect("a program");
    let output = Command::new(program).args(words).output();
    let output = output.expect("the program is installed").stdout;
    let words: Vec<&str> = str::from_utf8(&output)
        .expect("a text")
        .split_whitespace()
        .collect();
    words.join(" ")
}
