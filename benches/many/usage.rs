//! The cost of machines when nothing happens.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use tokio::time::sleep;

use super::Host;
use super::harness::Autoscaler;
use super::timing::{Report, unless_brief};

/// Measures what a machine costs when nothing happens.
pub(super) async fn measure(hosts: &[Host], report: &mut Report) {
    let [one, .., all] = hosts else {
        panic!("two hosts at least")
    };
    let others = (all.machines - one.machines) as f64;
    let each = |all: u64, one: u64| all.saturating_sub(one) as f64 / others;
    let (pid, pid_of_one) = (all.service().pid(), one.service().pid());
    let memory = each(resident(pid), resident(pid_of_one));
    report.figure("memory of a machine", memory, "KiB");
    let [descriptors, of_one] = [all, one].map(|host| host.service().descriptors() as u64);
    let descriptors = each(descriptors, of_one);
    report.figure("descriptors of a machine", descriptors, "");

    // The machines are announced after the start.
    while used_in(pid, Duration::from_secs(1)).await.0 > 50 {}
    let idle = Duration::from_secs(unless_brief(10, 1));
    let (used, wakes) = used_in(pid, idle).await;
    let percent = used as f64 / idle.as_secs_f64() / 10.0;
    report.figure("CPU time of the idle service", percent, "% of a CPU");
    let wakes = wakes as f64 / idle.as_secs_f64();
    report.figure("wake-ups of its threads", wakes, "in a second");
}

/// Measures what it costs to sample all machines of `host` once a second, and to decide about them.
pub(super) async fn measure_autoscaler(host: &Host, report: &mut Report) {
    let autoscaler = Autoscaler::start(&host.world).await;
    for n in 0..host.machines {
        let options = [("mode", "observe"), ("down-window", "10s")];
        let options = HashMap::from(options.map(|(key, value)| (key, value.into())));
        let enabled = autoscaler.proxy.enable(&format!("vm-{n}"), options).await;
        enabled.expect("root may");
    }
    autoscaler.explains("vm-0", "in-band").await;
    let time = Duration::from_secs(unless_brief(30, 1));
    let (own, service) = tokio::join!(
        used_in(autoscaler.process.pid(), time),
        used_in(host.service().pid(), time)
    );
    for (name, (used, _)) in [("vcpud-autoscale", own), ("vcpud", service)] {
        let percent = used as f64 / time.as_secs_f64() / 10.0;
        let name = format!("CPU time of {name}, {} vCPUs sampled", host.machines);
        report.figure(name, percent, "% of a CPU");
    }
}

/// Returns the CPU time in ms that a process uses in `time`, and how often its threads sleep.
async fn used_in(pid: u32, time: Duration) -> (u64, u64) {
    let before = (cpu_time(pid), wake_ups(pid));
    sleep(time).await;
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
