//! One vCPU on its way to where it is wanted: the steps, in their order.

use super::cgroup::Groups;
use super::resctrl::{self, Resctrl};
use super::{affinity, scheduling, set_affinity, set_scheduler};
use crate::ids::{Tid, VcpuId};
use crate::placement::{
    Bandwidth, Controller, CpuList, HostCpus, NodeList, Outcome, Reason, Scheduler, Schemata, Step,
    StepError, Wanted,
};
use crate::process::{Task, Tasks};

/// What was last put in force for one vCPU.
#[derive(Debug, Default)]
pub(super) struct Place {
    pub(super) thread: Tid,
    /// Whether the thread is in the vCPU's group.
    pub(super) entered: bool,
    cpus: Option<CpuList>,
    nodes: Option<NodeList>,
    bandwidth: Option<Bandwidth>,
    affinity: Option<CpuList>,
    scheduler: Option<Scheduler>,
    cache: Option<Schemata>,
    /// Its scheduler before it was first given one.
    own_scheduler: Option<Scheduler>,
}

/// One vCPU on its way.
pub(super) struct Pass<'a> {
    pub(super) groups: Option<&'a dyn Groups>,
    /// Whether the default affinity is another manager's to decide.
    pub(super) foreign: bool,
    pub(super) resctrl: Option<&'a Resctrl>,
    pub(super) cpus: &'a HostCpus,
    pub(super) vcpu: VcpuId,
    pub(super) leader: &'a dyn Tasks,
    pub(super) place: Place,
    pub(super) outcome: Outcome,
    /// Whether its group is new, and so to be undone where a step fails.
    pub(super) made: bool,
}

impl Place {
    /// Nothing was put in force for `thread` yet.
    pub(super) fn of(thread: Tid) -> Self {
        Self {
            thread,
            ..Self::default()
        }
    }
}

impl<'a> Pass<'a> {
    /// Takes all steps, or those up to one that fails. A new group is undone then; one that was
    /// in force before stays, with what the kernel did not refuse.
    pub(super) fn run(mut self, wanted: &Wanted<'_>) -> (Place, Outcome) {
        if let Err(error) = self.steps(wanted) {
            self.outcome.failed = Some(error);
            self.undo();
        }
        (self.place, self.outcome)
    }

    fn steps(&mut self, wanted: &Wanted<'_>) -> Result<(), StepError> {
        self.hold(Step::Thread)?;
        let cpus = self.online(wanted)?;
        if let Some(groups) = self.groups {
            if groups.make(self.vcpu)? {
                self.made = true;
                self.outcome.applied.push(Step::Group);
            }
            self.enter(groups)?;
        }
        if let Some(groups) = self.controlled(Step::Nodes, Controller::Cpuset, wanted.nodes)? {
            self.cpuset(groups, cpus.as_ref(), wanted.nodes)?;
        }
        self.bandwidth(wanted.bandwidth)?;
        self.affinity(cpus)?;
        self.scheduler(wanted.scheduler)?;
        self.cache(wanted.cache)
    }

    /// The groups, where they have `controller`. Where it is missing nothing can be done, which
    /// is an error of `step` if there is something to do.
    fn controlled<T>(
        &self,
        step: Step,
        controller: Controller,
        wanted: Option<T>,
    ) -> Result<Option<&'a dyn Groups>, StepError> {
        let reason = match self.groups {
            Some(groups) if !groups.missing().contains(&controller) => return Ok(Some(groups)),
            Some(_) => Reason::NoController(controller),
            None => Reason::NoGroups,
        };
        match wanted {
            Some(_) => Err(self.failed(step, reason)),
            None => Ok(None),
        }
    }

    /// Those of the wanted host CPUs that run.
    fn online(&self, wanted: &Wanted<'_>) -> Result<Option<CpuList>, StepError> {
        let Some(wanted) = wanted.cpus else {
            return Ok(None);
        };
        let online = wanted.intersection(&self.cpus.online);
        match online.is_empty() {
            true => Err(self.failed(Step::Cpus, Reason::Offline(wanted.clone()))),
            false => Ok(Some(online)),
        }
    }

    fn enter(&mut self, groups: &dyn Groups) -> Result<(), StepError> {
        let (vcpu, thread) = (self.vcpu, self.place.thread);
        let was = self.place.entered.then_some(true);
        let settled = self.settle(
            Step::Thread,
            was.as_ref(),
            &true,
            |_| groups.holds(vcpu, thread),
            |this, _| this.use_thread(Step::Thread, || groups.enter(vcpu, thread), || {}),
        );
        self.place.entered = settled.is_ok();
        settled
    }

    fn cpuset(
        &mut self,
        groups: &dyn Groups,
        cpus: Option<&CpuList>,
        nodes: Option<&NodeList>,
    ) -> Result<(), StepError> {
        let vcpu = self.vcpu;
        let cpus = match (cpus, groups.cpus(vcpu)?) {
            (Some(cpus), _) => cpus.clone(),
            (None, own) if own.is_empty() => own,
            (None, _) => groups.inherited_cpus()?,
        };
        let was = self.place.cpus.take();
        self.settle(
            Step::Cpus,
            was.as_ref(),
            &cpus,
            |_| groups.cpus(vcpu),
            |_, cpus| groups.set_cpus(vcpu, cpus),
        )?;
        self.place.cpus = Some(cpus);
        let nodes = match (nodes, groups.nodes(vcpu)?) {
            (Some(nodes), _) => nodes.clone(),
            (None, own) if own.is_empty() => own,
            (None, _) => groups.inherited_nodes()?,
        };
        let was = self.place.nodes.take();
        self.settle(
            Step::Nodes,
            was.as_ref(),
            &nodes,
            |_| groups.nodes(vcpu),
            |_, nodes| groups.set_nodes(vcpu, nodes),
        )?;
        self.place.nodes = Some(nodes);
        Ok(())
    }

    fn bandwidth(&mut self, wanted: Bandwidth) -> Result<(), StepError> {
        let vcpu = self.vcpu;
        let Some(groups) = self.controlled(Step::Bandwidth, Controller::Cpu, wanted.quota())?
        else {
            return Ok(());
        };
        let was = self.place.bandwidth.take();
        self.settle(
            Step::Bandwidth,
            was.as_ref(),
            &wanted,
            |_| groups.bandwidth(vcpu),
            |_, wanted| groups.set_bandwidth(vcpu, *wanted),
        )?;
        self.place.bandwidth = Some(wanted);
        Ok(())
    }

    /// `cpus` where they were asked for, else the host's default.
    fn affinity(&mut self, cpus: Option<CpuList>) -> Result<(), StepError> {
        let asked_for = cpus.is_some();
        // What was asked for before is taken back.
        if self.foreign && !asked_for && self.place.affinity.is_none() {
            return Ok(());
        }
        let cpus = cpus.unwrap_or_else(|| self.cpus.default_cpus());
        let was = self.place.affinity.take();
        let settled = self.settle(
            Step::Affinity,
            was.as_ref(),
            &cpus,
            |this| {
                let is = affinity(this.place.thread);
                is.map_err(|error| Step::Affinity.refused(this.path(), &error))
            },
            |this, cpus| {
                let thread = this.place.thread;
                let before = affinity(thread);
                let set = || {
                    let set = set_affinity(thread, cpus);
                    set.map_err(|error| Step::Affinity.refused(this.path(), &error))
                };
                this.use_thread(Step::Affinity, set, || {
                    if affinity(thread).is_ok_and(|is| is == *cpus) {
                        let _ = before.and_then(|before| set_affinity(thread, &before));
                    }
                })
            },
        );
        match settled {
            // The unit has none of the host's default. It has been given others.
            Err(error) if !asked_for && error.errno() == Some(libc::EINVAL) => Ok(()),
            Err(error) => {
                Err(error.hint(libc::EINVAL, "the unit's cpuset has none of the host CPUs"))
            }
            Ok(()) => {
                self.place.affinity = (asked_for || !self.foreign).then_some(cpus);
                Ok(())
            }
        }
    }

    fn scheduler(&mut self, wanted: Option<Scheduler>) -> Result<(), StepError> {
        let is = |this: &Self| {
            let is = scheduling(this.place.thread);
            is.map_err(|error| Step::Scheduler.refused(this.path(), &error))
        };
        let was = self.place.scheduler.take();
        // Nothing is wanted any more: it gets back what it had.
        let given_back = wanted.is_none();
        let Some(wanted) = wanted.or(self.place.own_scheduler) else {
            return Ok(());
        };
        if self.place.own_scheduler.is_none() {
            self.place.own_scheduler = is(self)?.scheduler();
        }
        let hint = "no real-time runtime: in version 1 the group needs cpu.rt_runtime_us";
        self.settle(
            Step::Scheduler,
            was.map(Some).as_ref(),
            &Some(wanted),
            |this| Ok(is(this)?.scheduler()),
            |this, _| {
                let thread = this.place.thread;
                let before = is(this)?.scheduler();
                let set = || {
                    let set = set_scheduler(thread, wanted);
                    set.map_err(|error| Step::Scheduler.refused(this.path(), &error))
                };
                this.use_thread(Step::Scheduler, set, || {
                    if scheduling(thread).is_ok_and(|is| is.scheduler() == Some(wanted)) {
                        let _ = set_scheduler(thread, before.unwrap_or(Scheduler::Other));
                    }
                })
            },
        )
        .map_err(|error| error.hint(libc::EPERM, hint))?;
        match given_back {
            true => self.place.own_scheduler = None,
            false => self.place.scheduler = Some(wanted),
        }
        Ok(())
    }

    fn cache(&mut self, wanted: Option<&Schemata>) -> Result<(), StepError> {
        let Some(resctrl) = self.resctrl else {
            return match wanted {
                None => Ok(()),
                Some(_) => Err(resctrl::unsupported()),
            };
        };
        let thread = self.place.thread;
        let place = |enter: &dyn Fn() -> Result<(), StepError>, undo: &dyn Fn()| {
            self.use_thread(Step::Cache, enter, undo)
        };
        let changed = match wanted {
            Some(schemata) => resctrl.enter(thread, schemata, place)?,
            None => resctrl.leave(thread, place)?,
        };
        let was = std::mem::replace(&mut self.place.cache, wanted.cloned());
        match changed {
            true if was.is_some() && was.as_ref() == wanted => {
                self.outcome.drifted.push(Step::Cache);
            }
            true => self.outcome.applied.push(Step::Cache),
            false => {}
        }
        Ok(())
    }

    /// Writes what is `wanted` where the kernel has something else, and notes what came of it.
    /// `was` is what was put in force before.
    fn settle<T: PartialEq>(
        &mut self,
        step: Step,
        was: Option<&T>,
        wanted: &T,
        read: impl Fn(&Self) -> Result<T, StepError>,
        write: impl FnOnce(&Self, &T) -> Result<(), StepError>,
    ) -> Result<(), StepError> {
        let before = read(self)?;
        if before == *wanted {
            return Ok(());
        }
        write(self, wanted)?;
        // The kernel may give less than what is wanted, again and again.
        if read(self)? == before {
            return Ok(());
        }
        match was == Some(wanted) {
            true => self.outcome.drifted.push(step),
            false => self.outcome.applied.push(step),
        }
        Ok(())
    }

    /// Takes a new group away again.
    fn undo(&mut self) {
        let Some(groups) = self.groups.filter(|_| self.made) else {
            return;
        };
        let thread = self.place.thread;
        let undone = match self.place.entered {
            true => self.use_thread(Step::Thread, || groups.leave(thread), || {}),
            false => Ok(()),
        };
        let undone = undone.or_else(|error| match error.reason {
            Reason::Foreign | Reason::Ended => Ok(()),
            _ => Err(error),
        });
        if let Err(error) = undone.and_then(|()| groups.remove(self.vcpu)) {
            tracing::warn!(vcpu = self.vcpu.get(), %error, "a control group could not be undone");
        }
        self.place = Place {
            own_scheduler: self.place.own_scheduler,
            ..Place::of(self.place.thread)
        };
    }

    /// Holds the thread, which must be one of the leader at this moment.
    fn hold(&self, step: Step) -> Result<Task, StepError> {
        let task = self.leader.hold(self.place.thread);
        task.ok_or_else(|| self.failed(step, Reason::Foreign))
    }

    /// Calls `write`, which names the thread by its number, and checks the thread before and after.
    /// Where it ended in between, the number may be another thread's: `undo` puts that back, as far
    /// as its former state is known.
    fn use_thread(
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

    fn failed(&self, step: Step, reason: Reason) -> StepError {
        step.failed(self.path(), reason)
    }

    fn path(&self) -> String {
        format!("/proc/{}/task/{}", self.leader.pid(), self.place.thread)
    }
}
