//! The turns of a machine: which request or refresh comes next, and which callers wait no longer.

use std::time::{Duration, Instant};

use super::effect::{Effect, LogEntry, Output};
use super::error::Error;
use super::operation::{QEMU_TIME, Queued, QueuedCommand};
use super::process::{Context, Process};
use super::request::{Command, Outcome, RequestId, Wait};
use crate::ids::VcpuId;
use crate::inventory::Inventory;

/// How long a reader waits for a stalled QEMU.
const READER_TIME: Duration = Duration::from_millis(500);

impl Process {
    /// Takes a request, which waits for its turn.
    pub(super) fn request(&mut self, cx: &mut Context<'_>, id: RequestId, command: Command) {
        let command = match command {
            Command::SetVcpus(request) => QueuedCommand::SetVcpus(request),
            Command::Tune(change, subject) => QueuedCommand::Tune(change, subject),
            Command::ApplyConfig => QueuedCommand::ApplyConfig,
            Command::Refresh => QueuedCommand::Refresh,
            Command::AwaitStart(request) => {
                self.starts.wait(cx.now, id, request);
                return;
            }
            Command::GuestOnline(inventory, vcpus) => {
                self.note_online(cx, &inventory, vcpus);
                cx.out.reply(id, Ok(Outcome::default()));
                return;
            }
            Command::GuestOffline(cpus) => {
                let numbers = cpus.iter().map(|cpu| cpu.cpu).collect();
                self.offline.hold(cpus);
                let save = self.save(cx.out);
                self.unsaved.push((save, id, numbers));
                return;
            }
            Command::GuestReleased { cpus, restored } => {
                self.offline.release(&cpus, restored);
                self.save(cx.out);
                cx.out.reply(id, Ok(Outcome::default()));
                return;
            }
        };
        let limit = match &command {
            QueuedCommand::SetVcpus(request) => match request.wait {
                Wait::UpTo(limit) => limit.map(|limit| limit.max(QEMU_TIME)),
                Wait::No => None,
            },
            QueuedCommand::Refresh => Some(READER_TIME),
            _ => None,
        };
        self.queue.push_back(Queued {
            id,
            command,
            since: cx.now,
            deadline: limit.and_then(|limit| cx.now.checked_add(limit)),
            is_fresh: false,
        });
    }

    /// Notes the vCPUs of `inventory` that the guest agent reports as online, if they are the same now.
    fn note_online(&mut self, cx: &mut Context<'_>, inventory: &Inventory, vcpus: Vec<VcpuId>) {
        let known = cx.out.snapshot().inventory.clone();
        let same = vcpus
            .into_iter()
            .filter(|vcpu| known.has_same(inventory, *vcpu));
        if self.starts.note_online(same) {
            self.evidence.note(cx.now);
        }
    }

    /// Does what is due: answers callers whose time ran out, and begins the next operation if none goes
    /// on.
    pub(super) fn proceed(&mut self, cx: &mut Context<'_>) {
        while self.is_connected && self.operation.is_idle() {
            let Some(queued) = self.queue.pop_front() else {
                break;
            };
            self.begin(cx, queued);
        }
        if self.is_connected && self.operation.is_idle() {
            let is_due = |due: Option<Instant>| due.is_some_and(|due| due <= cx.now);
            let is_look = is_due(self.look_due());
            if is_due(self.refresh_due(cx.now, cx.out)) {
                self.refresh(cx, is_look);
            } else if is_look {
                self.look(cx);
            }
        }
        self.answer_late(cx);
        self.restore_guest(cx);
    }

    /// Returns when [`Self::proceed`] has to be called next.
    pub(super) fn next_deadline(&self, now: Instant, out: &Output) -> Option<Instant> {
        let queued = self.queue.iter().filter_map(|queued| queued.deadline).min();
        let refresh = [self.refresh_due(now, out), self.look_due()];
        let refresh = refresh.into_iter().flatten().min();
        let refresh = refresh.filter(|_| self.is_connected && self.operation.is_idle());
        let guest = self.offline.next_deadline(now);
        let others = guest.filter(|_| self.is_connected);
        let callers = [
            queued,
            self.operation.deadline(),
            self.removals.next_deadline(),
            self.starts.next_deadline(),
            refresh,
            others,
            self.placement.search_due().filter(|_| self.is_connected),
        ];
        callers.into_iter().flatten().min()
    }

    fn answer_late(&mut self, cx: &mut Context<'_>) {
        for answered in self.removals.take_late(cx.now) {
            self.answer(answered, cx.out);
        }
        for (id, answer) in self.starts.take_due(cx.now, cx.out.snapshot()) {
            cx.out.reply(id, answer);
        }
        if let Some((id, uid, error)) = self.operation.take_late(cx.now) {
            self.answer((id, uid, Err(error)), cx.out);
        }
        let is_late = |queued: &Queued| queued.deadline.is_some_and(|at| at <= cx.now);
        let (late, queue) = std::mem::take(&mut self.queue)
            .into_iter()
            .partition(is_late);
        self.queue = queue;
        for Queued { id, since, .. } in late {
            let waited = cx.now - since;
            cx.out.reply(id, Err(Error::NotStarted { waited }));
        }
    }

    /// Brings guest CPUs online again that were taken offline for removals that ended otherwise.
    fn restore_guest(&mut self, cx: &mut Context<'_>) {
        if !self.is_connected || !self.operation.is_idle() || self.offline.is_empty() {
            return;
        }
        let leaving = self.removals.pending_vcpus();
        let is_leaving = |vcpu: VcpuId| leaving.contains(&vcpu);
        if let Some(cpus) = self.offline.begin_restore(cx.now, is_leaving) {
            cx.out.push(Effect::RestoreGuest(cpus));
        }
    }

    /// Notes whether guest CPUs were brought online.
    pub(super) fn guest_restored(&mut self, cx: &mut Context<'_>, result: Result<(), String>) {
        match (self.offline.end_restore(cx.now, result.is_ok()), result) {
            (Some(cpus), Err(error)) => cx.out.log(LogEntry::GuestNotRestored(cpus, error)),
            _ => {
                self.save(cx.out);
            }
        }
    }
}
