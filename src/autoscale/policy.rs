//! The rules: from the history of a machine to a decision. Pure.

use std::time::Duration;

use super::budget::Claim;
use super::decision::{Decision, Details, Direction, Reason};
use super::history::{History, MAX_GAP, MIN_SUPPLY, Window};
use super::limits::Limits;
use super::sample::{MachineState, Sample};
use super::slots::Slots;

/// With this use of each vCPU or more, the demand is not known.
const SATURATED: f64 = 0.95;
/// The assumed need of a saturated machine, in relation to its present vCPUs.
const GROWTH: f64 = 2.0;
/// A probe adds this part of the present vCPUs, so that the supply of a full host falls below
/// [`MIN_SUPPLY`].
const PROBE: u32 = 8;
/// With less use of each vCPU, fewer vCPUs do not make contention less.
const CONTENDED_USE: f64 = 0.5;
/// How long contention lasts before vCPUs are removed.
const CONTENDED_FOR: Duration = Duration::from_secs(20);
/// How many times longer if the machine has no more than its share of the host.
const PATIENCE: u32 = 3;
/// A removal of less than this part of the present vCPUs needs a down window that is this many times longer.
const SMALL_GAIN: u32 = 4;
/// After this time without a further start, the guest will not start the other vCPUs.
const START_LIMIT: Duration = Duration::from_secs(5 * 60);
/// The longest down window.
const LONGEST_WINDOW: Duration = Duration::from_secs(8 * 60);

/// Bounds beside the limits, which can change at any time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// The number of vCPUs that the machine keeps, for example because they are pinned. It is not a reason to
    /// add vCPUs.
    pub floor: u32,
    /// The share of the machine on the host ([`share`](super::share)), or `None` without limit.
    pub cap: Option<u32>,
}

/// Decides the number of vCPUs of a machine.
#[must_use]
pub fn decide(history: &History, limits: &Limits, bounds: Bounds, now: Duration) -> Decision {
    let Some(last) = history.last() else {
        let needed = limits.up_window;
        let complete = Duration::ZERO;
        return Decision {
            goal: 0,
            reason: Reason::NoData { complete, needed },
            details: Details::default(),
        };
    };
    let machine = Machine {
        history,
        limits,
        bounds,
        now,
        last,
    };
    let recent = history.recent(limits.up_window);
    let needed = machine.needed(machine.down_window());
    let (goal, reason) = match machine.obstacle() {
        Some(reason) => (last.present, reason),
        None => machine.decide(recent, needed),
    };
    Decision {
        goal,
        reason,
        details: Details {
            present: last.present,
            load: recent.map(|window| window.mean),
            needed,
        },
    }
}

/// Returns what the machine wants of the host, or `None` without complete data.
#[must_use]
pub fn claim(history: &History, limits: &Limits) -> Option<Claim> {
    let present = f64::from(history.last()?.present);
    let wanted = history.recent(limits.up_window)?.mean.wanted();
    let is_saturated = wanted >= present * SATURATED;
    let demand = if is_saturated {
        present * GROWTH
    } else {
        wanted
    };
    Some(Claim {
        demand: demand.min(f64::from(limits.max)),
        min: limits.min,
        max: limits.max,
        weight: limits.weight,
    })
}

/// The arguments of a decision.
struct Machine<'a> {
    history: &'a History,
    limits: &'a Limits,
    bounds: Bounds,
    now: Duration,
    last: &'a Sample,
}

impl Machine<'_> {
    /// Returns the reason why nothing can change now.
    fn obstacle(&self) -> Option<Reason> {
        let (last, now) = (self.last, self.now);
        let age = now.saturating_sub(self.history.seen_at());
        if age > MAX_GAP {
            return Some(Reason::Stale { age });
        }
        if last.state != MachineState::Running {
            return Some(Reason::NotRunning { state: last.state });
        }
        if let Some(goal) = self.history.requests.in_progress() {
            return Some(Reason::Requested { goal });
        }
        if last.pending > 0 {
            let pending = last.pending;
            return Some(Reason::RemovalPending { pending });
        }
        let waits = self.history.waits(now);
        if waits.is_some_and(|time| time < START_LIMIT) {
            return self.not_started();
        }
        let end = self.history.foreign_at()?.saturating_add(self.limits.hold);
        let remaining = end.saturating_sub(now);
        (!remaining.is_zero()).then_some(Reason::Hold { remaining })
    }

    fn not_started(&self) -> Option<Reason> {
        let present = self.last.present;
        let started = self.last.started?;
        (started < present).then_some(Reason::NotStarted { started, present })
    }

    /// Returns the number of vCPUs that the highest load of the last `window` needs.
    fn needed(&self, window: Duration) -> Option<f64> {
        // Before an addition, the load was limited by the vCPUs.
        if self.history.added_at() + self.limits.down_window > self.last.at {
            return None;
        }
        let maxima = self.history.maxima(window)?;
        Some(maxima.wanted / self.limits.target)
    }

    fn down_window(&self) -> Duration {
        let window = self
            .history
            .requests
            .window(self.limits.down_window, self.now);
        window.min(LONGEST_WINDOW)
    }

    fn decide(&self, recent: Option<Window>, needed: Option<f64>) -> (u32, Reason) {
        let present = self.last.present;
        if let Some(waiting) = self.not_started() {
            return self.give_back(waiting);
        }
        let max = self.limits.max;
        if present > max {
            return self.remove(self.slots().within(max), Reason::AboveMax { max });
        }
        let min = self.limits.min;
        if present < min {
            return self.reach(min);
        }
        let Some(recent) = recent else {
            return (
                present,
                self.no_data(self.limits.up_window, self.history.changed_at()),
            );
        };
        let busy = recent.mean.wanted() / f64::from(present.max(1));
        let is_busy = busy > (1.0 + self.limits.target) / 2.0;
        let has_supply = recent.min_supply >= MIN_SUPPLY;
        if busy >= CONTENDED_USE && !has_supply {
            return self.contended(&recent);
        }
        if is_busy {
            return self.grow(busy);
        }
        self.shrink(busy, needed)
    }

    /// The guest does not start all vCPUs: the others are removed, unless the machine has to keep them.
    fn give_back(&self, waiting: Reason) -> (u32, Reason) {
        let present = self.last.present;
        let started = self.last.started.unwrap_or(present);
        let reason = Reason::NeverStarted {
            vcpus: present - started.min(present),
            time: START_LIMIT,
        };
        match self.remove(started, reason) {
            (goal, reason) if goal < present => (goal, reason),
            (_, pause @ Reason::FailureBackoff { .. }) => (present, pause),
            _ => (present, waiting),
        }
    }

    /// The vCPUs are busy, and the host supplies their CPU time.
    fn grow(&self, busy: f64) -> (u32, Reason) {
        let present = self.last.present;
        let max = self.limits.max;
        if present >= max {
            return (present, Reason::AtMax { max });
        }
        if self.slots().below(max) == 0 {
            return (present, self.slot_size(Direction::Add, max));
        }
        let cap = self.bounds.cap.map_or(max, |cap| cap.min(max));
        if self.slots().below(cap) == 0 {
            return (present, Reason::AtCap { cap });
        }
        let load_needs = busy * f64::from(present) / self.limits.target;
        let (needed, reason) = if busy >= SATURATED {
            let needed = load_needs.max(f64::from(present) * GROWTH);
            (needed, Reason::Saturated { busy })
        } else {
            let needed = load_needs;
            (needed, Reason::Busy { busy, needed })
        };
        let failures = self.history.requests.contentions(self.now);
        if failures > 0 {
            let probe = present.saturating_add(present.div_ceil(PROBE));
            return self.add(probe, cap, Reason::Probe { failures });
        }
        self.add(ceil(needed), cap, reason)
    }

    /// The vCPUs are not busy.
    fn shrink(&self, busy: f64, needed: Option<f64>) -> (u32, Reason) {
        let present = self.last.present;
        let window = self.down_window();
        let Some(needed) = needed else {
            return (present, self.no_data(window, self.history.added_at()));
        };
        let gain = self.slots().gain(ceil(needed));
        let in_band = (present, Reason::InBand { busy });
        if gain == 0 {
            return in_band;
        }
        if gain.saturating_mul(SMALL_GAIN) >= present {
            return self.remove(ceil(needed), Reason::Idle { needed, window });
        }
        // A small gain is worth a change only if it lasts.
        let window = (window * SMALL_GAIN).min(LONGEST_WINDOW);
        match self.needed(window) {
            Some(needed) if self.slots().gain(ceil(needed)) > 0 => {
                self.remove(ceil(needed), Reason::Idle { needed, window })
            }
            _ => in_band,
        }
    }

    /// The vCPUs are busy, and the host does not supply their CPU time.
    fn contended(&self, recent: &Window) -> (u32, Reason) {
        let present = self.last.present;
        let supply = recent.mean.supply();
        let hold = (
            present,
            Reason::Steal {
                supply: recent.min_supply,
            },
        );
        if let Some(remaining) = self.history.requests.contention_pause(self.now) {
            return (present, Reason::ContentionBackoff { remaining });
        }
        // No cap is above the maximum, and only a full host has lower ones.
        let cap = self.bounds.cap.filter(|cap| *cap < self.limits.max);
        let has_share_only = cap.is_some_and(|cap| present <= cap);
        let length = CONTENDED_FOR * if has_share_only { PATIENCE } else { 1 };
        if self.history.changed_at() + length > self.last.at {
            return hold;
        }
        let Some(maxima) = self.history.maxima(length) else {
            return hold;
        };
        let obtained = recent.mean.used;
        let share = cap.filter(|_| !has_share_only).unwrap_or(0);
        let goal = ceil(obtained).max(share);
        if maxima.supply >= MIN_SUPPLY || self.slots().gain(goal) == 0 {
            return hold;
        }
        self.remove(goal, Reason::Contended { supply, obtained })
    }

    /// Adds vCPUs up to the minimum, which an administrator has set whatever the host supplies.
    fn reach(&self, min: u32) -> (u32, Reason) {
        let present = self.last.present;
        if let Some(pause) = self.pause(Direction::Add) {
            return (present, pause);
        }
        let max = self.limits.max;
        if self.slots().below(max) == 0 {
            return (present, self.slot_size(Direction::Add, max));
        }
        let goal = self.slots().larger(min, self.limits.step_up, max);
        (goal, Reason::BelowMin { min })
    }

    /// Adds vCPUs up to `goal`, and not beyond `limit`.
    fn add(&self, goal: u32, limit: u32, reason: Reason) -> (u32, Reason) {
        let present = self.last.present;
        if let Some(remaining) = self.history.requests.contention_pause(self.now) {
            return (present, Reason::ContentionBackoff { remaining });
        }
        if let Some(pause) = self.pause(Direction::Add) {
            return (present, pause);
        }
        let goal = self.slots().larger(goal, self.limits.step_up, limit);
        (goal, reason)
    }

    /// Removes vCPUs, at most down to `goal`.
    fn remove(&self, goal: u32, reason: Reason) -> (u32, Reason) {
        let present = self.last.present;
        let min = self.limits.min.max(self.bounds.floor);
        if present <= min {
            let floor = self.bounds.floor;
            let is_pinned = floor > self.limits.min;
            let reason = if is_pinned {
                Reason::Pinned { floor }
            } else {
                Reason::AtMin { min }
            };
            return (present, reason);
        }
        let slots = self.slots();
        if slots.above(min) == 0 {
            return (present, self.slot_size(Direction::Remove, min));
        }
        if let Some(pause) = self.pause(Direction::Remove) {
            return (present, pause);
        }
        (slots.smaller(goal, self.limits.step_down, min), reason)
    }

    fn slots(&self) -> Slots {
        Slots::new(self.last.present, self.limits.slot)
    }

    /// Returns the reason for a slot that does not fit within `limit`.
    fn slot_size(&self, direction: Direction, limit: u32) -> Reason {
        Reason::SlotSize {
            slot: self.slots().size,
            direction,
            limit,
        }
    }

    /// Returns the pause after failed requests in this direction.
    fn pause(&self, direction: Direction) -> Option<Reason> {
        let remaining = self.history.requests.pause(direction, self.now)?;
        Some(Reason::FailureBackoff {
            direction,
            remaining,
        })
    }

    /// Returns the reason to wait for complete data. Data before `since` does not count.
    fn no_data(&self, needed: Duration, since: Duration) -> Reason {
        let data = self.last.at.saturating_sub(since);
        let complete = self.history.complete().min(data);
        Reason::NoData { complete, needed }
    }
}

/// Returns the number of vCPUs for `cores`. A tiny excess is an error of rounding.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the cast saturates, and the limits bound the result"
)]
fn ceil(cores: f64) -> u32 {
    (cores - 1e-6).ceil().max(1.0) as u32
}
