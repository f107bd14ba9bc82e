//! The attributes of a vCPU that a pass brings to their desired values.
//!
//! Some belong to the vCPU's control group, the others to its thread. Host caches do not fit: several vCPUs
//! share a group of them, and the kernel rounds the values (see [`super::resctrl`]).

use std::io;

use super::affinity::{affinity, set_affinity};
use super::cgroup::{CpusetFile, Groups};
use super::mask::Mask;
use super::scheduler::{Scheduling, scheduling, set_scheduler};
use crate::ids::{Tid, VcpuId};
use crate::placement::{Bandwidth, CpuList, List, Outcome, Reason, Scheduler, Step, StepError};
use crate::process::{Task, Tasks};

/// A group or thread with an attribute that has values of type `V`.
pub(super) trait Tunable<V: PartialEq> {
    /// The step of a pass that writes the attribute.
    const STEP: Step;

    /// Returns the value that the kernel has.
    fn read(&self) -> Result<V, StepError>;

    /// Writes `value`.
    fn write(&self, value: &V) -> Result<(), StepError>;

    /// Returns the thread that [`Tunable::write`] changes. `None`: it changes a control group.
    fn thread(&self) -> Option<VcpuThread<'_>> {
        None
    }

    /// Restores `before` after the thread ended while `written` was written, because another thread may
    /// have its number now.
    fn restore(&self, before: &V, written: &V) {
        if self.read().is_ok_and(|value| value == *written) {
            let _ = self.write(before);
        }
    }

    /// Writes `wanted` if the kernel has another value, and notes a change in `outcome`. `in_force` is the
    /// wanted value of the last pass, and then that of this one. It is `None` after an error. Returns the
    /// value that the kernel has then, which may be less than the wanted one.
    fn apply(
        &self,
        wanted: V,
        in_force: &mut Option<V>,
        outcome: &mut Outcome,
    ) -> Result<V, StepError> {
        let last = in_force.take();
        let mut value = self.read()?;
        if value != wanted {
            match self.thread() {
                None => self.write(&wanted)?,
                Some(thread) => thread.change(
                    Self::STEP,
                    || self.write(&wanted),
                    || self.restore(&value, &wanted),
                )?,
            }
            let before = std::mem::replace(&mut value, self.read()?);
            if value != before {
                outcome.note(Self::STEP, last.as_ref() == Some(&wanted));
            }
        }
        *in_force = Some(wanted);
        Ok(value)
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

/// The group of a vCPU: its cpuset ([`List`]) and its CPU time ([`Bandwidth`]).
#[derive(Clone, Copy)]
pub(super) struct VcpuGroup<'a> {
    pub(super) groups: &'a dyn Groups,
    pub(super) vcpu: VcpuId,
}

impl<K: CpusetFile> Tunable<List<K>> for VcpuGroup<'_> {
    const STEP: Step = K::STEP;

    fn read(&self) -> Result<List<K>, StepError> {
        self.groups.cpuset(self.vcpu)
    }

    fn write(&self, list: &List<K>) -> Result<(), StepError> {
        self.groups.set_cpuset(self.vcpu, list)
    }
}

impl Tunable<Bandwidth> for VcpuGroup<'_> {
    const STEP: Step = Step::Bandwidth;

    fn read(&self) -> Result<Bandwidth, StepError> {
        self.groups.bandwidth(self.vcpu)
    }

    fn write(&self, bandwidth: &Bandwidth) -> Result<(), StepError> {
        self.groups.set_bandwidth(self.vcpu, *bandwidth)
    }
}

/// Whether a thread is in the group of its vCPU.
pub(super) struct Membership<'a>(pub(super) VcpuGroup<'a>, pub(super) VcpuThread<'a>);

impl Tunable<bool> for Membership<'_> {
    const STEP: Step = Step::Thread;

    fn read(&self) -> Result<bool, StepError> {
        let Self(group, thread) = self;
        group.groups.holds(group.vcpu, thread.id)
    }

    fn write(&self, is_in_group: &bool) -> Result<(), StepError> {
        let Self(group, thread) = self;
        let mask = Mask::of(thread.id);
        if *is_in_group {
            group.groups.enter(group.vcpu, thread.id)?;
        } else {
            group.groups.leave(thread.id)?;
        }
        if let Some(mask) = mask {
            mask.restore(thread.leader);
        }
        Ok(())
    }

    fn thread(&self) -> Option<VcpuThread<'_>> {
        Some(self.1)
    }

    /// Does nothing: the group of a thread that has the same number is not known.
    fn restore(&self, _: &bool, _: &bool) {}
}

/// The affinity of the thread.
impl Tunable<CpuList> for VcpuThread<'_> {
    const STEP: Step = Step::Affinity;

    fn read(&self) -> Result<CpuList, StepError> {
        affinity(self.id).map_err(|error| self.refused(Step::Affinity, &error))
    }

    fn write(&self, cpus: &CpuList) -> Result<(), StepError> {
        let hint = "the unit's cpuset has none of the host CPUs";
        set_affinity(self.id, cpus).map_err(|error| {
            let refused = self.refused(Step::Affinity, &error);
            refused.hint(libc::EINVAL, hint)
        })
    }

    fn thread(&self) -> Option<VcpuThread<'_>> {
        Some(*self)
    }
}

/// The scheduling policy and the priority of the thread.
impl Tunable<Scheduling> for VcpuThread<'_> {
    const STEP: Step = Step::Scheduler;

    fn read(&self) -> Result<Scheduling, StepError> {
        scheduling(self.id).map_err(|error| self.refused(Step::Scheduler, &error))
    }

    /// Writes `scheduling`, or the default policy if vCPUs never get the policy of `scheduling`.
    fn write(&self, scheduling: &Scheduling) -> Result<(), StepError> {
        let hint = "no real-time runtime: in version 1 the group needs cpu.rt_runtime_us";
        let scheduler = scheduling.scheduler().unwrap_or(Scheduler::Other);
        set_scheduler(self.id, scheduler).map_err(|error| {
            let refused = self.refused(Step::Scheduler, &error);
            refused.hint(libc::EPERM, hint)
        })
    }

    fn thread(&self) -> Option<VcpuThread<'_>> {
        Some(*self)
    }
}
