//! The service from start to end: puts the parts together, and takes the name when all is ready.

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
use crate::bus::{self, Directory, Link, NameError, Publisher, Records};
use crate::config::{Configuration, Directories};
use crate::idle::Calls;
use crate::machine::{EventSender, HostServices};
use crate::names::ROOT_PATH;
use crate::placer::Host;
use crate::registry::{self, Registrar, Registry, SupervisorError};
use crate::systemd::{self, Store, Systemd};

/// What every D-Bus peer answers to.
const PEER: &str = "org.freedesktop.DBus.Peer";

/// Why the service cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bus does not accept a connection.
    #[error("cannot serve on the system bus: {0}")]
    Bus(#[from] zbus::Error),
    /// The name is not owned.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A task ended that lasts as long as the service.
    #[error("an essential task ended: {0}")]
    TaskEnded(String),
    /// The registry cannot start or continue.
    #[error(transparent)]
    Registry(#[from] SupervisorError),
    /// It had begun to end when there was something to do again. systemd starts it anew.
    #[error("a machine came while the service was about to end; it is to be started again")]
    NeededAgain,
    /// The kernel refused something basic.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The parts of the service, once it is ready.
struct Service {
    link: Link,
    calls: Calls,
    directory: Directory,
    registrar: Registrar,
    registry: Registry,
    sockets: PathBuf,
    /// The tasks that last as long as the service. The end of one ends it.
    tasks: JoinSet<Result<(), Error>>,
}

/// Runs the service until `SIGTERM` or `SIGINT`, or until it has nothing to do. `SIGHUP` reloads
/// the configuration.
///
/// # Errors
///
/// [`Error`], after which systemd starts the service again.
pub async fn run(directories: Directories) -> Result<(), Error> {
    let signals = Signals::new()?;
    Service::start(&directories).await?.serve(signals).await
}

/// The signals that the service obeys.
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
    /// Starts all parts, and owns the name when the machines that are there are served.
    async fn start(directories: &Directories) -> Result<Self, Error> {
        // Before any descriptor is opened.
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
            Records::new(audit.clone()),
        );
        let publisher = publisher.await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { Ok(publisher.run(notices).await?) });

        // Machines are served before the name is owned, so a client that sees the name finds its
        // machine.
        let (units, following) = Systemd::on(link.connections(), bus::connect);
        tasks.spawn(following.map(Ok));
        let site = host_services(units, audit, store.clone()).await?;
        let (registry, supervision) =
            Registry::start(directories, configuration, site, outbox.clone(), requests).await?;
        tasks.spawn(async move { match supervision.await? {} });
        outbox.barrier().await;
        link.own_name().await?;
        outbox.open();
        store.release_rest();
        systemd::status(directory.all().len());
        systemd::ready();
        tasks.spawn(feed_watchdog(link.clone(), outbox, directory.clone()));
        let sockets = directories.qmp();
        info!(directory = %sockets.display(), "ready, watching for QMP sockets");
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

    /// Serves until the service is to end.
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
                // It only fails when the service ends.
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
                "ending; the VMs run on"
            );
            // The name goes first, so that no call is taken that would not be answered.
            self.link.release_name().await;
        }
        result
    }

    /// Ends a service that has nothing to do.
    async fn end_idle(&self, machines: &watch::Receiver<usize>) -> Result<(), Error> {
        info!("nothing to do; the service ends until a client calls or a QMP socket appears");
        // First of all, so that systemd starts the service again for a call that comes from here
        // on, and does not think that it runs.
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
) -> io::Result<HostServices> {
    Ok(HostServices {
        units: Arc::new(units),
        host: blocking(Host::this).await?,
        audit,
        fd_store,
    })
}

/// Why the service ends with one of its tasks.
fn task_ended(ended: Result<Result<(), Error>, JoinError>) -> Error {
    match ended {
        Ok(Err(error)) => error,
        Ok(Ok(())) => Error::TaskEnded("it had nothing more to do".to_owned()),
        Err(error) => Error::TaskEnded(error.to_string()),
    }
}

/// Waits until nobody called for as long as `limits` says last, and there is nothing to do.
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

/// Returns whether the service has no machine, and the directory `sockets` no file that may become one.
async fn has_nothing_to_do(machines: &watch::Receiver<usize>, sockets: &Path) -> bool {
    if *machines.borrow() != 0 {
        return false;
    }
    let is_empty = registry::is_empty(sockets.to_owned()).await;
    // A machine may have come in the meantime.
    is_empty && *machines.borrow() == 0
}

/// Notifies the watchdog of systemd as long as the service answers a call over the bus, and passes
/// on what machines report. A service that waits for the bus is alive too.
async fn feed_watchdog(link: Link, outbox: EventSender, directory: Directory) -> Result<(), Error> {
    let Some(interval) = systemd::watchdog() else {
        return std::future::pending().await;
    };
    loop {
        match link.connection() {
            None => systemd::alive(),
            // Without an answer systemd is not notified, and ends the service.
            Some(connection) => match timeout(interval, is_alive(&connection, &outbox)).await {
                Ok(Ok(())) => systemd::alive(),
                Ok(Err(error)) => warn!(%error, "the service does not answer itself"),
                Err(_) => warn!("the service does not answer itself"),
            },
        }
        systemd::status(directory.all().len());
        sleep(interval / 2).await;
    }
}

/// Calls the service over `connection`, and waits for all that is being passed on.
async fn is_alive(connection: &Connection, outbox: &EventSender) -> zbus::Result<()> {
    // By the unique name: the well-known name may be released, and would start another instance.
    let own = connection.unique_name().cloned();
    let ping = connection.call_method(own.as_ref(), ROOT_PATH, Some(PEER), "Ping", &());
    ping.await?;
    outbox.barrier().await;
    Ok(())
}
