//! Refreshes: from QEMU's answer to what clients see.
//!
//! The sequence is the same for the first state of a connection, for one that events asked for, and
//! for one after a request: end removals, place threads, save, publish, emit, answer.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::diff::diff;
use super::effect::{Batch, Effect, LogEntry, Output};
use super::event::{Cause, MachineEvent};
use super::evidence::{Clues, Refused, RefusedRequest};
use super::input::{Opened, QemuState, SaveId};
use super::numbering::Numbering;
use super::operation::{Ask, Operation, Refreshed, Then};
use super::process::{Baseline, Context, Process};
use super::request::Outcome;
use super::snapshot::Snapshot;
use crate::ids::SlotId;
use crate::inventory::Inventory;
use crate::placement::Report;
use crate::qmp::AcpiOst;
use crate::text::Text;

/// While a request waits for a removal, or QEMU is in a state that it leaves by itself, QEMU is
/// queried this often without an event: not every QEMU sends one.
const RECHECK_INTERVAL: Duration = Duration::from_secs(1);
/// The same while a removal is pending that no request waits for, and while the state is not saved.
const SLOW_RECHECK_INTERVAL: Duration = Duration::from_secs(10);

impl Process {
    /// Starts to serve a connection, with the first state of QEMU.
    pub(super) fn start(&mut self, cx: &mut Context<'_>, opened: Opened, uuid: Option<Text>) {
        let Opened {
            identity,
            state,
            ospm,
            created,
        } = opened;
        cx.out.log(LogEntry::Connected(
            identity.version,
            state.inventory.vcpu_count(),
            state.inventory.max_vcpus(),
        ));
        self.is_connected = true;
        self.placement.configure(&cx.config.placement.tuning);
        self.saves.retry_whole();
        let mut snapshot = Snapshot::clone(cx.out.snapshot());
        snapshot.version = Some(identity.version);
        snapshot.uuid = uuid.unwrap_or(identity.uuid);
        snapshot.accelerator = identity.accelerator;
        snapshot.architecture = identity.architecture;
        snapshot.is_confidential = identity.is_confidential;

        self.note_missed_refusals(&ospm, cx.out);
        let (clues, refusals) = self.evidence.take(cx.now);
        let clues = Clues {
            reconnected: true,
            plugged: self.plugging.take(),
            ..clues
        };
        self.created = self.created.max(created);
        if self.created == 0 {
            self.created = state.inventory.vcpu_count();
        }
        self.starts.discard_times();
        self.starts.watch(cx.now);
        // If none were reported before, none were added now.
        let (before, then) = match self.baseline {
            Baseline::Unknown => {
                self.starts.begin(&state.inventory);
                (state.inventory.clone(), Then::Start)
            }
            _ => (self.known_inventory(cx.out), Then::Nothing),
        };
        self.apply(cx, before, snapshot, state, &clues, refusals, then);
    }

    /// Notes the refusals of pending removals that were reported while there was no connection. One that
    /// had been reported before QEMU was asked may be about an earlier request, and does not count.
    fn note_missed_refusals(&mut self, ospm: &[AcpiOst], out: &Output) {
        for ost in ospm {
            if let (Some(slot), Some(refused)) = (self.slot_of(ost, out), Refused::from_ost(ost))
                && self.removals.get(slot).is_some_and(|r| !r.refused_before)
            {
                self.evidence.note_refusal(slot, refused);
            }
        }
    }

    /// Begins a refresh. With `is_look` it looks for evidence that the guest has started vCPUs.
    pub(super) fn refresh(&mut self, cx: &mut Context<'_>, is_look: bool) {
        let vcpus = if is_look {
            self.starts.begin_look(cx.now)
        } else {
            BTreeSet::new()
        };
        self.exchange(Ask::Refresh, Batch::Refresh(vcpus), cx.out);
    }

    /// Looks for evidence that the guest has started vCPUs.
    pub(super) fn look(&mut self, cx: &mut Context<'_>) {
        let known = cx.out.snapshot().inventory.clone();
        let vcpus = self.starts.begin_look(cx.now);
        self.exchange(Ask::Refresh, Batch::Look(known, vcpus), cx.out);
    }

    /// Sends `batch`, after which QEMU owes replies for `ask`.
    pub(super) fn exchange(&mut self, ask: Ask, batch: Batch, out: &mut Output) {
        self.evidence.begin_refresh();
        self.operation = Operation::Exchanging(ask);
        out.push(Effect::Exchange(batch));
    }

    /// Applies the state of QEMU after a batch.
    pub(super) fn refreshed(&mut self, cx: &mut Context<'_>, state: QemuState, then: Then) {
        let (clues, refusals) = self.evidence.take(cx.now);
        let clues = Clues {
            plugged: self.plugging.take(),
            ..clues
        };
        let snapshot = Snapshot::clone(cx.out.snapshot());
        let before = snapshot.inventory.clone();
        self.apply(cx, before, snapshot, state, &clues, refusals, then);
    }

    /// Applies a state: ends removals, and lets the placer work if threads came or went.
    #[expect(
        clippy::too_many_arguments,
        reason = "they differ for the first state of a connection"
    )]
    fn apply(
        &mut self,
        cx: &mut Context<'_>,
        before: Arc<Inventory>,
        mut snapshot: Snapshot,
        state: QemuState,
        clues: &Clues,
        refusals: Vec<(SlotId, Refused)>,
        then: Then,
    ) {
        self.number(&before, &state, clues);
        let mut events = self.settle(cx.now, &before, &state.inventory, clues, refusals);
        let was_running = snapshot.stopped().is_none();
        events.extend(self.follow_starts(cx.now, &state, was_running, clues));
        if !events.is_empty() {
            // From here on, each write of the state has them.
            self.unemitted.add(&events);
        }
        snapshot.inventory = state.inventory;
        snapshot.awaited = self.starts.awaited();
        snapshot.run_state = state.run_state;
        snapshot.no_hotplug = state.no_hotplug;
        let refreshed = Box::new(Refreshed {
            before,
            snapshot,
            events,
            since: cx.now,
            cost: state.cost,
            save: None,
            then,
        });
        self.place(cx, refreshed);
    }

    /// Follows which vCPUs the guest has started. A guest that begins to run starts its vCPUs soon.
    fn follow_starts(
        &mut self,
        now: Instant,
        state: &QemuState,
        was_running: bool,
        clues: &Clues,
    ) -> impl Iterator<Item = MachineEvent> + use<> {
        let is_running = state.run_state.as_str() == "running";
        let is_resumed = is_running && !was_running;
        if is_resumed {
            // QEMU woke the threads.
            self.starts.discard_times();
        }
        if is_resumed || clues.reset {
            self.starts.watch(now);
        }
        let started = self.starts.note(now, &state.readings, is_running);
        started.into_iter().map(MachineEvent::VcpuStarted)
    }

    /// Follows the numbers that the guest gives its CPUs.
    fn number(&mut self, before: &Inventory, state: &QemuState, clues: &Clues) {
        let numbering = match self.numbering {
            Some(numbering) => numbering.next(before, &state.inventory, clues),
            None => Numbering::first(&state.inventory, state.run_state.as_str() == "inmigrate"),
        };
        self.numbering = Some(numbering);
    }

    /// Lets the placer work on `refreshed`, if that is needed, and reports the result after that. The state is
    /// saved at the same time.
    pub(super) fn place(&mut self, cx: &mut Context<'_>, mut refreshed: Box<Refreshed>) {
        let inventory = &refreshed.snapshot.inventory;
        match self.placement.begin_pass(cx.now, inventory) {
            Some(threads) => {
                let tuning = self.placement.tuning().clone();
                let changed = self.placement.changed().clone();
                cx.out.push(Effect::Place(tuning, threads, changed));
                if refreshed.is_saved_first() {
                    refreshed.save = Some(self.save_with(&refreshed.snapshot.inventory, cx.out));
                }
                self.operation = Operation::Placing(refreshed);
            }
            None => self.save_result(cx, refreshed),
        }
    }

    /// Notes the result of a pass, and reports what led to it.
    pub(super) fn placed(&mut self, cx: &mut Context<'_>, report: &Report) {
        let is_other = self.placement.placed(cx.now, report);
        match std::mem::take(&mut self.operation) {
            Operation::Placing(refreshed) => match refreshed.save {
                Some(save) if !is_other => self.report_when_saved(cx, save, refreshed),
                _ => self.save_result(cx, refreshed),
            },
            other => self.operation = other,
        }
    }

    /// Saves the state if that has to be done before `refreshed` is reported, and reports it.
    pub(super) fn save_result(&mut self, cx: &mut Context<'_>, refreshed: Box<Refreshed>) {
        if !refreshed.is_saved_first() {
            self.report(cx, *refreshed);
            return;
        }
        let save = self.save_with(&refreshed.snapshot.inventory, cx.out);
        self.report_when_saved(cx, save, refreshed);
    }

    fn report_when_saved(&mut self, cx: &mut Context<'_>, save: SaveId, refreshed: Box<Refreshed>) {
        if self.saves.is_over(save) {
            self.report(cx, *refreshed);
        } else {
            self.operation = Operation::SavingResult(save, refreshed);
        }
    }

    /// Reports `refreshed` to clients, and answers the callers that waited for it.
    pub(super) fn report(&mut self, cx: &mut Context<'_>, refreshed: Refreshed) {
        self.operation = Operation::Idle;
        self.baseline = Baseline::Reported;
        let is_saved = refreshed.is_saved_first();
        let Refreshed {
            before,
            snapshot,
            events,
            since,
            cost,
            then,
            save: _,
        } = refreshed;
        self.publish(snapshot, cx.out);
        cx.out.appear(self.is_known);
        let after = cx.out.snapshot().inventory.vcpu_count();
        for entry in counts(before.vcpu_count(), after, &events) {
            cx.out.log(entry);
        }
        let has_events = !events.is_empty();
        for event in events {
            cx.out.emit(event);
        }
        if has_events {
            cx.out.push(Effect::Flush(self.unemitted.last()));
        }
        let inventory = cx.out.snapshot().inventory.clone();
        self.offline.note_present(|vcpu| inventory.is_present(vcpu));
        if !is_saved {
            self.save(cx.out);
        }
        if let Then::Start = then {
            cx.out.log(LogEntry::Started(after));
        }
        for answered in self.removals.take_due(cx.now) {
            self.answer(answered, cx.out);
        }
        for (id, answer) in self.starts.take_due(cx.now, cx.out.snapshot()) {
            cx.out.reply(id, answer);
        }
        match then {
            Then::Added(add, refused) => self.answer_add(add, &refused, cx.out),
            Then::Reply(id) => cx.out.reply(id, Ok(Outcome::default())),
            Then::Nothing | Then::Start | Then::Asked => {}
        }
        self.evidence.rest(cx.now, cost + (cx.now - since));
    }

    /// Ends the removals that the change from `before` to `inventory` and the `refusals` end. Returns
    /// the events.
    fn settle(
        &mut self,
        now: Instant,
        before: &Inventory,
        inventory: &Inventory,
        clues: &Clues,
        refusals: Vec<(SlotId, Refused)>,
    ) -> Vec<MachineEvent> {
        let asked_by = |slot| self.removals.asked_by(slot);
        let (removed, added) = diff(before, inventory, clues, asked_by);
        // Those that a previous instance may not have emitted come first, again if it did.
        let mut events = self.unemitted.take_restored();
        for change in removed {
            self.removals.removed(change.slot);
            self.starts.removed(&change.vcpus);
            events.extend(change.changes().map(MachineEvent::VcpuRemoved));
        }
        for (id, refused) in refusals {
            let Refused {
                cause,
                reason,
                request,
            } = refused;
            let Some(slot) = inventory.slot(id).filter(|slot| slot.presence.is_some()) else {
                continue;
            };
            let uid = match request {
                RefusedRequest::Last => {
                    let removal = self.removals.refused(id, &reason);
                    removal.map(|removal| removal.uid)
                }
                RefusedRequest::Earlier => self.removals.asked_by(id),
                RefusedRequest::Rejected(uid) => Some(uid),
            };
            let cause = uid.map_or(cause, |_| Cause::Request);
            let alias = slot.alias().unwrap_or_default();
            let failed = MachineEvent::removal_failed(slot.vcpus(), alias, cause, uid, &reason);
            events.extend(failed);
        }
        for change in added {
            let count = u32::try_from(change.vcpus.len()).unwrap_or(u32::MAX);
            self.created = self.created.saturating_add(count);
            self.starts.added(now, change.changes());
            events.extend(change.changes().map(MachineEvent::VcpuAdded));
        }
        events
    }

    /// Returns when QEMU is to be queried again without a request.
    pub(super) fn refresh_due(&self, now: Instant, out: &Output) -> Option<Instant> {
        let recheck = if self.removals.is_awaited() || out.snapshot().is_passing() {
            Some(RECHECK_INTERVAL)
        } else if self.removals.has_pending() || self.saves.is_behind() {
            Some(SLOW_RECHECK_INTERVAL)
        } else {
            None
        };
        let recheck = recheck.map(|interval| self.evidence.due_after(interval).unwrap_or(now));
        let due = [self.evidence.due(), recheck, self.placement.pass_due()];
        due.into_iter().flatten().min()
    }

    /// Returns when a look is due without a request.
    pub(super) fn look_due(&self) -> Option<Instant> {
        let due = self.starts.look_due();
        due.map(|due| self.evidence.rested_at(due))
    }
}

/// Returns what to log about the number of vCPUs when it went from `old` to `new` with `events`.
fn counts(old: u32, new: u32, events: &[MachineEvent]) -> Vec<LogEntry> {
    let mut requester = None;
    let mut refused = 0;
    let mut refused_requester = None;
    for event in events {
        match event {
            MachineEvent::VcpuAdded(vcpu) | MachineEvent::VcpuRemoved(vcpu) => {
                requester = requester.or(vcpu.uid);
            }
            MachineEvent::VcpuRemovalFailed { vcpu, .. } => {
                refused += 1;
                refused_requester = refused_requester.or(vcpu.uid);
            }
            _ => {}
        }
    }
    let changed = (old != new).then_some(LogEntry::Count {
        old,
        new,
        uid: requester,
        success: true,
    });
    let failed = (refused > 0).then_some(LogEntry::Count {
        old: new,
        new: new.saturating_sub(refused),
        uid: refused_requester,
        success: false,
    });
    changed.into_iter().chain(failed).collect()
}
