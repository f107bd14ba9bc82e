//! The units of systemd, over its D-Bus interface (`org.freedesktop.systemd1(5)`).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};
use zbus::fdo::PropertiesProxy;
use zbus::names::InterfaceName;
use zbus::proxy::CacheProperties;
use zbus::{Connection, proxy};
use zbus::{Fd, OwnedObjectPath, OwnedVariant, Variant};

use super::carriers::Carriers;
use super::instance::{Instance, JobEnd, PATH, Presence, follow, left};
use super::refusal::{is_exists, is_unknown, reason};
use crate::placement::{NewScope, Process, UnitError, UnitFacts, Units};

/// How long systemd may take for one call, and for one job.
const LIMIT: Duration = Duration::from_secs(10);
/// How many calls systemd owes an answer for at a time. A bus daemon lets a connection wait for 128 answers,
/// and polkit needs some of them.
const CALLS: usize = 16;
/// A scope stays for a moment after its last process. How often and how far apart it is asked for
/// one of the same name.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(100);
/// The limit of tasks of a scope, which the scopes of systemd-machined have too. The default of the host can be
/// lower than the number of vCPUs, and QEMU aborts if it cannot create a thread.
const TASKS: u64 = 16384;

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

    fn start_transient_unit(
        &self,
        name: &str,
        mode: &str,
        properties: &[(&str, Variant<'_>)],
        auxiliary: &[(&str, &[(&str, Variant<'_>)])],
    ) -> zbus::Result<OwnedObjectPath>;
}

/// The position of a scope in the order of the shutdown: the reverse of this.
#[derive(Clone, Debug, Default)]
struct Order {
    after: Vec<String>,
    before: Vec<String>,
}

impl Order {
    fn is_empty(&self) -> bool {
        self.after.is_empty() && self.before.is_empty()
    }
}

/// systemd, as the manager of units. All clones share the limit of calls.
#[derive(Clone, Debug)]
pub struct Systemd {
    presence: watch::Receiver<Presence>,
    carriers: Arc<Carriers>,
    calls: Arc<Semaphore>,
    limit: Duration,
}

impl Systemd {
    /// Returns the systemd on the bus to which there is a connection now, and the future that follows it.
    /// The caller spawns the future, which lasts as long as the service. `connect` makes other connections
    /// to the same bus.
    pub fn on<F>(
        connections: watch::Receiver<Option<Connection>>,
        connect: impl Fn() -> F + Send + Sync + 'static,
    ) -> (Self, impl Future<Output = ()> + Send + 'static)
    where
        F: Future<Output = zbus::Result<Connection>> + Send + 'static,
    {
        let (sender, presence) = watch::channel(Presence::default());
        let systemd = Self {
            presence,
            carriers: Arc::new(Carriers::new(connect)),
            calls: Arc::new(Semaphore::new(CALLS)),
            limit: LIMIT,
        };
        (systemd, follow(connections, sender))
    }

    /// Returns the same with another limit of the time that systemd may take.
    pub fn with_limit(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// Returns the systemd that is on the bus.
    async fn instance(&self) -> Result<Arc<Instance>, UnitError> {
        let mut presence = self.presence.clone();
        let is_known = |presence: &Presence| !matches!(presence, Presence::Unknown);
        let known = presence.wait_for(is_known).await;
        match known.as_deref() {
            Ok(Presence::Present(instance)) => Ok(instance.clone()),
            Ok(Presence::Absent(reason)) => Err(UnitError::Absent(reason.clone())),
            Ok(Presence::Unknown) | Err(_) => Err(left()),
        }
    }

    /// Makes a call when systemd owes fewer answers than it may. The time before does not count.
    ///
    /// A call without an answer in time still counts until there is one, so that the bus never has more of
    /// them, whatever systemd does.
    async fn ask<T: Send + 'static>(
        &self,
        call: impl Future<Output = zbus::Result<T>> + Send + 'static,
    ) -> Result<zbus::Result<T>, UnitError> {
        let permit = self.calls.clone().acquire_owned().await;
        let call = tokio::spawn(async move {
            let _permit = permit;
            call.await
        });
        match timeout(self.limit, call).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(UnitError::Bus(error.to_string())),
            Err(_) => Err(UnitError::Silent(self.limit)),
        }
    }

    async fn find(&self, process: Process<'_>) -> Result<UnitFacts, UnitError> {
        let instance = self.instance().await?;
        let manager = manager(&instance, &instance.connection).await?;
        let pid = process.pid.get();
        // Not by pidfd: the bus daemon counts descriptors as under way until the last monitor has read
        // them. The caller holds a pidfd, and checks it after the answer.
        let unit = self.ask(async move { manager.get_unit_by_pid(pid).await });
        let path = unit.await?.map_err(reason)?;
        let unit = self.text(&instance, &path, "org.freedesktop.systemd1.Unit", "Id");
        let unit = unit.await?;
        let Some(interface) = interface(&unit) else {
            let reason = format!("{unit} is of a type that has no processes");
            return Err(UnitError::NoUnit(reason));
        };
        let delegated = self.property(&instance, &path, interface, "Delegate");
        Ok(UnitFacts {
            delegated: matches!(&*delegated.await?, Variant::Bool(true)),
            control_group: self.control_group(&instance, &path, &unit).await?,
            unit,
            ..UnitFacts::default()
        })
    }

    /// Returns the object path of `unit`.
    async fn path_of(&self, instance: &Instance, unit: &str) -> Result<OwnedObjectPath, UnitError> {
        let manager = manager(instance, &instance.connection).await?;
        let name = unit.to_owned();
        let path = self.ask(async move { manager.get_unit(&name).await });
        path.await?.map_err(reason)
    }

    /// Returns the control group of `unit`, which is at `path`.
    async fn control_group(
        &self,
        instance: &Instance,
        path: &OwnedObjectPath,
        unit: &str,
    ) -> Result<String, UnitError> {
        let interface = interface(unit).unwrap_or_default();
        self.text(instance, path, interface, "ControlGroup").await
    }

    async fn text(
        &self,
        instance: &Instance,
        path: &OwnedObjectPath,
        interface: &'static str,
        name: &'static str,
    ) -> Result<String, UnitError> {
        let value = self.property(instance, path, interface, name).await?;
        String::try_from(value).map_err(reason)
    }

    async fn property(
        &self,
        instance: &Instance,
        path: &OwnedObjectPath,
        interface: &'static str,
        name: &'static str,
    ) -> Result<OwnedVariant, UnitError> {
        let properties = PropertiesProxy::builder(&instance.connection)
            .destination(instance.name.clone())
            .path(path.clone())
            .cache_properties(CacheProperties::No);
        let properties = properties.build().await.map_err(reason)?;
        let interface = InterfaceName::from_static_str(interface);
        let interface = interface.map_err(reason)?;
        // Limited here too: the edge drops a value that is too long, so that no answer ever comes.
        let limit = self.limit;
        let value = self.ask(async move {
            let value = timeout(limit, properties.get(interface, name)).await;
            let late = |_| zbus::Error::from(io::Error::from(io::ErrorKind::TimedOut));
            Ok(value.map_err(late)??)
        });
        value.await?.map_err(reason)
    }

    /// Returns the order of a scope whose process leaves the unit `previous`: the scope stops before all units
    /// that `previous` stops before, such as storage and networks, and a service stops first, because it may
    /// shut the guest down.
    async fn order(&self, instance: &Instance, previous: &str) -> Result<Order, UnitError> {
        if previous.is_empty() {
            return Ok(Order::default());
        }
        let path = self.path_of(instance, previous).await?;
        let after = self.property(instance, &path, "org.freedesktop.systemd1.Unit", "After");
        let mut after = Vec::<String>::try_from(after.await?).map_err(reason)?;
        // Those of other machines of the same unit, and the previous one of this machine.
        after.retain(|unit| !is_scope_of_machine(unit));
        let before = previous.ends_with(".service").then(|| previous.to_owned());
        Ok(Order {
            after,
            before: before.into_iter().collect(),
        })
    }

    async fn start(&self, scope: NewScope<'_>, process: Process<'_>) -> Result<String, UnitError> {
        let instance = self.instance().await?;
        let order = self.order(&instance, scope.previous).await;
        let mut order = order.unwrap_or_else(|error| {
            let (vm_name, scope, unit) = (scope.machine, scope.name, scope.previous);
            tracing::info!(vm_name, %error, "{vm_name}: {scope} starts without the order of {unit}: {error}");
            Order::default()
        });
        // Before the call, because the job may be done before its reply is read.
        let mut ends = instance.job_ends(scope.name)?;
        let mut tries = 1;
        // systemd emits the signal for as long as the connection of the call is on the bus.
        let (job, _carrier) = loop {
            match self.begin(&instance, scope, &order, process).await? {
                Err(error) if tries < TRIES && is_exists(&error) => {
                    tries += 1;
                    sleep(PAUSE).await;
                }
                answer => match answer.map_err(reason) {
                    Err(UnitError::Invalid(error)) if !order.is_empty() => {
                        let (vm_name, scope) = (scope.machine, scope.name);
                        tracing::info!(vm_name, %error, "{vm_name}: {scope} starts without an order: {error}");
                        order = Order::default();
                    }
                    answer => break answer?,
                },
            }
        };
        let end = async {
            loop {
                match ends.recv().await {
                    Some(JobEnd { job: ended, result }) if ended == job => break Ok(result),
                    Some(_) => {}
                    None => break Err(left()),
                }
            }
        };
        let end = timeout(self.limit, end).await;
        match end.unwrap_or(Err(UnitError::Silent(self.limit)))?.as_str() {
            "done" => {}
            result => return Err(UnitError::Job(result.to_owned())),
        }
        let path = self.path_of(&instance, scope.name).await?;
        self.control_group(&instance, &path, scope.name).await
    }

    /// Asks for a scope with this process, in the newest way that systemd knows. Returns the job, and the
    /// connection of the call.
    async fn begin(
        &self,
        instance: &Instance,
        scope: NewScope<'_>,
        order: &Order,
        process: Process<'_>,
    ) -> Result<zbus::Result<(OwnedObjectPath, Connection)>, UnitError> {
        let carrier = self.carriers.next().await.map_err(reason)?;
        let manager = manager(instance, &carrier).await?;
        let pidfd = process.pidfd.try_clone_to_owned();
        let pidfd = pidfd.map_err(|error| reason(error.into()))?;
        let by_pidfd = ("PIDFDs", Variant::from(vec![Fd::from(pidfd)]));
        let job = match self.call(&manager, scope, order, by_pidfd).await? {
            Err(error) if is_unknown(&error) => {
                let by_pid = ("PIDs", Variant::from(vec![process.pid.get()]));
                self.call(&manager, scope, order, by_pid).await?
            }
            answer => answer,
        };
        Ok(job.map(|job| (job, carrier)))
    }

    /// Asks for a scope with these `processes`.
    async fn call(
        &self,
        manager: &ManagerProxy<'static>,
        scope: NewScope<'_>,
        order: &Order,
        processes: (&'static str, Variant<'static>),
    ) -> Result<zbus::Result<OwnedObjectPath>, UnitError> {
        let properties = [
            (
                "Description",
                format!("Virtual machine {}", scope.machine).into(),
            ),
            ("Slice", Variant::from(scope.slice.to_owned())),
            ("Delegate", Variant::from(true)),
            ("CollectMode", Variant::from("inactive-or-failed")),
            ("TasksMax", Variant::from(TASKS)),
            ("After", Variant::from(order.after.clone())),
            ("Before", Variant::from(order.before.clone())),
            processes,
        ];
        let (manager, name) = (manager.clone(), scope.name.to_owned());
        let call = async move {
            let call = manager.start_transient_unit(&name, "fail", &properties, &[]);
            call.await
        };
        self.ask(call).await
    }
}

impl Units for Systemd {
    fn unit_of<'a>(&'a self, process: Process<'a>) -> BoxFuture<'a, Result<UnitFacts, UnitError>> {
        self.find(process).boxed()
    }

    fn start_scope<'a>(
        &'a self,
        scope: NewScope<'a>,
        process: Process<'a>,
    ) -> BoxFuture<'a, Result<String, UnitError>> {
        self.start(scope, process).boxed()
    }

    fn appeared(&self) -> BoxFuture<'_, ()> {
        let mut presence = self.presence.clone();
        async move {
            let is_present = |presence: &Presence| matches!(presence, Presence::Present(_));
            // It fails only at the end of the service.
            let _ = presence.wait_for(is_present).await;
        }
        .boxed()
    }
}

/// The manager object of `instance`, which is called over `connection`.
async fn manager(
    instance: &Instance,
    connection: &Connection,
) -> Result<ManagerProxy<'static>, UnitError> {
    let manager = ManagerProxy::builder(connection)
        .destination(instance.name.clone())
        .path(PATH)
        .cache_properties(CacheProperties::No);
    manager.build().await.map_err(reason)
}

/// Returns whether vcpud started `unit` for a machine.
fn is_scope_of_machine(unit: &str) -> bool {
    unit.starts_with("vcpud-") && unit.ends_with(".scope")
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
