//! Counts what happens to a machine, for its statistics.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::model::error::Error;
use super::model::event::MachineEvent;
use super::model::request::Outcome;
use crate::placement::Report;
use crate::statistics::Activity;

/// The counters of one machine.
#[derive(Debug, Default)]
pub(super) struct Tally(Mutex<Activity>);

impl Tally {
    /// Returns the counters.
    pub(super) fn read(&self) -> Activity {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a request that ended with `result` after `time`.
    pub(super) fn request(&self, time: Duration, result: &Result<Outcome, Error>) {
        self.change(|activity| {
            activity.requests += 1;
            activity.failed_requests += u64::from(result.is_err());
            activity.request_time += time;
        });
    }

    /// Counts an event of a vCPU.
    pub(super) fn event(&self, event: &MachineEvent) {
        self.change(|activity| match event {
            MachineEvent::VcpuAdded(_) => activity.added += 1,
            MachineEvent::VcpuRemoved(_) => activity.removed += 1,
            MachineEvent::VcpuRemovalFailed { .. } => activity.refused += 1,
            _ => {}
        });
    }

    /// Counts a connection on which QEMU answered.
    pub(super) fn connection(&self) {
        self.change(|activity| activity.connections += 1);
    }

    /// Counts the values that a placement pass restored.
    pub(super) fn placement(&self, report: &Report) {
        let restored = report.vcpus.values().map(|outcome| outcome.drifted.len());
        let restored = restored.sum::<usize>() as u64;
        self.change(|activity| activity.restored += restored);
    }

    fn change(&self, change: impl FnOnce(&mut Activity)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
