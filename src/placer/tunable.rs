//! The attributes of a vCPU that a pass brings to their wanted values, one type for each.
//!
//! Some belong to the vCPU's control group, the others to its thread. Host caches do not fit: they are
//! shared by several vCPUs, and the kernel rounds the values (see [`super::resctrl`]).

use std::io;
use std::marker::PhantomData;

use super::affinity::{affinity, set_affinity};
use super::cgroup::{CpusetFile, Groups};
use super::scheduler::{Scheduling, scheduling, set_scheduler};
use crate::ids::{Tid, VcpuId};
use crate::placement::{
    Bandwidth, Cpu, CpuList, List, Node, NodeList, Reason, Scheduler, Schemata, Step, StepError,
};
use crate::process::{Task, Tasks};

/// An attribute of a vCPU with one value.
pub(super) trait Tunable {
    /// The type of the value.
    type Value: PartialEq;
    /// The step of a pass that writes it.
    const STEP: Step;

    /// Returns the value that the kernel has.
    fn read(&self) -> Result<Self::Value, StepError>;

    /// Writes `value`.
    fn write(&self, value: &Self::Value) -> Result<(), StepError>;

    /// Returns the place of the value in `applied`.
    fn in_force(applied: &mut AppliedVcpu) -> &mut Option<Self::Value>;

    /// Returns the thread that [`Tunable::write`] changes. `None`: it changes a control group.
    fn thread(&self) -> Option<VcpuThread<'_>> {
        None
    }

    /// Restores `before` after the thread ended while `written` was written, because another thread may
    /// have its number now.
    fn restore(&self, before: &Self::Value, written: &Self::Value) {
        if self.read().is_ok_and(|value| value == *written) {
            let _ = self.write(before);
        }
    }
}

/// The values that the last pass put in force for one vCPU. `None`: no pass did, or the last one failed.
#[derive(Debug, Default)]
pub(super) struct AppliedVcpu {
    pub(super) thread: Tid,
    /// Whether the thread is in the vCPU's group.
    membership: Option<bool>,
    cpus: Option<CpuList>,
    nodes: Option<NodeList>,
    bandwidth: Option<Bandwidth>,
    pub(super) affinity: Option<CpuList>,
    pub(super) scheduler: Option<Scheduling>,
    pub(super) cache: Option<Schemata>,
    /// The scheduler that the thread had before the first one was written.
    pub(super) own_scheduler: Option<Scheduler>,
}

impl AppliedVcpu {
    /// Returns the state of `thread` before its first pass.
    pub(super) fn new(thread: Tid) -> Self {
        Self {
            thread,
            ..Self::default()
        }
    }

    /// Resets all values except the scheduler that the thread had.
    pub(super) fn reset(&mut self) {
        *self = Self {
            own_scheduler: self.own_scheduler,
            ..Self::new(self.thread)
        };
    }

    /// Returns whether the thread is in the vCPU's group.
    pub(super) fn is_in_group(&self) -> bool {
        self.membership == Some(true)
    }
}

/// The thread of a vCPU, which the kernel's interfaces name by a number.
#[derive(Clone, Copy)]
pub(super) struct VcpuThread<'a> {
    pub(super) id: Tid,
    pub(super) leader: &'a dyn Tasks,
}

impl VcpuThread<'_> {
    /// Holds the thread. It must be one of the leader's at this moment.
    pub(super) fn hold(&self, step: Step) -> Result<Task, StepError> {
        let task = self.leader.hold(self.id);
        task.ok_or_else(|| self.failed(step, Reason::Foreign))
    }

    /// Calls `write`, which names the thread by its number, and checks the thread before and after. If
    /// it ended in between, the number may be another thread's: then this calls `undo`.
    pub(super) fn change(
        &self,
        step: Step,
        write: impl FnOnce() -> Result<(), StepError>,
        undo: impl FnOnce(),
    ) -> Result<(), StepError> {
        let task = self.hold(step)?;
        write()?;
        if task.is_alive() {
            return Ok(());
        }
        undo();
        Err(self.failed(step, Reason::Ended))
    }

    /// Returns the error of `step` on this thread.
    pub(super) fn failed(&self, step: Step, reason: Reason) -> StepError {
        step.failed(self.path(), reason)
    }

    fn refused(&self, step: Step, error: &io::Error) -> StepError {
        step.refused(self.path(), error)
    }

    fn path(&self) -> String {
        format!("/proc/{}/task/{}", self.leader.pid(), self.id)
    }
}

/// Whether the thread is in the group of its vCPU.
pub(super) struct Membership<'a> {
    pub(super) groups: &'a dyn Groups,
    pub(super) vcpu: VcpuId,
    pub(super) thread: VcpuThread<'a>,
}

impl Tunable for Membership<'_> {
    type Value = bool;
    const STEP: Step = Step::Thread;

    fn read(&self) -> Result<bool, StepError> {
        self.groups.holds(self.vcpu, self.thread.id)
    }

    fn write(&self, is_in_group: &bool) -> Result<(), StepError> {
        if *is_in_group {
            self.groups.enter(self.vcpu, self.thread.id)
        } else {
            self.groups.leave(self.thread.id)
        }
    }

    fn in_force(applied: &mut AppliedVcpu) -> &mut Option<bool> {
        &mut applied.membership
    }

    fn thread(&self) -> Option<VcpuThread<'_>> {
        Some(self.thread)
    }

    /// Does nothing: the group of a thread that has the same number is not known.
    fn restore(&self, _: &bool, _: &bool) {}
}

/// A list of the group's cpuset: host CPUs or memory nodes.
pub(super) struct Cpuset<'a, K> {
    pub(super) groups: &'a dyn Groups,
    pub(super) vcpu: VcpuId,
    pub(super) list: PhantomData<K>,
}

/// A list of a cpuset that is in [`AppliedVcpu`].
pub(super) trait AppliedList: CpusetFile {
    /// Returns the place of the list in `applied`.
    fn in_force(applied: &mut AppliedVcpu) -> &mut Option<List<Self>>;
}

impl AppliedList for Cpu {
    fn in_force(applied: &mut AppliedVcpu) -> &mut Option<CpuList> {
        &mut applied.cpus
    }
}

impl AppliedList for Node {
    fn in_force(applied: &mut AppliedVcpu) -> &mut Option<NodeList> {
        &mut applied.nodes
    }
}

impl<K: AppliedList> Tunable for Cpuset<'_, K> {
    type Value = List<K>;
    const STEP: Step = K::STEP;

    fn read(&self) -> Result<List<K>, StepError> {
        self.groups.cpuset(self.vcpu)
    }

    fn write(&self, list: &List<K>) -> Result<(), StepError> {
        self.groups.set_cpuset(self.vcpu, list)
    }

    fn in_force(applied: &mut AppliedVcpu) -> &mut Option<List<K>> {
        K::in_force(applied)
    }
}

/// The period and the quota of the group.
pub(super) struct CpuTime<'a> {
    pub(super) groups: &'a dyn Groups,
    pub(super) vcpu: VcpuId,
}

impl Tunable for CpuTime<'_> {
    type Value = Bandwidth;
    const STEP: Step = Step::Bandwidth;

    fn read(&self) -> Result<Bandwidth, StepError> {
        self.groups.bandwidth(self.vcpu)
    }

    fn write(&self, bandwidth: &Bandwidth) -> Result<(), StepError> {
        self.groups.set_bandwidth(self.vcpu, *bandwidth)
    }

    fn in_force(applied: &mut AppliedVcpu) -> &mut Option<Bandwidth> {
        &mut applied.bandwidth
    }
}

/// The host CPUs of the thread.
pub(super) struct Affinity<'a>(pub(super) VcpuThread<'a>);

impl Tunable for Affinity<'_> {
    type Value = CpuList;
    const STEP: Step = Step::Affinity;

    fn read(&self) -> Result<CpuList, StepError> {
        affinity(self.0.id).map_err(|error| self.0.refused(Self::STEP, &error))
    }

    fn write(&self, cpus: &CpuList) -> Result<(), StepError> {
        let hint = "the unit's cpuset has none of the host CPUs";
        set_affinity(self.0.id, cpus)
            .map_err(|error| self.0.refused(Self::STEP, &error).hint(libc::EINVAL, hint))
    }

    fn in_force(applied: &mut AppliedVcpu) -> &mut Option<CpuList> {
        &mut applied.affinity
    }

    fn thread(&self) -> Option<VcpuThread<'_>> {
        Some(self.0)
    }
}

/// The scheduling policy and the priority of the thread.
pub(super) struct Policy<'a>(pub(super) VcpuThread<'a>);

impl Tunable for Policy<'_> {
    type Value = Scheduling;
    const STEP: Step = Step::Scheduler;

    fn read(&self) -> Result<Scheduling, StepError> {
        scheduling(self.0.id).map_err(|error| self.0.refused(Self::STEP, &error))
    }

    /// Writes `scheduling`, or the default policy if vCPUs never get the policy of `scheduling`.
    fn write(&self, scheduling: &Scheduling) -> Result<(), StepError> {
        let hint = "no real-time runtime: in version 1 the group needs cpu.rt_runtime_us";
        let scheduler = scheduling.scheduler().unwrap_or(Scheduler::Other);
        set_scheduler(self.0.id, scheduler)
            .map_err(|error| self.0.refused(Self::STEP, &error).hint(libc::EPERM, hint))
    }

    fn in_force(applied: &mut AppliedVcpu) -> &mut Option<Scheduling> {
        &mut applied.scheduler
    }

    fn thread(&self) -> Option<VcpuThread<'_>> {
        Some(self.0)
    }
}
