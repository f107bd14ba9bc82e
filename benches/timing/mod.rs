//! Durations of repeated measurements, and reports of them.

mod host;
pub(crate) mod report;

use std::array;
use std::env;
use std::time::{Duration, Instant};

pub(crate) use report::Report;

/// Returns whether the environment variable `VCPUD_BENCH_BRIEF` exists: the gate only checks that the benchmarks work.
pub(crate) fn is_brief() -> bool {
    env::var_os("VCPUD_BENCH_BRIEF").is_some()
}

/// Returns `usual`, or `brief` in a brief run.
pub(crate) fn unless_brief<T>(usual: T, brief: T) -> T {
    if is_brief() { brief } else { usual }
}

/// The durations of one measurement.
#[derive(Debug, Default)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    /// Adds the duration of `what`, and returns its result.
    pub(crate) async fn take<T>(&mut self, what: impl Future<Output = T>) -> T {
        let (result, time) = timed(what).await;
        self.0.push(time);
        result
    }

    /// Returns a percentile in ms (nearest rank).
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        let mut times = self.0.clone();
        times.sort_unstable();
        let last = times.len() - 1;
        times[(last * percent + 50) / 100].as_secs_f64() * 1e3
    }

    /// Returns the median in ms.
    pub(crate) fn median(&self) -> f64 {
        self.percentile(50)
    }

    /// Returns the number of durations.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

/// Returns the result of `what`, and its duration.
pub(crate) async fn timed<T>(what: impl Future<Output = T>) -> (T, Duration) {
    let start = Instant::now();
    let result = what.await;
    (result, start.elapsed())
}

/// Measures `WAYS` ways to do the same work `rounds` times, in a new random order in each round. A first round is not
/// counted. `measure` gets the number of the way, and returns the durations of the `PARTS` of the work.
///
/// Returns the durations of each way for each part.
pub(crate) async fn compare<const PARTS: usize, const WAYS: usize>(
    rounds: usize,
    mut measure: impl AsyncFnMut(usize) -> [Duration; PARTS],
) -> [[Times; WAYS]; PARTS] {
    let mut parts = array::from_fn(|_| array::from_fn(|_| Times::default()));
    for round in 0..=rounds {
        let mut order: [usize; WAYS] = array::from_fn(|way| way);
        fastrand::shuffle(&mut order);
        for way in order {
            let times = measure(way).await;
            if round == 0 {
                continue;
            }
            for (part, time) in parts.iter_mut().zip(times) {
                let part: &mut [Times; WAYS] = part;
                part[way].0.push(time);
            }
        }
    }
    parts
}

/// Returns the exponent of the power of `x` that fits the `points` of `x` and `y` best: 1 for costs in proportion to
/// `x`. It is the slope of the line of least squares through the logarithms.
pub(crate) fn exponent(points: &[(f64, f64)]) -> f64 {
    let logs: Vec<(f64, f64)> = points.iter().map(|(x, y)| (x.ln(), y.ln())).collect();
    let count = logs.len() as f64;
    let mean_x = logs.iter().map(|(x, _)| x).sum::<f64>() / count;
    let mean_y = logs.iter().map(|(_, y)| y).sum::<f64>() / count;
    let products = logs.iter().map(|(x, y)| (x - mean_x) * (y - mean_y));
    let squares = logs.iter().map(|(x, _)| (x - mean_x).powi(2));
    products.sum::<f64>() / squares.sum::<f64>()
}
