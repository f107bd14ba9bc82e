//! The turns of machines to be reviewed: compared with their QEMU and with the kernel.
//!
//! One timer serves all machines, so that the cost does not grow with their number.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::names::MachineName;

/// The time between two reviews of one machine, if there are few.
const INTERVAL: Duration = Duration::from_secs(5);
/// The shortest time between two reviews.
const PAUSE: Duration = Duration::from_millis(100);

/// The turns of all machines.
#[derive(Debug)]
pub(super) struct Reviews {
    /// The machine whose turn was last.
    last: Option<MachineName>,
    at: Instant,
}

impl Default for Reviews {
    fn default() -> Self {
        Self {
            last: None,
            at: Instant::now(),
        }
    }
}

impl Reviews {
    /// Waits for the next turn among `count` machines. Waits forever if `count` is 0. Nothing is lost if
    /// the call is cancelled.
    pub(super) async fn due(&self, count: usize) {
        match pause(count) {
            Some(pause) => sleep_until(self.at + pause).await,
            None => std::future::pending().await,
        }
    }

    /// Returns the machine of `machines` whose turn it is.
    pub(super) fn turn<'a, M>(&mut self, machines: &'a BTreeMap<MachineName, M>) -> Option<&'a M> {
        let after = self.last.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let mut others = machines.range::<MachineName, _>((after, Bound::Unbounded));
        let next = others.next().or_else(|| machines.first_key_value());
        self.at = Instant::now();
        let (name, machine) = next?;
        self.last = Some(name.clone());
        Some(machine)
    }
}

/// Returns the time between two turns among `count` machines; `None` if `count` is 0.
fn pause(count: usize) -> Option<Duration> {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    Some(INTERVAL.checked_div(count)?.max(PAUSE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_machine_has_its_turn() {
        let names = ["a", "b", "c"].map(|name| name.parse::<MachineName>().unwrap());
        let mut machines: BTreeMap<_, _> = names.iter().cloned().zip(0..).collect();
        let mut reviews = Reviews::default();
        let turns: Vec<_> = (0..4).map(|_| *reviews.turn(&machines).unwrap()).collect();
        assert_eq!(turns, [0, 1, 2, 0]);
        machines.remove(&names[1]);
        assert_eq!(reviews.turn(&machines), Some(&2), "the next one has gone");
        machines.clear();
        assert_eq!(reviews.turn(&machines), None);
    }

    #[test]
    fn the_number_of_turns_in_a_second_is_limited() {
        assert_eq!(pause(0), None);
        assert_eq!(pause(1), Some(INTERVAL));
        assert_eq!(pause(10), Some(INTERVAL / 10));
        assert_eq!(pause(10_000), Some(PAUSE));
    }
}
