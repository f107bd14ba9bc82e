//! The limit of the CPU time of a vCPU.

use std::fmt;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

/// A limit of CPU time: a vCPU may run for `quota` in each `period`, both in microseconds (the kernel's
/// `sched-bwc.rst`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Wire", into = "Wire")]
pub struct Bandwidth {
    period: u64,
    quota: Option<u64>,
}

/// The form in files. The quota -1 means no limit.
#[derive(Serialize, Deserialize)]
struct Wire {
    period: u64,
    quota: i64,
}

/// The reason why two numbers are not a [`Bandwidth`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BandwidthError {
    /// The period is out of range.
    #[error("a period of {0} µs is not between {min} and {max} µs", min = Bandwidth::PERIODS.start(), max = Bandwidth::PERIODS.end())]
    Period(u64),
    /// The quota is out of range.
    #[error("a quota of {0} µs is neither -1 (no limit) nor between {min} and {max} µs", min = Bandwidth::QUOTAS.start(), max = Bandwidth::QUOTAS.end())]
    Quota(i64),
}

/// One write to the two files of cgroup v1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// To `cpu.cfs_period_us`.
    Period,
    /// To `cpu.cfs_quota_us`.
    Quota,
}

impl Bandwidth {
    /// The periods that the kernel accepts, in microseconds.
    pub const PERIODS: RangeInclusive<u64> = 1_000..=1_000_000;
    /// The quotas that the kernel accepts, in microseconds.
    pub const QUOTAS: RangeInclusive<u64> = 1_000..=17_592_186_044_415;
    /// No limit, with the kernel's default period. A new group has this.
    pub const UNLIMITED: Self = Self {
        period: 100_000,
        quota: None,
    };

    /// Returns the limit of `quota` in each `period`, both in microseconds. The quota -1 means no limit.
    ///
    /// # Errors
    ///
    /// Fails if the kernel does not accept one of them.
    pub fn new(period: u64, quota: i64) -> Result<Self, BandwidthError> {
        if !Self::PERIODS.contains(&period) {
            return Err(BandwidthError::Period(period));
        }
        let limited = u64::try_from(quota)
            .ok()
            .filter(|q| Self::QUOTAS.contains(q));
        match (quota, limited) {
            (-1, _) => Ok(Self {
                period,
                quota: None,
            }),
            (_, Some(_)) => Ok(Self {
                period,
                quota: limited,
            }),
            _ => Err(BandwidthError::Quota(quota)),
        }
    }

    /// Returns the period in microseconds.
    pub fn period(self) -> u64 {
        self.period
    }

    /// Returns the quota in microseconds. `None`: no limit.
    pub fn quota(self) -> Option<u64> {
        self.quota
    }

    /// Returns the quota in microseconds; -1 means no limit.
    pub fn signed_quota(self) -> i64 {
        // The greatest quota has 44 bits.
        self.quota.map_or(-1, |quota| quota as i64)
    }

    /// Returns whether this allows a greater share of a CPU than `other`.
    pub fn is_looser_than(self, other: Self) -> bool {
        match (self.quota, other.quota) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(own), Some(others)) => {
                let product = |quota: u64, period: u64| u128::from(quota) * u128::from(period);
                product(own, other.period) > product(others, self.period)
            }
        }
    }

    /// Returns the order of the two writes that change cgroup v1 from this to `next`. The kernel checks each
    /// write against the groups above, so the value between them must not exceed both this and `next`.
    pub fn order_to(self, next: Self) -> [Change; 2] {
        let grows = next.period >= self.period;
        match (self.quota, next.quota) {
            (_, None) => [Change::Quota, Change::Period],
            (None, _) => [Change::Period, Change::Quota],
            _ if grows => [Change::Period, Change::Quota],
            _ => [Change::Quota, Change::Period],
        }
    }
}

impl fmt::Display for Bandwidth {
    /// Writes the text of `cpu.max` of cgroup v2: `QUOTA PERIOD` or `max PERIOD`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.quota {
            Some(quota) => write!(f, "{quota} {}", self.period),
            None => write!(f, "max {}", self.period),
        }
    }
}

impl TryFrom<Wire> for Bandwidth {
    type Error = BandwidthError;

    fn try_from(wire: Wire) -> Result<Self, BandwidthError> {
        Self::new(wire.period, wire.quota)
    }
}

impl From<Bandwidth> for Wire {
    fn from(bandwidth: Bandwidth) -> Self {
        Self {
            period: bandwidth.period,
            quota: bandwidth.signed_quota(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn accepts_the_ranges_of_the_kernel() {
        for (period, quota) in [
            (1_000, 1_000),
            (1_000_000, 17_592_186_044_415),
            (100_000, -1),
        ] {
            let bandwidth = Bandwidth::new(period, quota).unwrap();
            assert_eq!(
                (bandwidth.period(), bandwidth.signed_quota()),
                (period, quota)
            );
        }
        for period in [0, 999, 1_000_001, u64::MAX] {
            let error = Bandwidth::new(period, -1).unwrap_err();
            assert_eq!(error, BandwidthError::Period(period));
        }
        for quota in [0, 999, -2, i64::MIN, 17_592_186_044_416, i64::MAX] {
            let error = Bandwidth::new(1_000, quota).unwrap_err();
            assert_eq!(error, BandwidthError::Quota(quota));
        }
        assert!(serde_json::from_str::<Bandwidth>(r#"{"period":1,"quota":-1}"#).is_err());
    }

    fn any() -> impl Strategy<Value = Bandwidth> {
        let quota = prop_oneof![Just(-1), 1_000..5_000_000_i64];
        (Bandwidth::PERIODS, quota).prop_map(|(p, q)| Bandwidth::new(p, q).unwrap())
    }

    /// Returns the share of a CPU; infinite without a limit.
    fn share(bandwidth: Bandwidth) -> f64 {
        let quota = bandwidth.quota().map_or(f64::INFINITY, |q| q as f64);
        quota / bandwidth.period() as f64
    }

    proptest! {
        #[test]
        fn the_value_between_two_writes_does_not_exceed_both(old in any(), new in any()) {
            let [first, second] = old.order_to(new);
            prop_assert_ne!(first, second);
            let between = match first {
                Change::Period => Bandwidth { period: new.period, ..old },
                Change::Quota => Bandwidth { quota: new.quota, ..old },
            };
            prop_assert!(share(between) <= share(old).max(share(new)));
            let json = serde_json::to_string(&new).unwrap();
            prop_assert_eq!(serde_json::from_str::<Bandwidth>(&json).unwrap(), new);
        }
    }
}
