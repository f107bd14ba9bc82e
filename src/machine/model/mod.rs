//! The model of a machine: all decisions, and nothing else.
//!
//! Inputs go in, effects come out, and time is passed in. The same inputs always lead to the same
//! effects. The model must not use tokio, files, sockets or a clock.

mod backoff;
mod diff;
pub mod effect;
pub mod error;
pub mod event;
mod evidence;
mod guest;
pub mod input;
mod operation;
mod phase;
mod placement;
mod process;
pub mod record;
mod refresh;
mod removals;
pub mod request;
mod requests;
mod saves;
pub mod snapshot;
#[cfg(test)]
pub(super) mod testing;
#[cfg(test)]
mod tests;
mod tune;
pub mod tuning;
mod turns;
mod unannounced;

use std::sync::Arc;
use std::time::Instant;

use self::backoff::Backoff;
use self::effect::{Effect, LogEntry, Output};
use self::error::Error;
use self::input::{Input, Opened, UnitFound};
use self::phase::{ANSWER_GRACE, Attempt, EXIT_GRACE, Phase};
use self::process::{Context, Process};
use self::record::Record;
use self::request::{Command, Outcome, RequestId};
use self::snapshot::Snapshot;
use super::spec::{ConnectError, Lifetime, MachineConfig};
use crate::config::Uuid;
use crate::process::{ProcessId, SocketError};
use crate::qmp::Closed;
use crate::text::Text;

/// Why a machine is shown as disconnected that was never connected.
const UNRESPONSIVE: &str = "QEMU listens and has not answered yet: it is starting or stopped, or another QMP client is attached";
/// The number of requests that may wait for their turn. The task accepts no more.
const MAX_QUEUED: usize = 64;

/// What does not change about a machine, as far as the model needs it.
#[derive(Clone, Debug)]
pub struct Facts {
    /// How long the machine exists.
    pub lifetime: Lifetime,
    /// Whether QEMU can be connected to more than once.
    pub is_reconnectable: bool,
    /// The UUID that the VM must have, if it has one.
    pub uuid: Option<Uuid>,
}

/// A machine.
#[derive(Debug)]
pub struct Model {
    facts: Facts,
    config: MachineConfig,
    phase: Phase,
    process: Option<Process>,
    backoff: Backoff,
    /// Whether the only connection was used.
    is_spent: bool,
    /// The reason for which there is no connection, as it was logged last.
    last_reason: String,
    out: Output,
}

impl Model {
    /// Returns a machine that begins to connect.
    pub fn new(facts: Facts, config: MachineConfig, now: Instant) -> Self {
        let mut model = Self {
            facts,
            config,
            phase: Phase::Gone,
            process: None,
            backoff: Backoff::default(),
            is_spent: false,
            last_reason: String::new(),
            out: Output::default(),
        };
        model.connect(now);
        model
    }

    /// Returns the next effect. To be called until there is none, after each input.
    pub fn next_effect(&mut self) -> Option<Effect> {
        self.out.next()
    }

    /// Returns when the next [`Input::Tick`] is due, if one is.
    pub fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let phase = match &self.phase {
            Phase::Paused { until } | Phase::Lost { until, .. } => Some(*until),
            Phase::Handshake(attempt) => attempt.shown_at,
            Phase::Connected { .. } | Phase::Gone => None,
        };
        let process = self.process.as_ref();
        let process = process.and_then(|process| process.next_deadline(now, &self.out));
        [phase, process].into_iter().flatten().min()
    }

    /// Returns whether the machine takes no more requests until others are answered.
    pub fn is_busy(&self) -> bool {
        let process = self.process.as_ref();
        process.is_some_and(|process| process.queue.len() >= MAX_QUEUED)
    }

    /// Returns whether there is no such machine any more.
    pub fn is_gone(&self) -> bool {
        matches!(self.phase, Phase::Gone)
    }

    /// Returns what clients can see.
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        self.out.snapshot()
    }

    /// Handles one input.
    pub fn handle(&mut self, now: Instant, input: Input) {
        if self.is_gone() {
            if let Input::Command(id, _) = input {
                self.out.reply(id, Err(Error::Gone));
            }
            return;
        }
        match input {
            Input::Command(id, command) => self.request(now, id, command),
            Input::ConfigChanged(config) => self.config = config,
            Input::Reached(process) => self.reached(now, process),
            Input::Loaded(record) => self.loaded(now, record),
            Input::Opened(opened) => self.opened(now, opened),
            Input::ConnectFailed(error) => self.connect_failed(now, error),
            Input::Disconnected(closed) => self.disconnected(now, &closed),
            Input::UnitFound(found) => self.unit_found(now, found),
            Input::ProcessExited => self.end_process(now),
            Input::Stop => self.end(ConnectError::Gone),
            Input::Tick => self.tick(now),
            other => self.with_process(now, |process, cx| process.handle(cx, other)),
        }
        self.proceed(now);
    }

    /// Calls `f` with the process, if there is one.
    fn with_process(&mut self, now: Instant, f: impl FnOnce(&mut Process, &mut Context<'_>)) {
        if let Some(process) = &mut self.process {
            let mut cx = Context {
                now,
                config: &self.config,
                out: &mut self.out,
            };
            f(process, &mut cx);
        }
    }

    /// Does what is due after each input.
    fn proceed(&mut self, now: Instant) {
        let is_too_large = |process: &Process| process.saves.is_too_large();
        if matches!(self.phase, Phase::Connected { .. })
            && self.process.as_ref().is_some_and(is_too_large)
        {
            let text = "its vCPUs need more than 1 MiB of persisted state";
            self.disconnected(now, &Closed::Malformed(text.into()));
        }
        self.start_session(now);
        let placement = self.config.placement.clone();
        self.with_process(now, |process, cx| {
            if process.placement.begin_search(cx.now) {
                cx.out.push(Effect::FindUnit(placement));
            }
            process.proceed(cx);
        });
    }

    fn request(&mut self, now: Instant, id: RequestId, command: Command) {
        if matches!(self.phase, Phase::Connected { .. }) {
            self.with_process(now, |process, cx| process.request(cx, id, command));
            return;
        }
        let answer = match command {
            // What a call took offline concerns the guest, not QEMU.
            Command::GuestReleased { .. } if self.process.is_some() => {
                self.with_process(now, |process, cx| process.request(cx, id, command));
                return;
            }
            // The configuration is applied with the next connection, and a guest that is gone has no CPUs.
            Command::ApplyConfig | Command::GuestReleased { .. } => Ok(Outcome::default()),
            _ => {
                let reason = self.out.snapshot().disconnected.clone();
                let reason = reason.unwrap_or_else(|| "it is being set up".to_owned());
                Err(Error::Disconnected(reason))
            }
        };
        self.out.reply(id, answer);
    }

    /// Begins an attempt to connect.
    fn connect(&mut self, now: Instant) {
        let is_hidden = !self.out.is_visible() && !self.is_on_trial();
        self.phase = Phase::Handshake(Attempt {
            shown_at: is_hidden.then(|| now + ANSWER_GRACE),
            opened: None,
        });
        self.out.push(Effect::Connect);
    }

    /// Returns whether QEMU must answer at this attempt, or there is no machine.
    fn is_on_trial(&self) -> bool {
        self.facts.lifetime == Lifetime::Registered && !self.out.is_ready()
    }

    /// Returns whether there can be no such machine any more.
    fn has_ended(&self) -> bool {
        self.facts.lifetime.ends_with_process() && (self.is_spent || self.process.is_none())
    }

    fn reached(&mut self, now: Instant, id: ProcessId) {
        self.is_spent = !self.facts.is_reconnectable;
        if self.process.as_ref().is_some_and(|known| known.id != id) {
            // The known process has exited, and another one listens.
            if self.facts.lifetime.ends_with_process() {
                self.end(ConnectError::Gone);
                return;
            }
            self.forget_process();
        }
        if self.process.is_none() {
            let tuning = self.config.placement.tuning.clone();
            self.process = Some(Process::new(id, tuning));
            self.out.push(Effect::Load);
        } else {
            self.open(now);
        }
    }

    fn loaded(&mut self, now: Instant, record: Result<Option<Record>, String>) {
        if let Some(process) = &mut self.process {
            match record {
                Ok(Some(record)) if record.leader == process.id => {
                    self.out.log(LogEntry::Restored(record.removals.len()));
                    self.backoff.restore(record.breaches);
                    process.restore(now, record);
                }
                Ok(_) => {}
                Err(error) => self.out.log(LogEntry::NotRestored(error)),
            }
        }
        self.open(now);
    }

    /// Queries QEMU for the first time, unless it broke the limits of the protocol too often.
    fn open(&mut self, now: Instant) {
        if self.backoff.is_due() {
            let breaches = self.backoff.breaches();
            self.connect_failed(now, ConnectError::LeftAlone { breaches });
            return;
        }
        let limit = self.is_on_trial().then_some(self.config.limits.qmp_timeout);
        let with_ospm = self.process.as_ref();
        let with_ospm = with_ospm.is_some_and(Process::may_have_missed_refusals);
        self.out.push(Effect::Open { limit, with_ospm });
    }

    fn opened(&mut self, now: Instant, opened: Box<Opened>) {
        let found = opened.identity.uuid.as_str();
        if let Some(wanted) = &self.facts.uuid
            && !found.is_empty()
            && !found.eq_ignore_ascii_case(wanted.as_str())
        {
            let (wanted, found) = (wanted.clone(), found.to_owned());
            self.connect_failed(now, ConnectError::OtherUuid { wanted, found });
            return;
        }
        if let (Phase::Handshake(attempt), Some(process)) = (&mut self.phase, &mut self.process) {
            attempt.opened = Some(opened);
            // Events from here on are about what comes after this state.
            process.evidence.begin_refresh();
        }
    }

    fn unit_found(&mut self, now: Instant, found: UnitFound) {
        self.with_process(now, |process, cx| {
            process.placement.found(cx.now, found);
            if process.is_connected {
                process.evidence.refresh_at(cx.now);
            }
        });
    }

    /// Begins to serve a connection when QEMU has answered, the unit is known, and no operation of the
    /// connection before goes on.
    fn start_session(&mut self, now: Instant) {
        let (Phase::Handshake(attempt), Some(process)) = (&mut self.phase, &self.process) else {
            return;
        };
        if process.placement.is_unknown() || !process.operation.is_idle() {
            return;
        }
        let Some(opened) = attempt.opened.take() else {
            return;
        };
        self.phase = Phase::Connected { since: now };
        self.last_reason.clear();
        self.out.push(Effect::KeepConnection);
        let uuid = self.facts.uuid.as_ref();
        let uuid = uuid.map(|uuid| Text::lossy(uuid.as_str()));
        self.with_process(now, |process, cx| process.start(cx, *opened, uuid));
    }

    fn tick(&mut self, now: Instant) {
        match &mut self.phase {
            Phase::Paused { until } if *until <= now => self.connect(now),
            Phase::Handshake(attempt) if attempt.shown_at.is_some_and(|at| at <= now) => {
                attempt.shown_at = None;
                self.out.log(LogEntry::Unresponsive(UNRESPONSIVE));
                self.show_disconnected(UNRESPONSIVE);
            }
            Phase::Lost { until, reason } if *until <= now => {
                let reason = std::mem::take(reason);
                self.lost(now, &reason);
            }
            _ => {}
        }
    }

    /// Notes that an attempt to connect failed. A socket without a listener is not shown.
    fn connect_failed(&mut self, now: Instant, error: ConnectError) {
        self.is_spent = !self.facts.is_reconnectable;
        self.out.push(Effect::Close);
        if self.is_on_trial() || self.has_ended() {
            self.end(error);
            return;
        }
        self.note_breach(error.is_breach());
        let text = error.to_string();
        if self.is_new_reason(&text) {
            let is_absent = matches!(
                error,
                ConnectError::Connect(SocketError::Refused | SocketError::Missing)
            );
            self.out
                .log(LogEntry::NotConnected(text.clone(), is_absent));
        }
        if self.out.is_visible() || error.is_silence() {
            self.show_disconnected(&text);
        }
        self.out.report_ready(Ok(()));
        self.pause(now);
    }

    /// Notes the end of the connection.
    fn disconnected(&mut self, now: Instant, closed: &Closed) {
        if let Phase::Handshake(_) = self.phase {
            self.connect_failed(now, closed.clone().into());
            return;
        }
        let Phase::Connected { since } = self.phase else {
            return;
        };
        self.out.push(Effect::Close);
        self.backoff.connected_for(now.duration_since(since));
        let reason = closed.to_string();
        let out = &mut self.out;
        if let Some(process) = &mut self.process {
            process.disconnect(out, &Error::Interrupted(closed.clone()), &reason);
        }
        self.note_breach(closed.is_breach());
        if self.is_on_trial() {
            self.end(closed.clone().into());
            return;
        }
        let until = now + EXIT_GRACE;
        self.phase = Phase::Lost { reason, until };
    }

    /// Shows the machine as disconnected, as its process has not exited, unless there can be no other
    /// connection.
    fn lost(&mut self, now: Instant, reason: &str) {
        if self.is_new_reason(reason) {
            self.out.log(LogEntry::Disconnected(reason.to_owned()));
        }
        if self.has_ended() {
            self.end(ConnectError::Gone);
            return;
        }
        self.show_disconnected(reason);
        self.pause(now);
    }

    fn pause(&mut self, now: Instant) {
        self.phase = Phase::Paused {
            until: now + self.backoff.pause(),
        };
    }

    fn show_disconnected(&mut self, reason: &str) {
        let mut snapshot = Snapshot::clone(self.out.snapshot());
        snapshot.disconnected = Some(reason.to_owned());
        if let Some(process) = &self.process {
            process.describe(&mut snapshot);
        }
        self.out.publish(snapshot);
        self.out.appear();
    }

    /// Counts a breach of the limits of the protocol, if there was one.
    fn note_breach(&mut self, is_breach: bool) {
        if is_breach {
            self.backoff.breach();
            if let Some(process) = &mut self.process {
                process.breaches = self.backoff.breaches();
                process.save(&mut self.out);
            }
        }
    }

    /// Returns whether `reason` is not the one that was logged last.
    fn is_new_reason(&mut self, reason: &str) -> bool {
        let is_new = self.last_reason != reason;
        reason.clone_into(&mut self.last_reason);
        is_new
    }

    /// Notes that the process has exited. A machine with a socket or a file waits for another one.
    fn end_process(&mut self, now: Instant) {
        if self.facts.lifetime.ends_with_process() {
            self.end(ConnectError::Gone);
            return;
        }
        self.out.push(Effect::Close);
        self.forget_process();
        self.out.report_ready(Ok(()));
        self.pause(now);
    }

    /// Ends the machine. `reason` is for who waits to know whether there is one.
    fn end(&mut self, reason: ConnectError) {
        self.phase = Phase::Gone;
        self.out.push(Effect::Close);
        self.out.push(Effect::End);
        self.forget_process();
        self.out.report_ready(Err(reason));
    }

    /// Forgets the process: nothing that was known about it is true any more.
    fn forget_process(&mut self) {
        let process = self.process.take();
        if process.is_some() {
            self.out.push(Effect::Forget);
        }
        self.backoff = Backoff::default();
        self.last_reason.clear();
        self.out.vanish();
        for id in process.into_iter().flat_map(Process::into_callers) {
            self.out.reply(id, Err(Error::Gone));
        }
    }
}
