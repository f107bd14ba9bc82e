//! The policy of vcpud and two others, one after the other, on equal real guests with the same load, for the table in
//! `doc/autoscaling.md`. The others are those of the simulator. The guests need a host that does nothing else.

use std::collections::HashMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, interval};
use vcpud::autoscale::Load;
use vcpud::autoscale::simulation::{LoadAverage, Policy, Threshold};
use vcpud::proxy::{ManagerProxy, Statistics, number};
use zbus::Variant;

use crate::harness::*;

/// The number of host CPUs, and the highest demand that they can serve.
const HOST: u32 = 2;
/// The maximum number of vCPUs.
const MAX: u32 = 4;
/// The load: numbers of busy threads of the guest and of other programs of the host, each for a time in seconds. A
/// changing load of 48 s is between the two.
const BEGIN: [(u32, u32, u32); 4] = [(0, 0, 10), (1, 0, 30), (HOST, 0, 40), (1, 0, 40)];
const NOISE: [(u32, u32, u32); 2] = [(HOST, 0, 4), (1, 0, 4)];
const END: [(u32, u32, u32); 4] = [(MAX, 0, 20), (MAX, 2, 25), (HOST, 0, 30), (0, 0, 60)];
const NOISE_ROUNDS: usize = 6;
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
    /// Adds the time between two readings with `demand` busy threads. Returns the load.
    fn add(&mut self, demand: u32, before: &Counters, now: &Counters) -> Load {
        let (seconds, load, free) = now.since(before);
        let demand = f64::from(demand);
        let short = (demand - load.used).max(0.0);
        self.short += short * seconds;
        self.avoidable += short.min(free) * seconds;
        self.wasted += (f64::from(now.present) - demand).max(0.0) * seconds;
        self.steal += load.stolen * seconds;
        self.changes += u32::from(now.present != before.present);
        load
    }
}

/// One guest with one policy.
struct Run {
    policy: Policy,
    guest: Qemu,
    machine: Machine,
    manager: ManagerProxy<'static>,
    load_average: LoadAverage,
    threshold: Threshold,
    request: Option<JoinHandle<()>>,
    score: Score,
    before: Counters,
    /// The part of the wanted CPU time that the host supplied in the last second.
    supply: f64,
    second: u64,
}

impl Run {
    /// Returns the goal of a policy that is not in the autoscaler.
    async fn goal(&mut self, used: f64, present: u32) -> u32 {
        let goal = match self.policy {
            Policy::Vcpud => None,
            Policy::LoadAverage => {
                let average = self.guest.load_average().await;
                self.load_average.decide(average, self.second)
            }
            Policy::Threshold => self.threshold.decide(used, present, self.second),
        };
        goal.map_or(present, |goal| goal.clamp(1, MAX))
    }

    async fn second(&mut self, demand: u32) {
        self.second += 1;
        let now = Counters::read(&self.manager).await;
        let load = self.score.add(demand, &self.before, &now);
        let is_contended = self.supply < MIN_SUPPLY;
        self.score.contended += u32::from(now.present > self.before.present && is_contended);
        self.supply = load.supply();
        let goal = self.goal(load.used, now.present).await;
        let is_free = self.request.as_ref().is_none_or(JoinHandle::is_finished);
        if goal != now.present && is_free {
            let machine = self.machine.clone();
            self.request = Some(tokio::spawn(async move {
                // The next decision follows a failure.
                let _ = machine.set(goal).await;
            }));
        }
        self.before = now;
    }
}

/// Starts programs of the host that are busy.
fn rivals(count: u32) -> Vec<Process> {
    let rival = |_| {
        let mut busy = command("sh");
        Process::spawn("a busy program", busy.args(["-c", "while :; do :; done"]))
    };
    (0..count).map(rival).collect()
}

/// Runs the load with one policy.
async fn run(policy: Policy) -> Score {
    let world = World::without_polkit().await;
    let guest = Qemu::start(&world, "web", &Boot::default()).await;
    let machine = world.machine("web").await;
    machine
        .set_with(1, &[("until", "started".into())])
        .await
        .expect("the guest starts");
    Autoscaler::configure(&world, "autoscale.toml", &format!("host-cpus = {HOST}"));
    let autoscaler = Autoscaler::start(&world).await;
    if policy == Policy::Vcpud {
        let options = HashMap::from([("max", Variant::from(MAX))]);
        let enabled = autoscaler.proxy.enable("web", options).await;
        enabled.expect("root may");
    }
    let manager = world.manager().await;
    let before = Counters::read(&manager).await;
    let mut run = Run {
        policy,
        guest,
        machine,
        manager,
        load_average: LoadAverage::default(),
        threshold: Threshold::default(),
        request: None,
        score: Score::default(),
        before,
        supply: 1.0,
        second: 0,
    };
    let mut ticks = interval(Duration::from_secs(1));
    let noise = NOISE.repeat(NOISE_ROUNDS);
    for (demand, others, seconds) in BEGIN.into_iter().chain(noise).chain(END) {
        run.guest.order(&format!("busy {demand}")).await;
        let _rivals = rivals(others);
        let end = Instant::now() + Duration::from_secs(seconds.into());
        while Instant::now() < end {
            ticks.tick().await;
            run.second(demand).await;
        }
    }
    run.score
}

/// Real QEMU with Linux, dbus-daemon.
#[tokio::test]
#[ignore = "takes fifteen minutes; doc/autoscaling.md has the command"]
async fn a_duel_of_three_policies() {
    let mut table = String::from(
        "| policy | short | avoidable | wasted | steal | changes | contended additions |\n\
         | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/target/duel.md"));
    for policy in Policy::ALL {
        let score = run(policy).await;
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
        fs::write(path, &table).expect("it is writable");
    }
}
