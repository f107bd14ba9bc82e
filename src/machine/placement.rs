//! The placement worker of a machine: it owns the placer, and runs on the blocking pool.

use std::sync::Arc;

use tokio::sync::{Mutex, OwnedMutexGuard, Semaphore};
use tracing::{info, warn};

use super::model::effect::{Threads, TuningSwitch};
use super::model::error::TuningError;
use super::model::input::UnitFound;
use super::model::tuning::TuningChange;
use super::spec::{HostServices, PlacementConfig};
use crate::blocking::blocking;
use crate::ids::VcpuId;
use crate::names::MachineName;
use crate::placement::{
    CpuList, NewScope, NoCgroupsReason, Report, StepError, Tuning, UnitPlacement,
};
use crate::placer::{Masks, Placer, ScopeRequest, UnitLookupError, find_unit};
use crate::process::{Leader, LeaderError};

/// How many machines place vCPUs at a time.
static WORKERS: Semaphore = Semaphore::const_new(2);

/// The worker of one machine. All clones are the same worker.
#[derive(Clone, Debug)]
pub(super) struct PlacementWorker {
    name: MachineName,
    services: HostServices,
    /// Whether an unprivileged user registered the machine.
    is_of_user: bool,
    /// Locked by one job after the other. A job that has begun keeps the lock to its end, even if its
    /// future is dropped.
    placer: Arc<Mutex<Option<Placer>>>,
}

impl PlacementWorker {
    /// Returns the worker of the machine `name`, which has no placer yet.
    pub(super) fn new(name: MachineName, services: HostServices, is_of_user: bool) -> Self {
        Self {
            name,
            services,
            is_of_user,
            placer: Arc::default(),
        }
    }

    /// Searches the unit of `leader`, starts a scope if that is needed, and creates the placer.
    pub(super) async fn find_unit(self, leader: Arc<Leader>, config: PlacementConfig) -> UnitFound {
        let (scope, description) = (self.name.scope(), format!("Virtual machine {}", self.name));
        let scope = NewScope {
            name: &scope,
            slice: &config.slice,
            description: &description,
        };
        let request = ScopeRequest {
            mode: config.mode,
            scope,
        };
        // Before systemd enables the controllers of a scope.
        let process = leader.clone();
        let masks = on_host(move || Masks::read(process.as_ref())).await;
        let found = find_unit(self.services.units.as_ref(), &leader, &request).await;
        let is_transient = match &found {
            Ok((_, reason)) => reason.as_ref().is_some_and(NoCgroupsReason::is_transient),
            Err(error) => error.is_transient(),
        };
        let is_managed_elsewhere = self.is_managed_elsewhere(&found);
        let unit = self.unit_of(found);
        let mut placer = self.placer.clone().lock_owned().await;
        on_host(move || {
            let host = &self.services.host;
            let default_cpus = host.read_default_cpus();
            // A placer knows what it has changed, so it stays for the same unit.
            let known = placer.as_ref().map(Placer::placement);
            if known != Some(&unit) {
                *placer = Placer::create(host, self.name.as_str(), unit);
                masks.restore(leader.as_ref());
            }
            if is_managed_elsewhere {
                *placer = placer.take().map(Placer::managed_elsewhere);
            }
            UnitFound {
                unit: placer.as_ref().map(|placer| placer.placement().clone()),
                is_transient,
                default_cpus,
            }
        })
        .await
    }

    /// Returns whether another manager decides about what no caller asked for: the machine of a user
    /// stays on the host CPUs that the user confined it to, and a process that is in no unit was put
    /// there by another manager.
    fn is_managed_elsewhere(&self, found: &Found) -> bool {
        let reason = found.as_ref().ok().and_then(|(_, reason)| reason.as_ref());
        self.is_of_user || reason.is_some_and(NoCgroupsReason::is_managed_elsewhere)
    }

    /// Returns the unit, or the lack of one. Logs the reason if the unit is missing.
    fn unit_of(&self, found: Found) -> UnitPlacement {
        let machine = &self.name;
        match found {
            Ok((unit, None)) => unit,
            Ok((unit, Some(reason))) => {
                info!(%machine, %reason, "{machine}: no control groups, only affinity and schedulers: {reason}");
                unit
            }
            Err(error) => {
                warn!(%machine, %error, "{machine}: no control groups, only affinity and schedulers: {error}");
                UnitPlacement::without_groups(String::new())
            }
        }
    }

    /// Creates the groups of vCPUs that are about to be added.
    pub(super) async fn prepare(self, vcpus: Vec<VcpuId>) {
        self.run(move |placer| {
            // The same failure occurs when the threads exist, and is reported then.
            if let Err(error) = placer.prepare(&vcpus) {
                info!(%error, "groups cannot be created before the vCPUs exist: {error}");
            }
        })
        .await;
    }

    /// Enforces `tuning` for `threads`. Also returns the default CPUs of the host.
    ///
    /// # Errors
    /// Fails if the process is not the one that it was.
    pub(super) async fn place(
        self,
        leader: Arc<Leader>,
        tuning: Arc<Tuning>,
        threads: Threads,
    ) -> Result<(Report, Option<CpuList>), LeaderError> {
        leader.verify().await?;
        let host = self.services.host.clone();
        let placed = self.run(move |placer| {
            let report = placer.reconcile(&tuning, &threads, leader.as_ref());
            (report, host.read_default_cpus())
        });
        Ok(placed.await.unwrap_or_default())
    }

    /// Checks whether the host supports `change`.
    ///
    /// # Errors
    /// Fails if it does not, or cannot be queried.
    pub(super) async fn check(self, change: TuningChange) -> Result<(), TuningError> {
        let host = self.services.host.clone();
        let checked = self.run(move |placer| {
            let cpus = host.cpus().map_err(TuningError::Refused)?;
            change.check(&cpus).map_err(TuningError::Unavailable)?;
            match change.needs() {
                Some(step) => placer.supports(step).map_err(TuningError::Refused),
                None => Ok(()),
            }
        });
        checked.await.unwrap_or(Err(TuningError::NoUnit))
    }

    /// Enforces another tuning, or restores the previous one.
    ///
    /// # Errors
    /// Returns the failures that made the placer restore the previous tuning.
    pub(super) async fn change(
        self,
        leader: Arc<Leader>,
        switch: TuningSwitch,
    ) -> Result<Report, Vec<(VcpuId, StepError)>> {
        let TuningSwitch {
            old,
            new,
            threads,
            change,
        } = switch;
        let changed = self.run(move |placer| {
            let concerns = |vcpu, error: &StepError| change.fails_with(vcpu, error, &new);
            placer.change(&old, &new, &threads, leader.as_ref(), concerns)
        });
        changed.await.unwrap_or_else(|| Ok(Report::default()))
    }

    /// Ends the placement: if `leader` has exited its groups are removed, else everything stays.
    pub(super) async fn leave(&self, leader: Arc<Leader>) {
        let mut placer = self.lock().await;
        on_host(move || {
            if let Some(mut placer) = placer.take()
                && leader.has_exited()
                && let Err(error) = placer.dismantle()
            {
                // systemd removes the rest with the unit.
                info!(%error, "a group of the machine stays: {error}");
            }
        })
        .await;
    }

    /// Runs `work` with the placer, after all earlier work. Returns `None` if there is no placer.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Placer) -> T + Send + 'static,
    ) -> Option<T> {
        let mut placer = self.lock().await;
        on_host(move || placer.as_mut().map(work)).await
    }

    async fn lock(&self) -> OwnedMutexGuard<Option<Placer>> {
        self.placer.clone().lock_owned().await
    }
}

/// The result of the search for a unit, and why it has no control groups although they were wanted.
type Found = Result<(UnitPlacement, Option<NoCgroupsReason>), UnitLookupError>;

/// Runs `work` on the blocking pool, for a limited number of machines at a time.
pub(super) async fn on_host<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let permit = WORKERS.acquire().await;
    blocking(move || {
        let _permit = permit;
        work()
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn work_that_was_dropped_continues_and_the_next_one_waits_for_it() {
        let placer: Arc<Mutex<Option<Placer>>> = Arc::default();
        let (go_on, waits) = mpsc::channel::<()>();
        let (sender, done) = mpsc::channel();
        let run = |text: &'static str, wait: Option<mpsc::Receiver<()>>| {
            let (placer, sender) = (placer.clone(), sender.clone());
            async move {
                let guard = placer.lock_owned().await;
                on_host(move || {
                    let _guard = guard;
                    let _ = wait.map(|wait| wait.recv());
                    sender.send(text).unwrap();
                })
                .await;
            }
        };
        tokio::select! {
            biased;
            () = run("first", Some(waits)) => panic!("the work waits"),
            () = tokio::task::yield_now() => {}
        }
        assert!(placer.try_lock().is_err());
        drop(go_on);
        run("second", None).await;
        drop(sender);
        let order: Vec<_> = done.try_iter().collect();
        assert_eq!(order, ["first", "second"]);
    }
}
