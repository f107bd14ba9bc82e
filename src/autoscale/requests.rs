//! The requests of the autoscaler for one machine, their results, and the pauses that follow. It must not
//! decide when to make a request.

use std::time::Duration;

use super::backoff::Backoff;
use super::decision::{Decision, Direction, Reason};

/// How long after its result a request can explain a change of the number of vCPUs.
const LATE: Duration = Duration::from_secs(5);
/// An addition this many down windows after a removal makes the window longer.
const REGRET: u32 = 2;
/// The maximum number of times that the down window is doubled.
const MAX_REGRETS: u32 = 3;
/// After this time without a regretted removal, the down window is halved again.
const FORGIVEN: Duration = Duration::from_secs(15 * 60);

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The machine has the requested number of vCPUs.
    Done,
    /// The guest or QEMU refused, or the call failed.
    Refused,
    /// The guest did not release the vCPUs in time. The removals can be pending.
    TimedOut,
}

/// A request.
#[derive(Clone, Debug, PartialEq)]
struct Request {
    from: u32,
    goal: u32,
    direction: Direction,
    /// The time of the result.
    ended: Option<Duration>,
}

/// The requests for one machine.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Requests {
    last: Option<Request>,
    additions: Backoff,
    removals: Backoff,
    /// Additions that met contention.
    contention: Backoff,
    removed_at: Option<Duration>,
    /// The removals that were followed by an addition, and the time of the last one.
    regrets: u32,
    regretted_at: Duration,
}

impl Requests {
    /// Notes that a request for `decision` begins.
    pub(super) fn begin(&mut self, decision: &Decision, at: Duration, down_window: Duration) {
        let Some(direction) = decision.direction() else {
            return;
        };
        self.last = Some(Request {
            from: decision.details.present,
            goal: decision.goal,
            direction,
            ended: None,
        });
        match (direction, decision.reason) {
            (_, Reason::Contended { .. }) => self.contention.fail(at),
            // The addition of these vCPUs failed.
            (_, Reason::NeverStarted { .. }) => self.additions.fail(at),
            (Direction::Remove, _) => self.removed_at = Some(at),
            (Direction::Add, _) => self.regret(at, down_window),
        }
    }

    /// Notes an addition: a removal shortly before it was a mistake.
    fn regret(&mut self, at: Duration, down_window: Duration) {
        let Some(removed_at) = self.removed_at.take() else {
            return;
        };
        let soon = self.window(down_window, at).saturating_mul(REGRET);
        if at.saturating_sub(removed_at) < soon {
            self.regrets = (self.regrets(at) + 1).min(MAX_REGRETS);
            self.regretted_at = at;
        }
    }

    fn regrets(&self, now: Duration) -> u32 {
        let forgiven = now.saturating_sub(self.regretted_at).as_secs() / FORGIVEN.as_secs();
        self.regrets
            .saturating_sub(u32::try_from(forgiven).unwrap_or(u32::MAX))
    }

    /// Returns `down_window`, doubled for each removal that was a mistake.
    pub(super) fn window(&self, down_window: Duration, now: Duration) -> Duration {
        down_window.saturating_mul(2u32.pow(self.regrets(now)))
    }

    /// Notes the result of the last request.
    pub(super) fn end(&mut self, outcome: Outcome, at: Duration) {
        let Some(request) = &mut self.last else {
            return;
        };
        request.ended = Some(at);
        let backoff = match request.direction {
            Direction::Add => &mut self.additions,
            Direction::Remove => &mut self.removals,
        };
        match outcome {
            Outcome::Done => backoff.succeed(),
            Outcome::Refused | Outcome::TimedOut => backoff.fail(at),
        }
    }

    /// Returns the goal of the request that is in progress.
    pub(super) fn in_progress(&self) -> Option<u32> {
        let request = self.last.as_ref()?;
        request.ended.is_none().then_some(request.goal)
    }

    /// Returns whether the last request explains a change of the number of vCPUs. `was_pending` says whether
    /// a removal was pending before the change.
    pub(super) fn explains(&self, from: u32, to: u32, was_pending: bool, at: Duration) -> bool {
        let direction = self.last.as_ref().map(|request| request.direction);
        let is_covered = |count| self.covers(count, was_pending, at);
        direction == Direction::between(from, to) && is_covered(from) && is_covered(to)
    }

    /// Returns whether the last request explains that the machine has `count` vCPUs.
    pub(super) fn covers(&self, count: u32, was_pending: bool, at: Duration) -> bool {
        let Some(request) = &self.last else {
            return false;
        };
        let low = request.from.min(request.goal);
        let high = request.from.max(request.goal);
        let is_recent = match request.ended {
            None => true,
            Some(ended) => at.saturating_sub(ended) <= LATE,
        };
        let is_pending = was_pending && request.direction == Direction::Remove;
        (low..=high).contains(&count) && (is_recent || is_pending)
    }

    /// Notes that the host had free CPUs for the last addition.
    pub(super) fn addition_is_good(&mut self) {
        self.contention.succeed();
    }

    /// Returns the pause after additions that met contention.
    pub(super) fn contention_pause(&self, now: Duration) -> Option<Duration> {
        self.contention.remaining(now)
    }

    /// Returns the number of additions that met contention.
    pub(super) fn contentions(&self, now: Duration) -> u32 {
        self.contention.failures(now)
    }

    /// Returns the pause after failed requests in this direction.
    pub(super) fn pause(&self, direction: Direction, now: Duration) -> Option<Duration> {
        match direction {
            Direction::Add => self.additions.remaining(now),
            Direction::Remove => self.removals.remaining(now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::decision::Details;
    use super::*;

    const WINDOW: Duration = Duration::from_secs(45);

    fn second(second: u64) -> Duration {
        Duration::from_secs(second)
    }

    fn decision(present: u32, goal: u32) -> Decision {
        Decision {
            goal,
            reason: Reason::BelowMin { min: 1 },
            details: Details {
                present,
                ..Details::default()
            },
        }
    }

    #[test]
    fn the_window_is_doubled_three_times_at_most_and_halved_again() {
        let mut requests = Requests::default();
        let mut windows = Vec::new();
        for at in 1..=5 {
            requests.begin(&decision(4, 2), second(at), WINDOW);
            requests.begin(&decision(2, 4), second(at), WINDOW);
            windows.push(requests.window(WINDOW, second(at)).as_secs());
        }
        assert_eq!(windows, [90, 180, 360, 360, 360]);
        let later = [904, 905, 1805, 2705].map(|at| requests.window(WINDOW, second(at)).as_secs());
        assert_eq!(later, [360, 180, 90, 45]);
    }

    #[test]
    fn a_late_addition_is_no_sign_of_a_mistake() {
        let mut requests = Requests::default();
        requests.begin(&decision(4, 2), second(0), WINDOW);
        requests.begin(&decision(2, 4), second(90), WINDOW);
        assert_eq!(requests.window(WINDOW, second(90)), WINDOW);
    }

    #[test]
    fn a_request_explains_changes_towards_its_goal() {
        let mut requests = Requests::default();
        assert!(!requests.explains(4, 8, false, second(0)));
        requests.begin(&decision(4, 8), second(0), WINDOW);
        assert!(requests.explains(4, 8, false, second(100)));
        assert!(requests.explains(5, 6, false, second(100)));
        for (from, to) in [(4, 9), (3, 8), (8, 4)] {
            assert!(!requests.explains(from, to, false, second(100)));
        }
        requests.end(Outcome::Done, second(100));
        assert!(requests.explains(4, 8, false, second(105)));
        assert!(!requests.explains(4, 8, false, second(106)));
        // Only removals can be pending.
        assert!(!requests.explains(4, 8, true, second(106)));
    }

    #[test]
    fn a_success_takes_one_failure_back() {
        let mut requests = Requests::default();
        for outcome in [Outcome::Refused, Outcome::Done, Outcome::Refused] {
            requests.begin(&decision(4, 2), second(0), WINDOW);
            requests.end(outcome, second(0));
        }
        assert_eq!(
            requests.pause(Direction::Remove, second(0)),
            Some(second(30))
        );
        assert_eq!(requests.pause(Direction::Add, second(0)), None);
    }
}
