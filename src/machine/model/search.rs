//! The search for the unit of a machine: when it begins, and when it is repeated.

use std::time::{Duration, Instant};

use crate::placement::Retry;

/// The first pause before another search, if systemd failed for a time. Each next one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The search for the unit.
#[derive(Debug)]
pub(super) struct Search {
    state: State,
    /// The pause before another search, if the next pass finds the process in another unit.
    elsewhere: Duration,
}

#[derive(Debug)]
enum State {
    /// It is due, now or then. The second is the pause after it.
    Due(Option<Instant>, Duration),
    /// It goes on.
    UnderWay(Duration),
    /// systemd is absent. It is due when systemd is there.
    WhenPresent,
    /// It has ended.
    Ended,
}

impl Default for Search {
    fn default() -> Self {
        Self {
            state: State::Due(None, FIRST_PAUSE),
            elsewhere: Duration::ZERO,
        }
    }
}

impl Search {
    /// Returns whether a search begins now.
    pub(super) fn begin(&mut self, now: Instant) -> bool {
        match self.state {
            State::Due(at, pause) if at.is_none_or(|at| at <= now) => {
                self.state = State::UnderWay(pause);
                true
            }
            _ => false,
        }
    }

    /// Notes the end of a search, and when another one may find more.
    pub(super) fn end(&mut self, now: Instant, retry: Retry) {
        let pause = match self.state {
            State::UnderWay(pause) => pause,
            _ => FIRST_PAUSE,
        };
        self.state = match retry {
            Retry::Later => State::Due(Some(now + pause), (pause * 2).min(LONGEST_PAUSE)),
            Retry::WhenPresent => State::WhenPresent,
            Retry::Never => State::Ended,
        };
    }

    /// Notes that systemd is there, after it was absent.
    pub(super) fn units_appeared(&mut self, now: Instant) {
        if let State::WhenPresent = self.state {
            self.state = State::Due(Some(now), FIRST_PAUSE);
        }
    }

    /// Notes whether the last pass found the process in another unit, to which another program moved it.
    pub(super) fn note_elsewhere(&mut self, now: Instant, is_elsewhere: bool) {
        if !is_elsewhere {
            self.elsewhere = Duration::ZERO;
        } else if let State::Ended = self.state {
            self.state = State::Due(Some(now + self.elsewhere), FIRST_PAUSE);
            self.elsewhere = (self.elsewhere * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        }
    }

    /// Returns when the next search is due, if its time is known.
    pub(super) fn due(&self) -> Option<Instant> {
        match self.state {
            State::Due(at, _) => at,
            State::UnderWay(_) | State::WhenPresent | State::Ended => None,
        }
    }
}
