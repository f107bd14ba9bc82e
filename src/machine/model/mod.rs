//! The model of a machine: all decisions, and nothing else.
//!
//! Inputs go in, effects come out, and time is passed in. The same inputs always lead to the same
//! effects. The model must not use tokio, files, sockets or a clock.

mod answers;
mod backoff;
mod connection;
mod diff;
pub mod effect;
pub mod error;
mod error_text;
pub mod event;
mod evidence;
mod guest;
pub mod input;
pub mod numbering;
mod operation;
mod phase;
mod placement;
pub mod plan_code;
mod process;
mod refresh;
pub mod refusal;
mod removals;
pub mod request;
mod requests;
pub mod saved_state;
mod saves;
mod search;
pub mod snapshot;
pub mod starts;
#[cfg(test)]
pub(super) mod testing;
#[cfg(test)]
mod tests;
mod tune;
pub mod tuning;
mod turns;
mod unemitted;

use std::sync::Arc;
use std::time::Instant;

use self::backoff::Backoff;
use self::effect::{Effect, LogEntry, Output};
use self::error::Error;
use self::input::Input;
use self::phase::Phase;
use self::process::{Context, Process};
use self::request::{Command, Outcome, RequestId};
use self::snapshot::Snapshot;
use super::spec::{ConnectError, Lifetime, MachineConfig};
use crate::config::Uuid;
use crate::qmp::Closed;

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

    /// Returns the next effect. The caller repeats this until it returns `None`, after each input.
    pub fn next_effect(&mut self) -> Option<Effect> {
        self.out.next()
    }

    /// Returns when the next [`Input::Tick`] is due, if one is.
    pub fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let phase = match &self.phase {
            Phase::Paused { until } | Phase::Lost { until, .. } => Some(*until),
            Phase::Handshake(attempt) => attempt.grace_until,
            Phase::Connected { forgiven_at, .. } => *forgiven_at,
            Phase::Gone => None,
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

    /// Returns whether the machine has ended.
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
            Input::Loaded(state) => self.loaded(now, state),
            Input::Opened(opened) => self.opened(now, opened),
            Input::ConnectFailed(error) => self.connect_failed(now, error),
            Input::Disconnected(closed) => self.disconnected(now, &closed),
            Input::UnitFound(found) => self.unit_found(now, found),
            Input::UnitsAppeared => self.units_appeared(now),
            Input::ProcessExited => self.end_process(now),
            Input::Stop(reason) => self.end(ConnectError::Gone, &reason.to_string()),
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
        // A QEMU that is refused stays where it is.
        let is_accepted = match &self.phase {
            Phase::Connected { .. } => true,
            Phase::Handshake(attempt) => attempt.opened.is_some(),
            _ => false,
        };
        self.with_process(now, |process, cx| {
            if is_accepted && process.placement.begin_search(cx.now) {
                cx.out.push(Effect::FindUnit(cx.config.placement.clone()));
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
            // CPUs that a call took offline concern the guest, not QEMU.
            Command::GuestReleased { .. } if self.process.is_some() => {
                self.with_process(now, |process, cx| process.request(cx, id, command));
                return;
            }
            // The configuration is applied with the next connection, and a guest that is gone has no CPUs.
            Command::ApplyConfig | Command::GuestReleased { .. } => Ok(Outcome::default()),
            _ => {
                let shown = self.out.snapshot().disconnected.clone();
                let setup = || "it is being set up".to_owned();
                Err(match &self.phase {
                    Phase::Lost { closed, .. } if !self.facts.is_reconnectable => {
                        let closed = closed.clone();
                        let is_last = true;
                        Error::Interrupted { closed, is_last }
                    }
                    Phase::Lost { closed, .. } => Error::Disconnected(closed.to_string()),
                    _ => Error::Disconnected(shown.unwrap_or_else(setup)),
                })
            }
        };
        self.out.reply(id, answer);
    }

    fn tick(&mut self, now: Instant) {
        match &mut self.phase {
            Phase::Paused { until } if *until <= now => self.connect(now),
            Phase::Handshake(attempt) if attempt.grace_until.is_some_and(|at| at <= now) => {
                attempt.grace_until = None;
                if attempt.opened.is_none() {
                    self.out.log(LogEntry::Unresponsive(UNRESPONSIVE));
                    self.show_disconnected(UNRESPONSIVE);
                }
            }
            Phase::Connected { forgiven_at, .. } if forgiven_at.is_some_and(|at| at <= now) => {
                *forgiven_at = None;
                self.backoff.forgive();
                self.save_breaches();
            }
            Phase::Lost { until, closed } if *until <= now => {
                let reason = closed.to_string();
                self.lost(now, &reason);
            }
            _ => {}
        }
    }
}
