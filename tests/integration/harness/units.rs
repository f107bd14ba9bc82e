//! A scripted systemd on the bus of a test: it looks up processes, and starts scopes by jobs. It can fail in
//! each of these steps, for as long as the test wants. Scopes have control groups of the host, if the
//! test may create them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use tokio::sync::watch;
use zbus::connection::Builder;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, DBusError, ObjectPath, OwnedVariant, Variant, interface};

use super::bus::Bus;
use super::wait::within;

const NAME: &str = "org.freedesktop.systemd1";
const MANAGER: &str = "/org/freedesktop/systemd1";
/// The unit of processes that have no scope.
const SESSION: &str = "session-7.scope";
/// The unit of processes that another program took.
const OTHER: &str = "other.scope";
/// Mounts of control groups where systemd creates groups: version 2, or some of version 1.
const MOUNTS: [&str; 4] = ["cpu", "cpuacct", "systemd", "unified"];

/// A step of the way to a scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// `GetUnitByPID`.
    Lookup,
    /// `StartTransientUnit`.
    Start,
    /// The job of the scope, until `JobRemoved`.
    Job,
}

/// A way to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// An error of a name that means nothing to the service; a job fails.
    Refuse,
    /// The bus allows no more calls; a job is canceled.
    Limit,
    /// A unit of that name exists.
    Exists,
    /// No answer at first.
    Withhold,
    /// No answer for longer than the service waits.
    Late,
    /// No answer during a reload (`systemctl daemon-reload`).
    Reload,
    /// systemd leaves the bus during the call (`systemctl daemon-reexec`).
    Leave,
    /// The job is done, and systemd does not know the scope. Its control group stays.
    Forget,
    /// The job is done, and the process is not in the control group of the scope.
    Outside,
}

#[derive(Debug, DBusError)]
#[zbus(prefix = "org.freedesktop")]
enum Refusal {
    #[zbus(error)]
    Bus(zbus::Error),
    #[zbus(name = "DBus.Error.AccessDenied")]
    AccessDenied(String),
    #[zbus(name = "DBus.Error.LimitsExceeded")]
    LimitsExceeded(String),
    #[zbus(name = "systemd1.UnitExists")]
    UnitExists(String),
}

/// The scripted systemd. It leaves the bus when this is dropped.
pub(crate) struct Units {
    address: String,
    shared: Arc<Shared>,
    connection: Option<Connection>,
}

struct Shared {
    trouble: watch::Sender<Option<(Trouble, At)>>,
    /// How often the trouble occurred.
    struck: watch::Sender<usize>,
    connection: watch::Sender<Option<Connection>>,
    /// The number of scopes that were started.
    started: watch::Sender<usize>,
    /// The PIDs in the scopes, by their names. A scope whose job goes on has no PID.
    scopes: Mutex<BTreeMap<String, Option<u32>>>,
    /// The PIDs in control groups of scopes that it forgot.
    forgotten: Mutex<BTreeSet<u32>>,
    /// The PIDs that another program took.
    taken: Mutex<BTreeSet<u32>>,
    jobs: AtomicU32,
    /// The number of jobs of other units that end during each start.
    noise: u32,
    groups: Groups,
}

impl Units {
    /// Starts a systemd that works.
    pub(crate) async fn start(bus: &Bus) -> Self {
        Self::start_with(bus, None, 3).await
    }

    /// Starts a systemd with `trouble`, which ends `noise` jobs of other units during each start.
    pub(crate) async fn start_with(bus: &Bus, trouble: Option<(Trouble, At)>, noise: u32) -> Self {
        let mut units = Self {
            address: bus.address().to_owned(),
            shared: Arc::new(Shared {
                trouble: watch::Sender::new(trouble),
                struck: watch::Sender::new(0),
                connection: watch::Sender::new(None),
                started: watch::Sender::new(0),
                scopes: Mutex::default(),
                forgotten: Mutex::default(),
                taken: Mutex::default(),
                jobs: AtomicU32::new(0),
                noise,
                groups: Groups::create(),
            }),
            connection: None,
        };
        units.enter().await;
        units
    }

    /// Enters the bus with all units.
    async fn enter(&mut self) {
        let mut builder = Builder::address(self.address.as_str())
            .serve_at(MANAGER, Manager(self.shared.clone()))
            .name(NAME);
        let names: Vec<String> = self.shared.scopes().keys().cloned().collect();
        for name in names.iter().map(String::as_str).chain([SESSION, OTHER]) {
            builder = builder
                .serve_at(path(name), Unit(name.to_owned()))
                .serve_at(path(name), self.shared.scope(name));
        }
        let parent = self.shared.groups.parent.clone();
        let slice = Slice(format!("/{parent}"));
        builder = builder
            .serve_at(path(&parent), Unit(parent.clone()))
            .serve_at(path(&parent), slice);
        let connection = within("the scripted systemd", builder.build()).await;
        let connection = connection.expect("the bus takes it");
        self.shared
            .connection
            .send_replace(Some(connection.clone()));
        self.connection = Some(connection);
    }

    /// Leaves the bus. Calls under way get no answer.
    pub(crate) async fn leave(&mut self) {
        self.shared.connection.send_replace(None);
        if let Some(connection) = self.connection.take() {
            let _ = connection.close().await;
        }
    }

    /// Waits until the trouble occurred `count` times.
    pub(crate) async fn struck(&self, count: usize) {
        let mut struck = self.shared.struck.subscribe();
        let struck = struck.wait_for(|struck| *struck >= count);
        let struck = within(format!("trouble number {count}"), struck).await;
        drop(struck.expect("it is there"));
    }

    /// Waits until `count` scopes are started.
    pub(crate) async fn started(&self, count: usize) {
        let mut started = self.shared.started.subscribe();
        let started = started.wait_for(|started| *started >= count);
        let started = within(format!("{count} scopes"), started).await;
        drop(started.expect("it is there"));
    }

    /// Ends the trouble.
    pub(crate) async fn heal(&mut self) {
        if self.connection.is_none() {
            self.enter().await;
        }
        let trouble = self.shared.trouble.send_replace(None);
        if let (Some((Trouble::Reload, _)), Some(connection)) = (trouble, &self.connection) {
            reloading(connection, false).await;
        }
    }

    /// Moves a process to a new scope that is not the service's. A scope without processes ends.
    pub(crate) fn take(&self, name: &str, pid: u32) {
        self.shared.groups.start(OTHER, Some(pid));
        self.shared.scopes().remove(name);
        self.shared.taken().insert(pid);
    }

    /// Returns the placement of a machine in a scope: `scope`, unless the test may not create groups.
    pub(crate) fn placement(&self) -> &'static str {
        if self.shared.groups.mounts.is_empty() {
            "none"
        } else {
            "scope"
        }
    }

    /// Returns whether the process of `pid` is in the groups of the scope `name`, or may be, if the test
    /// may not create groups.
    pub(crate) fn has_groups(&self, name: &str, pid: u32) -> bool {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("it runs");
        let group = format!("{}/vcpud/emulator", self.shared.groups.of(name));
        // systemd does not move processes in the hierarchy of cpuset.
        let mut lines = text.lines().filter(|line| !line.contains(":cpuset:"));
        self.placement() == "none" || lines.any(|line| line.ends_with(&group))
    }
}

impl Drop for Units {
    fn drop(&mut self) {
        // Tasks of the connection may keep the rest.
        self.shared.groups.remove();
    }
}

/// Emits the signal `Reloading`.
async fn reloading(connection: &Connection, is_active: bool) {
    let interface = "org.freedesktop.systemd1.Manager";
    let none = None::<&str>;
    let signal = connection.emit_signal(none, MANAGER, interface, "Reloading", &is_active);
    signal.await.expect("the bus takes it");
}

impl Shared {
    fn scopes(&self) -> MutexGuard<'_, BTreeMap<String, Option<u32>>> {
        self.scopes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forgotten(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        let forgotten = self.forgotten.lock();
        forgotten.unwrap_or_else(PoisonError::into_inner)
    }

    fn taken(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn scope(&self, name: &str) -> Scope {
        Scope {
            control_group: self.groups.of(name),
            delegate: name != SESSION && name != OTHER,
        }
    }

    /// Lets the trouble at a step occur, and returns it.
    async fn strike(&self, at: At, emitter: &SignalEmitter<'_>) -> Option<Trouble> {
        let trouble = *self.trouble.borrow();
        let (trouble, _) = trouble.filter(|(_, place)| *place == at)?;
        self.struck.send_modify(|struck| *struck += 1);
        if trouble == Trouble::Reload {
            reloading(emitter.connection(), true).await;
        }
        use Trouble::{Late, Leave, Reload, Withhold};
        if let Withhold | Late | Reload | Leave = trouble {
            let mut healed = self.trouble.subscribe();
            let _ = healed.wait_for(Option::is_none).await;
            return None;
        }
        Some(trouble)
    }

    async fn refuse(&self, at: At, emitter: &SignalEmitter<'_>) -> Result<(), Refusal> {
        let text = "scripted".to_owned();
        let trouble = self.strike(at, emitter).await;
        // Nothing becomes of a call whose connection is gone.
        if emitter.connection().closed().now_or_never().is_some() {
            return Err(Refusal::AccessDenied(text));
        }
        match trouble {
            Some(Trouble::Refuse) => Err(Refusal::AccessDenied(text)),
            Some(Trouble::Limit) => Err(Refusal::LimitsExceeded(text)),
            Some(Trouble::Exists) => Err(Refusal::UnitExists(text)),
            _ => Ok(()),
        }
    }

    /// Runs the job of a new scope.
    async fn run(
        self: Arc<Self>,
        name: String,
        pid: u32,
        job: u32,
        emitter: SignalEmitter<'static>,
    ) {
        let trouble = self.strike(At::Job, &emitter).await;
        let result = match trouble {
            Some(Trouble::Refuse) => "failed",
            None | Some(Trouble::Forget | Trouble::Outside) => "done",
            Some(_) => "canceled",
        };
        // systemd may have left and come back in the meantime.
        let mut connections = self.connection.subscribe();
        let connection = connections.wait_for(Option::is_some).await;
        let connection = connection.ok().and_then(|connection| connection.clone());
        let connection = connection.expect("it comes back");
        drop(emitter);
        if trouble == Some(Trouble::Forget) {
            self.groups.start(&name, Some(pid));
            self.forgotten().insert(pid);
            self.scopes().remove(&name);
        } else if result == "done" {
            let inside = (trouble != Some(Trouble::Outside)).then_some(pid);
            self.groups.start(&name, inside);
            self.forgotten().remove(&pid);
            self.taken().remove(&pid);
            self.scopes().insert(name.clone(), Some(pid));
            let server = connection.object_server();
            let unit = server.at(path(&name), Unit(name.clone())).await;
            unit.expect("it is served");
            let scope = server.at(path(&name), self.scope(&name)).await;
            scope.expect("it is served");
        } else {
            self.scopes().remove(&name);
        }
        let emitter = SignalEmitter::new(&connection, MANAGER).expect("a path");
        let removed = Manager::job_removed(&emitter, job, job_path(job), &name, result);
        // The test may end.
        let _ = removed.await;
        if matches!(trouble, None | Some(Trouble::Outside)) {
            self.started.send_modify(|started| *started += 1);
        }
    }
}

struct Manager(Arc<Shared>);

#[interface(name = "org.freedesktop.systemd1.Manager")]
impl Manager {
    #[zbus(name = "GetUnit")]
    fn get_unit(&self, name: String) -> ObjectPath<'static> {
        path(&name)
    }

    #[zbus(name = "GetUnitByPID")]
    async fn get_unit_by_pid(
        &self,
        pid: u32,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> Result<ObjectPath<'static>, Refusal> {
        self.0.refuse(At::Lookup, &emitter).await?;
        let scopes = self.0.scopes();
        let mut scopes = scopes.iter();
        let own = scopes.find(|(_, inside)| **inside == Some(pid));
        let is_forgotten = self.0.forgotten().contains(&pid);
        let other = if is_forgotten {
            &self.0.groups.parent
        } else if self.0.taken().contains(&pid) {
            OTHER
        } else {
            SESSION
        };
        Ok(path(own.map_or(other, |(name, _)| name)))
    }

    async fn start_transient_unit(
        &self,
        name: String,
        _mode: String,
        properties: Vec<(String, OwnedVariant)>,
        _auxiliary: Vec<(String, Vec<(String, OwnedVariant)>)>,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> Result<ObjectPath<'static>, Refusal> {
        let pid = pid_of(&properties);
        self.0.refuse(At::Start, &emitter).await?;
        if self.0.scopes().contains_key(&name) {
            return Err(Refusal::UnitExists("it was loaded already".to_owned()));
        }
        self.0.scopes().insert(name.clone(), None);
        for n in 0..self.0.noise {
            Self::job_removed(&emitter, n, job_path(n), "other.service", "done").await?;
        }
        let job = self.0.jobs.fetch_add(1, Ordering::Relaxed) + 100_000;
        let shared = self.0.clone();
        tokio::spawn(shared.run(name, pid, job, emitter.into_owned()));
        Ok(job_path(job))
    }

    #[zbus(signal)]
    async fn job_removed(
        emitter: &SignalEmitter<'_>,
        id: u32,
        job: ObjectPath<'_>,
        unit: &str,
        result: &str,
    ) -> zbus::Result<()>;
}

struct Unit(String);

#[interface(name = "org.freedesktop.systemd1.Unit")]
impl Unit {
    #[zbus(property)]
    fn id(&self) -> &str {
        &self.0
    }

    #[zbus(property)]
    fn after(&self) -> Vec<&str> {
        vec!["network.target"]
    }
}

struct Scope {
    control_group: String,
    delegate: bool,
}

#[interface(name = "org.freedesktop.systemd1.Scope")]
impl Scope {
    #[zbus(property)]
    fn control_group(&self) -> &str {
        &self.control_group
    }

    #[zbus(property)]
    fn delegate(&self) -> bool {
        self.delegate
    }
}

/// A slice with this control group.
struct Slice(String);

#[interface(name = "org.freedesktop.systemd1.Slice")]
impl Slice {
    #[zbus(property)]
    fn control_group(&self) -> &str {
        &self.0
    }

    #[zbus(property)]
    fn delegate(&self) -> bool {
        false
    }
}

fn path(unit: &str) -> ObjectPath<'static> {
    let escaped = unit.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
    let path = format!("{MANAGER}/unit/{escaped}");
    path.try_into().expect("a path")
}

fn job_path(job: u32) -> ObjectPath<'static> {
    let path = format!("{MANAGER}/job/{job}");
    path.try_into().expect("a path")
}

/// The process that `StartTransientUnit` was called with.
fn pid_of(properties: &[(String, OwnedVariant)]) -> u32 {
    let value = |name: &str| properties.iter().find(|(key, _)| key == name);
    let (_, pidfds) = value("PIDFDs").expect("the service knows PIDFDs");
    let Variant::Array(pidfds) = &**pidfds else {
        panic!("not an array: {pidfds:?}");
    };
    let pidfds = pidfds.iter().next();
    let Some(Variant::Fd(pidfd)) = pidfds else {
        panic!("not a descriptor: {pidfds:?}");
    };
    let info = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let info = fs::read_to_string(info).expect("it is open");
    let mut lines = info.lines();
    let pid = lines.find_map(|line| line.strip_prefix("Pid:"));
    pid.expect("a pidfd").trim().parse().expect("a number")
}

/// The control groups of the scopes of one test.
struct Groups {
    /// Empty if the test may not create groups.
    mounts: Vec<PathBuf>,
    /// The parent of all scopes.
    parent: String,
}

impl Groups {
    fn create() -> Self {
        static TESTS: AtomicU32 = AtomicU32::new(0);
        let number = TESTS.fetch_add(1, Ordering::Relaxed);
        let parent = format!("vcpud-test-{}-{number}.slice", std::process::id());
        let root = Path::new("/sys/fs/cgroup");
        let is_v2 = root.join("cgroup.controllers").exists();
        let mounts: Vec<PathBuf> = if is_v2 {
            vec![root.to_owned()]
        } else {
            MOUNTS.iter().map(|mount| root.join(mount)).collect()
        };
        let exists = |mount: &PathBuf| mount.join("cgroup.procs").exists();
        let mut mounts: Vec<PathBuf> = mounts.into_iter().filter(exists).collect();
        let can_create = |mount: &PathBuf| fs::create_dir(mount.join(&parent)).is_ok();
        if !mounts.iter().all(can_create) {
            mounts.clear();
        }
        if is_v2 {
            mounts
                .iter()
                .for_each(|mount| delegate(&mount.join(&parent)));
        }
        Self { mounts, parent }
    }

    fn of(&self, unit: &str) -> String {
        format!("/{}/{unit}", self.parent)
    }

    /// Creates the groups of a scope, with a process if there is one.
    fn start(&self, name: &str, pid: Option<u32>) {
        for mount in &self.mounts {
            let group = mount.join(&self.parent).join(name);
            fs::create_dir_all(&group).expect("it can be created");
            if let Some(pid) = pid {
                // The process may have exited.
                let _ = fs::write(group.join("cgroup.procs"), pid.to_string());
            }
        }
    }
}

/// Enables the controllers of version 2 for the children of a group.
fn delegate(group: &Path) {
    let file = group.join("cgroup.subtree_control");
    fs::write(file, "+cpu +cpuset").expect("the root of the hierarchy has them");
}

impl Groups {
    /// Removes all groups. The processes in them have ended.
    fn remove(&self) {
        // The cpuset hierarchy of version 1 is the service's own.
        for mount in self.mounts.iter().chain([&"/sys/fs/cgroup/cpuset".into()]) {
            remove(&mount.join(&self.parent));
        }
    }
}

/// Removes a group and those below. Processes that are about to end keep some for a moment.
fn remove(group: &Path) {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    for entry in entries.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove(&entry.path());
    }
    let _ = fs::remove_dir(group);
}
