//! Brings the threads of one machine's vCPUs to where they are wanted, and keeps them there.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;

use super::cgroup::{self, Groups, Mounts};
use super::host_cpus;
use super::pass::{Pass, Place};
use super::resctrl::{self, Resctrl};
use crate::ids::{Tid, VcpuId};
use crate::placement::{
    Controller, HostCpus, Kind, Outcome, Reason, Report, Step, StepError, Tuning, UnitPlacement,
    Wanted,
};
use crate::process::{Dir, Tasks};

/// Where the host's kernel shows what is used here.
#[derive(Clone, Debug)]
pub struct Host {
    /// Its CPUs and memory nodes: `/sys/devices/system`.
    pub system: PathBuf,
    /// Its control groups and caches.
    pub mounts: Mounts,
}

impl Host {
    /// The host that this runs on, with what is mounted now.
    pub fn this() -> io::Result<Self> {
        let own = Dir::open(format!("/proc/{}", std::process::id()))?;
        Ok(Self {
            system: "/sys/devices/system".into(),
            mounts: Mounts::parse(&own.read("mountinfo")?),
        })
    }

    /// Its CPUs and memory nodes, now.
    pub fn cpus(&self) -> Result<HostCpus, StepError> {
        host_cpus(&self.system).map_err(|(path, error)| Step::Affinity.refused(path, &error))
    }
}

/// What is in force for the vCPUs of one machine: the only writer of their groups and threads'
/// attributes.
///
/// Its calls ask the kernel and nobody else, so they are short, but they block.
#[derive(Debug)]
pub struct Placer {
    host: Host,
    home: UnitPlacement,
    groups: Option<Box<dyn Groups>>,
    /// Whether another manager decides what nobody asked for here.
    foreign: bool,
    resctrl: Option<Resctrl>,
    places: BTreeMap<VcpuId, Place>,
    /// The vCPUs whose group was made before they are there.
    prepared: BTreeSet<VcpuId>,
}

impl Placer {
    /// Makes the groups of `machine` where `home` is, and moves its processes there.
    pub fn new(host: Host, machine: &str, home: UnitPlacement) -> Result<Self, StepError> {
        let groups = match home.kind {
            Kind::None => None,
            Kind::Scope | Kind::Unit => Some(cgroup::establish(&host.mounts, &home.control_group)?),
        };
        let resctrl = host.mounts.resctrl.as_ref();
        let resctrl = resctrl
            .map(|root| Resctrl::open(root, machine))
            .transpose()?;
        Ok(Self {
            host,
            home,
            groups,
            foreign: false,
            resctrl,
            places: BTreeMap::new(),
            prepared: BTreeSet::new(),
        })
    }

    /// The same where another manager places the machine: a vCPU for which nothing is asked for
    /// stays as that wants it.
    pub fn beside_another(self) -> Self {
        let foreign = true;
        Self { foreign, ..self }
    }

    /// Where the machine is.
    pub fn home(&self) -> &UnitPlacement {
        &self.home
    }

    /// The controllers that are not there for the machine, and so what cannot be had.
    pub fn missing(&self) -> &[Controller] {
        match &self.groups {
            Some(groups) => groups.missing(),
            None => &[Controller::Cpu, Controller::Cpuset],
        }
    }

    /// Whether all that `tuning` asks for can be had here at all. To be asked, beside
    /// [`Tuning::check`], before anything is changed.
    ///
    /// [`Tuning::check`]: crate::placement::Tuning::check
    pub fn supports(&self, tuning: &Tuning) -> Result<(), StepError> {
        if tuning.memory_nodes.is_some() {
            self.need(Step::Nodes, Controller::Cpuset)?;
        }
        if tuning.bandwidth.is_some_and(|b| b.quota().is_some()) {
            self.need(Step::Bandwidth, Controller::Cpu)?;
        }
        match tuning.cache.is_empty() || self.resctrl.is_some() {
            true => Ok(()),
            false => Err(resctrl::unsupported()),
        }
    }

    /// Makes the groups of vCPUs that are about to come. The next [`Placer::reconcile`] removes
    /// those of vCPUs that did not.
    pub fn prepare(&mut self, vcpus: &[VcpuId]) -> Result<(), StepError> {
        let Some(groups) = &self.groups else {
            return Ok(());
        };
        for vcpu in vcpus {
            if groups.make(*vcpu)? {
                self.prepared.insert(*vcpu);
            }
        }
        Ok(())
    }

    /// Brings each vCPU of `threads` (vCPU → thread) to where `tuning` wants it, and everything
    /// else of the machine to the emulator's group; removes the groups of vCPUs that are gone.
    /// Only what differs is written, so it can be called as often as one likes.
    ///
    /// Each thread must be one of `leader`, which is asked again right before each use.
    pub fn reconcile(
        &mut self,
        tuning: &Tuning,
        threads: &BTreeMap<VcpuId, Tid>,
        leader: &dyn Tasks,
    ) -> Report {
        let mut report = Report::default();
        let cpus = self.host.cpus();
        if let Some(groups) = &self.groups {
            report.emulator = groups.follow().err();
        }
        for (vcpu, thread) in threads {
            let outcome = match &cpus {
                Ok(cpus) => self.place(*vcpu, *thread, &tuning.of(*vcpu), cpus, leader),
                Err(error) => Outcome {
                    failed: Some(error.clone()),
                    ..Outcome::default()
                },
            };
            report.vcpus.insert(*vcpu, outcome);
        }
        self.places.retain(|vcpu, _| threads.contains_key(vcpu));
        self.prepared.clear();
        if let Err(error) = self.sweep(leader) {
            report.emulator.get_or_insert(error);
        }
        report.lingering = self.remove_all_but(threads);
        if let Some(Err(error)) = self.resctrl.as_ref().map(Resctrl::tidy) {
            tracing::debug!(%error, "a group of resctrl stays for now");
        }
        report
    }

    /// Puts `new` in force instead of `old`. Where a vCPU cannot have it, all have gone back to
    /// `old`, and this is why, and for which. What failed before and does so still is no reason,
    /// if it is in `known`.
    pub fn change(
        &mut self,
        old: &Tuning,
        new: &Tuning,
        threads: &BTreeMap<VcpuId, Tid>,
        leader: &dyn Tasks,
        known: &BTreeMap<VcpuId, StepError>,
    ) -> Result<Report, Vec<(VcpuId, StepError)>> {
        let report = self.reconcile(new, threads, leader);
        let failures = report.failures();
        let reasons = failures.filter(|(vcpu, error)| known.get(vcpu) != Some(error));
        let reasons: Vec<_> = reasons.map(|(vcpu, e)| (vcpu, e.clone())).collect();
        if reasons.is_empty() {
            return Ok(report);
        }
        self.reconcile(old, threads, leader);
        Err(reasons)
    }

    /// Removes all groups of a machine that has ended. What something is still in stays, with
    /// an error: to be called again.
    pub fn dismantle(&mut self) -> Result<(), StepError> {
        self.places.clear();
        if let Some(resctrl) = &self.resctrl {
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

    fn need(&self, step: Step, controller: Controller) -> Result<(), StepError> {
        let reason = match &self.groups {
            None => Reason::NoGroups,
            Some(groups) if groups.missing().contains(&controller) => {
                Reason::NoController(controller)
            }
            Some(_) => return Ok(()),
        };
        Err(step.failed(&self.home.control_group, reason))
    }

    /// Everything of the machine that is no vCPU goes to the emulator's group.
    fn sweep(&self, leader: &dyn Tasks) -> Result<(), StepError> {
        let Some(groups) = &self.groups else {
            return Ok(());
        };
        let placed = self.places.values().filter(|place| place.entered);
        let vcpus: BTreeSet<Tid> = placed.map(|place| place.thread).collect();
        groups.sweep(leader, &vcpus)
    }

    /// Removes the groups of vCPUs that are not in `threads`. Returns those that would not go.
    fn remove_all_but(&self, threads: &BTreeMap<VcpuId, Tid>) -> Vec<VcpuId> {
        let Some(groups) = &self.groups else {
            return Vec::new();
        };
        let stays = |vcpu: &VcpuId| {
            let removed = groups.remove(*vcpu);
            removed
                .inspect_err(
                    |error| tracing::debug!(vcpu = vcpu.get(), %error, "a group stays for now"),
                )
                .is_err()
        };
        let there = groups.vcpus().unwrap_or_default();
        let gone = there.into_iter().filter(|vcpu| !threads.contains_key(vcpu));
        gone.filter(stays).collect()
    }

    /// Brings one vCPU to where it is wanted.
    fn place(
        &mut self,
        vcpu: VcpuId,
        thread: Tid,
        wanted: &Wanted<'_>,
        cpus: &HostCpus,
        leader: &dyn Tasks,
    ) -> Outcome {
        let place = self.places.remove(&vcpu);
        let pass = Pass {
            groups: self.groups.as_deref(),
            foreign: self.foreign,
            resctrl: self.resctrl.as_ref(),
            cpus,
            vcpu,
            leader,
            place: place
                .filter(|place| place.thread == thread)
                .unwrap_or_else(|| Place::of(thread)),
            outcome: Outcome::default(),
            made: self.prepared.contains(&vcpu),
        };
        let (place, outcome) = pass.run(wanted);
        self.places.insert(vcpu, place);
        outcome
    }
}
