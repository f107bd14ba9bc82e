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

    /// Returns the percent for a field of whole numbers from 1 to 100, which is 100 without a limit.
    pub(crate) fn whole_percent(self) -> u32 {
        self.percent()
            .map_or(100, |percent| percent.round().clamp(1.0, 100.0) as u32)
    }

    /// Returns the limit with a value of that field, or without one, or `None` if the user has changed nothing.
    pub(crate) fn changed(self, percent: Option<u32>) -> Option<Self> {
        let shown = self.percent().map(|_| self.whole_percent());
        (percent != shown).then(|| self.with_percent(percent.map(f64::from)))
    }

    /// Returns the text for users.
    pub(crate) fn text(self) -> String {
        match self.percent() {
            None => "No limit".to_owned(),
            Some(percent) => {
                // The kernel accepts no limit below 0.1 %.
                let percent = (percent * 10.0).round().max(1.0) / 10.0;
                format!("Each vCPU has at most {percent} % of a host CPU")
            }
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
    fn a_limit_that_the_user_does_not_change_stays() {
        let limit = |quota| Bandwidth {
            period: 1_000_000,
            quota,
        };
        let shown = [(123_000, 12), (1_000, 1), (2_500_000, 100)];
        for (quota, percent) in shown {
            assert_eq!(limit(quota).whole_percent(), percent);
            assert_eq!(limit(quota).changed(Some(percent)), None, "{quota}");
            assert_eq!(limit(quota).changed(None), Some(limit(-1)), "{quota}");
        }
        assert_eq!(limit(-1).changed(None), None);
        assert_eq!(limit(-1).changed(Some(100)), Some(limit(1_000_000)));
        assert_eq!(limit(123_000).changed(Some(13)), Some(limit(130_000)));
        let texts = [123_000, 1_000, 2_500_000].map(|quota| limit(quota).text());
        let of = |percent: &str| format!("Each vCPU has at most {percent} % of a host CPU");
        assert_eq!(texts, ["12.3", "0.1", "250"].map(of));
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
