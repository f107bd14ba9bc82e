//! The policy of vcpud in the simulation: it has one history for each machine.

use std::time::Duration;

use super::super::budget::{Claim, share};
use super::super::decision::Decision;
use super::super::history::History;
use super::super::limits::Limits;
use super::super::policy::{Bounds, claim, decide};
use super::super::requests::Outcome;
use super::super::sample::{Load, MachineState, Sample};
use super::world::Virtual;

/// One machine, as the autoscaler sees it.
#[derive(Clone, Debug, Default)]
pub(super) struct Vcpud {
    history: History,
    /// The sum of the CPU time since the last sample, and its number of seconds.
    sum: Load,
    seconds: f64,
    last_present: u32,
}

impl Vcpud {
    /// Counts the CPU time of the last second.
    pub(super) fn count(&mut self, machine: &Virtual) {
        self.sum.used += machine.load.used;
        self.sum.stolen += machine.load.stolen;
        self.seconds += 1.0;
    }

    /// Reads the counters. The first sample after a change has no complete data.
    pub(super) fn sample(&mut self, machine: &Virtual, at: Duration) {
        let is_complete = self.last_present == machine.present;
        let load = Load {
            used: self.sum.used / self.seconds,
            stolen: self.sum.stolen / self.seconds,
            throttled: 0.0,
        };
        self.history.push(Sample {
            at,
            present: machine.present,
            started: Some(machine.started),
            pending: machine.pending(),
            state: MachineState::Running,
            load: is_complete.then_some(load),
        });
        self.last_present = machine.present;
        (self.sum, self.seconds) = (Load::default(), 0.0);
    }

    /// Decides, and begins the request.
    pub(super) fn decide(&mut self, limits: &Limits, cap: Option<u32>, now: Duration) -> Decision {
        let bounds = Bounds { floor: 0, cap };
        let decision = decide(&self.history, limits, bounds, now);
        if decision.direction().is_some() {
            self.history.note_request(&decision, limits, now);
        }
        decision
    }

    pub(super) fn end(&mut self, is_done: bool, now: Duration) {
        let outcome = if is_done {
            Outcome::Done
        } else {
            Outcome::Refused
        };
        self.history.note_result(outcome, now);
    }
}

/// Returns the share of each machine on the host, or `None` for machines without complete data.
pub(super) fn caps(machines: &[Vcpud], limits: &Limits, host: f64) -> Vec<Option<u32>> {
    let claims = machines
        .iter()
        .map(|machine| claim(&machine.history, limits));
    let claims: Vec<Option<Claim>> = claims.collect();
    let known: Vec<Claim> = claims.iter().flatten().copied().collect();
    let mut caps = share(host, &known).into_iter();
    let cap = |claim: Option<Claim>| claim.and_then(|_| caps.next());
    claims.into_iter().map(cap).collect()
}
