//! Other policies, for comparison. Each is written from the description of its rules in `doc/autoscaling.md`.

use super::world::Virtual;

/// The load average divided by 0.9, every 5 seconds: the formula of Neon's autoscaler.
#[derive(Clone, Debug, Default)]
pub(super) struct LoadAverage {
    next: u64,
}

impl LoadAverage {
    /// The interval of its metrics, in seconds, and also the pause after a refused removal.
    const INTERVAL: u64 = 5;
    const TARGET: f64 = 0.9;

    pub(super) fn decide(&mut self, machine: &Virtual, now: u64) -> Option<u32> {
        if now < self.next {
            return None;
        }
        self.next = now + Self::INTERVAL;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a load is positive, and the cast saturates"
        )]
        let goal = (machine.load_average / Self::TARGET).round() as u32;
        Some(goal)
    }
}

/// One more vCPU above 80 % use, one fewer below 20 %, and then a pause.
#[derive(Clone, Debug, Default)]
pub(super) struct Threshold {
    /// The use of the last seconds.
    uses: std::collections::VecDeque<f64>,
    next: u64,
}

impl Threshold {
    /// The number of seconds over which the use is the mean.
    const WINDOW: usize = 15;
    const HIGH: f64 = 0.8;
    const LOW: f64 = 0.2;
    /// The pause after a change, in seconds.
    const COOLDOWN: u64 = 60;

    pub(super) fn decide(&mut self, machine: &Virtual, now: u64) -> Option<u32> {
        let present = machine.present;
        self.uses.push_back(machine.load.used / f64::from(present));
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
            present - 1
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
        let mut machine = Virtual::new(1);
        let mut policy = LoadAverage::default();
        let goals = [(4.0, 4), (4.1, 5), (0.4, 0)];
        for (now, (load, goal)) in (0..).step_by(5).zip(goals) {
            machine.load_average = load;
            assert_eq!(policy.decide(&machine, now), Some(goal));
            assert_eq!(policy.decide(&machine, now + 4), None);
        }
    }

    #[test]
    fn the_threshold_changes_by_one_and_pauses() {
        let mut machine = Virtual::new(4);
        let mut policy = Threshold::default();
        let mut goals = Vec::new();
        for now in 0..160 {
            machine.load.used = if now < 100 { 3.5 } else { 0.5 };
            let goal = policy.decide(&machine, now);
            goals.extend(goal.map(|goal| (now, goal)));
        }
        assert_eq!(goals, [(14, 5), (74, 5), (134, 3)]);
    }
}
