//! The service from start to end: puts the parts together, and takes the name when all is ready.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};
use zbus::connection::Builder;
use zbus::fdo::{ObjectManager, RequestNameFlags};
use zbus::{Connection, fdo};

use crate::bus::{Authority, Callers, Directory, Manager, Publisher, Records};
use crate::config::{Configuration, Directories};
use crate::host::{Audit, Host};
use crate::idle::Calls;
use crate::machine::{Outbox, Site};
use crate::names::{BUS_NAME, ROOT_PATH};
use crate::registry::{Registrar, Registry, WatchError};
use crate::systemd::{self, FdStore, Systemd};

/// What every D-Bus peer answers to.
const PEER: &str = "org.freedesktop.DBus.Peer";

/// Why the service cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bus does not take us.
    #[error("cannot serve on the system bus: {0}")]
    Bus(#[from] zbus::Error),
    /// Another service has the name.
    #[error("{BUS_NAME} is owned by another process; is vcpud running already?")]
    NameTaken,
    /// The bus ended the connection.
    #[error("the connection to the system bus was lost")]
    BusLost,
    /// Machines cannot be found.
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// Machines cannot be found any more.
    #[error("the directory of QMP sockets cannot be watched any more: {0}")]
    WatchLost(io::Error),
    /// It had begun to end when there was something to do again. systemd starts it anew.
    #[error("a machine came while the service was about to end; it is to be started again")]
    NeededAgain,
    /// The kernel refused something basic.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Runs the service until it is told to end by `SIGTERM` or `SIGINT`, or has nothing to do.
/// `SIGHUP` makes it read the configuration again.
pub async fn run(directories: Directories) -> Result<(), Error> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;

    // Before any descriptor is opened.
    let store = Arc::new(FdStore::open());
    let configuration = Configuration::read(&directories.configuration);
    let directory = Directory::default();
    let (outbox, notices) = Outbox::new();
    let (registrar, requests) = Registrar::new(outbox.clone());
    let callers = Callers::default();
    let audit = Arc::new(Audit::open());
    let records = Records::new(audit.clone());
    let manager = Manager::new(
        directory.clone(),
        registrar.clone(),
        callers.clone(),
        records.clone(),
    );
    let connection = connect(manager).await?;
    let calls = Calls::watch(&connection);
    let authority = Authority::new(connection.clone(), callers);
    let publisher = Publisher::new(connection.clone(), authority, records, directory.clone());
    tokio::spawn(publisher.run(notices));

    // Machines are served before the name is owned: who sees the name finds his machine.
    let site = Site {
        units: Arc::new(Systemd::new(connection.clone())),
        host: Host::this()?,
        audit,
        keeper: store.clone(),
    };
    let mut registry =
        Registry::start(&directories, configuration, site, outbox.clone(), requests).await?;
    outbox.barrier().await;
    own_name(&connection).await?;
    outbox.open();
    store.release_rest();
    systemd::status(directory.all().len());
    systemd::ready();
    tokio::spawn(feed_watchdog(connection.clone(), outbox, directory.clone()));
    info!(directory = %directories.qmp().display(), "ready, watching for QMP sockets");

    let (machines, sockets) = (registry.count(), directories.qmp());
    let limits = registry.idle_exit();
    let result = loop {
        tokio::select! {
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
            _ = hangup.recv() => {
                systemd::reloading();
                // It only fails when the service ends.
                let _ = registrar.reload().await;
                systemd::ready();
            }
            () = connection.closed() => break Err(Error::BusLost),
            error = registry.failed() => break Err(Error::WatchLost(error)),
            () = idle(&calls, limits.clone(), &machines, &sockets) => {
                info!("nothing to do, ending until somebody calls or a QMP socket appears");
                // First of all, so that systemd starts the service again for a call that comes
                // from here on, and does not think that it runs.
                systemd::stopping();
                let _ = connection.release_name(BUS_NAME).await;
                calls.last_calls().await;
                return match has_nothing_to_do(&machines, &sockets) {
                    true => Ok(()),
                    false => Err(Error::NeededAgain),
                };
            }
        }
    };
    systemd::stopping();
    if result.is_ok() {
        info!("ending; the VMs run on");
        // The name goes first, so that no call is taken that would not be answered. A bus that
        // is gone has let go of it.
        let _ = connection.release_name(BUS_NAME).await;
    }
    result
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
            while !has_nothing_to_do(machines, sockets) {
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

/// Whether there is no machine, and nothing that may become one, as any file in `qmp` may.
fn has_nothing_to_do(machines: &watch::Receiver<usize>, sockets: &Path) -> bool {
    let is_empty = |mut files: fs::ReadDir| files.next().is_none();
    *machines.borrow() == 0 && fs::read_dir(sockets).is_ok_and(is_empty)
}

/// Tells systemd that the service is alive as long as it is: as long as it answers a call that
/// went over the bus, and passes on what machines tell.
async fn feed_watchdog(connection: Connection, outbox: Outbox, directory: Directory) {
    let Some(interval) = systemd::watchdog() else {
        return;
    };
    // By the unique name: the other may be given up by now, and would start another service.
    let own = connection.unique_name().cloned();
    loop {
        let ping = connection.call_method(own.as_ref(), ROOT_PATH, Some(PEER), "Ping", &());
        let is_alive = async {
            let answered = ping.await;
            outbox.barrier().await;
            answered
        };
        // Where nobody answers systemd is told nothing, and ends the service.
        match timeout(interval, is_alive).await {
            Ok(Ok(_)) => systemd::alive(),
            Ok(Err(error)) => warn!(%error, "the service does not answer itself"),
            Err(_) => warn!("the service does not answer itself"),
        }
        systemd::status(directory.all().len());
        sleep(interval / 2).await;
    }
}

/// Connects with the root object in place: a call that comes before there is any object is
/// never answered.
async fn connect(manager: Manager) -> zbus::Result<Connection> {
    Builder::system()
        .serve_at(ROOT_PATH, manager)
        .serve_at(ROOT_PATH, ObjectManager)
        .build()
        .await
}

async fn own_name(connection: &Connection) -> Result<(), Error> {
    let flags = RequestNameFlags::DO_NOT_QUEUE;
    match connection.request_name_with_flags(BUS_NAME, flags).await {
        Ok(fdo::RequestNameReply::PrimaryOwner) => Ok(()),
        Ok(_) | Err(zbus::Error::NameTaken) => Err(Error::NameTaken),
        Err(error) => Err(error.into()),
    }
}
