//! The samples of one machine, and what they say about a window of time. It must not decide.

use std::collections::VecDeque;
use std::time::Duration;

use super::decision::{Decision, Direction};
use super::limits::Limits;
use super::requests::{Outcome, Requests};
use super::sample::{Load, MachineState, Sample};

/// The maximum number of samples that are kept.
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
    /// The time of the previous sample, or of this one if there is none.
    from: Duration,
    to: Duration,
    load: Option<Load>,
    /// Whether the number of vCPUs changed between the two.
    is_change: bool,
}

/// What the policy knows about one machine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    entries: VecDeque<Entry>,
    last: Option<Sample>,
    /// The time of the last change of the number of vCPUs.
    changed_at: Duration,
    /// The time of the last change that no request of the autoscaler explains.
    foreign_at: Option<Duration>,
    /// The time of the last addition whose effect is not judged.
    added_at: Option<Duration>,
    pub(super) requests: Requests,
}

impl History {
    /// Returns an empty history.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a sample. A sample with the time of the last one is ignored. If the clock went back, the history
    /// begins again.
    pub fn push(&mut self, sample: Sample) {
        let Some(last) = self.last else {
            return self.start(sample);
        };
        if sample.at < last.at {
            *self = Self::new();
            return self.start(sample);
        }
        if sample.at == last.at {
            return;
        }
        if sample.at - last.at > MAX_GAP {
            self.entries.clear();
        }
        let is_change = sample.present != last.present;
        if is_change {
            self.note_change(&last, &sample);
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
        self.last = Some(sample);
        self.judge_addition(sample.at);
    }

    fn start(&mut self, sample: Sample) {
        self.changed_at = sample.at;
        self.last = Some(sample);
    }

    fn note_change(&mut self, last: &Sample, sample: &Sample) {
        self.changed_at = sample.at;
        let (from, to) = (last.present, sample.present);
        if !self
            .requests
            .explains(from, to, last.pending > 0, sample.at)
        {
            self.foreign_at = Some(sample.at);
        } else if to > from {
            self.added_at = Some(sample.at);
        }
    }

    fn judge_addition(&mut self, now: Duration) {
        let Some(added_at) = self.added_at else {
            return;
        };
        if now.saturating_sub(added_at) < JUDGED_AFTER {
            return;
        }
        self.added_at = None;
        let since = self.recent(now.saturating_sub(added_at));
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

    /// Returns the time of the last change that no request of the autoscaler explains.
    pub(super) fn foreign_at(&self) -> Option<Duration> {
        self.foreign_at
    }

    /// Returns the time of the last change of the number of vCPUs.
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

/// The extremes of the means over a short window, within a long one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Extremes {
    /// The maximum of the wanted CPU time.
    pub(super) wanted: f64,
    /// The minimum of the wanted CPU time.
    pub(super) least_wanted: f64,
    /// The maximum of the used CPU time.
    pub(super) used: f64,
    /// The maximum of the part that the host supplied, without regard to throttling.
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
        self.window(self.entries.len(), start)
    }

    /// Returns the load from `start` to the end of the entry before `end`, or `None` without complete data.
    fn window(&self, end: usize, start: Duration) -> Option<Window> {
        let mut sum = Load::default();
        let (mut seconds, mut min_supply) = (0.0, 1.0f64);
        for entry in self.entries.range(..end).rev() {
            if entry.to <= start {
                break;
            }
            let Some(load) = entry.load else {
                if entry.is_change {
                    continue;
                }
                return None;
            };
            let length = (entry.to - entry.from).as_secs_f64();
            sum.used += load.used * length;
            sum.stolen += load.stolen * length;
            sum.throttled += load.throttled * length;
            seconds += length;
            min_supply = min_supply.min(load.supply());
        }
        let is_covered = self.entries.front()?.from <= start;
        if !is_covered || seconds == 0.0 {
            return None;
        }
        let mean = Load {
            used: sum.used / seconds,
            stolen: sum.stolen / seconds,
            throttled: sum.throttled / seconds,
        };
        Some(Window { mean, min_supply })
    }

    /// Returns the extremes of the means over `short` within the last `long`, or `None` without complete
    /// data.
    pub(super) fn extremes(&self, short: Duration, long: Duration) -> Option<Extremes> {
        let end = self.last?.at;
        let start = end.checked_sub(long)?;
        let mut extremes: Option<Extremes> = None;
        for (index, entry) in self.entries.iter().enumerate().rev() {
            // The first means begin within the window.
            if entry.to < start + short && extremes.is_some() {
                break;
            }
            let from = entry.to.saturating_sub(short).max(start);
            let mean = self.window(index + 1, from)?.mean;
            let (used, wanted) = (mean.used, mean.wanted());
            let throttled = 0.0;
            let supply = Load { throttled, ..mean }.supply();
            let next = extremes.get_or_insert(Extremes {
                wanted,
                least_wanted: wanted,
                used,
                supply,
            });
            next.wanted = next.wanted.max(wanted);
            next.least_wanted = next.least_wanted.min(wanted);
            next.used = next.used.max(used);
            next.supply = next.supply.max(supply);
        }
        extremes
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

    /// Returns the pause after failed requests in this direction.
    pub(super) fn pause(&self, direction: Direction, now: Duration) -> Option<Duration> {
        self.requests.pause(direction, now)
    }
}
