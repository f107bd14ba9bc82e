//! Owns the limit of the CPU time of vCPUs, as users see it. It must not know D-Bus.

/// The desired limit of each vCPU, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bandwidth {
    pub(crate) period: u64,
    /// -1 without a limit.
    pub(crate) quota: i64,
}

/// The period that is set if the machine has none that fits, in microseconds.
const DEFAULT_PERIOD: u64 = 100_000;

impl Bandwidth {
    /// Returns the limit in percent of one host CPU, or `None` without a limit.
    pub(crate) fn percent(self) -> Option<f64> {
        (self.quota > 0 && self.period > 0).then(|| self.quota as f64 * 100.0 / self.period as f64)
    }

    /// Returns the limit that has `percent` of one host CPU, or no limit without one. The period stays.
    pub(crate) fn with_percent(self, percent: Option<f64>) -> Self {
        let period = match self.period {
            1_000..=1_000_000 => self.period,
            _ => DEFAULT_PERIOD,
        };
        let quota = percent.map_or(-1, |percent| {
            (percent * period as f64 / 100.0).round() as i64
        });
        // The kernel accepts no quota below 1 ms.
        if quota != -1 && quota < 1_000 {
            let period = DEFAULT_PERIOD;
            let quota = percent.unwrap_or(0.0) * period as f64 / 100.0;
            return Self {
                period,
                quota: (quota.round() as i64).max(1_000),
            };
        }
        Self { period, quota }
    }

    /// Returns the text for users.
    pub(crate) fn text(self) -> String {
        match self.percent() {
            None => "No limit".to_owned(),
            Some(percent) => format!("Each vCPU has at most {percent:.0} % of a host CPU"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percents_become_a_quota() {
        let none = Bandwidth {
            period: 100_000,
            quota: -1,
        };
        assert_eq!((none.percent(), none.text().as_str()), (None, "No limit"));
        let half = none.with_percent(Some(50.0));
        assert_eq!(
            half,
            Bandwidth {
                period: 100_000,
                quota: 50_000
            }
        );
        assert_eq!(half.text(), "Each vCPU has at most 50 % of a host CPU");
        assert_eq!(half.with_percent(None), none);
    }

    #[test]
    fn a_quota_is_never_below_the_minimum_of_the_kernel() {
        let short = Bandwidth {
            period: 1_000,
            quota: -1,
        };
        assert_eq!(
            short.with_percent(Some(5.0)),
            Bandwidth {
                period: 100_000,
                quota: 5_000
            }
        );
        let unknown = Bandwidth {
            period: 0,
            quota: -1,
        };
        assert_eq!(
            unknown.with_percent(Some(1.0)),
            Bandwidth {
                period: 100_000,
                quota: 1_000
            }
        );
    }
}
