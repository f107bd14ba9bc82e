//! Events that may not have been emitted on the bus. They are persisted, and emitted again by the next
//! instance.

use super::event::{MachineEvent, VcpuChange};
use super::saved_state::{SavedState, UnemittedChange, UnemittedRefusal};
use crate::ids::VcpuId;

/// The events, each with the number of the flush that follows it. 0 is for those of a previous
/// instance.
#[derive(Debug, Default)]
pub(super) struct Unemitted {
    events: Vec<(u64, MachineEvent)>,
    last: u64,
}

impl Unemitted {
    /// Adds those of `events` that must not be lost, which another flush follows.
    pub(super) fn add(&mut self, events: &[MachineEvent]) {
        self.last += 1;
        let events = events.iter().filter(|event| event.vcpu().is_some());
        let events = events.map(|event| (self.last, event.clone()));
        self.events.extend(events);
    }

    /// Returns the number of the last flush.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Notes that all events up to `flush` were emitted. Returns whether there were such events.
    pub(super) fn flushed(&mut self, flush: u64) -> bool {
        let before = self.events.len();
        self.events.retain(|(of, _)| *of > flush);
        self.events.len() != before
    }

    /// Restores the events of a previous instance.
    pub(super) fn restore(
        &mut self,
        changes: Vec<UnemittedChange>,
        refusals: Vec<UnemittedRefusal>,
        starts: Vec<VcpuChange>,
    ) {
        // A vCPU that was removed after its start has no start any more.
        let is_removed = |vcpu: VcpuId| {
            let last = changes.iter().rev().find(|change| change.vcpu() == vcpu);
            matches!(last, Some(UnemittedChange::Removed(_)))
        };
        let starts = starts.into_iter().filter(|vcpu| !is_removed(vcpu.id));
        let starts: Vec<MachineEvent> = starts.map(MachineEvent::VcpuStarted).collect();
        let changes = changes.into_iter().map(|change| match change {
            UnemittedChange::Added(vcpu) => MachineEvent::VcpuAdded(vcpu),
            UnemittedChange::Removed(vcpu) => MachineEvent::VcpuRemoved(vcpu),
        });
        let refusals = refusals
            .into_iter()
            .map(
                |UnemittedRefusal { vcpu, reason }| MachineEvent::VcpuRemovalFailed {
                    vcpu,
                    reason,
                },
            );
        let events = changes.chain(starts).chain(refusals);
        self.events = events.map(|event| (0, event)).collect();
    }

    /// Takes the events of a previous instance.
    pub(super) fn take_restored(&mut self) -> Vec<MachineEvent> {
        let events = std::mem::take(&mut self.events).into_iter();
        let (restored, events): (Vec<_>, Vec<_>) = events.partition(|(of, _)| *of == 0);
        self.events = events;
        restored.into_iter().map(|(_, event)| event).collect()
    }

    /// Puts the persisted form into `saved`.
    pub(super) fn save_to(&self, saved: &mut SavedState) {
        for (_, event) in &self.events {
            match event.clone() {
                MachineEvent::VcpuAdded(vcpu) => {
                    saved.unemitted.push(UnemittedChange::Added(vcpu));
                }
                MachineEvent::VcpuRemoved(vcpu) => {
                    saved.unemitted.push(UnemittedChange::Removed(vcpu));
                }
                MachineEvent::VcpuStarted(vcpu) => saved.unemitted_starts.push(vcpu),
                MachineEvent::VcpuRemovalFailed { vcpu, reason } => {
                    let refusal = UnemittedRefusal { vcpu, reason };
                    saved.unemitted_refusals.push(refusal);
                }
                MachineEvent::Appeared { .. } | MachineEvent::Changed | MachineEvent::Vanished => {}
            }
        }
    }
}
