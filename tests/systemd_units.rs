//! Requests to systemd, with a scripted systemd on a private bus. The lab has a real one.

#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a failed step ends the test"
)]

use std::os::fd::AsFd;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use vcpud::ids::Pid;
use vcpud::placement::{NewScope, Process, UnitError, UnitFacts, Units};
use vcpud::systemd::Systemd;
use zbus::connection::Builder;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, DBusError, interface};
use zbus::{ObjectPath, OwnedVariant, Variant};

const UNIT: &str = "/org/freedesktop/systemd1/unit/x";
const JOB: &str = "/org/freedesktop/systemd1/job/7";

#[derive(Clone, Default)]
struct Script {
    /// Whether it accepts pidfds, as systemd 253.
    is_new: bool,
    /// Whether it refuses a scope with an order.
    refuses_order: bool,
    /// The error of a lookup.
    refusal: Option<fn(String) -> Refusal>,
    /// The number of answers that a scope of this name exists.
    exists: Arc<Mutex<u32>>,
    /// The result of the job; `None` if the job does not end.
    result: Option<&'static str>,
    /// The calls.
    asked: Arc<Mutex<Vec<String>>>,
    /// The lookups that it owes answers for.
    calls: Arc<Calls>,
}

#[derive(Default)]
struct Calls {
    is_stuck: watch::Sender<bool>,
    now: AtomicUsize,
    most: AtomicUsize,
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
    #[zbus(name = "systemd1.NoUnitForPID")]
    NoUnitForPid(String),
    #[zbus(name = "DBus.Error.InvalidArgs")]
    InvalidArgs(String),
    #[zbus(name = "DBus.Error.AccessDenied")]
    AccessDenied(String),
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
    async fn get_unit_by_pid(&self, pid: u32) -> Result<ObjectPath<'static>, Refusal> {
        self.0.note(format!("pid {}", pid == std::process::id()));
        let calls = &self.0.calls;
        let now = calls.now.fetch_add(1, Ordering::Relaxed) + 1;
        calls.most.fetch_max(now, Ordering::Relaxed);
        let _ = calls.is_stuck.subscribe().wait_for(|stuck| !stuck).await;
        calls.now.fetch_sub(1, Ordering::Relaxed);
        if let Some(refusal) = self.0.refusal {
            return Err(refusal("no".to_owned()));
        }
        Ok(ObjectPath::from_static_str_unchecked(UNIT))
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
                Variant::U64(number) => format!("{name}={number}"),
                Variant::Array(_) if name == "After" || name == "Before" => {
                    let units = Vec::<String>::try_from(value.clone()).unwrap();
                    format!("{name}={}", units.join(","))
                }
                Variant::Array(list) => format!("{name}:{}", list.len()),
                _ => name.clone(),
            })
            .collect();
        self.0.note(format!("{mode} {name} {}", words.join(" ")));
        let pidfds = properties.iter().any(|(name, _)| name == "PIDFDs");
        if pidfds && !self.0.is_new {
            return Err(Refusal::PropertyReadOnly("PIDFDs".to_owned()));
        }
        let has_order = words
            .iter()
            .any(|word| word.starts_with("After=") && word != "After=");
        if has_order && self.0.refuses_order {
            return Err(Refusal::InvalidArgs("After".to_owned()));
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

    #[zbus(property)]
    fn after(&self) -> Vec<&str> {
        vec!["network.target", "vcpud-db.scope", "storage.service"]
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

struct ScriptedScope;

#[interface(name = "org.freedesktop.systemd1.Scope")]
impl ScriptedScope {
    #[zbus(property)]
    fn control_group(&self) -> &str {
        "/machine.slice/vcpud-web.scope"
    }
}

/// A bus with a scripted systemd and its client.
struct World {
    systemd: Systemd,
    _following: JoinHandle<()>,
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
            .serve_at(UNIT, ScriptedScope)
            .name("org.freedesktop.systemd1");
        let service = service.build().await.unwrap();
        Self::on(daemon, &address, Some(service)).await
    }

    async fn without_systemd() -> Self {
        let (daemon, address) = bus().await;
        Self::on(daemon, &address, None).await
    }

    async fn on(daemon: Child, address: &str, service: Option<Connection>) -> Self {
        let client = Builder::address(address).build().await.unwrap();
        let address = address.to_owned();
        let connect = move || {
            let address = address.clone();
            async move { Builder::address(address.as_str()).build().await }
        };
        let (systemd, following) = Systemd::on(watch::channel(Some(client)).1, connect);
        Self {
            systemd,
            _following: tokio::spawn(following),
            _service: service,
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
    machine: "web",
    previous: "",
};

#[tokio::test]
async fn finds_the_unit_of_a_process() {
    let script = Script::default();
    let world = World::new(&script).await;
    let (held, _other) = UnixStream::pair().unwrap();
    let facts = world.systemd.unit_of(process(&held)).await.unwrap();
    assert_eq!(
        facts,
        UnitFacts {
            unit: "vm.service".to_owned(),
            delegated: true,
            control_group: "/system.slice/vm.service".to_owned(),
            ..UnitFacts::default()
        }
    );
    assert_eq!(*script.asked.lock().unwrap(), ["pid true"]);
}

#[tokio::test]
async fn waits_for_a_scope_whose_job_ends_before_the_reply() {
    let fixed = "fail vcpud-web.scope Description=Virtual machine web Slice=machine.slice \
                 Delegate=true CollectMode=inactive-or-failed TasksMax=16384 After= Before=";
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
        assert_eq!(group, "/machine.slice/vcpud-web.scope");
        let asked = script.asked.lock().unwrap();
        assert_eq!(asked[..calls.len()].iter().collect::<Vec<_>>(), calls);
        assert_eq!(asked[calls.len()..], ["unit vcpud-web.scope"]);
    }
}

#[tokio::test]
async fn a_scope_takes_the_place_of_the_previous_unit_in_the_order() {
    let (held, _other) = UnixStream::pair().unwrap();
    let after = "After=network.target,storage.service";
    for (previous, order) in [
        ("session-3.scope", format!("{after} Before= ")),
        ("vm.service", format!("{after} Before=vm.service ")),
    ] {
        let script = Script {
            is_new: true,
            result: Some("done"),
            ..Script::default()
        };
        let world = World::new(&script).await;
        let scope = NewScope { previous, ..SCOPE };
        let started = world.systemd.start_scope(scope, process(&held)).await;
        started.unwrap();
        let asked = script.asked.lock().unwrap();
        assert_eq!(asked[0], format!("unit {previous}"));
        assert!(asked[1].contains(&order), "{asked:?}");
    }
}

#[tokio::test]
async fn starts_a_scope_without_an_order_that_systemd_refuses() {
    let script = Script {
        is_new: true,
        result: Some("done"),
        refuses_order: true,
        ..Script::default()
    };
    let world = World::new(&script).await;
    let (held, _other) = UnixStream::pair().unwrap();
    let scope = NewScope {
        previous: "vm.service",
        ..SCOPE
    };
    let started = world.systemd.start_scope(scope, process(&held)).await;
    started.unwrap();
    let asked = script.asked.lock().unwrap();
    assert!(asked[2].contains("After= Before= "), "{asked:?}");
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
    assert_eq!(started.as_deref(), Ok("/machine.slice/vcpud-web.scope"));
    assert_eq!(script.asked.lock().unwrap().len(), 4);

    // The number of attempts is limited.
    *script.exists.lock().unwrap() = u32::MAX;
    let error = world.systemd.start_scope(SCOPE, process(&held)).await;
    assert_eq!(
        error,
        Err(UnitError::Refused("Unit was already loaded".to_owned()))
    );
}

#[tokio::test]
async fn distinguishes_the_reasons_of_a_refusal() {
    let (held, _other) = UnixStream::pair().unwrap();
    let world = World::without_systemd().await;
    let error = world.systemd.unit_of(process(&held)).await.unwrap_err();
    assert!(matches!(error, UnitError::Absent(_)), "{error}");

    let no = "no".to_owned();
    type Refuse = fn(String) -> Refusal;
    let reasons: [(Refuse, UnitError); 3] = [
        (Refusal::NoUnitForPid, UnitError::NoUnit(no.clone())),
        (Refusal::InvalidArgs, UnitError::Invalid(no.clone())),
        (Refusal::AccessDenied, UnitError::Refused(no)),
    ];
    for (refusal, reason) in reasons {
        let script = Script {
            refusal: Some(refusal),
            ..Script::default()
        };
        let world = World::new(&script).await;
        let answer = world.systemd.unit_of(process(&held)).await;
        assert_eq!(answer, Err(reason));
    }
}

#[tokio::test]
async fn reports_when_systemd_appears() {
    let (held, _other) = UnixStream::pair().unwrap();
    let (daemon, address) = bus().await;
    let world = World::on(daemon, &address, None).await;
    let error = world.systemd.unit_of(process(&held)).await.unwrap_err();
    assert!(matches!(error, UnitError::Absent(_)), "{error}");
    let mut appeared = world.systemd.appeared();
    assert!((&mut appeared).now_or_never().is_none());
    let service = Builder::address(address.as_str()).name("org.freedesktop.systemd1");
    let _service = service.build().await.unwrap();
    timeout(Duration::from_secs(60), appeared).await.unwrap();
}

/// A call that is not answered in time keeps its place: the bus has few calls, whatever systemd does.
#[tokio::test]
async fn asks_for_few_things_at_a_time() {
    let script = Script::default();
    script.calls.is_stuck.send_replace(true);
    let world = World::new(&script).await;
    let systemd = world.systemd.clone().with_limit(Duration::from_millis(10));
    let (held, _other) = UnixStream::pair().unwrap();
    let requests = (0..100).map(|_| systemd.unit_of(process(&held)));
    let mut requests: FuturesUnordered<_> = requests.collect();
    for _ in 0..16 {
        let answer = requests.next().await.unwrap();
        assert!(matches!(answer, Err(UnitError::Silent(_))), "{answer:?}");
    }
    assert!(requests.next().now_or_never().is_none(), "the others wait");
    script.calls.is_stuck.send_replace(false);
    let others = requests.count();
    assert_eq!(timeout(Duration::from_secs(60), others).await, Ok(84));
    assert!(script.calls.most.load(Ordering::Relaxed) <= 16);
}
