//! Other policies, for comparison. Each is written from the description of its rules in `doc/autoscaling.md`. They do
//! not know limits.

use std::collections::VecDeque;

/// The load average divided by 0.9, every 5 seconds: the formula of Neon's autoscaler.
#[derive(Clone, Debug, Default)]
pub struct LoadAverage {
    next: u64,
}

impl LoadAverage {
    /// The interval of its metrics, in seconds, and also the pause after a refused removal.
    const INTERVAL: u64 = 5;
    const TARGET: f64 = 0.9;

    /// Returns the goal if there is one now: `load_average` is that of the guest over one minute, and `now` a time in
    /// seconds.
    pub fn decide(&mut self, load_average: f64, now: u64) -> Option<u32> {
        if now < self.next {
            return None;
        }
        self.next = now + Self::INTERVAL;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a load is positive, and the cast saturates"
        )]
        let goal = (load_average / Self::TARGET).round() as u32;
        Some(goal)
    }
}

/// One more vCPU above 80 % use, one fewer below 20 %, and then a pause.
#[derive(Clone, Debug, Default)]
pub struct Threshold {
    /// The use of the last seconds.
    uses: VecDeque<f64>,
    next: u64,
}

impl Threshold {
    /// The number of seconds over which the use is the mean.
    const WINDOW: usize = 15;
    const HIGH: f64 = 0.8;
    const LOW: f64 = 0.2;
    /// The pause after a change, in seconds.
    const COOLDOWN: u64 = 60;

    /// Returns the goal if there is one now. It is called once a second: `used` is the number of host CPUs that the
    /// `present` vCPUs used in the last second, and `now` a time in seconds.
    pub fn decide(&mut self, used: f64, present: u32, now: u64) -> Option<u32> {
        self.uses.push_back(used / f64::from(present));
        if self.uses.len() > Self::WINDOW {
            self.uses.pop_front();
        }
        if now < self.next || self.uses.len() < Self::WINDOW {
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "a short window")]
        let mean = self.uses.iter().sum::<f64>() / self.uses.len() as f64;
        let goal = if mean > Self::HIGH {
            present + 1
        } else if mean < Self::LOW {
            present.saturating_sub(1)
        } else {
            return None;
        };
        self.next = now + Self::COOLDOWN;
        Some(goal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_average_is_rounded() {
        let mut policy = LoadAverage::default();
        let goals = [(4.0, 4), (4.1, 5), (0.4, 0)];
        for (now, (load, goal)) in (0..).step_by(5).zip(goals) {
            assert_eq!(policy.decide(load, now), Some(goal));
            assert_eq!(policy.decide(load, now + 4), None);
        }
    }

    #[test]
    fn the_threshold_changes_by_one_and_pauses() {
        let mut policy = Threshold::default();
        let mut goals = Vec::new();
        for now in 0..160 {
            let used = if now < 100 { 3.5 } else { 0.5 };
            let goal = policy.decide(used, 4, now);
            goals.extend(goal.map(|goal| (now, goal)));
        }
        assert_eq!(goals, [(14, 5), (74, 5), (134, 3)]);
    }
}
