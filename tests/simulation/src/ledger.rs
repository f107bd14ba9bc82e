//! The events that clients receive, and what they add up to.

use std::collections::{BTreeMap, BTreeSet};

use vcpud::ids::{Uid, VcpuId};
use vcpud::machine::model::request::Answer;
use vcpud::machine::model::saved_state::{SavedState, UnemittedChange};
use vcpud::machine::{Cause, Error, MachineEvent, Snapshot, VcpuChange};
use vcpud::process::ProcessId;

/// The knowledge of a client that reads events.
#[derive(Default)]
pub(crate) struct Ledger {
    /// The vCPUs; `None` until the machine is connected.
    pub present: Option<BTreeSet<VcpuId>>,
    /// The process that it is about.
    process: Option<ProcessId>,
    /// The vCPUs whose last event may come again, after a restart.
    repeatable: BTreeSet<VcpuId>,
    /// Whether events before a restart are lost, as they could not be saved.
    is_lossy: bool,
    is_visible: bool,
    /// The number of events so far.
    pub count: u64,
    added: BTreeMap<VcpuId, u64>,
    removed: BTreeMap<VcpuId, u64>,
    /// The vCPUs that were added, and whose start is to be reported.
    pub awaited: BTreeSet<VcpuId>,
    /// The vCPUs whose start may be reported again, after a restart.
    restartable: BTreeSet<VcpuId>,
    /// The vCPUs that the guest gave up, and the users who asked for that.
    pub given_up: BTreeMap<VcpuId, BTreeSet<Uid>>,
}

impl Ledger {
    /// Takes an event.
    pub(crate) fn take(&mut self, event: &MachineEvent) {
        self.count += 1;
        match event {
            MachineEvent::Appeared { .. } => {
                assert!(!self.is_visible, "Appeared comes twice");
                self.is_visible = true;
                return;
            }
            MachineEvent::Vanished => {
                assert!(self.is_visible, "Vanished comes before Appeared");
                self.is_visible = false;
                self.forget();
                return;
            }
            MachineEvent::VcpuAdded(vcpu) => self.arrived(vcpu),
            MachineEvent::VcpuStarted(vcpu) => self.started(vcpu),
            MachineEvent::VcpuRemoved(vcpu) => self.left(vcpu),
            MachineEvent::Changed | MachineEvent::VcpuRemovalFailed { .. } => {}
        }
        assert!(
            self.is_visible,
            "{event:?} comes before Appeared or after Vanished"
        );
    }

    /// Takes a snapshot. The first one that QEMU answered is the begin.
    pub(crate) fn publish(&mut self, snapshot: &Snapshot) {
        if snapshot.version.is_none() {
            return;
        }
        if self.process.is_some() && self.process != snapshot.process {
            self.forget();
        }
        self.process = snapshot.process;
        if self.present.is_none() {
            let vcpus = snapshot.inventory.vcpus();
            let present = vcpus.filter(|vcpu| vcpu.slot.presence.is_some());
            self.present = Some(present.map(|vcpu| vcpu.id).collect());
        }
    }

    fn arrived(&mut self, vcpu: &VcpuChange) {
        self.added.insert(vcpu.id, self.count);
        self.awaited.insert(vcpu.id);
        let is_new = self.present.get_or_insert_default().insert(vcpu.id);
        self.check_new(vcpu, is_new);
    }

    fn started(&mut self, vcpu: &VcpuChange) {
        let is_new = self.awaited.remove(&vcpu.id);
        let may_repeat = self.restartable.remove(&vcpu.id) || self.is_lossy;
        assert!(is_new || may_repeat, "{vcpu:?} was started twice");
    }

    fn left(&mut self, vcpu: &VcpuChange) {
        self.awaited.remove(&vcpu.id);
        self.removed.insert(vcpu.id, self.count);
        let is_new = self.present.get_or_insert_default().remove(&vcpu.id);
        self.check_new(vcpu, is_new);
    }

    /// Checks that a removal that the guest completes is explained by the request for it.
    pub(crate) fn check_cause(&mut self, event: &MachineEvent) {
        let MachineEvent::VcpuRemoved(vcpu) = event else {
            return;
        };
        let asked = self.given_up.remove(&vcpu.id);
        // It may be an event of the previous instance.
        if let Some(asked) = asked.filter(|_| !self.repeatable.contains(&vcpu.id)) {
            let is_explained = matches!(vcpu.cause, Cause::Request | Cause::Reset)
                && vcpu.uid.is_some_and(|uid| asked.contains(&uid));
            assert!(is_explained, "{vcpu:?} was removed for {asked:?}");
        }
    }

    fn check_new(&mut self, vcpu: &VcpuChange, is_new: bool) {
        let may_repeat = self.repeatable.remove(&vcpu.id) || self.is_lossy;
        assert!(is_new || may_repeat, "{vcpu:?} was added or removed twice");
    }

    /// Checks that the events of an answer came before it.
    pub(crate) fn check_answer(&self, answer: &Answer, since: u64) {
        let (added, removed) = match answer {
            Ok(outcome) => (&outcome.added, &outcome.removed),
            Err(Error::QmpFailed(report) | Error::GuestRefused(report)) => {
                (&report.added, &report.removed)
            }
            Err(Error::RemovalPending { report, .. }) => (&report.added, &report.removed),
            Err(_) => return,
        };
        let is_after = |events: &BTreeMap<VcpuId, u64>, vcpu: &VcpuId| {
            events.get(vcpu).is_some_and(|count| *count > since)
        };
        let come = added.iter().all(|vcpu| is_after(&self.added, vcpu));
        let gone = removed.iter().all(|vcpu| is_after(&self.removed, vcpu));
        assert!(come && gone, "{answer:?} comes before its events");
    }

    /// Checks that the next instance can continue with `state`: the events that are saved lead to the
    /// vCPUs that are saved. With `is_behind`, a write failed, and events may be lost.
    pub(crate) fn crash(&mut self, state: Option<&SavedState>, is_behind: bool) {
        self.is_visible = false;
        let Some(state) = state.filter(|state| !state.present.is_empty()) else {
            self.forget();
            return;
        };
        if self.process.is_some_and(|process| process != state.leader) {
            // No message about the new process was delivered.
            self.forget();
        }
        let saved = state.present.iter();
        let saved = saved.flat_map(|slot| (0..slot.width).map(|n| VcpuId(slot.id.get() + n)));
        let saved: BTreeSet<VcpuId> = saved.collect();
        self.process = Some(state.leader);
        let mut after = self.present.get_or_insert(saved.clone()).clone();
        self.repeatable.clear();
        let starts = state.unemitted_starts.iter().map(|vcpu| vcpu.id);
        self.restartable = starts.collect();
        if is_behind {
            // The file may lack that a start was reported.
            self.restartable.extend(&saved);
        }
        for event in &state.unemitted {
            match event {
                UnemittedChange::Added(vcpu) => after.insert(vcpu.id),
                UnemittedChange::Removed(vcpu) => after.remove(&vcpu.id),
            };
            let (UnemittedChange::Added(vcpu) | UnemittedChange::Removed(vcpu)) = event;
            self.repeatable.insert(vcpu.id);
        }
        if saved != after {
            assert!(is_behind, "{saved:?} are saved and {after:?} were reported");
            self.lose();
        }
    }

    /// Forgets everything about a process.
    pub(crate) fn forget(&mut self) {
        self.present = None;
        self.process = None;
        self.is_lossy = false;
        self.repeatable.clear();
        self.awaited.clear();
        self.restartable.clear();
        self.given_up.clear();
    }

    /// Notes that the service lost what it had saved.
    pub(crate) fn lose(&mut self) {
        self.forget();
        self.is_lossy = true;
    }
}
