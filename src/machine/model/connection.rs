//! The connection of a machine: attempts, their results, and the end of the process.

use std::time::Instant;

use super::Model;
use super::backoff::{Backoff, FORGIVEN};
use super::effect::{Effect, LogEntry};
use super::error::Error;
use super::input::{Opened, UnitFound};
use super::phase::{ANSWER_GRACE, Attempt, EXIT_GRACE, Phase};
use super::process::Process;
use super::saved_state::SavedState;
use super::snapshot::Snapshot;
use crate::machine::spec::{ConnectError, Lifetime};
use crate::process::{ProcessId, SocketError};
use crate::qmp::Closed;
use crate::text::Text;

/// Why a machine is gone whose process is.
const EXITED: &str = "QEMU has exited";

impl Model {
    /// Begins an attempt to connect.
    pub(super) fn connect(&mut self, now: Instant) {
        let is_hidden = !self.out.is_visible() && !self.is_on_trial();
        self.phase = Phase::Handshake(Attempt {
            grace_until: is_hidden.then(|| now + ANSWER_GRACE),
            opened: None,
        });
        self.out.push(Effect::Connect);
    }

    /// Returns whether this is the only attempt, as for a new registration.
    pub(super) fn is_on_trial(&self) -> bool {
        self.facts.lifetime == Lifetime::Registered && !self.out.is_ready()
    }

    /// Returns whether there can be no such machine any more.
    pub(super) fn has_ended(&self) -> bool {
        self.facts.lifetime.ends_with_process() && (self.is_spent || self.process.is_none())
    }

    pub(super) fn reached(&mut self, now: Instant, id: ProcessId) {
        self.is_spent = !self.facts.is_reconnectable;
        if self.process.as_ref().is_some_and(|known| known.id != id) {
            // The known process has exited, and another one listens.
            if self.facts.lifetime.ends_with_process() {
                self.end(ConnectError::Gone, EXITED);
                return;
            }
            self.forget_process(EXITED);
        }
        if self.process.is_none() {
            let tuning = self.config.placement.tuning.clone();
            self.process = Some(Process::new(id, tuning));
            self.out.push(Effect::Load);
        } else {
            self.open(now);
        }
    }

    pub(super) fn loaded(&mut self, now: Instant, state: Result<Option<Box<SavedState>>, String>) {
        if let Some(process) = &mut self.process {
            match state {
                Ok(Some(state)) if state.leader == process.id => {
                    self.out.log(LogEntry::Restored(state.removals.len()));
                    self.backoff.restore(state.breaches);
                    process.restore(now, *state);
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

    pub(super) fn opened(&mut self, now: Instant, opened: Box<Opened>) {
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
            attempt.grace_until.get_or_insert(now + ANSWER_GRACE);
            // Events from here on are about what comes after this state.
            process.evidence.begin_refresh();
        }
    }

    pub(super) fn unit_found(&mut self, now: Instant, found: UnitFound) {
        self.with_process(now, |process, cx| {
            let found = process.placement.found(cx.now, found);
            if found.awaits_units {
                cx.out.push(Effect::AwaitUnits);
            }
            if let Some(missing) = found.missing {
                cx.out.log(LogEntry::NoGroups(missing));
            }
            if process.is_connected && found.is_other {
                // The pass after it publishes the rest.
                process.evidence.refresh_at(cx.now);
            } else if process.is_connected {
                let mut snapshot = Snapshot::clone(cx.out.snapshot());
                process.placement.describe_errors(&mut snapshot);
                cx.out.publish(snapshot);
            }
        });
    }

    pub(super) fn units_appeared(&mut self, now: Instant) {
        self.with_process(now, |process, cx| {
            process.placement.units_appeared(cx.now);
        });
    }

    /// Begins to serve a connection when QEMU has answered, the unit is known or systemd had its time, and
    /// no operation of the connection before goes on.
    pub(super) fn start_session(&mut self, now: Instant) {
        let (Phase::Handshake(attempt), Some(process)) = (&mut self.phase, &self.process) else {
            return;
        };
        let awaits_unit = process.placement.is_unknown() && attempt.grace_until.is_some();
        if awaits_unit || !process.operation.is_idle() {
            return;
        }
        let Some(opened) = attempt.opened.take() else {
            return;
        };
        self.phase = Phase::Connected {
            since: now,
            forgiven_at: (self.backoff.breaches() > 0).then(|| now + FORGIVEN),
        };
        self.last_reason.clear();
        self.out.push(Effect::KeepConnection);
        let uuid = self.facts.uuid.as_ref();
        let uuid = uuid.map(|uuid| Text::lossy(uuid.as_str()));
        self.with_process(now, |process, cx| process.start(cx, *opened, uuid));
    }

    /// Notes that an attempt to connect failed. A socket without a listener is not shown.
    pub(super) fn connect_failed(&mut self, now: Instant, error: ConnectError) {
        self.is_spent = !self.facts.is_reconnectable;
        self.out.push(Effect::Close);
        if self.is_on_trial() || self.has_ended() {
            let reason = error.to_string();
            self.end(error, &reason);
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
    pub(super) fn disconnected(&mut self, now: Instant, closed: &Closed) {
        if let Phase::Handshake(_) = self.phase {
            self.connect_failed(now, closed.clone().into());
            return;
        }
        let Phase::Connected { since, .. } = self.phase else {
            return;
        };
        self.out.push(Effect::Close);
        self.backoff.connected_for(now.duration_since(since));
        let reason = closed.to_string();
        let out = &mut self.out;
        if let Some(process) = &mut self.process {
            let is_last = !self.facts.is_reconnectable;
            let closed = closed.clone();
            process.disconnect(out, &Error::Interrupted { closed, is_last }, &reason);
        }
        self.note_breach(closed.is_breach());
        if self.is_on_trial() {
            self.end(closed.clone().into(), &closed.to_string());
            return;
        }
        let until = now + EXIT_GRACE;
        let closed = closed.clone();
        self.phase = Phase::Lost { closed, until };
    }

    /// Shows the machine as disconnected, as its process has not exited, unless there can be no other
    /// connection.
    pub(super) fn lost(&mut self, now: Instant, reason: &str) {
        if self.is_new_reason(reason) {
            self.out.log(LogEntry::Disconnected(reason.to_owned()));
        }
        if self.has_ended() {
            self.end(ConnectError::Gone, "its only connection has ended");
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

    pub(super) fn show_disconnected(&mut self, reason: &str) {
        let mut snapshot = Snapshot::clone(self.out.snapshot());
        snapshot.disconnected = Some(reason.to_owned());
        if let Some(process) = &self.process {
            process.describe(&mut snapshot);
        }
        let is_known = self.process.as_ref().is_some_and(|p| p.is_known);
        self.out.publish(snapshot);
        self.out.appear(is_known);
    }

    /// Counts a breach of the limits of the protocol, if there was one.
    fn note_breach(&mut self, is_breach: bool) {
        if is_breach {
            self.backoff.breach();
            self.save_breaches();
        }
    }

    /// Saves the number of breaches.
    pub(super) fn save_breaches(&mut self) {
        if let Some(process) = &mut self.process {
            process.breaches = self.backoff.breaches();
            process.save(&mut self.out);
        }
    }

    /// Returns whether `reason` is not the one that was logged last.
    fn is_new_reason(&mut self, reason: &str) -> bool {
        let is_new = self.last_reason != reason;
        reason.clone_into(&mut self.last_reason);
        is_new
    }

    /// Notes that the process has exited. A machine with a socket or a file waits for another one.
    pub(super) fn end_process(&mut self, now: Instant) {
        if self.facts.lifetime.ends_with_process() {
            self.end(ConnectError::Gone, EXITED);
            return;
        }
        self.out.push(Effect::Close);
        self.forget_process(EXITED);
        self.out.report_ready(Ok(()));
        self.pause(now);
    }

    /// Ends the machine. `error` is for callers that wait for the result of the first attempt, and `reason`
    /// for the log.
    pub(super) fn end(&mut self, error: ConnectError, reason: &str) {
        self.phase = Phase::Gone;
        self.out.push(Effect::Close);
        self.out.push(Effect::End);
        self.forget_process(reason);
        self.out.report_ready(Err(error));
    }

    /// Forgets the process: nothing that was known about it is true any more. `reason` is for the log.
    fn forget_process(&mut self, reason: &str) {
        let process = self.process.take();
        if process.is_some() {
            self.out.push(Effect::Forget);
        }
        self.backoff = Backoff::default();
        self.last_reason.clear();
        self.out.vanish(reason);
        for id in process.into_iter().flat_map(Process::into_callers) {
            self.out.reply(id, Err(Error::Gone));
        }
    }
}
