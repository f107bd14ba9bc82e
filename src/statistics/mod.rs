//! Counters of a machine and its vCPUs: from the texts of the kernel and the replies of QEMU to the values
//! that callers get. Pure.
//!
//! A counter never decreases while the thread, or the control group, that it counts for is the same.

mod activity;
mod counters;
mod kernel;
mod kvm;

pub use activity::Activity;
pub use counters::{
    MachineCounters, Reported, Sample, Statistics, ThreadCounters, Usage, VcpuCounters,
};
pub use kernel::{
    Throttling, Times, group_usage, group_usage_v1, last_cpu, thread_times, throttling,
};
pub use kvm::{KvmCounters, VcpuKvm, by_vcpu};
pub(crate) use kvm::{KvmReply, exits_query, kvm_query};
