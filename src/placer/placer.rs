//! Brings the vCPU threads of one machine to their wanted placement, and keeps it in force.

use std::collections::BTreeMap;

use super::cgroup::{self, Groups};
use super::host::Host;
use super::observe::memberships;
use super::pass::{AppliedVcpu, VcpuPass};
use super::resctrl::{self, Resctrl};
use super::tunable::VcpuThread;
use crate::ids::{Tid, VcpuId};
use crate::placement::{
    ChangedThreads, Controller, HostCpus, Kind, Outcome, Reason, Report, Step, StepError, Tuning,
    UnitPlacement,
};
use crate::process::{Dir, Tasks};

/// The placement of the vCPUs of one machine. It is the only writer of their groups and of the
/// attributes of their threads.
///
/// Its calls ask the kernel only, so they are short, but they block.
#[derive(Debug)]
pub struct Placer {
    host: Host,
    machine: String,
    pub(super) placement: UnitPlacement,
    groups: Option<Box<dyn Groups>>,
    /// Whether another manager decides the default affinity.
    managed_elsewhere: bool,
    /// Whether the machine may have groups of resctrl, also those of a previous instance.
    may_have_caches: bool,
    /// Whether the process of the machine was in the control group of the unit.
    was_in_unit: bool,
    /// Whether it was in another one after that, according to the last pass.
    pub(super) is_elsewhere: bool,
    /// In boxes, because the map has room for eleven at least.
    pub(super) applied: BTreeMap<VcpuId, Box<AppliedVcpu>>,
}

impl Placer {
    /// Creates the groups of `machine` in the unit of `placement`, and moves its processes there. Blocks.
    ///
    /// # Errors
    ///
    /// Fails if the kernel refuses.
    pub fn new(host: Host, machine: &str, placement: UnitPlacement) -> Result<Self, StepError> {
        let groups = match placement.kind {
            Kind::None => None,
            Kind::Scope | Kind::Unit => {
                let group = &placement.control_group;
                Some(cgroup::create(&host.mounts, &host.system, group)?)
            }
        };
        Ok(Self {
            host,
            machine: machine.to_owned(),
            placement,
            groups,
            managed_elsewhere: false,
            may_have_caches: true,
            was_in_unit: false,
            is_elsewhere: false,
            applied: BTreeMap::new(),
        })
    }

    /// Returns the same placer for a machine that another manager places: a vCPU without a wanted affinity
    /// keeps the one that this manager gave it.
    pub fn managed_elsewhere(self) -> Self {
        Self {
            managed_elsewhere: true,
            ..self
        }
    }

    /// Notes what a previous placer of the machine changed, as far as this one has not used the threads.
    pub fn restore(&mut self, changed: &ChangedThreads) {
        for (vcpu, changed) in changed {
            let applied = self.applied.entry(*vcpu);
            applied.or_insert_with(|| Box::new(AppliedVcpu::restored(changed)));
        }
    }

    /// Returns the unit of the machine.
    pub fn placement(&self) -> &UnitPlacement {
        &self.placement
    }

    /// Returns whether the machine has control groups.
    pub fn has_groups(&self) -> bool {
        self.groups.is_some()
    }

    /// Returns the groups of the machine: those of vCPUs, and those that they share (`None`).
    pub(super) fn all_groups(&self) -> Vec<Option<VcpuId>> {
        match &self.groups {
            Some(_) => std::iter::once(None)
                .chain(self.applied.keys().copied().map(Some))
                .collect(),
            None => Vec::new(),
        }
    }

    /// Opens the directories of a group in [`Placer::all_groups`]. Blocks.
    pub(super) fn directories(&self, group: Option<VcpuId>) -> Vec<Dir> {
        let groups = self.groups.as_ref();
        groups
            .map(|groups| groups.directories(group))
            .unwrap_or_default()
    }

    /// Returns the controllers that the machine's groups do not have.
    pub fn missing(&self) -> &[Controller] {
        match &self.groups {
            Some(groups) => groups.missing(),
            None => &[Controller::Cpu, Controller::Cpuset],
        }
    }

    /// Checks that the host and the unit have what `step` needs. Call it before any change. Blocks.
    ///
    /// # Errors
    ///
    /// Fails if a controller or resctrl is missing.
    pub fn supports(&self, step: Step) -> Result<(), StepError> {
        match step {
            Step::Nodes => self.need(step, Controller::Cpuset),
            Step::Bandwidth => self.need(step, Controller::Cpu),
            Step::Cache => match self.open_resctrl()? {
                Some(_) => Ok(()),
                None => Err(resctrl::unsupported()),
            },
            _ => Ok(()),
        }
    }

    /// Creates the groups of vCPUs that are about to be added. The next [`Placer::reconcile`] removes those
    /// of vCPUs that were not added. Blocks.
    ///
    /// # Errors
    ///
    /// Fails if the kernel refuses.
    pub fn prepare(&mut self, vcpus: &[VcpuId]) -> Result<(), StepError> {
        let Some(groups) = self.groups() else {
            return Ok(());
        };
        for vcpu in vcpus {
            groups.make(*vcpu)?;
        }
        Ok(())
    }

    /// Brings each vCPU of `threads` to the values of `tuning`, and all other threads of the machine to the
    /// emulator's group. Removes the groups of other vCPUs. Only differences are written. Blocks.
    ///
    /// Each thread must be one of `leader`, and is checked right before each use.
    pub fn reconcile(
        &mut self,
        tuning: &Tuning,
        threads: &BTreeMap<VcpuId, Tid>,
        leader: &dyn Tasks,
    ) -> Report {
        self.is_elsewhere = self.has_left(leader);
        let host = self.host.cpus();
        let mut report = Report {
            is_elsewhere: self.is_elsewhere,
            default_cpus: host.as_ref().ok().map(HostCpus::default_cpus),
            ..Report::default()
        };
        if let Some(groups) = &mut self.groups
            && !self.is_elsewhere
        {
            report.emulator = groups.follow().err();
        }
        let resctrl = self.caches(tuning);
        for (vcpu, id) in threads {
            let thread = VcpuThread { id: *id, leader };
            let outcome = self.place(*vcpu, thread, tuning, &host, resctrl.as_ref());
            report.vcpus.insert(*vcpu, Box::new(outcome));
        }
        self.applied.retain(|vcpu, _| report.has_thread(*vcpu));
        if let Err(error) = self.sweep(leader) {
            report.emulator.get_or_insert(error);
        }
        report.lingering = self.remove_others(&report);
        if let Some(resctrl) = resctrl {
            self.tidy_caches(tuning, &resctrl);
        }
        report
    }

    /// Puts `new` in force instead of `old`. `concerns` returns whether an error of a vCPU means that a
    /// changed value is not in force. Blocks.
    ///
    /// # Errors
    ///
    /// Fails if a vCPU cannot get the changed values, with the reasons by vCPU. Then all have the values of
    /// `old` again.
    pub fn change(
        &mut self,
        old: &Tuning,
        new: &Tuning,
        threads: &BTreeMap<VcpuId, Tid>,
        leader: &dyn Tasks,
        concerns: impl Fn(VcpuId, &StepError) -> bool,
    ) -> Result<Report, Vec<(VcpuId, StepError)>> {
        let report = self.reconcile(new, threads, leader);
        let failures = report.failures();
        let reasons = failures.filter(|(vcpu, error)| concerns(*vcpu, error));
        let reasons: Vec<_> = reasons.map(|(vcpu, e)| (vcpu, e.clone())).collect();
        if reasons.is_empty() {
            return Ok(report);
        }
        self.reconcile(old, threads, leader);
        Err(reasons)
    }

    /// Removes all groups of a machine whose QEMU has exited. Blocks.
    ///
    /// # Errors
    ///
    /// Fails if a group is not empty yet. Then it can be called again.
    pub fn dismantle(&mut self) -> Result<(), StepError> {
        self.applied.clear();
        if self.may_have_caches
            && let Some(resctrl) = self.open_resctrl()?
        {
            resctrl.tidy()?;
        }
        let Some(groups) = &self.groups else {
            return Ok(());
        };
        for vcpu in groups.vcpus()? {
            groups.remove(vcpu)?;
        }
        groups.dismantle()
    }

    /// Opens resctrl if it is mounted. An administrator can mount and unmount it at any time, so it does not
    /// stay open: an open directory prevents that.
    fn open_resctrl(&self) -> Result<Option<Resctrl>, StepError> {
        let root = self.host.resctrl();
        root.map(|root| Resctrl::open(&root, &self.machine))
            .transpose()
    }

    /// Opens resctrl for a pass, if the machine needs it.
    fn caches(&mut self, tuning: &Tuning) -> Option<Resctrl> {
        self.may_have_caches |= !tuning.cache.is_empty();
        if !self.may_have_caches {
            return None;
        }
        let opened = self.open_resctrl().inspect_err(|error| {
            tracing::debug!(%error, "cannot open resctrl");
        });
        // The kernel removes all groups with the mount.
        self.may_have_caches = !matches!(opened, Ok(None));
        opened.ok().flatten()
    }

    /// Removes the empty groups of resctrl after a pass with `tuning`.
    fn tidy_caches(&mut self, tuning: &Tuning, resctrl: &Resctrl) {
        let tidied = resctrl.tidy().inspect_err(|error| {
            tracing::debug!(%error, "cannot remove a group of resctrl yet");
        });
        self.may_have_caches = !tuning.cache.is_empty() || tidied != Ok(0);
    }

    /// Returns the groups, if the machine is in its unit.
    fn groups(&self) -> Option<&dyn Groups> {
        let groups = self.groups.as_deref();
        groups.filter(|_| !self.is_elsewhere)
    }

    /// Returns whether the process of `leader` was in the control group of the unit, and is in another one.
    fn has_left(&mut self, leader: &dyn Tasks) -> bool {
        let unit = self.placement.control_group.trim_end_matches('/');
        if unit.is_empty() {
            return false;
        }
        let is_in = memberships(leader).map(|groups| groups.is_in(unit));
        let is_in = is_in.unwrap_or(self.was_in_unit);
        self.was_in_unit |= is_in;
        self.was_in_unit && !is_in
    }

    /// Removes the groups of a machine that has left its unit, if they are empty. Returns the values that
    /// were in force.
    pub(super) fn abandon(mut self) -> BTreeMap<VcpuId, Box<AppliedVcpu>> {
        let applied = std::mem::take(&mut self.applied);
        if let Err(error) = self.dismantle() {
            let vm_name = self.machine.as_str();
            tracing::debug!(vm_name, %error, "{vm_name}: a group in the previous unit stays: {error}");
        }
        applied
    }

    fn need(&self, step: Step, controller: Controller) -> Result<(), StepError> {
        let reason = match self.groups() {
            None => Reason::NoGroups,
            Some(groups) if groups.missing().contains(&controller) => {
                Reason::NoController(controller)
            }
            Some(_) => return Ok(()),
        };
        Err(step.failed(&self.placement.control_group, reason))
    }

    /// Moves all threads of the machine that are not vCPUs to the emulator's group.
    fn sweep(&self, leader: &dyn Tasks) -> Result<(), StepError> {
        let Some(groups) = self.groups() else {
            return Ok(());
        };
        let vcpus = self.applied.values().filter(|vcpu| vcpu.is_in_group());
        groups.sweep(leader, &vcpus.map(|vcpu| vcpu.thread).collect())
    }

    /// Removes the groups of vCPUs that have no thread according to `report`. Returns those that cannot be
    /// removed yet.
    fn remove_others(&self, report: &Report) -> Vec<VcpuId> {
        let Some(groups) = self.groups() else {
            return Vec::new();
        };
        let stays = |vcpu: &VcpuId| {
            let removed = groups.remove(*vcpu);
            removed
                .inspect_err(|error| {
                    tracing::debug!(vcpu = vcpu.get(), %error, "cannot remove a group yet");
                })
                .is_err()
        };
        let existing = groups.vcpus().unwrap_or_default().into_iter();
        let others = existing.filter(|vcpu| !report.has_thread(*vcpu));
        others.filter(stays).collect()
    }

    /// Makes a pass for one vCPU.
    fn place(
        &mut self,
        vcpu: VcpuId,
        thread: VcpuThread<'_>,
        tuning: &Tuning,
        host: &Result<HostCpus, StepError>,
        resctrl: Option<&Resctrl>,
    ) -> Outcome {
        let applied = self.applied.remove(&vcpu);
        let applied = applied.filter(|applied| applied.thread == thread.id);
        let pass = VcpuPass {
            groups: self.groups.as_deref().filter(|_| !self.is_elsewhere),
            managed_elsewhere: self.managed_elsewhere || self.is_elsewhere,
            resctrl,
            host,
            vcpu,
            thread,
            applied: applied.unwrap_or_else(|| Box::new(AppliedVcpu::new(thread.id))),
            outcome: Outcome::default(),
        };
        let (applied, outcome) = pass.run(&tuning.of(vcpu));
        self.applied.insert(vcpu, applied);
        outcome
    }
}
