//! The cost of the service compared with QMP commands: `cargo bench --bench floor`.
//!
//! The same work is done for two equal QEMUs: with `SetVcpus` for one, and with a QMP client that sends all commands
//! at once for the other. The difference is the cost of D-Bus, the refresh and the placement of the threads. Real
//! dbus-daemon, vcpud and QEMUs; root, so without polkit; no systemd, so without control groups.
//!
//! - Paused guests have no vCPU that runs. Each addition has a new QEMU. They need KVM, because QEMU limits the vCPUs
//!   of an emulated machine; without `/dev/kvm`, the additions are smaller.
//! - Running guests are emulated, and run Linux. A removal ends when QEMU has removed the last vCPU. The first
//!   addition to a guest is not counted.
//! - The floor of `GetStatistics` is a loop that reads the files of the same threads. Both have CPU time, not time.

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
mod raw_qmp;
#[allow(dead_code, reason = "the other benches use the rest")]
mod timing;

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::path::PathBuf;
use std::process;
use std::time::Duration;

use harness::*;
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use raw_qmp::RawQmp;
use timing::{Report, Times, compare, exponent, is_brief, timed, unless_brief};

const WAYS: [&str; 2] = ["raw QMP", "SetVcpus"];
const RAW: usize = 0;

/// A PC whose guest does not run.
const PAUSED: Hardware = Hardware {
    options: &["-machine", "q35", "-cpu", "kvm64", "-m", "64", "-S"],
    shape: "maxcpus=1024",
    ..Hardware::Q35
};

/// The numbers of vCPUs that are added to paused guests, and of the rounds.
const ADDITIONS: [(u32, usize); 5] = [(1, 20), (16, 10), (64, 10), (254, 5), (1023, 3)];
/// The numbers of vCPUs that are added to running guests and removed, and of the rounds.
const REMOVALS: [(u32, usize); 3] = [(1, 20), (4, 12), (15, 8)];

/// A bus for each way. One has no service, so that only the benchmark uses the QEMU.
struct Worlds {
    buses: [World; 2],
    /// The number of QEMUs so far.
    started: usize,
}

/// A QEMU, and the way to change it.
struct Guest {
    qemu: Qemu,
    client: Client,
    /// The number of vCPUs that were added so far.
    added: u32,
}

enum Client {
    Raw(RawQmp),
    Service(Machine),
}

#[tokio::main]
async fn main() {
    let buses = [
        World::without_service().await,
        World::without_polkit().await,
    ];
    let mut worlds = Worlds { buses, started: 0 };
    let mut report = Report::new("floor");
    add_to_paused_guests(&mut worlds, &mut report).await;
    change_running_guests(&mut worlds, &mut report).await;
    read_statistics(&mut worlds, &mut report).await;
    report.finish();
}

/// Measures additions to paused guests, and how their cost grows with the number of vCPUs.
async fn add_to_paused_guests(worlds: &mut Worlds, report: &mut Report) {
    let has_kvm = OpenOptions::new().write(true).open("/dev/kvm").is_ok();
    let limit = if has_kvm { 1023 } else { MAX_VCPUS - 1 };
    let boot = Boot {
        hardware: PAUSED,
        accelerator: if has_kvm { "kvm" } else { "tcg" },
        linux: false,
        ..Boot::default()
    };
    let mut costs: [Vec<(f64, f64)>; 2] = Default::default();
    for (count, rounds) in ADDITIONS.into_iter().filter(|(count, _)| *count <= limit) {
        if is_brief() && count > 16 {
            break;
        }
        let add = async |way: usize| {
            let mut guest = worlds.start(way, &boot).await;
            [guest.add(count).await]
        };
        let [times]: [[Times; 2]; 1] = compare(unless_brief(rounds, 1), add).await;
        report.compare(&format!("+{count}, paused"), WAYS.into_iter().zip(&times));
        for (costs, times) in costs.iter_mut().zip(&times) {
            costs.push((f64::from(count), times.median()));
        }
    }
    for (way, costs) in WAYS.iter().zip(&costs) {
        let name = format!("exponent of the number of added vCPUs: {way}");
        report.figure(name, exponent(costs), "");
    }
}

/// Measures additions to guests with Linux, and removals.
async fn change_running_guests(worlds: &mut Worlds, report: &mut Report) {
    let boot = Boot::default();
    for (count, rounds) in REMOVALS {
        if is_brief() && count > 1 {
            break;
        }
        let mut guests: [Option<Guest>; 2] = [None, None];
        let change = async |way: usize| {
            let guest = &mut guests[way];
            if guest
                .as_ref()
                .is_none_or(|guest| guest.added + count >= MAX_VCPUS)
            {
                // The previous QEMU ends first.
                drop(guest.take());
                let mut new = worlds.start(way, &boot).await;
                new.qemu.online("0").await;
                new.change(count).await;
                *guest = Some(new);
            }
            guest.as_mut().expect("it was started").change(count).await
        };
        let [added, used, removed]: [[Times; 2]; 3] =
            compare(unless_brief(rounds, 1), change).await;
        let mut compare = |work: &str, times| report.compare(work, WAYS.into_iter().zip(times));
        compare(&format!("+{count}, reply"), &added);
        compare(&format!("+{count}, used by the guest"), &used);
        compare(&format!("-{count}, reply"), &removed);
    }
}

/// Measures the CPU time of the statistics of a machine.
async fn read_statistics(worlds: &mut Worlds, report: &mut Report) {
    const VCPUS: u32 = 100;
    let vcpus = unless_brief(VCPUS, 4);
    let boot = Boot {
        hardware: PAUSED,
        vcpus,
        linux: false,
        ..Boot::default()
    };
    let (world, name) = (&worlds.buses[1], "statistics");
    let qemu = Qemu::start(world, name, &boot).await;
    let machine = world.machine(name).await;
    machine.wait_for("Vcpus", vcpus).await;
    let rows = machine.rows().await;
    let threads = rows.iter().filter_map(|row| row.get("thread-id")?.as_u64());
    let threads: Vec<PathBuf> = threads
        .map(|thread| format!("/proc/{}/task/{thread}", qemu.pid()).into())
        .collect();
    let service = world.service.as_ref().expect("it runs").pid();
    let read = async |way: usize| {
        let pid = if way == RAW { process::id() } else { service };
        let before = cpu_time(pid);
        if way == RAW {
            let files = ["schedstat", "stat"];
            let files = threads
                .iter()
                .flat_map(|thread| files.map(|file| thread.join(file)));
            files.for_each(|file| drop(fs::read_to_string(file).expect("the thread runs")));
        } else {
            machine.statistics(&[]).await.expect("it answers");
        }
        [cpu_time(pid) - before]
    };
    let [times]: [[Times; 2]; 1] = compare(unless_brief(200, 2), read).await;
    let ways = ["files in a loop", "GetStatistics"];
    let work = format!("statistics of {vcpus} vCPUs, CPU time");
    report.compare(&work, ways.into_iter().zip(&times));
}

/// Returns the CPU time of a process.
fn cpu_time(pid: u32) -> Duration {
    let pid = Pid::from_raw(pid.try_into().expect("a PID"));
    let clock = clock_getcpuclockid(pid).expect("it runs");
    clock_gettime(clock).expect("it runs").into()
}

impl Worlds {
    /// Starts a QEMU that nothing has changed yet.
    async fn start(&mut self, way: usize, boot: &Boot) -> Guest {
        self.started += 1;
        let (world, name) = (&self.buses[way], format!("vm-{}", self.started));
        let qemu = Qemu::start(world, &name, boot).await;
        let client = if way == RAW {
            Client::Raw(RawQmp::connect(&world.socket(&name)).await)
        } else {
            let machine = world.machine(&name).await;
            machine.wait_for("Vcpus", 1u32).await;
            Client::Service(machine)
        };
        Guest {
            qemu,
            client,
            added: 0,
        }
    }
}

impl Guest {
    /// Adds `count` vCPUs, and returns the time until the reply.
    async fn add(&mut self, count: u32) -> Duration {
        self.added += count;
        match &mut self.client {
            Client::Raw(raw) => {
                let additions = raw.additions(count).await;
                timed(raw.add(&additions)).await.1
            }
            Client::Service(machine) => {
                // Without the time limit of the tests: QEMU needs seconds for a thousand vCPUs.
                let call = machine.set_vcpus(1 + count, HashMap::new());
                let (result, time) = timed(call).await;
                result.expect("the vCPUs are added");
                time
            }
        }
    }

    /// Adds and removes `count` vCPUs. Returns the time until the reply to the addition, until the guest uses the
    /// vCPUs, and until the reply to the removal.
    async fn change(&mut self, count: u32) -> [Duration; 3] {
        let (added, used) = timed(async {
            let added = self.add(count).await;
            self.qemu.online(&format!("0-{count}")).await;
            added
        })
        .await;
        let removed = match &mut self.client {
            Client::Raw(raw) => timed(raw.remove(count)).await.1,
            Client::Service(machine) => {
                let (result, time) = timed(machine.set_patiently(1)).await;
                result.expect("the vCPUs are removed");
                time
            }
        };
        self.qemu.online("0").await;
        [added, used, removed]
    }
}
