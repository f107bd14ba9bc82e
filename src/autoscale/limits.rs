//! The settings of the policy for one machine, and their check. It must not parse files.

use std::time::Duration;

/// The settings of the policy for one machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Key `min`: the minimum number of vCPUs.
    pub min: u32,
    /// Key `max`: the maximum number of vCPUs.
    pub max: u32,
    /// Key `target`: the wanted use of each vCPU, as a part of one host CPU.
    pub target: f64,
    /// Key `step-up`: the maximum number of vCPUs that one request adds.
    pub step_up: u32,
    /// Key `step-down`: the maximum number of vCPUs that one request removes.
    pub step_down: u32,
    /// Key `weight`: the share of the machine if the host has too few CPUs for all machines.
    pub weight: u32,
    /// Key `hold`: how long the number of vCPUs that another caller set stays.
    pub hold: Duration,
    /// Key `up-window`: how long the load must be high before vCPUs are added.
    pub up_window: Duration,
    /// Key `down-window`: how long the load must be low before vCPUs are removed.
    pub down_window: Duration,
    /// The number of vCPUs of a slot, which are added and removed together. It is a property of the machine, and
    /// not a key.
    pub slot: u32,
}

impl Limits {
    /// Returns the defaults for a machine with `min` to `max` vCPUs.
    #[must_use]
    pub fn new(min: u32, max: u32) -> Self {
        Self {
            min,
            max,
            target: 0.85,
            step_up: 16,
            step_down: 16,
            weight: 100,
            hold: Duration::from_secs(5 * 60),
            up_window: Duration::from_secs(3),
            down_window: Duration::from_secs(45),
            slot: 1,
        }
    }

    /// Checks all settings.
    ///
    /// # Errors
    ///
    /// Returns the first key whose value is not allowed.
    pub fn check(&self) -> Result<(), LimitsError> {
        let seconds = |from, to| Duration::from_secs(from)..=Duration::from_secs(to);
        let rules = [
            (self.min >= 1, "min", "must be at least 1"),
            (self.max >= self.min, "max", "must be at least min"),
            (
                (0.1..=0.95).contains(&self.target),
                "target",
                "must be from 0.1 to 0.95",
            ),
            (self.step_up >= 1, "step-up", "must be at least 1"),
            (self.step_down >= 1, "step-down", "must be at least 1"),
            (
                (1..=10_000).contains(&self.weight),
                "weight",
                "must be from 1 to 10000",
            ),
            (
                seconds(0, 86_400).contains(&self.hold),
                "hold",
                "must be from 0 s to 24 h",
            ),
            (
                seconds(1, 60).contains(&self.up_window),
                "up-window",
                "must be from 1 s to 1 min",
            ),
            (
                seconds(10, 300).contains(&self.down_window),
                "down-window",
                "must be from 10 s to 5 min",
            ),
            (
                self.down_window >= self.up_window,
                "down-window",
                "must be at least up-window",
            ),
        ];
        match rules.into_iter().find(|(is_allowed, ..)| !is_allowed) {
            Some((_, key, rule)) => Err(LimitsError { key, rule }),
            None => Ok(()),
        }
    }
}

/// A setting whose value is not allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} {rule}")]
pub struct LimitsError {
    /// The key, such as `step-up`.
    pub key: &'static str,
    /// The allowed values, such as "must be at least 1".
    pub rule: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_allowed() {
        assert_eq!(Limits::new(1, 8).check(), Ok(()));
    }

    #[test]
    fn each_key_has_its_range() {
        type Change = fn(&mut Limits);
        let wrong: [(&str, Change); 12] = [
            ("min", |limits| limits.min = 0),
            ("max", |limits| limits.max = 1),
            ("target", |limits| limits.target = 0.05),
            ("target", |limits| limits.target = 1.0),
            ("target", |limits| limits.target = f64::NAN),
            ("step-up", |limits| limits.step_up = 0),
            ("step-down", |limits| limits.step_down = 0),
            ("weight", |limits| limits.weight = 0),
            ("hold", |limits| limits.hold = Duration::from_secs(86_401)),
            ("up-window", |limits| limits.up_window = Duration::ZERO),
            ("down-window", |limits| {
                limits.down_window = Duration::from_secs(301)
            }),
            ("down-window", |limits| {
                limits.up_window = Duration::from_secs(20);
                limits.down_window = Duration::from_secs(10);
            }),
        ];
        for (key, change) in wrong {
            let mut limits = Limits::new(2, 8);
            change(&mut limits);
            assert_eq!(limits.check().unwrap_err().key, key);
        }
    }

    #[test]
    fn the_error_says_what_is_allowed() {
        let error = Limits::new(4, 2).check().unwrap_err();
        assert_eq!(error.to_string(), "max must be at least min");
    }
}
