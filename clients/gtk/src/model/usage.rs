//! Owns the use of host CPUs over the last minute, from the counters of `GetStatistics`. It must not read a clock: the
//! service gives each sample a time.

use std::collections::{HashMap, VecDeque};

use super::dict::{Dict, get};

/// The number of points of a sparkline.
pub(crate) const POINTS: usize = 60;

/// The use of each vCPU, as parts of one host CPU.
#[derive(Default)]
pub(crate) struct Usage {
    /// The time and the counters of the last sample, in microseconds.
    last: Option<(u64, HashMap<u32, u64>)>,
    points: HashMap<u32, VecDeque<f64>>,
}

impl Usage {
    /// Adds a sample. vCPUs that are not in it lose their points, and so do all of a sample without a time, which has
    /// failed.
    pub(crate) fn add(&mut self, machine: &Dict, vcpus: &[Dict]) {
        let Some(time) = get::<u64>(machine, "timestamp-usec") else {
            return self.pause();
        };
        let counter = |row: &Dict| Some((get(row, "id")?, get(row, "usage-usec")?));
        let counters: HashMap<u32, u64> = vcpus.iter().filter_map(counter).collect();
        self.points.retain(|id, _| counters.contains_key(id));
        if let Some((before, old)) = &self.last
            && time > *before
        {
            let duration = (time - before) as f64;
            for (id, now) in &counters {
                // A new thread begins at 0.
                let Some(used) = old.get(id).and_then(|old| now.checked_sub(*old)) else {
                    continue;
                };
                let points = self.points.entry(*id).or_default();
                points.push_back((used as f64 / duration).clamp(0.0, 1.0));
                if points.len() > POINTS {
                    points.pop_front();
                }
            }
        }
        self.last = Some((time, counters));
    }

    /// Forgets the last counters and all points: points before and after a pause are not those of one minute.
    pub(crate) fn pause(&mut self) {
        self.last = None;
        self.points.clear();
    }

    /// Returns the points of a vCPU, the oldest first.
    pub(crate) fn points(&self, id: u32) -> Vec<f64> {
        self.points
            .get(&id)
            .map(|points| points.iter().copied().collect())
            .unwrap_or_default()
    }

    /// Returns the last use of a vCPU.
    pub(crate) fn of(&self, id: u32) -> Option<f64> {
        self.points.get(&id)?.back().copied()
    }

    /// Returns the last use of all vCPUs, as a number of host CPUs.
    pub(crate) fn total(&self) -> Option<f64> {
        let last: Vec<f64> = self
            .points
            .values()
            .filter_map(|points| points.back().copied())
            .collect();
        (!last.is_empty()).then(|| last.iter().sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::dict::dict;

    fn sample(usage: &mut Usage, time: u64, counters: &[(u32, u64)]) {
        let machine = dict([("timestamp-usec", time.into())]);
        let row =
            |(id, used): &(u32, u64)| dict([("id", (*id).into()), ("usage-usec", (*used).into())]);
        let rows: Vec<Dict> = counters.iter().map(row).collect();
        usage.add(&machine, &rows);
    }

    #[test]
    fn use_is_the_difference_of_two_samples() {
        let mut usage = Usage::default();
        sample(&mut usage, 1_000_000, &[(0, 0), (1, 500)]);
        assert_eq!((usage.of(0), usage.total()), (None, None));
        sample(&mut usage, 2_000_000, &[(0, 250_000), (1, 500)]);
        assert_eq!(
            (usage.of(0), usage.of(1), usage.total()),
            (Some(0.25), Some(0.0), Some(0.25))
        );
    }

    #[test]
    fn a_vcpu_that_comes_again_begins_again() {
        let mut usage = Usage::default();
        sample(&mut usage, 1, &[(1, 900)]);
        sample(&mut usage, 1_001, &[(1, 1_400)]);
        sample(&mut usage, 2_001, &[]);
        assert_eq!(usage.points(1), Vec::<f64>::new());
        sample(&mut usage, 3_001, &[(1, 100)]);
        sample(&mut usage, 4_001, &[(1, 200)]);
        assert_eq!(usage.points(1), vec![0.1]);
    }

    #[test]
    fn a_pause_is_not_a_point_and_points_are_limited() {
        let mut usage = Usage::default();
        sample(&mut usage, 0, &[(0, 0)]);
        usage.pause();
        sample(&mut usage, 9_000_000, &[(0, 9)]);
        assert_eq!(usage.of(0), None);
        for second in 10..100_u64 {
            sample(&mut usage, second * 1_000_000, &[(0, 9)]);
        }
        assert_eq!(usage.points(0).len(), POINTS);
        usage.pause();
        assert_eq!((usage.of(0), usage.total()), (None, None));
    }

    #[test]
    fn a_failed_sample_ends_the_use() {
        let mut usage = Usage::default();
        sample(&mut usage, 1_000_000, &[(0, 0)]);
        sample(&mut usage, 2_000_000, &[(0, 500_000)]);
        usage.add(&Dict::new(), &[]);
        assert_eq!((usage.of(0), usage.total()), (None, None));
        sample(&mut usage, 9_000_000, &[(0, 900_000)]);
        assert_eq!(usage.of(0), None, "the time without samples is not a point");
    }
}
