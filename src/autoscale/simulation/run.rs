//! One run of a trace with one policy, and its score.

use std::fmt;
use std::time::Duration;

use super::super::history::MIN_SUPPLY;
use super::super::limits::Limits;
use super::rivals::{LoadAverage, Threshold};
use super::trace::{Row, Trace};
use super::vcpud::{Vcpud, caps};
use super::world::{self, Virtual};

/// A policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The policy of vcpud.
    Vcpud,
    /// The load average of the guest, divided by 0.9.
    LoadAverage,
    /// One more vCPU above 80 % use, and one fewer below 20 %.
    Threshold,
}

impl Policy {
    /// All policies.
    pub const ALL: [Self; 3] = [Self::Vcpud, Self::LoadAverage, Self::Threshold];
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Vcpud => "vcpud",
            Self::LoadAverage => "load-average",
            Self::Threshold => "threshold",
        })
    }
}

/// The result of a run. Times are in seconds of one CPU or of one vCPU, and the sum of all machines.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// The demand that was not served.
    pub short: f64,
    /// The part of it that the host could have served.
    pub avoidable: f64,
    /// The present vCPUs beyond the demand.
    pub wasted: f64,
    /// The time that vCPUs waited for a host CPU.
    pub steal: f64,
    /// The number of requests.
    pub requests: u32,
    /// The number of requests that the guest refused.
    pub refused: u32,
    /// The number of additions while the host did not run all busy vCPUs of the machine.
    pub contended: u32,
}

/// A request, or a reason to make none that differs from the previous one.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The time in seconds.
    pub at: u64,
    /// The index of the machine.
    pub machine: usize,
    /// The number of vCPUs before.
    pub from: u32,
    /// The wanted number of vCPUs.
    pub to: u32,
    /// The code of the reason, and the reason in words.
    pub reason: (&'static str, String),
}

/// The result of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// The score.
    pub score: Score,
    /// The requests, and the reasons to make none.
    pub decisions: Vec<Choice>,
}

/// Runs `trace` with `policy`. Each machine begins with the minimum of vCPUs.
#[must_use]
pub fn simulate(trace: &Trace, policy: Policy, limits: &Limits) -> Report {
    let count = trace.machines.len();
    let mut run = Run {
        policy,
        limits,
        host: trace.host(),
        machines: vec![Virtual::new(limits.min); count],
        vcpud: vec![Vcpud::default(); count],
        load_average: vec![LoadAverage::default(); count],
        threshold: vec![Threshold::default(); count],
        last: vec![None; count],
        report: Report::default(),
    };
    for (second, row) in trace.seconds() {
        run.second(second, row);
    }
    run.report
}

struct Run<'a> {
    policy: Policy,
    limits: &'a Limits,
    host: f64,
    machines: Vec<Virtual>,
    vcpud: Vec<Vcpud>,
    load_average: Vec<LoadAverage>,
    threshold: Vec<Threshold>,
    /// The last code of each machine.
    last: Vec<Option<&'static str>>,
    report: Report,
}

impl Run<'_> {
    fn second(&mut self, second: u64, row: &Row) {
        for (machine, &demand) in self.machines.iter_mut().zip(&row.demands) {
            machine.demand = demand;
        }
        world::run(&mut self.machines, row.host, row.boots, second);
        self.report
            .score
            .add(&self.machines, row.host, self.limits.max);
        // The second is over.
        let now = second + 1;
        for (index, machine) in self.machines.iter_mut().enumerate() {
            self.vcpud[index].count(machine);
            if let Some(is_done) = machine.end_removal(row.refuses, now) {
                self.report.score.refused += u32::from(!is_done);
                self.vcpud[index].end(is_done, Duration::from_secs(now));
            }
        }
        if row.has_sample {
            self.decide(now);
        }
    }

    fn decide(&mut self, now: u64) {
        let time = Duration::from_secs(now);
        let is_vcpud = self.policy == Policy::Vcpud;
        for (vcpud, machine) in self
            .vcpud
            .iter_mut()
            .zip(&self.machines)
            .filter(|_| is_vcpud)
        {
            vcpud.sample(machine, time);
        }
        let caps = caps(&self.vcpud, self.limits, self.host);
        for (index, cap) in caps.into_iter().enumerate() {
            let machine = &self.machines[index];
            let (goal, reason) = match self.policy {
                Policy::Vcpud => {
                    let decision = self.vcpud[index].decide(self.limits, cap, time);
                    let reason = (decision.reason.code(), decision.reason.to_string());
                    (Some(decision.goal), reason)
                }
                Policy::LoadAverage => {
                    let goal = self.load_average[index].decide(machine.load_average, now);
                    let text = format!("the load average is {:.2}", machine.load_average);
                    (goal, ("load-average", text))
                }
                Policy::Threshold => {
                    let goal =
                        self.threshold[index].decide(machine.load.used, machine.present, now);
                    (
                        goal,
                        ("threshold", "the use crossed a threshold".to_owned()),
                    )
                }
            };
            let goal = goal.filter(|_| machine.pending() == 0);
            let goal = goal.map_or(machine.present, |goal| {
                goal.clamp(self.limits.min, self.limits.max)
            });
            self.request(index, goal, reason, now);
        }
    }

    fn request(&mut self, index: usize, goal: u32, reason: (&'static str, String), now: u64) {
        let machine = &mut self.machines[index];
        let from = machine.present;
        if goal != from || (self.policy == Policy::Vcpud && self.last[index] != Some(reason.0)) {
            self.last[index] = Some(reason.0);
            self.report.decisions.push(Choice {
                at: now,
                machine: index,
                from,
                to: goal,
                reason,
            });
        }
        if goal == from {
            return;
        }
        self.report.score.requests += 1;
        if goal > from && machine.load.supply() < MIN_SUPPLY {
            self.report.score.contended += 1;
        }
        machine.request(goal, now);
        if goal > from {
            self.vcpud[index].end(true, Duration::from_secs(now));
        }
    }
}

impl Score {
    /// Adds one second.
    fn add(&mut self, machines: &[Virtual], host: f64, max: u32) {
        let sum = |value: fn(&Virtual) -> f64| machines.iter().map(value).sum::<f64>();
        let short = sum(|machine| machine.demand - machine.load.used);
        let beyond = machines
            .iter()
            .map(|machine| (machine.demand - f64::from(max)).max(0.0));
        let possible = short - beyond.sum::<f64>();
        let free = host - sum(|machine| machine.load.used);
        self.short += short;
        self.avoidable += possible.min(free).max(0.0);
        self.wasted += sum(|machine| (f64::from(machine.present) - machine.demand).max(0.0));
        self.steal += sum(|machine| machine.load.stolen);
    }
}
