//! Statistics as callers get them.

use std::time::Duration;

use serde::{Serialize, Serializer};
use zbus::{Signature, Type, Variant};

use super::describe::Dict;
use super::error::Error;
use crate::machine::Handle;
use crate::statistics::{Activity, MachineCounters, Statistics, VcpuCounters};

/// The maximum number of rows in the reply of one call. A vCPU is one row, and a machine is as long as two.
const MAX_ROWS: usize = 1 << 16;

/// A dictionary of type `a{sv}` whose values are numbers. A key without a value is absent.
#[derive(Debug)]
pub(super) struct Numbers(Vec<(&'static str, Number)>);

#[derive(Clone, Copy, Debug)]
enum Number {
    U32(u32),
    U64(u64),
}

/// The dictionaries of a machine and of its vCPUs.
pub(super) type Rows = (Numbers, Vec<Numbers>);

impl Type for Numbers {
    const SIGNATURE: &'static Signature = Dict::SIGNATURE;
}

impl Serialize for Numbers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, number)| match number {
            Number::U32(number) => (key, Variant::from(*number)),
            Number::U64(number) => (key, Variant::from(*number)),
        }))
    }
}

/// Checks that the statistics of `machines` fit into one reply.
///
/// # Errors
/// Fails with `LimitExceeded`.
pub(super) fn check_size(machines: &[Handle]) -> Result<(), Error> {
    let vcpus = machines.iter().map(|machine| {
        let snapshot = machine.snapshot();
        snapshot.inventory.vcpu_count() as usize
    });
    let vcpus: usize = vcpus.sum();
    if 2 * machines.len() + vcpus <= MAX_ROWS {
        return Ok(());
    }
    let machines = machines.len();
    Err(Error::LimitExceeded(format!(
        "there are {machines} machines with {vcpus} vCPUs, and a reply has at most {MAX_ROWS} rows: two for each machine, and one for each vCPU; call GetStatistics of each machine"
    )))
}

/// Returns the dictionaries of `statistics`.
pub(super) fn rows(statistics: &Statistics) -> Rows {
    let vcpus = statistics.vcpus.iter().map(vcpu);
    (machine(&statistics.machine), vcpus.collect())
}

fn machine(counters: &MachineCounters) -> Numbers {
    let Activity {
        requests,
        failed_requests,
        request_time,
        added,
        removed,
        refused,
        connections,
        restored,
    } = counters.activity;
    let mut row = Numbers(Vec::with_capacity(15));
    row.add("timestamp-usec", Some(counters.timestamp));
    row.add("usage-usec", counters.usage.all);
    row.add("emulator-usage-usec", counters.usage.emulator);
    row.add("vcpus", Some(counters.vcpus));
    row.add("max-vcpus", Some(counters.max_vcpus));
    row.add("pending", Some(counters.pending));
    row.add("started", counters.started);
    row.add("requests", Some(requests));
    row.add("failed-requests", Some(failed_requests));
    row.add("request-usec", Some(request_time));
    row.add("added", Some(added));
    row.add("removed", Some(removed));
    row.add("refused", Some(refused));
    row.add("connections", Some(connections));
    row.add("restored", Some(restored));
    row
}

fn vcpu(counters: &VcpuCounters) -> Numbers {
    let VcpuCounters {
        id,
        wait,
        thread,
        kvm,
    } = counters;
    let throttling = thread.throttling;
    let mut row = Numbers(Vec::with_capacity(10));
    row.add("id", Some(id.get()));
    row.add("usage-usec", thread.times.map(|times| times.usage));
    row.add("wait-usec", *wait);
    row.add(
        "throttled-usec",
        throttling.map(|throttling| throttling.time),
    );
    row.add("periods", throttling.map(|throttling| throttling.periods));
    let throttled = throttling.map(|throttling| throttling.throttled_periods);
    row.add("throttled-periods", throttled);
    row.add("host-cpu", thread.host_cpu);
    row.add("exits", kvm.exits);
    row.add("halt-exits", kvm.halt_exits);
    row.add("halt-wait-usec", kvm.halt_wait_ns.map(Duration::from_nanos));
    row
}

impl Numbers {
    fn add(&mut self, key: &'static str, value: Option<impl Into<Number>>) {
        self.0.extend(value.map(|value| (key, value.into())));
    }
}

impl From<u32> for Number {
    fn from(number: u32) -> Self {
        Self::U32(number)
    }
}

impl From<u64> for Number {
    fn from(number: u64) -> Self {
        Self::U64(number)
    }
}

impl From<Duration> for Number {
    /// Returns the time in µs.
    fn from(time: Duration) -> Self {
        Self::U64(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use zbus::wire::serialized::Context;
    use zbus::wire::{LE, to_bytes};

    use super::*;
    use crate::names::MachineName;
    use crate::statistics::{KvmCounters, ThreadCounters, Throttling, Times, Usage};

    #[test]
    fn the_longest_reply_has_less_than_30_mib() {
        let times = Times::default();
        let full = VcpuCounters {
            wait: Some(Duration::MAX),
            thread: ThreadCounters {
                times: Some(times),
                host_cpu: Some(7),
                throttling: Some(Throttling::default()),
                ..ThreadCounters::default()
            },
            kvm: KvmCounters {
                exits: Some(1),
                halt_exits: Some(2),
                halt_wait_ns: Some(u64::MAX),
            },
            ..VcpuCounters::default()
        };
        let context = Context::new(LE, 0);
        let bytes = to_bytes(context, &vcpu(&full)).unwrap().len();
        assert!((bytes + 8) * MAX_ROWS < 30 << 20, "{bytes}");

        let usage = Some(Duration::MAX);
        let counters = MachineCounters {
            usage: Usage {
                all: usage,
                emulator: usage,
            },
            ..MachineCounters::default()
        };
        let name: MachineName = "-".repeat(64).replacen('-', "1", 1).parse().unwrap();
        let bytes = to_bytes(context, &(name.object_path(), machine(&counters)));
        let bytes = bytes.unwrap().len();
        assert!((bytes + 16) * MAX_ROWS / 2 < 30 << 20, "{bytes}");
    }
}
