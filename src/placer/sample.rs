//! The counters of a machine, as the kernel has them now.
//!
//! Those of a thread are in `/proc`: they go on when the thread moves to another control group. Control groups
//! have the rest: the throttling of a vCPU, and the CPU time of the threads that have ended.

use std::collections::BTreeMap;

use super::cgroup::{GroupReader, Mounts};
use super::observe::memberships;
use crate::ids::{Tid, VcpuId};
use crate::process::{Task, Tasks, cpu_time, monotonic};
use crate::statistics::{Sample, ThreadCounters, last_cpu, thread_times};

/// Returns the counters of the process `leader` and its `threads`, on a host with these `mounts`. A thread that
/// has ended, or is not one of the process, has none. Blocks.
pub fn sample(leader: &dyn Tasks, threads: &BTreeMap<VcpuId, Tid>, mounts: &Mounts) -> Sample {
    let timestamp = monotonic();
    let main = memberships(leader).unwrap_or_default();
    let mut groups = GroupReader::new(mounts, &main);
    let tasks = leader.open_tasks().ok();
    let hold = |thread| tasks.as_ref()?.hold(thread);
    let counters = threads.iter().filter_map(|(vcpu, thread)| {
        let task = hold(*thread)?;
        Some((*vcpu, of_thread(*thread, &task, &mut groups)))
    });
    let threads = counters.collect();
    Sample {
        pid: leader.pid(),
        timestamp,
        process: cpu_time(leader).ok(),
        groups: groups.usage(&main),
        threads,
    }
}

fn of_thread(id: Tid, task: &Task, groups: &mut GroupReader<'_>) -> ThreadCounters {
    let read = |file| task.read(file).ok();
    // Before the times: the kernel counts a thread as throttled first.
    let cgroup = groups.has_vcpus.then(|| read("cgroup")).flatten();
    let throttling = cgroup.and_then(|text| groups.throttling(&text));
    ThreadCounters {
        id,
        throttling,
        times: read("schedstat").as_deref().and_then(thread_times),
        host_cpu: read("stat").as_deref().and_then(last_cpu),
    }
}
