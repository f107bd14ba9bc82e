//! The samples of one machine, and what they say about a window of time. It must not decide.

use std::collections::VecDeque;
use std::time::Duration;

use super::decision::Decision;
use super::limits::Limits;
use super::requests::{Outcome, Requests};
use super::sample::{Load, MachineState, Sample};

/// The maximum number of samples that are kept: with one sample a second, those of the longest down window.
const MAX_SAMPLES: usize = 600;
/// After a longer gap between samples, the earlier ones do not count.
pub(super) const MAX_GAP: Duration = Duration::from_secs(5);
/// How long after an addition its effect on the supply is judged.
const JUDGED_AFTER: Duration = Duration::from_secs(10);
/// The part of the wanted CPU time below which the host is contended.
pub(super) const MIN_SUPPLY: f64 = 0.9;

/// A sample, and its relation to the previous one.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Entry {
    /// The time of the previous sample.
    from: Duration,
    to: Duration,
    load: Option<Load>,
    /// Whether the number of vCPUs changed between the two.
    is_change: bool,
}

/// The samples and the requests of one machine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    entries: VecDeque<Entry>,
    last: Option<Sample>,
    /// The time of the caller at which the last sample came.
    seen_at: Duration,
    /// The time of the sample with the last change of the number of vCPUs.
    changed_at: Duration,
    /// The time of the caller at the last change that no request of the autoscaler explains.
    foreign_at: Option<Duration>,
    /// The time of the sample with the last addition.
    added_at: Duration,
    /// Since when, in the time of the caller, the guest has started no further vCPU while some are not started.
    waits_since: Option<Duration>,
    /// Whether the effect of the last addition of the autoscaler on the supply is judged.
    is_judged: bool,
    pub(super) requests: Requests,
}

impl History {
    /// Returns an empty history.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a sample that was taken now.
    pub fn push(&mut self, sample: Sample) {
        self.observe(sample, sample.at);
    }

    /// Adds a sample that came at `now`, a time of the caller. Pauses have times of the caller, and the time of the
    /// sample is used for the windows of load only.
    ///
    /// A sample with the time of the last one is ignored. If the time of the samples goes back, the windows begin
    /// again, and the pauses stay.
    pub fn observe(&mut self, sample: Sample, now: Duration) {
        if self.last.is_some_and(|last| last.at == sample.at) {
            return;
        }
        self.note_starts(&sample, now);
        let Some(last) = self.last else {
            return self.start(sample, now);
        };
        let is_change = sample.present != last.present;
        if is_change {
            self.note_change(&last, &sample, now);
        }
        if sample.at < last.at {
            return self.start(sample, now);
        }
        self.last = Some(sample);
        self.seen_at = now;
        if sample.at - last.at > MAX_GAP {
            return self.entries.clear();
        }
        let is_running = sample.state == MachineState::Running;
        self.entries.push_back(Entry {
            from: last.at,
            to: sample.at,
            load: sample.load.filter(|_| is_running),
            is_change,
        });
        if self.entries.len() > MAX_SAMPLES {
            self.entries.pop_front();
        }
        self.judge_addition(sample.at);
    }

    /// Notes numbers of vCPUs that the machine had at some time since the last sample, which the next sample can
    /// miss. One that no request explains is a change by another caller.
    pub fn note_counts(&mut self, counts: &[u32], now: Duration) {
        let Some(last) = self.last else {
            return;
        };
        let is_own = |count: u32| {
            count == last.present || self.requests.covers(count, last.pending > 0, now)
        };
        if !counts.iter().all(|count| is_own(*count)) {
            self.note_foreign_change(now);
        }
    }

    /// Begins the windows of load with `sample`.
    fn start(&mut self, sample: Sample, now: Duration) {
        self.entries.clear();
        self.seen_at = now;
        self.changed_at = sample.at;
        self.added_at = sample.at;
        self.is_judged = true;
        self.last = Some(sample);
    }

    /// Notes whether the guest starts its vCPUs. A guest that does not run starts none.
    fn note_starts(&mut self, sample: &Sample, now: Duration) {
        let waits = sample.state == MachineState::Running
            && sample
                .started
                .is_some_and(|started| started < sample.present);
        let vcpus = |sample: &Sample| (sample.present, sample.started);
        let is_same = self.last.is_some_and(|last| vcpus(&last) == vcpus(sample));
        self.waits_since = match self.waits_since {
            _ if !waits => None,
            Some(since) if is_same => Some(since),
            _ => Some(now),
        };
    }

    fn note_change(&mut self, last: &Sample, sample: &Sample, now: Duration) {
        self.changed_at = sample.at;
        let (from, to) = (last.present, sample.present);
        if to > from {
            self.added_at = sample.at;
        }
        let is_own = self.requests.explains(from, to, last.pending > 0, now);
        if !is_own {
            self.note_foreign_change(now);
        }
        self.is_judged = !is_own || to < from;
    }

    fn judge_addition(&mut self, at: Duration) {
        let since = at.saturating_sub(self.added_at);
        if self.is_judged || since < JUDGED_AFTER {
            return;
        }
        self.is_judged = true;
        let since = self.recent(since);
        if since.is_some_and(|window| window.min_supply >= MIN_SUPPLY) {
            self.requests.addition_is_good();
        }
    }

    /// Notes that the caller begins a request for `decision`, which was made with `limits`.
    pub fn note_request(&mut self, decision: &Decision, limits: &Limits, at: Duration) {
        self.requests.begin(decision, at, limits.down_window);
    }

    /// Notes the result of the last request.
    pub fn note_result(&mut self, outcome: Outcome, at: Duration) {
        self.requests.end(outcome, at);
    }

    /// Returns the last sample.
    #[must_use]
    pub fn last(&self) -> Option<&Sample> {
        self.last.as_ref()
    }

    /// Returns for how long the guest has started no further vCPU, while some are not started.
    pub(super) fn waits(&self, now: Duration) -> Option<Duration> {
        self.waits_since.map(|since| now.saturating_sub(since))
    }

    /// Returns the time of the caller at which the last sample came.
    pub(super) fn seen_at(&self) -> Duration {
        self.seen_at
    }

    /// Notes that another caller changed the number of vCPUs at `at`, a time of the caller.
    pub fn note_foreign_change(&mut self, at: Duration) {
        self.foreign_at = Some(at);
    }

    /// Returns the time of the caller at the last change that no request of the autoscaler explains.
    #[must_use]
    pub fn foreign_at(&self) -> Option<Duration> {
        self.foreign_at
    }

    /// Returns the time of the sample with the last addition, or of the first sample.
    pub(super) fn added_at(&self) -> Duration {
        self.added_at
    }

    /// Returns the time of the sample with the last change of the number of vCPUs.
    pub(super) fn changed_at(&self) -> Duration {
        self.changed_at
    }
}

/// The load of a window of time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Window {
    /// The mean.
    pub(super) mean: Load,
    /// The minimum of the part of the wanted CPU time that the host supplied.
    pub(super) min_supply: f64,
}

/// The highest values of a window of time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Maxima {
    /// The wanted CPU time.
    pub(super) wanted: f64,
    /// The part that the host supplied, without regard to throttling.
    pub(super) supply: f64,
}

impl History {
    /// Returns the load of the last `length`, or `None` without complete data since the last change.
    pub(super) fn recent(&self, length: Duration) -> Option<Window> {
        let end = self.last?.at;
        let start = end.checked_sub(length)?;
        if start < self.changed_at {
            return None;
        }
        let mut sum = Load::default();
        let (mut seconds, mut min_supply) = (0.0, 1.0f64);
        for entry in self.since(start) {
            let load = entry.load?;
            let length = (entry.to - entry.from).as_secs_f64();
            sum.used += load.used * length;
            sum.stolen += load.stolen * length;
            sum.throttled += load.throttled * length;
            seconds += length;
            min_supply = min_supply.min(load.supply());
        }
        if seconds == 0.0 || !self.is_covered(start) {
            return None;
        }
        let mean = Load {
            used: sum.used / seconds,
            stolen: sum.stolen / seconds,
            throttled: sum.throttled / seconds,
        };
        Some(Window { mean, min_supply })
    }

    /// Returns whether the samples begin at `start` or earlier.
    fn is_covered(&self, start: Duration) -> bool {
        self.entries
            .front()
            .is_some_and(|entry| entry.from <= start)
    }

    /// Returns the entries that end after `start`. At a change of the number of vCPUs, data can be missing.
    fn since(&self, start: Duration) -> impl Iterator<Item = &Entry> {
        let entries = self.entries.iter().rev();
        let entries = entries.take_while(move |entry| entry.to > start);
        entries.filter(|entry| entry.load.is_some() || !entry.is_change)
    }

    /// Returns the highest values of the last `length`, or `None` without complete data.
    pub(super) fn maxima(&self, length: Duration) -> Option<Maxima> {
        let start = self.last?.at.checked_sub(length)?;
        let mut maxima = Maxima {
            wanted: 0.0,
            supply: 0.0,
        };
        for entry in self.since(start) {
            let load = entry.load?;
            let (wanted, throttled) = (load.wanted(), 0.0);
            let supply = Load { throttled, ..load }.supply();
            maxima.wanted = maxima.wanted.max(wanted);
            maxima.supply = maxima.supply.max(supply);
        }
        self.is_covered(start).then_some(maxima)
    }

    /// Returns for how long there is complete data.
    pub(super) fn complete(&self) -> Duration {
        let Some(last) = self.last else {
            return Duration::ZERO;
        };
        let mut from = last.at;
        for entry in self.entries.iter().rev() {
            if entry.load.is_none() && !entry.is_change {
                break;
            }
            from = entry.from;
        }
        last.at - from
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_samples_is_limited() {
        let mut history = History::new();
        for second in 0..1000 {
            history.push(Sample {
                at: Duration::from_secs(second),
                present: 1,
                started: None,
                pending: 0,
                state: MachineState::Running,
                load: None,
            });
        }
        assert_eq!(history.entries.len(), MAX_SAMPLES);
    }
}
