//! Durations of repeated measurements, and their comparison.

use std::env;
use std::time::{Duration, Instant};

/// Returns `usual`, or `brief` if the environment variable `VCPUD_BENCH_BRIEF` exists: the gate only checks that the
/// benchmarks work.
pub(crate) fn unless_brief<T>(usual: T, brief: T) -> T {
    let is_brief = env::var_os("VCPUD_BENCH_BRIEF").is_some();
    if is_brief { brief } else { usual }
}

/// The durations of one measurement.
#[derive(Debug, Default)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    /// Measures the duration of `what`.
    pub(crate) async fn take<T>(&mut self, what: impl Future<Output = T>) -> T {
        let start = Instant::now();
        let result = what.await;
        self.0.push(start.elapsed());
        result
    }

    /// Returns a percentile.
    fn percentile(&self, percent: usize) -> Duration {
        let mut times = self.0.clone();
        times.sort_unstable();
        times[(times.len() - 1) * percent / 100]
    }

    fn columns(&self) -> String {
        let [median, most] = [50, 95].map(|percent| self.percentile(percent).as_secs_f64() * 1e3);
        format!("{median:10.2} {most:10.2}")
    }

    /// Returns the median and the 95th percentile, and the ratio of the median to that of `quiet`.
    pub(crate) fn against(&self, quiet: &Self) -> String {
        let [own, quiet_own] = [self, quiet].map(|times| times.percentile(50).as_secs_f64());
        let most = self.percentile(95).as_secs_f64() * 1e3;
        let multiple = own / quiet_own;
        format!("{:7.2} {most:7.2} {multiple:4.1}x", own * 1e3)
    }

    /// Returns a line with these and the `other` durations, and their ratio.
    pub(crate) fn beside(&self, name: &str, other: &Self) -> String {
        let median = |times: &Self| times.percentile(50).as_secs_f64();
        let ratio = median(other) / median(self);
        let (own, other) = (self.columns(), other.columns());
        format!("{name:<28} {own} {other} {ratio:8.2}")
    }
}

/// Returns the heading of these lines: the two `names`, each above a median and a 95th percentile in ms.
pub(crate) fn heading(names: &[&str; 2]) -> String {
    let [one, other] = names;
    let units = "median   95% ms";
    format!(
        "{:<28} {one:>21} {other:>21} {:>8}\n{:<28} {units:>21} {units:>21}",
        "", "ratio", ""
    )
}
