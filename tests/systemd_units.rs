//! Calls of units to systemd, with a fake systemd on a private bus. The lab has a real one.

#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a failed step ends the test"
)]

use std::os::fd::AsFd;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::UnixStream;
use zbus::connection::Builder;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, DBusError, fdo, interface};

use tokio::process::{Child, Command};
use vcpud::ids::Pid;
use vcpud::placement::{NewScope, Process, UnitError, UnitFacts, Units};
use vcpud::systemd::Systemd;
use zbus::{Fd, ObjectPath, OwnedVariant, Variant};

const UNIT: &str = "/org/freedesktop/systemd1/unit/x";
const JOB: &str = "/org/freedesktop/systemd1/job/7";

#[derive(Clone, Default)]
struct Script {
    /// Whether it accepts pidfds, as systemd 253.
    is_new: bool,
    /// Whether it refuses all calls.
    refuses: bool,
    /// The number of answers that a scope of this name exists.
    exists: Arc<Mutex<u32>>,
    /// The result of the job; `None` if the job does not end.
    result: Option<&'static str>,
    /// The calls.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Script {
    fn note(&self, what: String) {
        self.asked.lock().unwrap().push(what);
    }

    fn still_exists(&self) -> bool {
        let mut times = self.exists.lock().unwrap();
        let exists = *times > 0;
        *times = times.saturating_sub(1);
        exists
    }
}

#[derive(Debug, DBusError)]
#[zbus(prefix = "org.freedesktop")]
enum Refusal {
    #[zbus(error)]
    Bus(zbus::Error),
    #[zbus(name = "DBus.Error.PropertyReadOnly")]
    PropertyReadOnly(String),
    #[zbus(name = "systemd1.UnitExists")]
    UnitExists(String),
}

struct ScriptedManager(Script);

#[interface(name = "org.freedesktop.systemd1.Manager")]
impl ScriptedManager {
    #[zbus(name = "GetUnit")]
    fn get_unit(&self, name: String) -> ObjectPath<'static> {
        self.0.note(format!("unit {name}"));
        ObjectPath::from_static_str_unchecked(UNIT)
    }

    #[zbus(name = "GetUnitByPID")]
    fn get_unit_by_pid(&self, pid: u32) -> fdo::Result<ObjectPath<'static>> {
        self.0.note(format!("pid {}", pid == std::process::id()));
        Ok(ObjectPath::from_static_str_unchecked(UNIT))
    }

    #[zbus(name = "GetUnitByPIDFD")]
    fn get_unit_by_pidfd(
        &self,
        _pidfd: Fd<'_>,
    ) -> fdo::Result<(ObjectPath<'static>, String, Vec<u8>)> {
        self.0.note("pidfd".to_owned());
        if self.0.refuses {
            return Err(fdo::Error::Failed("no unit has it".to_owned()));
        }
        if !self.0.is_new {
            return Err(fdo::Error::UnknownMethod("what?".to_owned()));
        }
        let unit = ObjectPath::from_static_str_unchecked(UNIT);
        Ok((unit, "vm.service".to_owned(), Vec::new()))
    }

    async fn start_transient_unit(
        &self,
        name: String,
        mode: String,
        properties: Vec<(String, OwnedVariant)>,
        auxiliary: Vec<(String, Vec<(String, OwnedVariant)>)>,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> Result<ObjectPath<'static>, Refusal> {
        assert!(auxiliary.is_empty());
        let words: Vec<String> = properties
            .iter()
            .map(|(name, value)| match &**value {
                Variant::Str(text) => format!("{name}={text}"),
                Variant::Bool(is) => format!("{name}={is}"),
                Variant::Array(list) => format!("{name}:{}", list.len()),
                _ => name.clone(),
            })
            .collect();
        self.0.note(format!("{mode} {name} {}", words.join(" ")));
        let pidfds = properties.iter().any(|(name, _)| name == "PIDFDs");
        if pidfds && !self.0.is_new {
            return Err(Refusal::PropertyReadOnly("PIDFDs".to_owned()));
        }
        if self.0.still_exists() {
            return Err(Refusal::UnitExists("Unit was already loaded".to_owned()));
        }
        // The job of another unit, and then the job of the scope, before the reply.
        let other = ObjectPath::from_static_str_unchecked("/org/freedesktop/systemd1/job/6");
        Self::job_removed(&emitter, 6, other, "y.service", "failed").await?;
        let job = ObjectPath::from_static_str_unchecked(JOB);
        if let Some(result) = self.0.result {
            Self::job_removed(&emitter, 7, job.clone(), &name, result).await?;
        }
        Ok(job)
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

struct ScriptedUnit;

#[interface(name = "org.freedesktop.systemd1.Unit")]
impl ScriptedUnit {
    #[zbus(property)]
    fn id(&self) -> &str {
        "vm.service"
    }
}

struct ScriptedService;

#[interface(name = "org.freedesktop.systemd1.Service")]
impl ScriptedService {
    #[zbus(property)]
    fn control_group(&self) -> &str {
        "/system.slice/vm.service"
    }

    #[zbus(property)]
    fn delegate(&self) -> bool {
        true
    }
}

/// A bus with a scripted systemd and its client.
struct World {
    systemd: Systemd,
    _service: Option<Connection>,
    _daemon: Child,
}

/// A private bus, and a connection to it.
async fn bus() -> (Child, String) {
    let mut daemon = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "dbus-daemon", "--session"])
        .args(["--nofork", "--print-address", "--nopidfile"])
        .args(["--address", "unix:tmpdir=/tmp"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("dbus-daemon can be started; run tests/setup");
    let stdout = daemon.stdout.take().expect("it is a pipe");
    let address = BufReader::new(stdout).lines().next_line().await;
    (daemon, address.unwrap().expect("it prints its address"))
}

impl World {
    async fn new(script: &Script) -> Self {
        let (daemon, address) = bus().await;
        let service = Builder::address(address.as_str())
            .serve_at("/org/freedesktop/systemd1", ScriptedManager(script.clone()))
            .serve_at(UNIT, ScriptedUnit)
            .serve_at(UNIT, ScriptedService)
            .name("org.freedesktop.systemd1");
        let service = service.build().await.unwrap();
        let client = Builder::address(address.as_str()).build().await;
        Self {
            systemd: Systemd::new(client.unwrap()),
            _service: Some(service),
            _daemon: daemon,
        }
    }

    async fn without_systemd() -> Self {
        let (daemon, address) = bus().await;
        let client = Builder::address(address.as_str()).build().await;
        Self {
            systemd: Systemd::new(client.unwrap()),
            _service: None,
            _daemon: daemon,
        }
    }
}

/// Returns this process, with any descriptor.
fn process(held: &UnixStream) -> Process<'_> {
    Process {
        pid: Pid(std::process::id()),
        pidfd: held.as_fd(),
    }
}

const SCOPE: NewScope<'static> = NewScope {
    name: "vcpud-web.scope",
    slice: "machine.slice",
    description: "Virtual machine web",
};

#[tokio::test]
async fn finds_a_process_by_pidfd_or_else_by_pid() {
    for (is_new, asked) in [(true, vec!["pidfd"]), (false, vec!["pidfd", "pid true"])] {
        let script = Script {
            is_new,
            ..Script::default()
        };
        let world = World::new(&script).await;
        let (held, _other) = UnixStream::pair().unwrap();
        let facts = world.systemd.unit_of(process(&held)).await.unwrap();
        assert_eq!(
            facts,
            UnitFacts {
                unit: "vm.service".to_owned(),
                delegated: true,
                control_group: "/system.slice/vm.service".to_owned(),
                memberships: Vec::new(),
            }
        );
        assert_eq!(*script.asked.lock().unwrap(), asked);
    }
}

#[tokio::test]
async fn waits_for_a_scope_whose_job_ends_before_the_reply() {
    let fixed = "fail vcpud-web.scope Description=Virtual machine web Slice=machine.slice \
                 Delegate=true CollectMode=inactive-or-failed";
    let (by_pidfd, by_pid) = (format!("{fixed} PIDFDs:1"), format!("{fixed} PIDs:1"));
    for (is_new, calls) in [(true, vec![&by_pidfd]), (false, vec![&by_pidfd, &by_pid])] {
        let script = Script {
            is_new,
            result: Some("done"),
            ..Script::default()
        };
        let world = World::new(&script).await;
        let (held, _other) = UnixStream::pair().unwrap();
        let group = world
            .systemd
            .start_scope(SCOPE, process(&held))
            .await
            .unwrap();
        // This is read from the unit.
        assert_eq!(group, "/system.slice/vm.service");
        let asked = script.asked.lock().unwrap();
        assert_eq!(asked[..calls.len()].iter().collect::<Vec<_>>(), calls);
        assert_eq!(asked[calls.len()..], ["unit vcpud-web.scope"]);
    }
}

#[tokio::test]
async fn reports_a_job_that_fails_or_never_ends() {
    let script = Script {
        is_new: true,
        result: Some("failed"),
        ..Script::default()
    };
    let world = World::new(&script).await;
    let (held, _other) = UnixStream::pair().unwrap();
    let error = world.systemd.start_scope(SCOPE, process(&held)).await;
    assert_eq!(error, Err(UnitError::Job("failed".to_owned())));

    let script = Script {
        result: None,
        ..script
    };
    let world = World::new(&script).await;
    let limit = Duration::from_millis(50);
    let systemd = world.systemd.clone().with_limit(limit);
    let error = systemd.start_scope(SCOPE, process(&held)).await;
    assert_eq!(error, Err(UnitError::Silent(limit)));
}

#[tokio::test]
async fn waits_for_a_scope_that_is_about_to_stop() {
    let script = Script {
        is_new: true,
        result: Some("done"),
        exists: Arc::new(Mutex::new(2)),
        ..Script::default()
    };
    let world = World::new(&script).await;
    let (held, _other) = UnixStream::pair().unwrap();
    let started = world.systemd.start_scope(SCOPE, process(&held)).await;
    assert_eq!(started.as_deref(), Ok("/system.slice/vm.service"));
    assert_eq!(script.asked.lock().unwrap().len(), 4);

    // The number of attempts is limited.
    *script.exists.lock().unwrap() = u32::MAX;
    let error = world.systemd.start_scope(SCOPE, process(&held)).await;
    assert_eq!(
        error,
        Err(UnitError::Busy("Unit was already loaded".to_owned()))
    );
}

#[tokio::test]
async fn distinguishes_a_bus_without_systemd_from_a_refusal() {
    let (held, _other) = UnixStream::pair().unwrap();
    let world = World::without_systemd().await;
    let error = world.systemd.unit_of(process(&held)).await.unwrap_err();
    assert!(matches!(error, UnitError::Absent(_)), "{error}");

    let script = Script {
        is_new: true,
        refuses: true,
        ..Script::default()
    };
    let world = World::new(&script).await;
    let error = world.systemd.unit_of(process(&held)).await.unwrap_err();
    assert_eq!(error, UnitError::Refused("no unit has it".to_owned()));
}
