//! The pauses between attempts to connect. Pure: no clock.

use std::time::Duration;

/// The first pause; each is twice as long as the one before.
const FIRST: Duration = Duration::from_millis(10);
/// The longest pause for a peer that cannot be reached or does not answer.
const LONGEST: Duration = Duration::from_secs(5);
/// A connection that lasted longer than this was a good one: the pauses begin again with the first.
const GOOD: Duration = Duration::from_secs(5);
/// A peer that broke the limits as often as this is left alone, at first for [`LONGEST`].
const PATIENCE: u32 = 3;
/// The longest pause for a peer that is left alone.
const LONGEST_ALONE: Duration = Duration::from_secs(5 * 60);
/// A connection that lasted longer than this makes up for all breaches before it.
pub(super) const FORGIVEN: Duration = Duration::from_secs(10 * 60);

/// How long to wait before the next attempt to connect.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
    /// How often the peer broke the limits.
    breaches: u32,
    /// Whether the breaches were counted by a previous instance, and no pause followed yet.
    is_due: bool,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            next: FIRST,
            breaches: 0,
            is_due: false,
        }
    }
}

impl Backoff {
    /// Takes over the count of a previous instance.
    pub(super) fn restore(&mut self, breaches: u32) {
        self.breaches = breaches;
        self.is_due = self.is_left_alone();
    }

    /// Returns how often the peer broke the limits.
    pub(super) fn breaches(&self) -> u32 {
        self.breaches
    }

    /// Returns whether the peer must be left alone before the first attempt of this instance.
    pub(super) fn is_due(&self) -> bool {
        self.is_due
    }

    /// Counts a breach of the limits.
    pub(super) fn breach(&mut self) {
        self.breaches = self.breaches.saturating_add(1);
    }

    /// Notes that a connection lasted for `time`.
    pub(super) fn connected_for(&mut self, time: Duration) {
        if time > GOOD {
            self.next = FIRST;
        }
    }

    /// Forgets all breaches.
    pub(super) fn forgive(&mut self) {
        self.breaches = 0;
    }

    /// Returns the pause before the next attempt. The one after that is longer.
    pub(super) fn pause(&mut self) -> Duration {
        self.is_due = false;
        let next = self.next;
        self.next = (next * 2).min(LONGEST);
        match self.breaches.checked_sub(PATIENCE) {
            Some(beyond) => (LONGEST * 2u32.pow(beyond.min(8))).min(LONGEST_ALONE),
            None => next,
        }
    }

    fn is_left_alone(&self) -> bool {
        self.breaches >= PATIENCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pauses(backoff: &mut Backoff, count: usize) -> Vec<u128> {
        (0..count).map(|_| backoff.pause().as_millis()).collect()
    }

    #[test]
    fn the_first_pause_is_10_ms_and_each_is_twice_as_long() {
        let mut backoff = Backoff::default();
        let expected = [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5000, 5000];
        assert_eq!(pauses(&mut backoff, 11), expected);
        backoff.connected_for(GOOD);
        assert_eq!(pauses(&mut backoff, 1), [5000]);
        backoff.connected_for(GOOD + FIRST);
        assert_eq!(pauses(&mut backoff, 2), [10, 20]);
    }

    #[test]
    fn a_peer_that_breaks_the_limits_three_times_is_left_alone_for_minutes() {
        let mut backoff = Backoff::default();
        let mut after_breaches = Vec::new();
        for _ in 0..11 {
            backoff.breach();
            after_breaches.push(backoff.pause().as_secs());
        }
        let expected = [0, 0, 5, 10, 20, 40, 80, 160, 300, 300, 300];
        assert_eq!(after_breaches, expected);
        backoff.connected_for(FORGIVEN + FIRST);
        backoff.forgive();
        assert_eq!(pauses(&mut backoff, 1), [10]);
    }

    #[test]
    fn a_restart_does_not_forget_breaches() {
        let mut backoff = Backoff::default();
        backoff.restore(2);
        assert!(!backoff.is_due());
        backoff.restore(4);
        assert!(backoff.is_due());
        assert_eq!(backoff.pause(), Duration::from_secs(10));
        assert!(!backoff.is_due());
    }
}
