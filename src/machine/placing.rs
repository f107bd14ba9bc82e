//! Where the machine's vCPUs run on the host: the actor's use of the placer, which does it.
//!
//! Everything is brought to what is wanted in one pass, after each look that shows other
//! threads, after each change of what is wanted, and from time to time, as others may undo it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::actor::Actor;
use super::error::{Error, TuningError};
use super::handle::TuningAnswer;
use super::snapshot::{Snapshot, Subject};
use super::tuning::TuningChange;
use super::worker::{Worker, on_host};
use crate::audit::Audit;
use crate::fd_store::FdStore;
use crate::ids::{Tid, VcpuId};
use crate::inventory::Inventory;
use crate::names::message_id;
use crate::placement::{
    HostCpus, Kind, NewScope, NoCgroupsReason, PlacementMode, Report, Step, StepError, Tuning,
    UnitPlacement, Units,
};
use crate::placer::{Host, Placer, ScopeRequest, UnitLookupError, find_unit};
use crate::process::Leader;

/// How often it is seen to that what is wanted is still in force. The look that goes with it finds
/// what others plugged and nobody told.
const INTERVAL: Duration = Duration::from_secs(5);

/// How long the list of the host's CPUs is good enough to be shown.
const FRESH: Duration = Duration::from_secs(1);

/// The host, as far as machines are placed on it.
#[derive(Clone, Debug)]
pub struct HostServices {
    /// Who keeps its units.
    pub units: Arc<dyn Units>,
    /// Its kernel.
    pub host: Host,
    /// Its audit log.
    pub audit: Arc<Audit>,
    /// Who keeps connections over a restart of the service.
    pub keeper: Arc<dyn FdStore>,
}

/// How a machine is placed on its host.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PlacementConfig {
    /// In which unit.
    pub wish: PlacementMode,
    /// In which slice, if it gets a scope of its own.
    pub slice: String,
    /// What is wanted for its vCPUs, until somebody changes it.
    pub tuning: Tuning,
}

/// What the actor knows of the place of its vCPUs.
#[derive(Debug, Default)]
pub(super) struct Placing {
    worker: Worker,
    /// The home of the placer; `None` until it is known where the machine is.
    home: Option<UnitPlacement>,
    /// The CPUs of the host, and when they were read.
    cpus: Option<(Instant, Option<HostCpus>)>,
    pub(super) tuning: Arc<Tuning>,
    /// The threads of the last pass, by vCPU.
    threads: BTreeMap<VcpuId, Tid>,
    /// What failed in the last pass, and was logged.
    failed: BTreeMap<VcpuId, StepError>,
    /// What was found changed from outside, and was logged.
    drifted: BTreeSet<(VcpuId, Step)>,
    due: Option<Instant>,
}

/// What came of looking for a machine's home.
pub(super) type Found = Result<(UnitPlacement, Option<NoCgroupsReason>), UnitLookupError>;

/// Looks for the home of the machine of `leader`, and makes it where it has to be made.
pub(super) async fn look_for_home(
    site: HostServices,
    leader: Arc<Leader>,
    placement: PlacementConfig,
    scope: String,
    description: String,
) -> Found {
    let scope = NewScope {
        name: &scope,
        slice: &placement.slice,
        description: &description,
    };
    let mode = placement.wish;
    find_unit(site.units.as_ref(), &leader, &ScopeRequest { mode, scope }).await
}

impl Placing {
    /// Of a machine that starts with `tuning`.
    pub(super) fn new(tuning: Tuning) -> Self {
        Self {
            tuning: Arc::new(tuning),
            ..Self::default()
        }
    }

    /// Whether the machine has a home, if only one without control groups.
    pub(super) fn is_at_home(&self) -> bool {
        self.home.is_some()
    }

    /// When the next pass is due without any cause.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// What failed for one of `vcpus` in the last pass.
    pub(super) fn failures(&self, vcpus: &[VcpuId]) -> Vec<(VcpuId, StepError)> {
        let failed = self.failed.iter().filter(|(vcpu, _)| vcpus.contains(vcpu));
        failed.map(|(vcpu, error)| (*vcpu, error.clone())).collect()
    }

    /// Makes the groups of vCPUs that are about to come.
    pub(super) async fn prepare(&mut self, vcpus: Vec<VcpuId>) {
        let pass = self.worker.pass(move |placer| {
            // A failure here comes again when the threads are there, and is reported then.
            if let Err(error) = placer.prepare(&vcpus) {
                info!(%error, "groups cannot be made before the vCPUs are there");
            }
            Ok(Report::default())
        });
        pass.await;
    }

    /// The end of the machine: if its QEMU has ended its groups go, else all stays as it is.
    pub(super) async fn leave(&mut self, leader: Option<Arc<Leader>>) {
        let pass = self.worker.pass(move |placer| {
            if leader.is_some_and(|leader| leader.has_exited())
                && let Err(error) = placer.dismantle()
            {
                // systemd removes the rest with the unit.
                info!(%error, "a group of the machine stays");
            }
            Ok(Report::default())
        });
        pass.await;
        self.worker = Worker::Absent;
        self.home = None;
    }

    /// Returns the CPUs of the host, at most a second old.
    async fn host_cpus(&mut self, host: &Host) -> Option<&HostCpus> {
        let is_fresh = |(at, _): &&(Instant, _)| at.elapsed() < FRESH;
        if self.cpus.as_ref().filter(is_fresh).is_none() {
            let host = host.clone();
            let cpus = on_host(move || host.cpus().ok()).await;
            self.cpus = Some((Instant::now(), cpus));
        }
        self.cpus.as_ref().and_then(|(_, cpus)| cpus.as_ref())
    }
}

impl Actor {
    /// The machine's home was looked for.
    pub(super) async fn move_in(&mut self, found: Found) {
        let machine = &self.source.name;
        // A user's machine stays on the host CPUs that the user confined it to, and a process that
        // is in no unit was put there by another manager.
        let is_of_user = self.source.registrant.is_some_and(|uid| !uid.is_root());
        let foreign =
            is_of_user || matches!(&found, Ok((_, Some(reason))) if reason.is_managed_elsewhere());
        let home = match found {
            Ok((home, None)) => home,
            Ok((home, Some(reason))) => {
                info!(%machine, %reason, "no control groups: only affinity and schedulers");
                home
            }
            Err(error) => {
                warn!(%machine, %error, "no control groups: only affinity and schedulers");
                UnitPlacement::without_groups(String::new())
            }
        };
        let (host, name) = (self.site.host.clone(), machine.clone());
        let placer = on_host(move || {
            let placer = Placer::new(host.clone(), name.as_str(), home.clone());
            placer.or_else(|error| {
                let unit = home.unit;
                warn!(machine = %name, unit, %error, "no control groups: only affinity and schedulers");
                Placer::new(host, name.as_str(), UnitPlacement::without_groups(unit))
            })
        });
        match placer.await {
            Ok(mut placer) => {
                if foreign {
                    placer = placer.managed_elsewhere();
                }
                let (unit, missing) = (&placer.placement().unit, placer.missing());
                if placer.placement().kind != Kind::None && !missing.is_empty() {
                    warn!(%machine, unit, ?missing, "controllers are not available");
                }
                self.placing.home = Some(placer.placement().clone());
                self.placing.worker = Worker::Idle(Box::new(placer));
            }
            Err(error) => warn!(%machine, %error, "vCPUs are not placed"),
        }
    }

    /// Brings the vCPUs of `inventory` to where they are wanted, if something changed since the
    /// last pass or one is due.
    pub(super) async fn place(&mut self, inventory: &Inventory) {
        let threads: BTreeMap<VcpuId, Tid> = inventory
            .vcpus()
            .filter_map(|vcpu| Some((vcpu.id, vcpu.thread?)))
            .collect();
        let now = Instant::now();
        let is_due = self.placing.due.is_none_or(|due| due <= now);
        if !is_due && threads == self.placing.threads {
            return;
        }
        let Some(leader) = self.leader.clone() else {
            return;
        };
        let (tuning, wanted) = (self.placing.tuning.clone(), threads.clone());
        let pass = self
            .placing
            .worker
            .pass(move |placer| Ok(placer.reconcile(&tuning, &wanted, leader.as_ref())));
        let Some(Ok(report)) = pass.await else {
            return;
        };
        self.placing.threads = threads;
        self.placing.due = Some(now + INTERVAL);
        self.log_pass(&report);
    }

    fn log_pass(&mut self, report: &Report) {
        let machine = &self.source.name;
        let failed: BTreeMap<VcpuId, StepError> = report
            .failures()
            .map(|(vcpu, error)| (vcpu, error.clone()))
            .collect();
        let now = Instant::now();
        for (vcpu, error) in &failed {
            let is_new = self.placing.failed.get(vcpu) != Some(error);
            if is_new && self.log_quota.take(now) {
                let message_id = message_id::VCPU_NOT_PLACED;
                let vm_name = machine.as_str();
                warn!(message_id, vm_name, vcpu = vcpu.get(), %error, "vCPU not placed as wanted");
            }
        }
        for (vcpu, outcome) in &report.vcpus {
            for step in &outcome.drifted {
                if self.placing.drifted.insert((*vcpu, *step)) && self.log_quota.take(now) {
                    warn!(%machine, vcpu = vcpu.get(), %step, "changed from outside, and set again");
                }
            }
        }
        if let Some(error) = &report.emulator
            && self.log_quota.take(now)
        {
            info!(%machine, %error, "not all other threads are in the emulator's group");
        }
        self.placing.failed = failed;
    }

    /// Changes the tuning of `subject`, if that is possible.
    pub(super) async fn tune(
        &mut self,
        change: TuningChange,
        subject: Subject,
        answer: TuningAnswer,
    ) {
        let result = self.snapshot().check(&subject);
        let result = match result {
            Ok(()) => self.try_tune(&change).await,
            Err(error) => Err(error),
        };
        if result.is_ok() {
            let snapshot = Snapshot::clone(&self.snapshot());
            self.publish(snapshot).await;
        }
        let _ = answer.send(result);
    }

    /// Takes up what the configuration wants now, if that changed: it goes before what calls
    /// changed of the same, and leaves the rest.
    pub(super) async fn take_up_treatment(&mut self) {
        let wanted = self.treatment.borrow().placement.tuning.clone();
        if wanted == self.configured {
            return;
        }
        let tuning = self.placing.tuning.rebased(&self.configured, &wanted);
        self.placing.tuning = Arc::new(tuning);
        self.configured = wanted;
        self.placing.due = None;
        let snapshot = Snapshot::clone(&self.snapshot());
        self.place(&snapshot.inventory).await;
        self.publish(snapshot).await;
        self.remember().await;
    }

    async fn try_tune(&mut self, change: &TuningChange) -> Result<(), Error> {
        let old = self.placing.tuning.clone();
        let new = self.check(change).await.map_err(Error::Tuning)?;
        let mut known = self.placing.failed.clone();
        known.retain(|vcpu, error| !change.decides(*vcpu, error.step, &new));
        // Written down first, as what is done and not remembered would be undone by a restart.
        self.placing.tuning = Arc::new(new);
        let result = match self.try_remember().await {
            Ok(()) => self.put_in_force(&old, known).await,
            Err(error) => Err(error),
        };
        if result.is_err() {
            self.placing.tuning = old;
            self.remember().await;
        }
        result
    }

    /// What comes of `change`, if it can be had.
    async fn check(&mut self, change: &TuningChange) -> Result<Tuning, TuningError> {
        let snapshot = self.snapshot();
        let max = snapshot.inventory.max_vcpus();
        let vcpus = change.vcpus();
        if let Some(vcpu) = vcpus
            .and_then(|v| v.last())
            .copied()
            .filter(|v| v.get() >= max)
        {
            return Err(TuningError::NoSuchVcpu { vcpu, max });
        }
        if self.leader.is_none() || !self.placing.is_at_home() {
            return Err(TuningError::NoHome);
        }
        let is_threadless = |vcpu: &crate::inventory::Vcpu<'_>| {
            let is_meant = vcpus.is_none_or(|v| v.is_empty() || v.contains(&vcpu.id));
            is_meant && vcpu.slot.presence.is_some() && vcpu.thread.is_none()
        };
        if let Some(vcpu) = snapshot.inventory.vcpus().find(is_threadless) {
            return Err(TuningError::NoThread { vcpu: vcpu.id });
        }
        let new = change.of(&self.placing.tuning, max);
        let host = self.site.host.clone();
        let cpus = on_host(move || host.cpus()).await;
        let cpus = cpus.map_err(TuningError::Refused)?;
        change.check(&cpus).map_err(TuningError::Unavailable)?;
        let (sender, supported) = tokio::sync::oneshot::channel();
        let tuning = new.clone();
        let pass = self.placing.worker.pass(move |placer| {
            let _ = sender.send(placer.supports(&tuning));
            Ok(Report::default())
        });
        pass.await;
        let supported = supported.await.map_err(|_| TuningError::NoHome)?;
        supported.map_err(TuningError::Refused)?;
        Ok(new)
    }

    /// Brings the vCPUs from what was wanted to what is.
    async fn put_in_force(
        &mut self,
        old: &Arc<Tuning>,
        known: BTreeMap<VcpuId, StepError>,
    ) -> Result<(), Error> {
        let no_home = || Error::Tuning(TuningError::NoHome);
        let leader = self.leader.clone().ok_or_else(no_home)?;
        let (old, new) = (old.clone(), self.placing.tuning.clone());
        let threads = self.placing.threads.clone();
        let pass = self
            .placing
            .worker
            .pass(move |placer| placer.change(&old, &new, &threads, leader.as_ref(), &known));
        let passed = pass.await.ok_or_else(no_home)?;
        let report = passed.map_err(|failures| Error::Tuning(TuningError::Failed(failures)))?;
        self.log_pass(&report);
        Ok(())
    }

    /// Completes what is published with the place of the machine.
    pub(super) async fn add_place(&mut self, snapshot: &mut Snapshot) {
        snapshot.home = self.placing.home.clone();
        snapshot.tuning = self.placing.tuning.clone();
        let affinity = match &snapshot.tuning.affinity {
            Some(cpus) => Some(cpus.clone()),
            None => {
                let cpus = self.placing.host_cpus(&self.site.host).await;
                cpus.map(HostCpus::default_cpus)
            }
        };
        snapshot.affinity = affinity.map(|cpus| cpus.to_string()).unwrap_or_default();
    }
}
