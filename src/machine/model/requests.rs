//! Requests that add and remove vCPUs: from the request to QEMU, and from QEMU's answer to the caller.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::effect::{Batch, Effect, Output};
use super::error::Error;
use super::event::Cause;
use super::evidence::{Plugging, Refused, RefusedRequest};
use super::input::{Exchanged, SaveError, SaveId};
use super::operation::{
    Add, Ask, Operation, QEMU_TIME, Queued, QueuedCommand, Remove, RemoveSlot, Then,
};
use super::process::{Context, Process};
use super::refusal::{Refusal, RefusalReason};
use super::removals::{Removal, Waiter};
use super::request::{Outcome, Request, RequestId, Wait};
use super::saves;
use crate::ids::{SlotId, Uid};
use crate::inventory::{HotplugSlot, Inventory, Plan};
use crate::qmp::CommandError;

/// A removal that is requested again after this time is requested from QEMU again. Before it QEMU
/// refuses some (`qdev-monitor.c`), and the guest needs no reminder.
const REPEAT_AFTER: Duration = Duration::from_secs(5);
/// Readers let QEMU be queried at most once in this time.
const READ_INTERVAL: Duration = Duration::from_millis(100);

impl Process {
    /// Begins a request whose turn has come.
    pub(super) fn begin(&mut self, cx: &mut Context<'_>, queued: Queued) {
        let Queued {
            id,
            command,
            since,
            deadline,
            is_fresh,
        } = queued;
        // The configured limit is for the guest only, not for the time in the queue.
        let since = deadline.map_or(cx.now, |_| since);
        match command {
            QueuedCommand::SetVcpus(request) => match plan(&request, cx.out) {
                Ok(plan) if !plan.add.is_empty() => {
                    self.begin_addition(cx, id, request, plan.add, since);
                }
                Ok(plan) if plan != Plan::default() => {
                    self.begin_removal(cx, id, request, &plan, since);
                }
                // Another client of QEMU may have changed the vCPUs.
                Ok(_) | Err(Error::Denied { .. } | Error::TcgExhausted { .. }) if !is_fresh => {
                    let command = QueuedCommand::SetVcpus(request);
                    self.refresh_first(cx, (id, command), since, deadline);
                }
                Ok(_) => cx.out.reply(id, Ok(Outcome::default())),
                Err(error) => cx.out.reply(id, Err(error)),
            },
            QueuedCommand::Refresh if is_fresh || self.is_recent(cx.now) => {
                cx.out.reply(id, Ok(Outcome::default()));
            }
            QueuedCommand::Refresh => {
                self.refresh_first(cx, (id, command), since, deadline);
            }
            QueuedCommand::Tune(change, subject) => self.begin_tuning(cx, id, change, &subject),
            QueuedCommand::ApplyConfig => {
                if self.placement.configure(&cx.config.placement.tuning) {
                    self.reapply(cx, Then::Reply(id));
                } else {
                    cx.out.reply(id, Ok(Outcome::default()));
                }
            }
        }
    }

    /// Returns whether a reader gets the last state.
    fn is_recent(&self, now: Instant) -> bool {
        self.evidence.is_recent(now, READ_INTERVAL) && self.starts.is_recent(now, READ_INTERVAL)
    }

    /// Queries QEMU before the turn of this request, which comes next.
    fn refresh_first(
        &mut self,
        cx: &mut Context<'_>,
        (id, command): (RequestId, QueuedCommand),
        since: Instant,
        deadline: Option<Instant>,
    ) {
        self.queue.push_front(Queued {
            id,
            command,
            since,
            deadline,
            is_fresh: true,
        });
        self.refresh(cx, true);
    }

    /// Saves which slots QEMU is about to be asked to add.
    fn begin_addition(
        &mut self,
        cx: &mut Context<'_>,
        id: RequestId,
        request: Request,
        slots: Vec<SlotId>,
        since: Instant,
    ) {
        let Request {
            target, uid, wait, ..
        } = request;
        self.plugging = Some(Plugging {
            slots: slots.iter().copied().collect(),
            uid,
        });
        let save = self.save(cx.out);
        let inventory = &cx.out.snapshot().inventory;
        let wanted = slots.iter().filter_map(|id| inventory.slot(*id));
        let add = Add {
            caller: Some(id),
            target,
            uid,
            vcpus: wanted.flat_map(HotplugSlot::vcpus).collect(),
            slots,
            patience: match wait {
                Wait::UpTo(limit) => limit,
                Wait::No => None,
            },
            since,
        };
        self.operation = Operation::Saving(save, Ask::Add(add));
    }

    /// Saves which slots QEMU is about to be asked to remove.
    fn begin_removal(
        &mut self,
        cx: &mut Context<'_>,
        id: RequestId,
        request: Request,
        plan: &Plan,
        since: Instant,
    ) {
        let patience = match request.wait {
            Wait::No => None,
            Wait::UpTo(limit) => Some(limit.unwrap_or(cx.config.limits.removal_timeout)),
        };
        let inventory = cx.out.snapshot().inventory.clone();
        let slots = self.slots_to_remove(cx.now, plan, &inventory, request.uid);
        let wanted: BTreeSet<SlotId> = plan.remove.iter().chain(&plan.leaving).copied().collect();
        let wanted_vcpus = wanted.iter().filter_map(|id| inventory.slot(*id));
        let wanted_vcpus = wanted_vcpus.flat_map(HotplugSlot::vcpus).collect();
        let remove = Remove {
            id,
            target: request.target,
            uid: request.uid,
            slots,
            wanted,
            wanted_vcpus,
            patience,
            since,
            is_answered: false,
        };
        if remove.slots.is_empty() {
            self.ask(cx, Ask::Remove(remove));
        } else {
            let save = self.save(cx.out);
            self.operation = Operation::Saving(save, Ask::Remove(remove));
        }
    }

    /// Notes the removals that QEMU is about to be asked for by user `uid`. Returns their slots.
    fn slots_to_remove(
        &mut self,
        now: Instant,
        plan: &Plan,
        inventory: &Inventory,
        uid: Uid,
    ) -> Vec<RemoveSlot> {
        let is_old = |slot: &&SlotId| {
            let removal = self.removals.get(**slot);
            removal.is_some_and(|r| now.duration_since(r.asked) >= REPEAT_AFTER)
        };
        let repeated: Vec<SlotId> = plan.leaving.iter().filter(is_old).copied().collect();
        let mut slots = Vec::new();
        for id in plan.remove.iter().chain(&repeated) {
            let slot = inventory.slot(*id);
            let Some((slot, presence)) = slot.and_then(|s| Some((s, s.presence.as_ref()?))) else {
                continue;
            };
            let removal = Removal {
                vcpus: slot.vcpus().collect(),
                uid,
                asked: now,
                refused_before: false,
                earlier: None,
            };
            self.removals.request(slot.id, removal);
            slots.push(RemoveSlot {
                slot: slot.id,
                qom_path: presence.qom_path.clone(),
                is_repeated: repeated.contains(id),
            });
        }
        slots
    }

    /// Asks QEMU.
    fn ask(&mut self, cx: &mut Context<'_>, ask: Ask) {
        let inventory = cx.out.snapshot().inventory.clone();
        let batch = match &ask {
            Ask::Refresh => Batch::Refresh(BTreeSet::new()),
            Ask::Add(add) => {
                let slots = add.slots.iter().filter_map(|id| inventory.slot(*id));
                let slots = slots.cloned().collect();
                cx.out.push(Effect::Prepare(add.vcpus.clone()));
                Batch::Add(inventory, slots)
            }
            Ask::Remove(remove) => {
                for slot in &remove.slots {
                    self.evidence.begin_removal(slot.slot);
                }
                let slots = remove.slots.iter();
                let slots = slots.map(|s| (s.slot, s.qom_path.clone())).collect();
                Batch::Remove(inventory, slots)
            }
        };
        self.exchange(ask, batch, cx.out);
    }

    /// Continues what waited for the write `id`.
    pub(super) fn saved(
        &mut self,
        cx: &mut Context<'_>,
        id: SaveId,
        result: Result<(), SaveError>,
    ) {
        self.note_saved(id, &result, cx.out);
        let is_over = |save: &SaveId| *save <= id;
        match std::mem::take(&mut self.operation) {
            Operation::Saving(save, ask) if is_over(&save) => match result {
                Ok(()) => self.ask_unless_late(cx, ask),
                Err(error) => self.give_up(cx, &ask, &error),
            },
            Operation::SavingResult(save, refreshed) if is_over(&save) => {
                self.report(cx, *refreshed)
            }
            Operation::SavingTuning(save, tune, previous) if is_over(&save) => match result {
                Ok(()) => self.switch(cx, tune, previous),
                Err(error) => {
                    let error = Error::NotSaved(saves::text(&error));
                    self.revert(cx, &tune, previous, error);
                }
            },
            other => self.operation = other,
        }
    }

    fn ask_unless_late(&mut self, cx: &mut Context<'_>, ask: Ask) {
        match &ask {
            Ask::Add(add) if add.caller.is_none() => self.forget(&ask, cx.out),
            Ask::Remove(remove) if remove.is_answered => self.forget(&ask, cx.out),
            _ => self.ask(cx, ask),
        }
    }

    /// Answers that the state cannot be saved, so that QEMU is not asked.
    fn give_up(&mut self, cx: &mut Context<'_>, ask: &Ask, error: &SaveError) {
        self.forget(ask, cx.out);
        if let Some(id) = ask.caller() {
            cx.out.reply(id, Err(Error::NotSaved(saves::text(error))));
        }
    }

    /// Forgets what QEMU was about to be asked.
    pub(super) fn forget(&mut self, ask: &Ask, out: &mut Output) {
        match ask {
            Ask::Refresh => {}
            Ask::Add(_) => self.plugging = None,
            Ask::Remove(remove) => {
                for slot in &remove.slots {
                    self.removals.reject(slot.slot);
                }
            }
        }
        self.save(out);
    }

    /// Applies what QEMU answered.
    pub(super) fn exchanged(&mut self, cx: &mut Context<'_>, exchanged: Exchanged) {
        let Exchanged {
            refused,
            ospm,
            state,
        } = exchanged;
        let then = match std::mem::take(&mut self.operation) {
            Operation::Exchanging(Ask::Add(add)) => Then::Added(add, refused),
            Operation::Exchanging(Ask::Remove(remove)) => {
                for ost in ospm.iter().filter(|ost| ost.failed_ejection().is_some()) {
                    if let Some(slot) = self.slot_of(ost, cx.out) {
                        self.removals.note_refused_before(slot);
                    }
                }
                self.await_removals(cx, remove, &refused);
                Then::Asked
            }
            _ => Then::Nothing,
        };
        self.refreshed(cx, state, then);
    }

    /// Lets the caller of a removal wait. Refusals of QEMU are reported at once.
    fn await_removals(
        &mut self,
        cx: &mut Context<'_>,
        remove: Remove,
        refused: &[(SlotId, CommandError)],
    ) {
        let inventory = cx.out.snapshot().inventory.clone();
        let mut rejected = Vec::new();
        for RemoveSlot {
            slot, is_repeated, ..
        } in remove.slots
        {
            let error = refused.iter().find(|(of, _)| *of == slot);
            match error.map(|(_, error)| error) {
                // QEMU still has the first request; that it takes no second one is no failure.
                Some(_) if is_repeated => self.removals.reject(slot),
                Some(error) if !is_under_way(error) => {
                    let vcpus = inventory.slot(slot).into_iter();
                    let vcpus = vcpus.flat_map(HotplugSlot::vcpus).collect();
                    let reason = RefusalReason::from_qemu(error);
                    self.reject(slot, reason.clone(), remove.uid);
                    rejected.push(Refusal { vcpus, reason });
                }
                _ => self.removals.accept(slot),
            }
        }
        if remove.is_answered {
            return;
        }
        // Before the state is applied, so that no end of a removal is missed.
        self.removals.wait(Waiter {
            id: remove.id,
            target: remove.target,
            outstanding: &self.removals.pending_slots() & &remove.wanted,
            rejected,
            patience: remove.patience,
            deadline: remove
                .since
                .checked_add(remove.patience.unwrap_or_default()),
            limit: remove
                .patience
                .and_then(|patience| remove.since.checked_add(patience.max(QEMU_TIME))),
            uid: remove.uid,
        });
    }

    /// Notes that QEMU refused to remove `slot` for user `uid`. The refresh that follows reports it.
    fn reject(&mut self, slot: SlotId, reason: RefusalReason, uid: Uid) {
        self.removals.reject(slot);
        let refused = Refused {
            cause: Cause::Request,
            reason,
            request: RefusedRequest::Rejected(uid),
        };
        self.evidence.note_refusal(slot, refused);
    }
}

/// Returns the plan of `request`, if it has the result that was authorized.
fn plan(request: &Request, out: &Output) -> Result<Plan, Error> {
    let snapshot = out.snapshot();
    snapshot.check(&request.subject)?;
    let present = snapshot.inventory.vcpu_count();
    if let Some(expected) = request.expected_count.filter(|count| *count != present) {
        let asked = request.target.clone();
        return Err(Error::Unexpected {
            asked,
            present,
            expected,
        });
    }
    let (plan, count) = snapshot.plan(&request.target)?;
    let told = request.authorized_count;
    if count == told {
        Ok(plan)
    } else {
        // Since the authorization others have changed what the request leads to.
        let asked = request.target.clone();
        Err(Error::Conflict { asked, count, told })
    }
}

/// Returns whether another client asked QEMU for the same before.
fn is_under_way(error: &CommandError) -> bool {
    let text = error.desc.as_str();
    text.contains("already in the process of unplug")
}
