//! Pauses that become longer with each failure. It must not know what failed.

use std::time::Duration;

/// The pause after the first failure; each is twice as long as the one before.
pub(super) const FIRST: Duration = Duration::from_secs(30);
/// The longest pause. Failures are forgotten when this time has passed after the end of the pause.
pub(super) const LONGEST: Duration = Duration::from_secs(5 * 60);

/// The number of failures that count: more do not make the pause longer.
const MAX_FAILURES: u32 = 5;

/// Counts failures.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Backoff {
    failures: u32,
    until: Duration,
}

impl Backoff {
    /// Counts a failure, and begins a pause.
    pub(super) fn fail(&mut self, at: Duration) {
        self.failures = (self.failures(at) + 1).min(MAX_FAILURES);
        let pause = FIRST * 2u32.pow(self.failures - 1);
        self.until = at + pause.min(LONGEST);
    }

    /// Ends the pause, and counts one failure less.
    pub(super) fn succeed(&mut self) {
        self.failures = self.failures.saturating_sub(1);
        self.until = Duration::ZERO;
    }

    /// Returns the number of failures that are not forgotten.
    pub(super) fn failures(&self, now: Duration) -> u32 {
        let is_old = now.saturating_sub(self.until) > LONGEST;
        if is_old && self.until > Duration::ZERO {
            0
        } else {
            self.failures
        }
    }

    /// Returns the rest of the pause, or `None` if there is no pause.
    pub(super) fn remaining(&self, now: Duration) -> Option<Duration> {
        let rest = self.until.saturating_sub(now);
        (!rest.is_zero()).then_some(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn each_pause_is_twice_as_long_up_to_the_longest() {
        let mut backoff = Backoff::default();
        let mut pauses = Vec::new();
        let mut now = Duration::ZERO;
        for _ in 0..9 {
            backoff.fail(now);
            let pause = backoff.remaining(now).unwrap();
            pauses.push(pause.as_secs());
            now += pause;
            assert_eq!(backoff.remaining(now), None);
        }
        assert_eq!(backoff.failures(now), MAX_FAILURES);
        assert_eq!(pauses, [30, 60, 120, 240, 300, 300, 300, 300, 300]);
    }

    #[test]
    fn a_success_takes_one_failure_back() {
        let mut backoff = Backoff::default();
        backoff.fail(SECOND);
        backoff.fail(SECOND);
        backoff.succeed();
        assert_eq!(backoff.remaining(SECOND), None);
        assert_eq!(backoff.failures(SECOND), 1);
        backoff.succeed();
        assert_eq!(backoff.failures(SECOND), 0);
    }

    #[test]
    fn failures_are_forgotten() {
        let mut backoff = Backoff::default();
        backoff.fail(SECOND);
        let end = SECOND + FIRST;
        assert_eq!(backoff.failures(end + LONGEST), 1);
        assert_eq!(backoff.failures(end + LONGEST + SECOND), 0);
        backoff.fail(end + LONGEST + SECOND);
        assert_eq!(backoff.remaining(end + LONGEST + SECOND), Some(FIRST));
    }
}
