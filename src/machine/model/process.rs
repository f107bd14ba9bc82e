//! Everything that is known about one QEMU process. It is dropped as a whole when the process exits.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::effect::{Effect, LogEntry, Output};
use super::error::Error;
use super::event::Cause;
use super::evidence::{Evidence, Plugging, Refused, RefusedRequest};
use super::guest::OfflineCpus;
use super::input::{Input, SaveError, SaveId};
use super::numbering::Numbering;
use super::operation::{Operation, Queued};
use super::placement::PlacementState;
use super::refusal::RefusalReason;
use super::removals::{Answered, Removals};
use super::request::{Outcome, RequestId};
use super::saved_state::SavedState;
use super::saves::{Saves, text};
use super::snapshot::Snapshot;
use super::starts::Starts;
use super::unemitted::Unemitted;
use crate::ids::SlotId;
use crate::inventory::Inventory;
use crate::machine::spec::MachineConfig;
use crate::placement::Tuning;
use crate::process::ProcessId;
use crate::qmp::{AcpiOst, Event};

/// One QEMU process.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) id: ProcessId,
    pub(super) baseline: Baseline,
    pub(super) evidence: Evidence,
    pub(super) removals: Removals,
    pub(super) starts: Starts,
    /// The slots that QEMU is asked to add, until the refresh after that.
    pub(super) plugging: Option<Plugging>,
    pub(super) unemitted: Unemitted,
    pub(super) operation: Operation,
    pub(super) queue: VecDeque<Queued>,
    pub(super) placement: PlacementState,
    pub(super) saves: Saves,
    pub(super) offline: OfflineCpus,
    /// The vCPUs whose number in the guest is known; `None` until QEMU has answered.
    pub(super) numbering: Option<Numbering>,
    /// Requests that wait for a write of the state file before they take these guest CPUs offline.
    pub(super) unsaved: Vec<(SaveId, RequestId, Vec<u32>)>,
    pub(super) is_connected: bool,
    /// Whether a previous instance reported the machine.
    pub(super) is_known: bool,
    /// How often QEMU broke the limits of the protocol.
    pub(super) breaches: u32,
    /// How many vCPUs QEMU created in its life, as far as it is known.
    pub(super) created: u32,
}

/// The vCPUs that clients know.
#[derive(Debug)]
pub(super) enum Baseline {
    /// None were reported.
    Unknown,
    /// A previous instance reported these.
    Restored(Arc<Inventory>),
    /// Those of the snapshot.
    Reported,
}

/// The parts of the model that the methods of a process use.
pub(super) struct Context<'a> {
    pub now: Instant,
    pub config: &'a MachineConfig,
    pub out: &'a mut Output,
}

impl Process {
    pub(super) fn new(id: ProcessId, configured: Tuning) -> Self {
        Self {
            id,
            baseline: Baseline::Unknown,
            evidence: Evidence::default(),
            removals: Removals::default(),
            starts: Starts::default(),
            plugging: None,
            unemitted: Unemitted::default(),
            operation: Operation::Idle,
            queue: VecDeque::new(),
            placement: PlacementState::new(configured),
            saves: Saves::default(),
            offline: OfflineCpus::default(),
            numbering: None,
            unsaved: Vec::new(),
            is_connected: false,
            is_known: false,
            breaches: 0,
            created: 0,
        }
    }

    /// Restores what a previous instance saved.
    pub(super) fn restore(&mut self, now: Instant, saved: SavedState) {
        // A state without vCPUs was saved before any were reported, or was too large.
        if !saved.present.is_empty() {
            let inventory = Inventory::from_saved(saved.present);
            match saved.awaited {
                Some(awaited) => self.starts.restore(awaited),
                None => self.starts.begin(&inventory),
            }
            self.baseline = Baseline::Restored(Arc::new(inventory));
            self.is_known = true;
        }
        self.removals.restore(now, saved.removals);
        self.plugging = saved.plugging;
        self.unemitted.restore(
            saved.unemitted,
            saved.unemitted_refusals,
            saved.unemitted_starts,
        );
        self.offline.restore(saved.offline);
        self.numbering = saved.numbering;
        self.placement.restore_changed(saved.changed);
        self.breaches = saved.breaches;
        self.created = saved.created;
        if let Some(tuning) = saved.tuning {
            self.placement.restore(&tuning, saved.configured.as_ref());
        }
    }

    /// Saves the state, with the vCPUs of `inventory` as those that were reported.
    pub(super) fn save_with(&mut self, inventory: &Inventory, out: &mut Output) -> SaveId {
        let mut saved = SavedState::new(self.id);
        saved.breaches = self.breaches;
        saved.created = self.created;
        if !self.saves.is_too_large() {
            saved.present = inventory.to_saved();
            saved.removals = self.removals.to_saved();
            saved.awaited = Some(self.starts.to_saved());
            saved.plugging.clone_from(&self.plugging);
            self.unemitted.save_to(&mut saved);
            saved.tuning = Some(Tuning::clone(self.placement.tuning()));
            saved.configured = Some(self.placement.configured().clone());
            saved.offline = self.offline.to_saved();
            saved.numbering = self.numbering;
            saved.changed.clone_from(self.placement.changed());
        }
        let id = self.saves.begin();
        out.push(Effect::Save(id, Box::new(saved)));
        id
    }

    /// Saves the state.
    pub(super) fn save(&mut self, out: &mut Output) -> SaveId {
        let inventory = self.known_inventory(out);
        self.save_with(&inventory, out)
    }

    /// Returns the vCPUs that were reported, if by a previous instance, or are about to be.
    pub(super) fn known_inventory(&self, out: &Output) -> Arc<Inventory> {
        if let Operation::Placing(refreshed) | Operation::SavingResult(_, refreshed) =
            &self.operation
        {
            return refreshed.snapshot.inventory.clone();
        }
        match &self.baseline {
            Baseline::Restored(inventory) => inventory.clone(),
            Baseline::Unknown | Baseline::Reported => out.snapshot().inventory.clone(),
        }
    }

    /// Returns whether QEMU is to be asked for the reports of the guest when it is connected to: they
    /// may contain refusals that were missed.
    pub(super) fn may_have_missed_refusals(&self) -> bool {
        !matches!(self.baseline, Baseline::Unknown) && self.removals.has_pending()
    }

    /// Notes the end of the connection. The requests that QEMU cannot answer any more fail with
    /// `error`, and those that wait for their turn with `reason`, or with `error` if the connection is the last one.
    pub(super) fn disconnect(&mut self, out: &mut Output, error: &Error, reason: &str) {
        self.is_connected = false;
        self.offline.interrupt();
        let caller = match std::mem::take(&mut self.operation) {
            Operation::Saving(_, ask) => {
                // QEMU was not asked.
                self.forget(&ask, out);
                ask.caller()
            }
            Operation::Exchanging(ask) => ask.caller(),
            // The other operations go on without QEMU.
            other => {
                self.operation = other;
                None
            }
        };
        if let Some(id) = caller {
            out.reply(id, Err(error.clone()));
        }
        for queued in self.queue.drain(..) {
            let error = match error {
                Error::Interrupted { is_last: true, .. } => error.clone(),
                _ => Error::Disconnected(reason.to_owned()),
            };
            out.reply(queued.id, Err(error));
        }
    }

    /// Returns all requests that are not answered, which nothing can be done for any more.
    pub(super) fn into_callers(mut self) -> Vec<RequestId> {
        let mut callers: Vec<RequestId> = self.removals.take_all().collect();
        callers.extend(self.starts.take_all());
        callers.extend(self.operation.into_caller());
        callers.extend(self.queue.iter().map(|queued| queued.id));
        callers.extend(self.unsaved.iter().map(|(_, id, _)| *id));
        callers
    }

    /// Notes an event. The next refresh shows its meaning.
    pub(super) fn note_event(&mut self, now: Instant, event: &Event, out: &Output) {
        match event {
            Event::DeviceDeleted { path, .. } => {
                if self.is_unrequested_departure(path.as_str(), out) {
                    self.evidence.note_departure(now);
                    return;
                }
            }
            Event::UnplugGuestError { path, .. } => {
                if let Some(slot) = self.slot_at(path.as_str(), out) {
                    let refused = Refused {
                        cause: Cause::External,
                        reason: RefusalReason::from_guest_error(),
                        request: RefusedRequest::Last,
                    };
                    self.evidence.note_refusal(slot, refused);
                }
            }
            Event::AcpiCpuOst(ost) => {
                if let Some(slot) = self.slot_of(ost, out) {
                    match Refused::from_ost(ost) {
                        Some(refused) => self.evidence.note_refusal(slot, refused),
                        None if ost.is_guests_own() => self.evidence.note_ejection(slot),
                        None => {}
                    }
                }
            }
            Event::Reset => self.evidence.note_reset(),
            Event::RunState => {}
            Event::Other => return,
        }
        self.evidence.note(now);
    }

    /// Returns whether the device at `path` is a slot, or a part of one, that no caller asked to
    /// remove.
    fn is_unrequested_departure(&self, path: &str, out: &Output) -> bool {
        let inventory = self.known_inventory(out);
        let mut present = inventory.present();
        let found = present.find(|(_, presence)| {
            let rest = path.strip_prefix(presence.qom_path.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        });
        found.is_some_and(|(slot, _)| self.removals.asked_by(slot.id).is_none())
    }

    fn slot_at(&self, path: &str, out: &Output) -> Option<SlotId> {
        let inventory = self.known_inventory(out);
        let mut present = inventory.present();
        let found = present.find(|(_, presence)| presence.qom_path.as_str() == path);
        found.map(|(slot, _)| slot.id)
    }

    /// Returns the slot that an `_OST` is about: by its device id, or by its number if it has none.
    pub(super) fn slot_of(&self, ost: &AcpiOst, out: &Output) -> Option<SlotId> {
        let inventory = self.known_inventory(out);
        let number = ost.slot.as_str().parse::<u32>().ok();
        let mut present = inventory.present();
        let found = present.find(|(slot, _)| match &ost.device {
            Some(device) => slot.alias() == Some(device.as_str()),
            None => Some(slot.acpi_slot) == number,
        });
        found.map(|(slot, _)| slot.id)
    }

    /// Handles an input that is about the process only.
    pub(super) fn handle(&mut self, cx: &mut Context<'_>, input: Input) {
        match input {
            Input::Event(event) => self.note_event(cx.now, &event, cx.out),
            Input::Exchanged(exchanged) => self.exchanged(cx, *exchanged),
            Input::Saved(id, result) => self.saved(cx, id, result),
            Input::Flushed(flush) => self.flushed(flush, cx.out),
            Input::Placed(report) => self.placed(cx, &report),
            Input::TuningChecked(result) => self.tuning_checked(cx, result),
            Input::TuningChanged(result) => self.tuning_changed(cx, result),
            Input::GuestRestored(result) => self.guest_restored(cx, result),
            Input::ReviewDue => {
                self.placement.check_at_refresh();
                self.evidence.note(cx.now);
            }
            // The model handles these.
            Input::Command(..)
            | Input::ConfigChanged(_)
            | Input::Reached(_)
            | Input::Loaded(_)
            | Input::Opened(_)
            | Input::ConnectFailed(_)
            | Input::Disconnected(_)
            | Input::UnitFound(_)
            | Input::UnitsAppeared
            | Input::ProcessExited
            | Input::Stop(_)
            | Input::Tick => {}
        }
    }

    /// Completes `snapshot` with what the process knows beside QEMU's state.
    pub(super) fn describe(&self, snapshot: &mut Snapshot) {
        self.placement.describe(snapshot);
        snapshot.process = Some(self.id);
        snapshot.pending = self.removals.pending_vcpus();
        snapshot.numbering = self.numbering.unwrap_or_default();
        snapshot.created = self.created;
    }

    /// Publishes `snapshot`, completed.
    pub(super) fn publish(&mut self, mut snapshot: Snapshot, out: &mut Output) {
        self.describe(&mut snapshot);
        snapshot.disconnected = if self.is_connected {
            None
        } else {
            out.snapshot().disconnected.clone()
        };
        out.publish(snapshot);
    }

    /// Answers a request that waited for removals.
    pub(super) fn answer(&self, (id, uid, mut answer): Answered, out: &mut Output) {
        if let Err(Error::RemovalPending {
            report, stopped, ..
        }) = &mut answer
        {
            *stopped = out.snapshot().stopped();
            let vcpus = report.pending.clone();
            let old = out.snapshot().inventory.vcpu_count();
            out.log(LogEntry::Count {
                old,
                new: old.saturating_sub(vcpus.len() as u32),
                uid: Some(uid),
                success: false,
            });
            out.log(LogEntry::StillPending { uid, vcpus });
        }
        out.reply(id, answer);
    }

    /// Notes that all events up to `flush` were emitted.
    pub(super) fn flushed(&mut self, flush: u64, out: &mut Output) {
        if self.unemitted.flushed(flush) {
            self.save(out);
        }
    }

    /// Notes the result of a write.
    pub(super) fn note_saved(
        &mut self,
        id: SaveId,
        result: &Result<(), SaveError>,
        out: &mut Output,
    ) {
        if let Some(entry) = self.saves.end(id, result) {
            out.log(entry);
        }
        let (saved, unsaved) = std::mem::take(&mut self.unsaved)
            .into_iter()
            .partition(|(of, ..)| *of <= id);
        self.unsaved = unsaved;
        for (_, caller, cpus) in saved {
            let answer = result.as_ref().map(|()| Outcome::default());
            if answer.is_err() {
                self.offline.cancel(&cpus);
            }
            out.reply(caller, answer.map_err(|error| Error::NotSaved(text(error))));
        }
    }
}
