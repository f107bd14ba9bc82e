//! How many records a machine may cause by itself. Pure: time is passed in.

use std::time::Duration;

use std::time::Instant;

/// The time between two reports of dropped records.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// A limit for records in a time, above a burst.
#[derive(Debug)]
pub(super) struct Quota {
    /// The time that one record takes up.
    interval: Duration,
    /// The time that a burst takes up.
    burst: Duration,
    /// Until when time is taken up.
    until: Option<Instant>,
    dropped: u64,
    reported: Option<Instant>,
}

impl Quota {
    /// Returns a quota of `rate` records in a second, after `burst` records at once.
    pub(super) fn new(rate: u32, burst: u32) -> Self {
        let interval = Duration::from_secs(1) / rate;
        Self {
            interval,
            burst: interval * burst,
            until: None,
            dropped: 0,
            reported: None,
        }
    }

    /// Takes the place of one record. Returns `false`, and counts the record as dropped, where there
    /// is no place.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let until = self.until.map_or(now, |until| until.max(now)) + self.interval;
        let has_room = until <= now + self.burst;
        if has_room {
            self.until = Some(until);
        } else {
            self.dropped += 1;
        }
        has_room
    }

    /// Returns how many records were dropped since the last report, if one is due.
    pub(super) fn report(&mut self, now: Instant) -> Option<u64> {
        let is_due = self.reported.is_none_or(|at| now >= at + REPORT_INTERVAL);
        if self.dropped == 0 || !is_due {
            return None;
        }
        self.reported = Some(now);
        Some(std::mem::take(&mut self.dropped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_gets_its_burst_and_then_the_rate() {
        let mut quota = Quota::new(50, 100);
        let start = Instant::now();
        let taken = (0..1000).filter(|_| quota.take(start)).count();
        assert_eq!(taken, 100);
        let second = start + Duration::from_secs(1);
        let taken = (0..1000).filter(|_| quota.take(second)).count();
        assert_eq!(taken, 50);
        let later = start + Duration::from_secs(600);
        let taken = (0..1000).filter(|_| quota.take(later)).count();
        assert_eq!(taken, 100);
    }

    #[test]
    fn every_dropped_record_is_reported_at_most_once_a_second() {
        let mut quota = Quota::new(50, 1);
        let start = Instant::now();
        assert!(quota.take(start));
        assert_eq!(quota.report(start), None);
        assert!(!quota.take(start) && !quota.take(start));
        assert_eq!(quota.report(start), Some(2));
        assert!(!quota.take(start));
        assert_eq!(quota.report(start), None);
        assert_eq!(quota.report(start + REPORT_INTERVAL), Some(1));
        assert_eq!(quota.report(start + 2 * REPORT_INTERVAL), None);
    }
}
