//! The turns of machines to be reviewed: compared with their QEMU and with the kernel.
//!
//! One timer serves all machines, so that the cost does not grow with their number. The turns follow each other
//! faster after the CPUs of the host changed, until each machine had one.

use std::collections::BTreeMap;
use std::future::pending;
use std::ops::Bound;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

use crate::names::MachineName;
use crate::placer::CpuEvents;

/// The time between two reviews of one machine, if there are few.
const INTERVAL: Duration = Duration::from_secs(5);
/// The shortest time between two reviews. A review takes about 2 ms, so an idle service uses 0.4 % of a CPU.
const PAUSE: Duration = Duration::from_millis(500);
/// The time between two reviews after the CPUs of the host changed.
const URGENT_PAUSE: Duration = Duration::from_millis(10);

/// The turns of all machines.
#[derive(Debug)]
pub(super) struct Reviews {
    /// The machine whose turn was last.
    last: Option<MachineName>,
    at: Instant,
    /// The number of turns that are urgent.
    urgent: usize,
    /// The changes of the CPUs of the host, if the kernel reports them.
    cpus: Option<CpuEvents>,
}

impl Reviews {
    /// Returns the first turns. Changes of the CPUs of the host are noticed from now on.
    pub(super) fn new() -> Self {
        let cpus = CpuEvents::open().inspect_err(|error| {
            warn!(%error, "CPUs of the host that go offline and come back are only noticed from time to time: {error}");
        });
        Self::with(cpus.ok())
    }

    fn with(cpus: Option<CpuEvents>) -> Self {
        Self {
            last: None,
            at: Instant::now(),
            urgent: 0,
            cpus,
        }
    }

    /// Waits for the next turn among `count` machines. Waits forever if `count` is 0. Nothing is lost if
    /// the call is cancelled.
    pub(super) async fn due(&mut self, count: usize) {
        loop {
            let pause = pause(count, self.urgent > 0);
            let at = pause.map(|pause| self.at + pause);
            tokio::select! {
                () = sleep_until(at.unwrap_or(self.at)), if at.is_some() => return,
                () = changed(&mut self.cpus) => {
                    debug!("the kernel reports changes of host CPUs");
                    self.urgent = count;
                }
            }
        }
    }

    /// Returns the machine of `machines` whose turn it is.
    pub(super) fn turn<'a, M>(&mut self, machines: &'a BTreeMap<MachineName, M>) -> Option<&'a M> {
        let after = self.last.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let mut others = machines.range::<MachineName, _>((after, Bound::Unbounded));
        let next = others.next().or_else(|| machines.first_key_value());
        self.at = Instant::now();
        self.urgent = self.urgent.saturating_sub(1);
        let (name, machine) = next?;
        self.last = Some(name.clone());
        Some(machine)
    }
}

/// Waits until the CPUs of the host changed.
async fn changed(cpus: &mut Option<CpuEvents>) {
    if let Some(events) = cpus {
        match events.changed().await {
            Ok(()) => return,
            Err(error) => {
                warn!(%error, "changes of the CPUs of the host are not reported any more: {error}");
                *cpus = None;
            }
        }
    }
    pending().await
}

/// Returns the time between two turns among `count` machines; `None` if `count` is 0.
fn pause(count: usize, is_urgent: bool) -> Option<Duration> {
    let (interval, shortest) = if is_urgent {
        (Duration::ZERO, URGENT_PAUSE)
    } else {
        (INTERVAL, PAUSE)
    };
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    Some(interval.checked_div(count)?.max(shortest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placer::request_event;

    #[test]
    fn each_machine_has_its_turn() {
        let names = ["a", "b", "c"].map(|name| name.parse::<MachineName>().unwrap());
        let mut machines: BTreeMap<_, _> = names.iter().cloned().zip(0..).collect();
        let mut reviews = Reviews::with(None);
        let turns: Vec<_> = (0..4).map(|_| *reviews.turn(&machines).unwrap()).collect();
        assert_eq!(turns, [0, 1, 2, 0]);
        machines.remove(&names[1]);
        assert_eq!(reviews.turn(&machines), Some(&2), "the next one has gone");
        machines.clear();
        assert_eq!(reviews.turn(&machines), None);
    }

    /// Uses the real kernel, see the tests of [`CpuEvents`].
    #[tokio::test]
    async fn all_turns_are_urgent_after_the_host_cpus_changed() {
        let mut reviews = Reviews::new();
        if !request_event("system/cpu/cpu0") {
            return;
        }
        reviews.due(2).await;
        assert_eq!(reviews.urgent, 2);
        let machines = BTreeMap::from(["a", "b"].map(|name| (name.parse().unwrap(), ())));
        for left in [1, 0, 0] {
            reviews.turn(&machines);
            assert_eq!(reviews.urgent, left);
        }
    }

    #[test]
    fn the_number_of_turns_in_a_second_is_limited() {
        assert_eq!(pause(0, false), None);
        assert_eq!(pause(0, true), None);
        assert_eq!(pause(1, false), Some(INTERVAL));
        assert_eq!(pause(10, false), Some(INTERVAL / 10));
        assert_eq!(pause(10_000, false), Some(PAUSE));
        assert_eq!(pause(10_000, true), Some(URGENT_PAUSE));
    }
}
