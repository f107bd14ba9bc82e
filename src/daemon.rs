//! The service from start to end: starts the parts, and owns the name when they are ready.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{Fuse, FusedFuture};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};
use zbus::Connection;

use crate::audit::Audit;
use crate::blocking::blocking;
use crate::bus::{self, Directory, Link, NameError, Publisher};
use crate::config::{Configuration, Directories};
use crate::idle::Calls;
use crate::machine::{EventSender, HostServices};
use crate::names::ROOT_PATH;
use crate::placer::{Host, Watches};
use crate::registry::{self, Registrar, Registry, SupervisorError};
use crate::systemd::{self, Store, Systemd};

/// The interface that every D-Bus peer has.
const PEER: &str = "org.freedesktop.DBus.Peer";

/// The reason why the service cannot start or continue.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bus does not accept a connection.
    #[error("cannot serve on the system bus: {0}")]
    Bus(#[from] zbus::Error),
    /// The service cannot own its name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A task ended that must run as long as the service.
    #[error("an essential task ended: {0}")]
    TaskEnded(String),
    /// The registry cannot start or continue.
    #[error(transparent)]
    Registry(#[from] SupervisorError),
    /// A machine was added after the service had begun to end. systemd starts the service again.
    #[error("a machine was added while the service was ending; systemd starts the service again")]
    NeededAgain,
    /// A basic system call failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The parts of a service that is ready.
struct Service {
    link: Link,
    calls: Calls,
    directory: Directory,
    registrar: Registrar,
    registry: Registry,
    sockets: PathBuf,
    /// The tasks that run as long as the service. If one ends, the service ends.
    tasks: JoinSet<Result<(), Error>>,
}

/// Runs the service until `SIGTERM` or `SIGINT`, or until it has nothing to do. `SIGHUP` reloads
/// the configuration.
///
/// # Errors
///
/// After an [`Error`], systemd starts the service again.
pub async fn run(directories: Directories) -> Result<(), Error> {
    let signals = Signals::new()?;
    Service::start(&directories).await?.serve(signals).await
}

/// The signals that the service handles.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

impl Service {
    /// Starts all parts, and owns the name after the present machines are served.
    async fn start(directories: &Directories) -> Result<Self, Error> {
        // Before other descriptors are opened.
        let store = Arc::new(Store::open());
        let files = directories.configuration.clone();
        let configuration = blocking(move || Configuration::read(&files)).await;
        let (directory, link, calls) = (Directory::default(), Link::default(), Calls::default());
        let (outbox, notices) = EventSender::new();
        let (registrar, requests) = Registrar::new();
        let audit = Arc::new(Audit::open());
        let publisher = Publisher::connect(
            link.clone(),
            calls.clone(),
            directory.clone(),
            registrar.clone(),
            audit.clone(),
        );
        let publisher = publisher.await?;
        // Before QEMU and systemd are asked: another instance has the machines.
        link.check_name().await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { Ok(publisher.run(notices).await?) });

        // Machines are served before the name is owned, so that a client that sees the name finds its
        // machine.
        let (units, following) = Systemd::on(link.connections(), bus::connect);
        tasks.spawn(following.map(Ok));
        let site = host_services(units, audit, store.clone(), &mut tasks).await?;
        let (registry, supervision) =
            Registry::start(directories, configuration, site, outbox.clone(), requests).await?;
        tasks.spawn(async move { match supervision.await? {} });
        outbox.barrier().await;
        link.own_name().await?;
        outbox.open().await;
        store.release_rest();
        systemd::status(directory.all().len());
        systemd::ready();
        tasks.spawn(feed_watchdog(link.clone(), outbox, directory.clone()));
        let sockets = directories.qmp();
        info!(directory = %sockets.display(), "ready, watching the directory of QMP sockets");
        Ok(Self {
            link,
            calls,
            directory,
            registrar,
            registry,
            sockets,
            tasks,
        })
    }

    /// Serves until the service must end.
    async fn serve(mut self, mut signals: Signals) -> Result<(), Error> {
        let machines = self.registry.count();
        let limits = self.registry.idle_exit();
        let mut reloading = Fuse::terminated();
        let result = loop {
            tokio::select! {
                _ = signals.terminate.recv() => break Ok(()),
                _ = signals.interrupt.recv() => break Ok(()),
                _ = signals.hangup.recv(), if reloading.is_terminated() => {
                    systemd::reloading();
                    info!("reloading the configuration (SIGHUP)");
                    let registrar = self.registrar.clone();
                    reloading = async move { registrar.reload().await }.boxed().fuse();
                }
                // It fails only if the service is ending.
                _ = &mut reloading => systemd::ready(),
                Some(ended) = self.tasks.join_next() => break Err(task_ended(ended)),
                () = idle(&self.calls, limits.clone(), &machines, &self.sockets) => {
                    return self.end_idle(&machines).await;
                }
            }
        };
        systemd::stopping();
        if result.is_ok() {
            info!(
                machines = self.directory.all().len(),
                "ending; the VMs continue to run"
            );
            // The name is released first, so that no call arrives that would not be answered.
            self.link.release_name().await;
        }
        result
    }

    /// Ends a service that has nothing to do.
    async fn end_idle(&self, machines: &watch::Receiver<usize>) -> Result<(), Error> {
        info!(
            "ending because there is nothing to do; the next call or QMP socket starts the service"
        );
        // Before everything else, so that systemd starts the service again for a call that arrives from
        // now on.
        systemd::stopping();
        self.link.release_name().await;
        self.calls.last_calls().await;
        if !has_nothing_to_do(machines, &self.sockets).await {
            return Err(Error::NeededAgain);
        }
        Ok(())
    }
}

async fn host_services(
    units: Systemd,
    audit: Arc<Audit>,
    fd_store: Arc<Store>,
    tasks: &mut JoinSet<Result<(), Error>>,
) -> io::Result<HostServices> {
    let watches = Watches::new().inspect_err(|error| {
        warn!(%error, "control groups are not watched, only compared from time to time; raise fs.inotify.max_user_instances: {error}");
    });
    let watches = watches.ok();
    if let Some(watches) = watches.clone() {
        tasks.spawn(watches.run().map(Ok));
    }
    Ok(HostServices {
        watches,
        units: Arc::new(units),
        host: blocking(Host::this).await?,
        audit,
        fd_store,
    })
}

/// Returns the error for a task that has ended.
fn task_ended(ended: Result<Result<(), Error>, JoinError>) -> Error {
    match ended {
        Ok(Err(error)) => error,
        Ok(Ok(())) => Error::TaskEnded("it returned".to_owned()),
        Err(error) => Error::TaskEnded(error.to_string()),
    }
}

/// Waits until the service has nothing to do, and no call arrived for the last value of `limits`.
async fn idle(
    calls: &Calls,
    mut limits: watch::Receiver<Duration>,
    machines: &watch::Receiver<usize>,
    sockets: &Path,
) {
    loop {
        let limit = *limits.borrow_and_update();
        let idle = async {
            calls.silence(limit).await;
            while !has_nothing_to_do(machines, sockets).await {
                sleep(limit).await;
                calls.silence(limit).await;
            }
        };
        tokio::select! {
            () = idle => return,
            Ok(()) = limits.changed() => {}
        }
    }
}

/// Returns whether the service has no machine, and no file in the directory `sockets` that may become one.
async fn has_nothing_to_do(machines: &watch::Receiver<usize>, sockets: &Path) -> bool {
    if *machines.borrow() != 0 {
        return false;
    }
    let is_empty = registry::is_empty(sockets.to_owned()).await;
    // A machine may have been added in the meantime.
    is_empty && *machines.borrow() == 0
}

/// Notifies the watchdog of systemd as long as the service answers a call over the bus, and forwards the
/// events of machines. A service that waits for the bus is also alive.
async fn feed_watchdog(link: Link, outbox: EventSender, directory: Directory) -> Result<(), Error> {
    let Some(interval) = systemd::watchdog() else {
        return std::future::pending().await;
    };
    loop {
        match link.connection() {
            None => systemd::alive(),
            // Without a reply, systemd is not notified, and restarts the service.
            Some(connection) => match timeout(interval, is_alive(&connection, &outbox)).await {
                Ok(Ok(())) => systemd::alive(),
                Ok(Err(error)) => {
                    warn!(%error, "the service does not answer a call to itself: {error}")
                }
                Err(_) => warn!("the service does not answer a call to itself"),
            },
        }
        systemd::status(directory.all().len());
        sleep(interval / 2).await;
    }
}

/// Calls the service over `connection`, and waits until all pending events are forwarded.
async fn is_alive(connection: &Connection, outbox: &EventSender) -> zbus::Result<()> {
    // By the unique name: the well-known name may be released, and would start another instance.
    let own = connection.unique_name().cloned();
    let ping = connection.call_method(own.as_ref(), ROOT_PATH, Some(PEER), "Ping", &());
    ping.await?;
    outbox.barrier().await;
    Ok(())
}
