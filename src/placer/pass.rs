//! One pass for one vCPU: the steps that bring it to the wanted values, in their order.

use super::cgroup::{CpusetFile, Groups};
use super::resctrl::{self, Resctrl};
use super::scheduler::Scheduling;
use super::tunable::{Membership, Tunable, VcpuGroup, VcpuThread};
use crate::ids::{Tid, VcpuId};
use crate::placement::{
    Bandwidth, ChangedThread, Controller, CpuList, HostCpus, List, NodeList, Outcome, Reason,
    Scheduler, Schemata, Step, StepError, Wanted,
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
    /// Whether the affinity is one that was written in place of another manager's.
    owns_affinity: bool,
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

    /// Returns the state of a thread that a previous placer changed.
    pub(super) fn restored(changed: &ChangedThread) -> Self {
        Self {
            owns_affinity: changed.affinity,
            own_scheduler: changed.scheduler,
            ..Self::new(changed.thread)
        }
    }

    /// Returns the values to restore later, if there are any.
    fn changed(&self) -> Option<ChangedThread> {
        let changed = ChangedThread {
            thread: self.thread,
            scheduler: self.own_scheduler,
            affinity: self.owns_affinity,
        };
        let has_none = changed.scheduler.is_none() && !changed.affinity;
        (!has_none).then_some(changed)
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
    /// The CPUs of the host, if they can be read.
    pub(super) host: &'a Result<HostCpus, StepError>,
    pub(super) vcpu: VcpuId,
    pub(super) thread: VcpuThread<'a>,
    pub(super) applied: Box<AppliedVcpu>,
    pub(super) outcome: Outcome,
}

/// The host CPUs of a vCPU.
struct Selection {
    cpus: CpuList,
    /// Whether they are those of a vCPU without a wanted affinity.
    is_default: bool,
}

impl<'a> VcpuPass<'a> {
    /// Takes all steps. One that fails does not prevent the others, unless the thread has ended.
    pub(super) fn run(mut self, wanted: &Wanted<'_>) -> (Box<AppliedVcpu>, Outcome) {
        match self.steps(wanted) {
            Ok(()) if self.outcome.affinity.is_none() => {
                self.outcome.affinity = self.thread.read().ok();
            }
            Ok(()) => {}
            Err(error) => self.outcome.failed.push(error),
        }
        self.outcome.changed = self.applied.changed();
        (self.applied, self.outcome)
    }

    /// Fails only if the thread is not, or no longer, a thread of the machine.
    fn steps(&mut self, wanted: &Wanted<'_>) -> Result<(), StepError> {
        self.thread.hold(Step::Thread)?;
        let selected = self.select(wanted.cpus);
        let selected = self.noted(selected)?;
        let group = self.group();
        let group = self.noted(group)?.flatten();
        let entered = self.enter(group);
        self.noted(entered)?;
        if let Some(selection) = &selected {
            let set = self.cpus(group, selection);
            self.noted(set)?;
        }
        let set = self.nodes(group, wanted.nodes);
        self.noted(set)?;
        let set = self.bandwidth(group, wanted.bandwidth);
        self.noted(set)?;
        if let Some(selection) = selected {
            let set = self.affinity(selection);
            self.noted(set)?;
        }
        let set = self.scheduler(wanted.scheduler);
        self.noted(set)?;
        let set = self.cache(wanted.cache);
        self.noted(set).map(drop)
    }

    /// Notes the failure of a step, and returns `None` then. Fails only if the thread is not, or no longer,
    /// a thread of the machine.
    fn noted<T>(&mut self, result: Result<T, StepError>) -> Result<Option<T>, StepError> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is_of_thread() => Err(error),
            Err(error) => {
                self.outcome.failed.push(error);
                Ok(None)
            }
        }
    }

    /// Returns the host CPUs of the vCPU, without those that are offline.
    fn select(&self, wanted: Option<&CpuList>) -> Result<Selection, StepError> {
        let host = self.host.as_ref().map_err(StepError::clone)?;
        let Some(wanted) = wanted else {
            return Ok(Selection {
                cpus: host.default_cpus(),
                is_default: true,
            });
        };
        let cpus = wanted.intersection(&host.online);
        if cpus.is_empty() {
            let reason = Reason::Offline(wanted.clone());
            return Err(self.thread.failed(Step::Cpus, reason));
        }
        Ok(Selection {
            cpus,
            is_default: false,
        })
    }

    /// Returns the group of the vCPU, if the machine has groups. Creates it if it does not exist.
    fn group(&mut self) -> Result<Option<VcpuGroup<'a>>, StepError> {
        let Some(groups) = self.groups else {
            return Ok(None);
        };
        let vcpu = self.vcpu;
        if groups.make(vcpu)? {
            self.outcome.applied.push(Step::Group);
        }
        Ok(Some(VcpuGroup { groups, vcpu }))
    }

    /// Moves the thread into the group. A group stays if the kernel refuses: an administrator can give it
    /// the `cpu.rt_runtime_us` that the thread needs.
    fn enter(&mut self, group: Option<VcpuGroup<'a>>) -> Result<(), StepError> {
        let Some(group) = group else {
            return Ok(());
        };
        let (membership, in_force) = (Membership(group, self.thread), &mut self.applied.membership);
        membership.apply(true, in_force, &mut self.outcome)?;
        Ok(())
    }

    /// Returns the group of the vCPU, if it has `controller`. If it does not, that is an error of `step` if the
    /// controller is `needed`, unless the group could not be created, which is an error already.
    fn group_with(
        &self,
        group: Option<VcpuGroup<'a>>,
        controller: Controller,
        step: Step,
        needed: bool,
    ) -> Result<Option<VcpuGroup<'a>>, StepError> {
        let reason = match self.groups {
            Some(groups) if !groups.missing().contains(&controller) => return Ok(group),
            Some(_) => Reason::NoController(controller),
            None => Reason::NoGroups,
        };
        if needed {
            return Err(self.thread.failed(step, reason));
        }
        Ok(None)
    }

    /// Writes the host CPUs of the group. Without a cpuset, the affinity confines the thread to them.
    fn cpus(
        &mut self,
        group: Option<VcpuGroup<'a>>,
        selection: &Selection,
    ) -> Result<(), StepError> {
        let group = self.group_with(group, Controller::Cpuset, Step::Cpus, false)?;
        let Some(group) = group else {
            return Ok(());
        };
        let wanted = (!selection.is_default).then_some(&selection.cpus);
        let cpus = list(&group, wanted)?;
        group.apply(cpus, &mut self.applied.cpus, &mut self.outcome)?;
        Ok(())
    }

    /// Writes the memory nodes of the group.
    fn nodes(
        &mut self,
        group: Option<VcpuGroup<'a>>,
        wanted: Option<&NodeList>,
    ) -> Result<(), StepError> {
        let is_wanted = wanted.is_some();
        let group = self.group_with(group, Controller::Cpuset, Step::Nodes, is_wanted)?;
        let Some(group) = group else {
            return Ok(());
        };
        let nodes = list(&group, wanted)?;
        group.apply(nodes, &mut self.applied.nodes, &mut self.outcome)?;
        Ok(())
    }

    /// Writes the CPU time of the group.
    fn bandwidth(
        &mut self,
        group: Option<VcpuGroup<'a>>,
        wanted: Bandwidth,
    ) -> Result<(), StepError> {
        let is_wanted = wanted.quota().is_some();
        let group = self.group_with(group, Controller::Cpu, Step::Bandwidth, is_wanted)?;
        let Some(group) = group else {
            return Ok(());
        };
        let in_force = &mut self.applied.bandwidth;
        let result = group.apply(wanted, in_force, &mut self.outcome);
        if self.applied.is_in_group() {
            let value = result.clone().or_else(|_| group.read());
            self.outcome.bandwidth = value.ok();
        }
        result.map(drop)
    }

    /// Writes the affinity.
    fn affinity(&mut self, selection: Selection) -> Result<(), StepError> {
        let Selection { cpus, is_default } = selection;
        // An affinity that an earlier pass wrote is taken back.
        if self.managed_elsewhere && is_default && !self.applied.owns_affinity {
            return Ok(());
        }
        let in_force = &mut self.applied.affinity;
        match self.thread.apply(cpus.clone(), in_force, &mut self.outcome) {
            Ok(allowed) => {
                self.applied.owns_affinity = !is_default;
                self.outcome.affinity = Some(allowed.clone());
                if !is_default && allowed != cpus {
                    let wanted = cpus;
                    let reason = Reason::Confined { wanted, allowed };
                    return Err(self.thread.failed(Step::Affinity, reason));
                }
            }
            // The unit's cpuset has none of the default CPUs, so the thread runs on those of the unit.
            Err(error) if is_default && error.errno() == Some(libc::EINVAL) => {}
            Err(error) => return Err(error),
        }
        if is_default {
            self.applied.owns_affinity = false;
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
