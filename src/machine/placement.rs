//! The placement worker of a machine: it owns the placer, and runs on the blocking pool.

use std::sync::Arc;

use tokio::sync::{Mutex, Notify, OwnedMutexGuard, Semaphore};
use tracing::info;

use super::model::effect::{Threads, TuningSwitch};
use super::model::error::TuningError;
use super::model::input::{Missing, UnitFound};
use super::model::tuning::TuningChange;
use super::spec::{HostServices, PlacementConfig};
use crate::blocking::blocking;
use crate::ids::VcpuId;
use crate::names::MachineName;
use crate::placement::{
    ChangedThreads, NewScope, NoCgroupsReason, Report, Retry, StepError, Tuning, UnitPlacement,
};
use crate::placer::{
    Created, MachineWatch, Masks, Placer, ScopeRequest, UnitLookupError, find_unit, is_still_shared,
};
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
    state: Arc<Mutex<State>>,
    /// The watch of the machine's groups.
    watch: Option<Arc<MachineWatch>>,
}

#[derive(Debug, Default)]
struct State {
    placer: Option<Placer>,
    /// Whether the placer was created before the unit was known.
    is_preliminary: bool,
    /// The unit, if the last search found processes there that are not of QEMU.
    shared: Option<UnitPlacement>,
}

impl State {
    /// Uses the placer of a unit. Completes `found` with the unit, and with what the kernel refused.
    fn adopt(
        &mut self,
        created: Created,
        is_managed_elsewhere: bool,
        mut found: UnitFound,
    ) -> UnitFound {
        let placer = if is_managed_elsewhere {
            created.placer.map(Placer::managed_elsewhere)
        } else {
            created.placer
        };
        if let Some(placer) = &placer {
            found.unit = Some(placer.placement().clone());
            if placer.has_groups() {
                found.missing_controllers = placer.missing().to_vec();
            }
        }
        if let Some(error) = created.refused {
            if found.retry == Retry::Never {
                found.retry = error.retry();
            }
            found.missing = Some(Missing {
                reason: error.to_string(),
                is_error: true,
            });
        }
        self.placer = placer;
        self.is_preliminary = false;
        found
    }
}

impl PlacementWorker {
    /// Returns the worker of the machine `name`, which has no placer yet. It notifies `changed` when another
    /// program changed the machine's groups.
    pub(super) fn new(
        name: MachineName,
        services: HostServices,
        is_of_user: bool,
        changed: Arc<Notify>,
    ) -> Self {
        let watches = services.watches.as_ref();
        let watch = watches.map(|watches| Arc::new(watches.machine(changed)));
        Self {
            name,
            services,
            is_of_user,
            state: Arc::default(),
            watch,
        }
    }

    /// Searches the unit of `leader`, starts a scope if that is needed, and creates the placer.
    pub(super) async fn find_unit(self, leader: Arc<Leader>, config: PlacementConfig) -> UnitFound {
        let (masks, found) = match self.still_shared(&leader).await {
            Some(found) => (Masks::default(), found),
            None => self.search(&leader, &config).await,
        };
        let is_managed_elsewhere = self.is_managed_elsewhere(&found);
        let shared = shared_unit(&found).cloned();
        let (unit, missing, retry) = outcome(found);
        let mut state = self.lock().await;
        state.shared = shared;
        on_host(move || {
            let host = &self.services.host;
            let default_cpus = host.read_default_cpus();
            // A preliminary one must not stay.
            let previous = state.placer.take().filter(|_| !state.is_preliminary);
            let created = Placer::create(host, self.name.as_str(), unit, previous);
            if created.is_new {
                if created.placer.as_ref().is_some_and(Placer::has_groups) {
                    masks.restore(leader.as_ref());
                }
                if let Some(watch) = &self.watch {
                    watch.forget();
                }
            }
            let found = UnitFound {
                missing,
                retry,
                default_cpus,
                ..UnitFound::default()
            };
            state.adopt(created, is_managed_elsewhere, found)
        })
        .await
    }

    /// Asks systemd for the unit of `leader`, and for a scope if that is needed. Returns the masks before that.
    async fn search(&self, leader: &Arc<Leader>, config: &PlacementConfig) -> (Masks, Found) {
        let scope = self.name.scope();
        let scope = NewScope {
            name: &scope,
            slice: &config.slice,
            machine: self.name.as_str(),
            previous: "",
        };
        let request = ScopeRequest {
            mode: config.mode,
            scope,
        };
        // Before systemd enables the controllers of a scope.
        let process = leader.clone();
        let masks = on_host(move || Masks::read(process.as_ref())).await;
        let (units, host) = (self.services.units.as_ref(), &self.services.host);
        (masks, find_unit(units, host, leader, &request).await)
    }

    /// Returns the result of the last search, if `leader` is still in its unit with other processes: then
    /// systemd has no other answer.
    async fn still_shared(&self, leader: &Arc<Leader>) -> Option<Found> {
        let shared = self.lock().await.shared.clone()?;
        let is_shared = is_still_shared(&self.services.host, &shared, leader).await;
        is_shared.then(|| {
            let unit = shared.unit.clone();
            Ok((shared, Some(NoCgroupsReason::Shared { unit })))
        })
    }

    /// Returns when systemd is there, after it was absent.
    pub(super) async fn units_appeared(self) {
        self.services.units.appeared().await;
    }

    /// Returns whether another manager decides about what no caller asked for: the machine of a user
    /// stays on the host CPUs that the user confined it to, and a process that is in no unit was put
    /// there by another manager.
    fn is_managed_elsewhere(&self, found: &Found) -> bool {
        let reason = found.as_ref().ok().and_then(|(_, reason)| reason.as_ref());
        self.is_of_user || reason.is_some_and(NoCgroupsReason::is_managed_elsewhere)
    }

    /// Creates the groups of vCPUs that are about to be added.
    pub(super) async fn prepare(self, vcpus: Vec<VcpuId>) {
        let name = self.name.clone();
        self.run(move |placer| {
            // The same failure occurs when the threads exist, and is reported then.
            if let Err(error) = placer.prepare(&vcpus) {
                info!(vm_name = %name, %error, "{name}: groups cannot be created before the vCPUs exist: {error}");
            }
        })
        .await;
    }

    /// Enforces `tuning` for `threads`. The service has changed those of `changed` before.
    ///
    /// # Errors
    /// Fails if the process is not the one that it was.
    pub(super) async fn place(
        self,
        leader: Arc<Leader>,
        tuning: Arc<Tuning>,
        threads: Threads,
        changed: ChangedThreads,
    ) -> Result<Report, LeaderError> {
        let placed = self.run(move |placer| -> Result<Report, LeaderError> {
            leader.verify_now()?;
            placer.restore(&changed);
            Ok(placer.reconcile(&tuning, &threads, leader.as_ref()))
        });
        Ok(placed.await.transpose()?.unwrap_or_default())
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
            changed,
            change,
        } = switch;
        let changed = self.run(move |placer| {
            let concerns = |vcpu, error: &StepError| change.fails_with(vcpu, error, &new);
            placer.restore(&changed);
            placer.change(&old, &new, &threads, leader.as_ref(), concerns)
        });
        changed.await.unwrap_or_else(|| Ok(Report::default()))
    }

    /// Ends the placement: if `leader` has exited its groups are removed, else everything stays.
    pub(super) async fn leave(&self, leader: Arc<Leader>) {
        let mut state = self.lock().await;
        let name = self.name.clone();
        on_host(move || {
            if let Some(mut placer) = state.placer.take()
                && leader.has_exited()
                && let Err(error) = placer.dismantle()
            {
                // systemd removes the rest with the unit.
                info!(vm_name = %name, %error, "{name}: a control group stays: {error}");
            }
        })
        .await;
    }

    /// Runs `work` with the placer, after all earlier work. Returns `None` if there is no placer.
    ///
    /// Before the unit is known, the placer enforces only configured values and those of calls, without
    /// control groups: another manager may decide about the rest.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Placer) -> T + Send + 'static,
    ) -> Option<T> {
        let mut state = self.lock().await;
        let (host, name) = (self.services.host.clone(), self.name.clone());
        let watch = self.watch.clone();
        on_host(move || {
            if state.placer.is_none() {
                let unit = UnitPlacement::without_groups(String::new());
                let created = Placer::create(&host, name.as_str(), unit, None);
                state.placer = created.placer.map(Placer::managed_elsewhere);
                state.is_preliminary = true;
            }
            state.placer.as_mut().map(|placer| match watch {
                Some(watch) => watch.during(placer, work),
                None => work(placer),
            })
        })
        .await
    }

    async fn lock(&self) -> OwnedMutexGuard<State> {
        self.state.clone().lock_owned().await
    }
}

/// The result of the search for a unit, and why it has no control groups although they were wanted.
type Found = Result<(UnitPlacement, Option<NoCgroupsReason>), UnitLookupError>;

/// Returns the unit, if it has processes that are not of QEMU.
fn shared_unit(found: &Found) -> Option<&UnitPlacement> {
    match found {
        Ok((unit, Some(NoCgroupsReason::Shared { .. }))) => Some(unit),
        _ => None,
    }
}

/// Returns the unit, the reason if it has no control groups, and when the search is repeated.
fn outcome(found: Found) -> (UnitPlacement, Option<Missing>, Retry) {
    match found {
        Ok((unit, None)) => (unit, None, Retry::Never),
        Ok((unit, Some(reason))) => {
            let retry = reason.retry();
            let missing = Missing {
                reason: reason.to_string(),
                is_error: reason.is_failure(),
            };
            (unit, Some(missing), retry)
        }
        Err(error) => {
            let missing = Missing {
                reason: error.to_string(),
                is_error: true,
            };
            let unit = UnitPlacement::without_groups(String::new());
            (unit, Some(missing), error.retry())
        }
    }
}

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
    use std::fs;
    use std::os::fd::{BorrowedFd, OwnedFd};
    use std::path::Path;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use futures_util::FutureExt;
    use futures_util::future::{BoxFuture, pending, ready};
    use tokio::net::UnixStream;

    use super::*;
    use crate::audit::Audit;
    use crate::fd_store::FdStore;
    use crate::placement::{Controller, Kind, Process, UnitError, UnitFacts, Units};
    use crate::placer::{Host, Mounts};

    /// A host where the process of the test is in a delegated unit, and nothing is stored.
    #[derive(Debug, Default)]
    struct Delegated {
        /// The control group of the unit, if it is not that of `web.service`.
        group: Option<String>,
        /// How often systemd was asked.
        lookups: AtomicUsize,
    }

    impl Units for Delegated {
        fn unit_of<'a>(&'a self, _: Process<'a>) -> BoxFuture<'a, Result<UnitFacts, UnitError>> {
            self.lookups.fetch_add(1, Ordering::Relaxed);
            let group = self.group.as_deref().unwrap_or("/web.service");
            let facts = UnitFacts {
                unit: "web.service".to_owned(),
                delegated: true,
                control_group: group.to_owned(),
                ..UnitFacts::default()
            };
            ready(Ok(facts)).boxed()
        }

        fn start_scope<'a>(
            &'a self,
            _: NewScope<'a>,
            _: Process<'a>,
        ) -> BoxFuture<'a, Result<String, UnitError>> {
            panic!("no scope is needed")
        }

        fn appeared(&self) -> BoxFuture<'_, ()> {
            pending().boxed()
        }
    }

    impl FdStore for Delegated {
        fn keep(&self, _: &str, _: BorrowedFd<'_>) {}
        fn release(&self, _: &str) {}
        fn take(&self, _: &str) -> Option<OwnedFd> {
            None
        }
    }

    /// Returns the services of a host whose hierarchy of version 2 is the directory `root`.
    fn services(root: &Path, units: Arc<Delegated>) -> HostServices {
        let root = root.display();
        let mounts = format!("29 25 0:26 / {root} rw - cgroup2 cgroup2 rw\n");
        HostServices {
            watches: None,
            units,
            host: Host {
                mounts: Mounts::parse(&mounts).into(),
                ..Host::this().unwrap()
            },
            audit: Arc::new(Audit::open()),
            fd_store: Arc::new(Delegated::default()),
        }
    }

    /// Creates the group of the unit, and those of vcpud, because no kernel creates their files.
    fn create_groups(root: &Path) {
        for group in ["", "vcpud", "vcpud/emulator"] {
            let group = root.join("web.service").join(group);
            fs::create_dir_all(&group).unwrap();
            for (file, text) in [
                ("cgroup.controllers", "cpu\n"),
                ("cgroup.procs", ""),
                ("cgroup.threads", ""),
                ("cgroup.subtree_control", "cpu\n"),
                ("cgroup.type", "threaded\n"),
            ] {
                fs::write(group.join(file), text).unwrap();
            }
        }
    }

    #[tokio::test]
    async fn groups_that_the_kernel_refused_are_reported_and_created_later() {
        let root = tempfile::tempdir().unwrap();
        let services = services(root.path(), Arc::default());
        let worker = PlacementWorker::new("web".parse().unwrap(), services, false, Arc::default());
        let (stream, _other) = UnixStream::pair().unwrap();
        let leader = Arc::new(Leader::of_peer(&stream).await.unwrap());
        let search = async || {
            let (worker, leader) = (worker.clone(), leader.clone());
            worker.find_unit(leader, PlacementConfig::default()).await
        };
        for _ in 0..2 {
            let found = search().await;
            assert_eq!(found.unit.unwrap().kind, Kind::None);
            let missing = found.missing.unwrap();
            let text = "creating the control group (/web.service): No such file or directory";
            assert!(missing.reason.starts_with(text), "{missing:?}");
            assert!(missing.is_error);
            assert_eq!(found.retry, Retry::Later);
            assert_eq!(found.missing_controllers, []);
        }
        create_groups(root.path());
        for _ in 0..2 {
            let found = search().await;
            assert_eq!(found.unit.unwrap().kind, Kind::Unit);
            assert_eq!((found.missing, found.retry), (None, Retry::Never));
            assert_eq!(found.missing_controllers, [Controller::Cpuset]);
        }
    }

    /// Returns the control group of the process of the test, in the hierarchy of systemd.
    fn own_group() -> String {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap();
        let group = |of: &str| {
            let mut lines = groups.lines();
            lines.find_map(|line| Some(line.split_once(of)?.1.to_owned()))
        };
        group(":name=systemd:").or_else(|| group("0::")).unwrap()
    }

    #[tokio::test]
    async fn systemd_is_asked_again_when_the_other_processes_have_exited() {
        let root = tempfile::tempdir().unwrap();
        let group = own_group();
        let unit = root.path().join(group.trim_start_matches('/'));
        fs::create_dir_all(&unit).unwrap();
        let own = std::process::id();
        let processes = |others: &str| {
            fs::write(unit.join("cgroup.procs"), format!("{own}\n{others}")).unwrap();
        };
        let units = Arc::new(Delegated {
            group: Some(group),
            ..Delegated::default()
        });
        let services = services(root.path(), units.clone());
        let worker = PlacementWorker::new("web".parse().unwrap(), services, false, Arc::default());
        let (stream, _other) = UnixStream::pair().unwrap();
        let leader = Arc::new(Leader::of_peer(&stream).await.unwrap());
        let search = async || {
            let (worker, leader) = (worker.clone(), leader.clone());
            let found = worker.find_unit(leader, PlacementConfig::default()).await;
            (found.missing, found.retry)
        };
        processes("1\n");
        for _ in 0..3 {
            let (missing, retry) = search().await;
            let text = "web.service has processes that do not belong to QEMU";
            assert!(missing.unwrap().reason.starts_with(text));
            assert_eq!(retry, Retry::Later);
            assert_eq!(units.lookups.load(Ordering::Relaxed), 1);
        }
        processes("");
        let (missing, _) = search().await;
        assert!(!missing.is_some_and(|missing| missing.reason.contains("do not belong")));
        assert_eq!(units.lookups.load(Ordering::Relaxed), 2);
    }

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
