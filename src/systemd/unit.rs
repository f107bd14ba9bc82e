//! The units of systemd, over its D-Bus interface (`org.freedesktop.systemd1(5)`).

use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use zbus::fdo::{DBusProxy, PropertiesProxy};
use zbus::message::Type;
use zbus::names::{BusName, InterfaceName};
use zbus::proxy::CacheProperties;
use zbus::{Connection, MatchRule, MessageStream, proxy};
use zbus::{Fd, ObjectPath, OwnedObjectPath, OwnedVariant, Variant};

use crate::placement::{NewScope, Process, UnitError, UnitFacts, Units};
use crate::proxy::error_reply;

/// How long systemd may take for anything that is asked of it.
const LIMIT: Duration = Duration::from_secs(10);
/// A scope stays for a moment after its last process. How often and how far apart it is asked for
/// one of the same name.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(100);
const SERVICE: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";

/// Number, job, unit and result of the signal `JobRemoved`.
type JobRemoved<'a> = (u32, ObjectPath<'a>, &'a str, &'a str);

#[proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Manager {
    #[zbus(name = "GetUnit")]
    fn get_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;

    #[zbus(name = "GetUnitByPID")]
    fn get_unit_by_pid(&self, pid: u32) -> zbus::Result<OwnedObjectPath>;

    /// Since systemd 253.
    #[zbus(name = "GetUnitByPIDFD")]
    fn get_unit_by_pidfd(&self, pidfd: Fd<'_>) -> zbus::Result<(OwnedObjectPath, String, Vec<u8>)>;

    fn start_transient_unit(
        &self,
        name: &str,
        mode: &str,
        properties: &[(&str, Variant<'_>)],
        auxiliary: &[(&str, &[(&str, Variant<'_>)])],
    ) -> zbus::Result<OwnedObjectPath>;
}

/// systemd, as the keeper of units.
#[derive(Clone, Debug)]
pub struct Systemd {
    connections: watch::Receiver<Option<Connection>>,
    limit: Duration,
}

impl Systemd {
    /// The systemd on the bus of `connection`.
    pub fn new(connection: Connection) -> Self {
        Self::on(watch::channel(Some(connection)).1)
    }

    /// The systemd on the bus to which there is a connection now.
    pub fn on(connections: watch::Receiver<Option<Connection>>) -> Self {
        let limit = LIMIT;
        Self { connections, limit }
    }

    /// The same with another limit to how long it may take.
    pub fn with_limit(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    fn connection(&self) -> Result<Connection, UnitError> {
        let connection = self.connections.borrow().clone();
        connection.ok_or_else(|| UnitError::Absent("the connection to the bus is lost".to_owned()))
    }

    async fn manager(&self) -> Result<ManagerProxy<'static>, UnitError> {
        let manager = ManagerProxy::builder(&self.connection()?);
        let manager = manager.cache_properties(CacheProperties::No);
        manager.build().await.map_err(said)
    }

    /// What `ask` gives, if it does so in time.
    async fn within<T>(
        &self,
        ask: impl Future<Output = Result<T, UnitError>>,
    ) -> Result<T, UnitError> {
        let result = timeout(self.limit, ask).await;
        result.unwrap_or(Err(UnitError::Silent(self.limit)))
    }

    async fn find(&self, process: Process<'_>) -> Result<UnitFacts, UnitError> {
        let manager = self.manager().await?;
        let by_pidfd = manager.get_unit_by_pidfd(process.pidfd.into()).await;
        let path = match by_pidfd {
            Ok((path, ..)) => path,
            Err(error) if is_unknown(&error) => manager
                .get_unit_by_pid(process.pid.get())
                .await
                .map_err(said)?,
            Err(error) => return Err(said(error)),
        };
        self.facts(&path).await
    }

    /// What the unit at `path` says of itself.
    async fn facts(&self, path: &OwnedObjectPath) -> Result<UnitFacts, UnitError> {
        let properties = PropertiesProxy::builder(&self.connection()?)
            .destination(SERVICE)
            .path(path)
            .build()
            .await
            .map_err(said)?;
        let get = async |interface: &str, name: &str| -> Result<OwnedVariant, UnitError> {
            let interface = InterfaceName::try_from(interface).map_err(said)?;
            let value = properties.get(interface, name).await;
            value.map_err(|error| said(error.into()))
        };
        let text = |value: OwnedVariant| String::try_from(value).map_err(said);

        let unit = text(get("org.freedesktop.systemd1.Unit", "Id").await?)?;
        let Some(interface) = interface(&unit) else {
            let reason = format!("{unit} is of a type that has no processes");
            return Err(UnitError::Refused(reason));
        };
        let control_group = text(get(interface, "ControlGroup").await?)?;
        let delegated = get(interface, "Delegate").await?;
        Ok(UnitFacts {
            unit,
            delegated: matches!(&*delegated, Variant::Bool(true)),
            control_group,
            memberships: Vec::new(),
        })
    }

    /// The ends of jobs of the unit `name`.
    ///
    /// Only signals of systemd about this unit are received. zbus reads nothing more while a
    /// stream is full, and any user can send signals: so the sender is matched by its unique name,
    /// which the bus daemon writes, and not by its well-known name.
    async fn jobs_of(&self, name: &str) -> Result<MessageStream, UnitError> {
        let connection = self.connection()?;
        let bus = DBusProxy::builder(&connection).cache_properties(CacheProperties::No);
        let bus = bus.build().await.map_err(said)?;
        let service = BusName::from_static_str(SERVICE).map_err(said)?;
        let owner = bus.get_name_owner(service).await;
        let owner = owner.map_err(|error| said(error.into()))?;
        let rule = MatchRule::builder()
            .msg_type(Type::Signal)
            .sender(&*owner)
            .path(PATH)
            .interface(MANAGER)
            .member("JobRemoved")
            .arg(2, name)
            .build()
            .map_err(said)?;
        let jobs = MessageStream::for_match_rule(rule, &connection, None).await;
        jobs.map_err(said)
    }

    async fn start(&self, scope: NewScope<'_>, process: Process<'_>) -> Result<String, UnitError> {
        let manager = self.manager().await?;
        // Before the call, because the job may be done before its reply is read.
        let mut removed = self.jobs_of(scope.name).await?;
        let mut tries = 1;
        let job = loop {
            match begin(&manager, scope, process).await {
                Err(error) if tries < TRIES && is_called(&error, EXISTS) => {
                    tries += 1;
                    sleep(PAUSE).await;
                }
                answer => break answer.map_err(said)?,
            }
        };
        while let Some(signal) = removed.next().await {
            let signal = signal.map_err(said)?;
            let body = signal.body();
            let removed: JobRemoved<'_> = body.deserialize().map_err(said)?;
            let (_, path, _, result) = removed;
            if path != *job {
                continue;
            }
            return match result {
                "done" => {
                    let unit = manager.get_unit(scope.name).await.map_err(said)?;
                    Ok(self.facts(&unit).await?.control_group)
                }
                result => Err(UnitError::Job(result.to_owned())),
            };
        }
        Err(UnitError::Absent("the connection was lost".to_owned()))
    }
}

impl Units for Systemd {
    fn unit_of<'a>(&'a self, process: Process<'a>) -> BoxFuture<'a, Result<UnitFacts, UnitError>> {
        self.within(self.find(process)).boxed()
    }

    fn start_scope<'a>(
        &'a self,
        scope: NewScope<'a>,
        process: Process<'a>,
    ) -> BoxFuture<'a, Result<String, UnitError>> {
        self.within(self.start(scope, process)).boxed()
    }
}

/// Asks for a scope with this process, in the newest way that systemd knows.
async fn begin(
    manager: &ManagerProxy<'_>,
    scope: NewScope<'_>,
    process: Process<'_>,
) -> zbus::Result<OwnedObjectPath> {
    let by_pidfd = ("PIDFDs", Variant::from(vec![Fd::from(process.pidfd)]));
    match call(manager, scope, by_pidfd).await {
        Err(error) if is_unknown(&error) => {
            let by_pid = ("PIDs", Variant::from(vec![process.pid.get()]));
            call(manager, scope, by_pid).await
        }
        answer => answer,
    }
}

/// Asks for a scope with these `processes`.
async fn call(
    manager: &ManagerProxy<'_>,
    scope: NewScope<'_>,
    processes: (&str, Variant<'_>),
) -> zbus::Result<OwnedObjectPath> {
    let properties = [
        ("Description", Variant::from(scope.description)),
        ("Slice", Variant::from(scope.slice)),
        ("Delegate", Variant::from(true)),
        ("CollectMode", Variant::from("inactive-or-failed")),
        processes,
    ];
    manager
        .start_transient_unit(scope.name, "fail", &properties, &[])
        .await
}

/// The interface of a unit's type, if units of the type have processes.
fn interface(unit: &str) -> Option<&'static str> {
    let (_, suffix) = unit.rsplit_once('.')?;
    Some(match suffix {
        "scope" => "org.freedesktop.systemd1.Scope",
        "service" => "org.freedesktop.systemd1.Service",
        "slice" => "org.freedesktop.systemd1.Slice",
        "socket" => "org.freedesktop.systemd1.Socket",
        "mount" => "org.freedesktop.systemd1.Mount",
        "swap" => "org.freedesktop.systemd1.Swap",
        _ => return None,
    })
}

/// There is a unit of that name.
const EXISTS: &str = "org.freedesktop.systemd1.UnitExists";
/// What systemd answers where it does not know a method or property, which newer ones do.
const UNKNOWN: [&str; 3] = [
    "org.freedesktop.DBus.Error.UnknownMethod",
    "org.freedesktop.DBus.Error.UnknownProperty",
    "org.freedesktop.DBus.Error.PropertyReadOnly",
];

fn is_called(error: &zbus::Error, name: &str) -> bool {
    error_reply(error).is_some_and(|(called, _)| called == name)
}

fn is_unknown(error: &zbus::Error) -> bool {
    UNKNOWN.iter().any(|name| is_called(error, name))
}

/// The errors of systemd, or of the bus in its place, that pass by themselves.
const TEMPORARY: [&str; 7] = [
    EXISTS,
    // A stop job of the unit is queued.
    "org.freedesktop.systemd1.TransactionIsDestructive",
    "org.freedesktop.DBus.Error.NoReply",
    "org.freedesktop.DBus.Error.Timeout",
    "org.freedesktop.DBus.Error.TimedOut",
    "org.freedesktop.DBus.Error.LimitsExceeded",
    "org.freedesktop.DBus.Error.NoMemory",
];

/// Returns the error that systemd, or the bus in its place, replied.
fn said(error: zbus::Error) -> UnitError {
    let Some((name, said)) = error_reply(&error) else {
        return UnitError::Absent(error.to_string());
    };
    match name.as_str() {
        "org.freedesktop.DBus.Error.ServiceUnknown"
        | "org.freedesktop.DBus.Error.NameHasNoOwner"
        | "org.freedesktop.DBus.Error.Disconnected" => UnitError::Absent(said),
        name if name.starts_with("org.freedesktop.DBus.Error.Spawn.") => UnitError::Absent(said),
        name if TEMPORARY.contains(&name) => UnitError::Busy(said),
        _ => UnitError::Refused(said),
    }
}
