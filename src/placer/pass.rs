//! One pass for one vCPU: the steps that bring it to the wanted values, in their order.

use std::marker::PhantomData;

use super::cgroup::Groups;
use super::resctrl::{self, Resctrl};
use super::tunable::{
    Affinity, AppliedList, AppliedVcpu, CpuTime, Cpuset, Membership, Policy, Tunable, VcpuThread,
};
use crate::ids::VcpuId;
use crate::placement::{
    Controller, CpuList, HostCpus, List, Outcome, Reason, Scheduler, Schemata, Step, StepError,
    Wanted,
};

/// A pass for one vCPU.
pub(super) struct VcpuPass<'a> {
    /// The groups of the machine, if it has any.
    pub(super) groups: Option<&'a dyn Groups>,
    /// Whether another manager decides the default affinity.
    pub(super) managed_elsewhere: bool,
    pub(super) resctrl: Option<&'a Resctrl>,
    /// The CPUs of the host.
    pub(super) host: &'a HostCpus,
    pub(super) vcpu: VcpuId,
    pub(super) thread: VcpuThread<'a>,
    pub(super) applied: AppliedVcpu,
    pub(super) outcome: Outcome,
    /// Whether the group of the vCPU is new. A new group is removed if a step fails.
    pub(super) is_group_new: bool,
}

impl<'a> VcpuPass<'a> {
    /// Takes all steps, or those up to the first that fails. Then a new group is removed; an older one
    /// stays, with the values that the kernel did not refuse.
    pub(super) fn run(mut self, wanted: &Wanted<'_>) -> (AppliedVcpu, Outcome) {
        if let Err(error) = self.steps(wanted) {
            self.outcome.failed = Some(error);
            self.remove_new_group();
        }
        (self.applied, self.outcome)
    }

    fn steps(&mut self, wanted: &Wanted<'_>) -> Result<(), StepError> {
        let (vcpu, thread) = (self.vcpu, self.thread);
        thread.hold(Step::Thread)?;
        let cpus = self.online(wanted.cpus)?;
        if let Some(groups) = self.groups {
            if groups.make(vcpu)? {
                self.is_group_new = true;
                self.outcome.applied.push(Step::Group);
            }
            let membership = Membership {
                groups,
                vcpu,
                thread,
            };
            self.apply(&membership, true)?;
        }
        // Without a cpuset, the affinity confines the thread to its host CPUs.
        let needs_cpuset = wanted.nodes.is_some();
        if let Some(groups) = self.groups_with(Controller::Cpuset, Step::Nodes, needs_cpuset)? {
            self.cpuset(groups, cpus.as_ref())?;
            self.cpuset(groups, wanted.nodes)?;
        }
        let needs_cpu = wanted.bandwidth.quota().is_some();
        if let Some(groups) = self.groups_with(Controller::Cpu, Step::Bandwidth, needs_cpu)? {
            self.apply(&CpuTime { groups, vcpu }, wanted.bandwidth)?;
        }
        self.affinity(cpus)?;
        self.scheduler(wanted.scheduler)?;
        self.cache(wanted.cache)
    }

    /// Returns the groups, if they have `controller`. If they do not, that is an error of `step` if the
    /// controller is `needed`.
    fn groups_with(
        &self,
        controller: Controller,
        step: Step,
        needed: bool,
    ) -> Result<Option<&'a dyn Groups>, StepError> {
        let reason = match self.groups {
            Some(groups) if !groups.missing().contains(&controller) => return Ok(Some(groups)),
            Some(_) => Reason::NoController(controller),
            None => Reason::NoGroups,
        };
        if needed {
            return Err(self.thread.failed(step, reason));
        }
        Ok(None)
    }

    /// Returns the wanted host CPUs that are online.
    fn online(&self, wanted: Option<&CpuList>) -> Result<Option<CpuList>, StepError> {
        let Some(wanted) = wanted else {
            return Ok(None);
        };
        let online = wanted.intersection(&self.host.online);
        if online.is_empty() {
            let reason = Reason::Offline(wanted.clone());
            return Err(self.thread.failed(Step::Cpus, reason));
        }
        Ok(Some(online))
    }

    /// Writes a list of the cpuset. Without a wanted list, the group has all that the groups above it
    /// have: an empty list of version 2 stays empty.
    fn cpuset<K: AppliedList>(
        &mut self,
        groups: &'a dyn Groups,
        wanted: Option<&List<K>>,
    ) -> Result<(), StepError> {
        let cpuset = Cpuset {
            groups,
            vcpu: self.vcpu,
            list: PhantomData,
        };
        let list = match wanted {
            Some(list) => list.clone(),
            None => {
                let own = cpuset.read()?;
                if own.is_empty() {
                    own
                } else {
                    groups.inherited_cpuset()?
                }
            }
        };
        self.apply(&cpuset, list)
    }

    /// Writes the affinity: `cpus` if they are wanted, else the host's default.
    fn affinity(&mut self, cpus: Option<CpuList>) -> Result<(), StepError> {
        let is_default = cpus.is_none();
        // An affinity that an earlier pass wrote is taken back.
        if self.managed_elsewhere && is_default && self.applied.affinity.is_none() {
            return Ok(());
        }
        let cpus = cpus.unwrap_or_else(|| self.host.default_cpus());
        match self.apply(&Affinity(self.thread), cpus) {
            // The unit's cpuset has none of the default CPUs, so the thread runs on those of the unit.
            Err(error) if is_default && error.errno() == Some(libc::EINVAL) => {}
            result => result?,
        }
        if self.managed_elsewhere && is_default {
            self.applied.affinity = None;
        }
        Ok(())
    }

    /// Writes the scheduler: `wanted`, or else the one that the thread had before the first was written.
    fn scheduler(&mut self, wanted: Option<Scheduler>) -> Result<(), StepError> {
        let policy = Policy(self.thread);
        let Some(scheduler) = wanted.or(self.applied.own_scheduler) else {
            return Ok(());
        };
        if self.applied.own_scheduler.is_none() {
            self.applied.own_scheduler = policy.read()?.scheduler();
        }
        self.apply(&policy, scheduler.into())?;
        if wanted.is_none() {
            self.applied.own_scheduler = None;
            self.applied.scheduler = None;
        }
        Ok(())
    }

    /// Writes the cache allocation: `wanted`, or else the host's default.
    fn cache(&mut self, wanted: Option<&Schemata>) -> Result<(), StepError> {
        let thread = self.thread;
        let change =
            |write: resctrl::Move<'_>, undo: &dyn Fn()| thread.change(Step::Cache, write, undo);
        let is_changed = match (self.resctrl, wanted) {
            (Some(resctrl), Some(schemata)) => resctrl.enter(thread.id, schemata, change)?,
            (Some(resctrl), None) => resctrl.leave(thread.id, change)?,
            (None, Some(_)) => return Err(resctrl::unsupported()),
            (None, None) => false,
        };
        let in_force = std::mem::replace(&mut self.applied.cache, wanted.cloned());
        if is_changed {
            self.note(
                Step::Cache,
                in_force.is_some() && in_force.as_ref() == wanted,
            );
        }
        Ok(())
    }

    /// Writes `wanted` if the kernel has another value, and notes a change.
    fn apply<T: Tunable>(&mut self, tunable: &T, wanted: T::Value) -> Result<(), StepError> {
        let in_force = T::in_force(&mut self.applied).take();
        let before = tunable.read()?;
        if before != wanted {
            match tunable.thread() {
                None => tunable.write(&wanted)?,
                Some(thread) => thread.change(
                    T::STEP,
                    || tunable.write(&wanted),
                    || tunable.restore(&before, &wanted),
                )?,
            }
            // The kernel may give less than the wanted value, in every pass.
            if tunable.read()? != before {
                self.note(T::STEP, in_force.as_ref() == Some(&wanted));
            }
        }
        *T::in_force(&mut self.applied) = Some(wanted);
        Ok(())
    }

    /// Notes that `step` changed a value. If the new value was in force before, another program had
    /// changed it.
    fn note(&mut self, step: Step, was_in_force: bool) {
        let steps = if was_in_force {
            &mut self.outcome.drifted
        } else {
            &mut self.outcome.applied
        };
        steps.push(step);
    }

    /// Removes the group of the vCPU, if it is new.
    fn remove_new_group(&mut self) {
        let Some(groups) = self.groups.filter(|_| self.is_group_new) else {
            return;
        };
        let left = if self.applied.is_in_group() {
            let leave = || groups.leave(self.thread.id);
            self.thread.change(Step::Thread, leave, || {})
        } else {
            Ok(())
        };
        let left = left.or_else(|error| match error.reason {
            Reason::Foreign | Reason::Ended => Ok(()),
            _ => Err(error),
        });
        let vcpu = self.vcpu;
        if let Err(error) = left.and_then(|()| groups.remove(vcpu)) {
            tracing::warn!(vcpu = vcpu.get(), %error, "cannot remove the new control group of vCPU {vcpu}: {error}");
        }
        self.applied.reset();
    }
}
