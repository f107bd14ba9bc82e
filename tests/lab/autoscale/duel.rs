//! The policy of vcpud and two others, one after the other, on equal guests with the same load, for the table in
//! `doc/autoscaling.md`. The others are those of the simulator, and the guest reports its load average.

use std::collections::HashMap;
use std::fmt::Write;
use std::fs;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, interval};
use vcpud::autoscale::Load;
use vcpud::autoscale::simulation::{LoadAverage, Policy, Threshold};
use vcpud::proxy::{ManagerProxy, Statistics};
use zbus::{OwnedVariant, Variant};

use super::{disable_all, proxy};
use crate::harness::*;

/// The maximum number of vCPUs. The host has 4 CPUs, and an emulated host that is busy for long stops.
const MAX: u32 = 3;
/// The load before [`NOISE`]: numbers of busy threads of the guest, each with its time in seconds.
const STEPS: [(u32, u32); 4] = [(0, 15), (1, 30), (3, 40), (1, 40)];
/// A load that is repeated [`NOISE_ROUNDS`] times.
const NOISE: [(u32, u32); 2] = [(2, 4), (1, 4)];
const NOISE_ROUNDS: usize = 6;
/// The load after [`NOISE`].
const END: [(u32, u32); 2] = [(MAX, 60), (0, 50)];
/// When other programs of the host are busy, after the guest has [`MAX`] busy threads.
const CONTENTION: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(45));
/// The number of these programs.
const RIVALS: usize = 3;
/// With a lower supply, the host is contended.
const MIN_SUPPLY: f64 = 0.9;

/// The counters of the machine and of the host at one time, in µs.
#[derive(Clone, Debug)]
struct Counters {
    at: u64,
    present: u32,
    /// The CPU time and the steal of each vCPU.
    vcpus: HashMap<u64, (u64, u64)>,
    /// The unused time of all host CPUs.
    idle: u64,
}

impl Counters {
    async fn read(manager: &ManagerProxy<'_>) -> Self {
        let all = manager.get_statistics(HashMap::new()).await;
        let all = all.expect("it answers");
        let found = all.iter().find(|(path, _)| path.ends_with("/web"));
        let (_, (machine, vcpus)): (_, &Statistics) = found.expect("the machine runs");
        // A vCPU whose thread has ended has no CPU time.
        let vcpu = |vcpu| {
            let times = (number(vcpu, "usage-usec")?, number(vcpu, "wait-usec")?);
            Some((number(vcpu, "id")?, times))
        };
        Self {
            at: number(machine, "timestamp-usec").expect("it is always there"),
            present: number(machine, "vcpus").expect("it is always there") as u32,
            vcpus: vcpus.iter().filter_map(vcpu).collect(),
            idle: idle(),
        }
    }

    /// Returns the seconds since `before`, the load of the machine, and the number of free host CPUs.
    fn since(&self, before: &Self) -> (f64, Load, f64) {
        let micros = (self.at - before.at) as f64;
        let mut load = Load::default();
        for (vcpu, (used, stolen)) in &self.vcpus {
            if let Some((used_before, stolen_before)) = before.vcpus.get(vcpu) {
                load.used += (used - used_before) as f64 / micros;
                load.stolen += (stolen - stolen_before) as f64 / micros;
            }
        }
        let free = self.idle.saturating_sub(before.idle) as f64 / micros;
        (micros / 1e6, load, free)
    }
}

fn number(counters: &HashMap<String, OwnedVariant>, key: &str) -> Option<u64> {
    match &**counters.get(key)? {
        Variant::U32(number) => Some(u64::from(*number)),
        Variant::U64(number) => Some(*number),
        _ => None,
    }
}

/// Returns the unused time of all host CPUs in µs (`proc_stat(5)`; 100 ticks in a second).
fn idle() -> u64 {
    let stat = fs::read_to_string("/proc/stat").expect("procfs can be read");
    let idle = stat
        .split_whitespace()
        .nth(4)
        .expect("cpu user nice system idle");
    10_000 * idle.parse::<u64>().expect("a number")
}

/// The result of a policy, as in the simulator.
#[derive(Debug, Default)]
struct Score {
    short: f64,
    avoidable: f64,
    wasted: f64,
    steal: f64,
    changes: u32,
    contended: u32,
}

impl Score {
    fn add(&mut self, demand: f64, before: &Counters, now: &Counters) -> Load {
        let (seconds, load, free) = now.since(before);
        let short = (demand - load.used).max(0.0);
        self.short += short * seconds;
        self.avoidable += short.min(free) * seconds;
        self.wasted += (f64::from(now.present) - demand).max(0.0) * seconds;
        self.steal += load.stolen * seconds;
        self.changes += u32::from(now.present != before.present);
        load
    }
}

/// The driver of a policy that is not in the autoscaler.
#[derive(Default)]
struct Driver {
    load_average: LoadAverage,
    threshold: Threshold,
    request: Option<JoinHandle<()>>,
}

impl Driver {
    fn goal(&mut self, policy: Policy, guest: &Guest, used: f64, present: u32, now: u64) -> u32 {
        let goal = match policy {
            Policy::Vcpud => None,
            Policy::LoadAverage => {
                let average = guest.reported("AVERAGE");
                average.and_then(|average| self.load_average.decide(average, now))
            }
            Policy::Threshold => self.threshold.decide(used, present, now),
        };
        goal.map_or(present, |goal| goal.clamp(1, MAX))
    }

    /// Makes one request at a time.
    fn request(&mut self, machine: &Machine, goal: u32) {
        if self
            .request
            .as_ref()
            .is_some_and(|request| !request.is_finished())
        {
            return;
        }
        let machine = machine.clone();
        self.request = Some(tokio::spawn(async move {
            // The next decision follows a failure.
            let _ = machine.set(goal).await;
        }));
    }
}

/// Busy programs of the host.
fn rivals() -> Vec<Process> {
    let rival = |_| {
        let mut busy = command("sh");
        Process::spawn("a busy program", busy.args(["-c", "while :; do :; done"]))
    };
    (0..RIVALS).map(rival).collect()
}

/// Runs the load with one policy.
async fn run(host: &Host, policy: Policy) -> Score {
    let noise = NOISE.repeat(NOISE_ROUNDS);
    let guest = Guest::loaded("web", &[&STEPS[..], &noise, &END].concat()).await;
    let machine = host.machine("web").await;
    let manager = ManagerProxy::new(&host.connection).await.expect("a proxy");
    let autoscaler = proxy(host).await;
    if policy == Policy::Vcpud {
        let options = HashMap::from([("max", Variant::from(MAX))]);
        autoscaler.enable("web", options).await.expect("root may");
    }
    let mut score = Score::default();
    let mut driver = Driver::default();
    let mut programs = Vec::new();
    let mut full_at: Option<Instant> = None;
    let mut last_supply = 1.0;
    let mut before = Counters::read(&manager).await;
    let mut ticks = interval(Duration::from_secs(1));
    ticks.tick().await;
    for second in 1.. {
        ticks.tick().await;
        let demand = guest.reported("LOAD").unwrap_or_default();
        if demand < 0.0 {
            break;
        }
        let now = Counters::read(&manager).await;
        let load = score.add(demand, &before, &now);
        score.contended += u32::from(now.present > before.present && last_supply < MIN_SUPPLY);
        last_supply = load.supply();
        let goal = driver.goal(policy, &guest, load.used, now.present, second);
        if goal != now.present {
            driver.request(&machine, goal);
        }
        if demand == f64::from(MAX) {
            let since = full_at.get_or_insert_with(Instant::now).elapsed();
            let is_contended = (CONTENTION.0..CONTENTION.1).contains(&since);
            match is_contended {
                true if programs.is_empty() => programs = rivals(),
                true => {}
                false => programs.clear(),
            }
        }
        before = now;
    }
    disable_all(&autoscaler).await;
    score
}

#[tokio::test]
#[ignore = "takes fifteen minutes; tests/lab/duel runs it"]
async fn a_duel_of_three_policies() {
    let host = Host::enter().await;
    let mut table = String::from(
        "| policy | short | avoidable | wasted | steal | changes | contended additions |\n\
         | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for policy in Policy::ALL {
        let score = run(&host, policy).await;
        let Score {
            short,
            avoidable,
            wasted,
            steal,
            changes,
            contended,
        } = score;
        writeln!(
            table,
            "| {policy} | {short:.0} | {avoidable:.0} | {wasted:.0} | {steal:.0} | {changes} | {contended} |"
        )
        .expect("it is in memory");
    }
    let results = "/run/results";
    fs::create_dir_all(results).expect("root may");
    fs::write(format!("{results}/duel.md"), &table).expect("root may");
}
