//! One pass for one vCPU: the steps that bring it to the wanted values, in their order.

use super::cgroup::{CpusetFile, Groups};
use super::resctrl::{self, Resctrl};
use super::scheduler::Scheduling;
use super::tunable::{Membership, Tunable, VcpuGroup, VcpuThread};
use crate::ids::{Tid, VcpuId};
use crate::placement::{
    Bandwidth, Controller, CpuList, HostCpus, List, NodeList, Outcome, Reason, Scheduler, Schemata,
    Step, StepError, Wanted,
};

/// The values that the last pass put in force for one vCPU. `None`: no pass did, or the last one failed.
#[derive(Debug, Default)]
pub(super) struct AppliedVcpu {
    pub(super) thread: Tid,
    /// Whether the thread is in the vCPU's group.
    membership: Option<bool>,
    cpus: Option<CpuList>,
    nodes: Option<NodeList>,
    bandwidth: Option<Bandwidth>,
    affinity: Option<CpuList>,
    scheduler: Option<Scheduling>,
    cache: Option<Schemata>,
    /// The scheduler that the thread had before the first one was written.
    own_scheduler: Option<Scheduler>,
}

impl AppliedVcpu {
    /// Returns the state of `thread` before its first pass.
    pub(super) fn new(thread: Tid) -> Self {
        Self {
            thread,
            ..Self::default()
        }
    }

    /// Returns whether the thread is in the vCPU's group.
    pub(super) fn is_in_group(&self) -> bool {
        self.membership == Some(true)
    }
}

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
        self.thread.hold(Step::Thread)?;
        let cpus = self.online(wanted.cpus)?;
        if let Some(groups) = self.groups {
            if groups.make(self.vcpu)? {
                self.is_group_new = true;
                self.outcome.applied.push(Step::Group);
            }
            let membership = Membership(self.group(groups), self.thread);
            membership.apply(true, &mut self.applied.membership, &mut self.outcome)?;
        }
        // Without a cpuset, the affinity confines the thread to its host CPUs.
        let needs_cpuset = wanted.nodes.is_some();
        if let Some(group) = self.group_with(Controller::Cpuset, Step::Nodes, needs_cpuset)? {
            let cpus = list(&group, cpus.as_ref())?;
            group.apply(cpus, &mut self.applied.cpus, &mut self.outcome)?;
            let nodes = list(&group, wanted.nodes)?;
            group.apply(nodes, &mut self.applied.nodes, &mut self.outcome)?;
        }
        let needs_cpu = wanted.bandwidth.quota().is_some();
        if let Some(group) = self.group_with(Controller::Cpu, Step::Bandwidth, needs_cpu)? {
            let in_force = &mut self.applied.bandwidth;
            group.apply(wanted.bandwidth, in_force, &mut self.outcome)?;
        }
        self.affinity(cpus)?;
        self.scheduler(wanted.scheduler)?;
        self.cache(wanted.cache)
    }

    fn group(&self, groups: &'a dyn Groups) -> VcpuGroup<'a> {
        let vcpu = self.vcpu;
        VcpuGroup { groups, vcpu }
    }

    /// Returns the group of the vCPU, if it has `controller`. If it does not, that is an error of `step` if the
    /// controller is `needed`.
    fn group_with(
        &self,
        controller: Controller,
        step: Step,
        needed: bool,
    ) -> Result<Option<VcpuGroup<'a>>, StepError> {
        let reason = match self.groups {
            Some(groups) if !groups.missing().contains(&controller) => {
                return Ok(Some(self.group(groups)));
            }
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

    /// Writes the affinity: `cpus` if they are wanted, else the host's default.
    fn affinity(&mut self, cpus: Option<CpuList>) -> Result<(), StepError> {
        let is_default = cpus.is_none();
        // An affinity that an earlier pass wrote is taken back.
        if self.managed_elsewhere && is_default && self.applied.affinity.is_none() {
            return Ok(());
        }
        let cpus = cpus.unwrap_or_else(|| self.host.default_cpus());
        let in_force = &mut self.applied.affinity;
        match self.thread.apply(cpus, in_force, &mut self.outcome) {
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
        let Some(scheduler) = wanted.or(self.applied.own_scheduler) else {
            return Ok(());
        };
        if self.applied.own_scheduler.is_none() {
            let own: Scheduling = self.thread.read()?;
            self.applied.own_scheduler = own.scheduler();
        }
        let (scheduling, in_force) = (scheduler.into(), &mut self.applied.scheduler);
        self.thread.apply(scheduling, in_force, &mut self.outcome)?;
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
            let was_in_force = in_force.is_some() && in_force.as_ref() == wanted;
            self.outcome.note(Step::Cache, was_in_force);
        }
        Ok(())
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
        self.applied = AppliedVcpu {
            own_scheduler: self.applied.own_scheduler,
            ..AppliedVcpu::new(self.thread.id)
        };
    }
}

/// Returns the wanted list, or else the one of a group that has all that the groups above it have. In version
/// 2 an empty list stays empty.
fn list<K: CpusetFile>(
    group: &VcpuGroup<'_>,
    wanted: Option<&List<K>>,
) -> Result<List<K>, StepError> {
    if let Some(wanted) = wanted {
        return Ok(wanted.clone());
    }
    let own: List<K> = group.read()?;
    if own.is_empty() {
        return Ok(own);
    }
    group.groups.inherited_cpuset()
}
