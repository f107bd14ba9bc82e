//! The service from start to end: puts the parts together, and takes the name when all is ready.

use std::io;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tracing::info;
use zbus::connection::Builder;
use zbus::fdo::{ObjectManager, RequestNameFlags};
use zbus::{Connection, fdo};

use crate::bus::{Authority, Directory, Manager, Publisher};
use crate::config::{Configuration, Directories};
use crate::host::Host;
use crate::machine::{Outbox, Site};
use crate::names::{BUS_NAME, ROOT_PATH};
use crate::registry::{Registrar, Registry, WatchError};
use crate::systemd::{self, Systemd};

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
    /// The kernel refused something basic.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Runs the service until it is told to end by `SIGTERM` or `SIGINT`.
pub async fn run(directories: Directories) -> Result<(), Error> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    let configuration = Configuration::read(&directories.configuration);
    let directory = Directory::default();
    let (outbox, notices) = Outbox::new();
    let (registrar, requests) = Registrar::new(outbox.clone());
    let connection = connect(&directory, registrar).await?;
    let authority = Authority::new(connection.clone());
    let publisher = Publisher::new(connection.clone(), authority, directory);
    tokio::spawn(publisher.run(notices));

    // Machines are served before the name is owned: who sees the name finds his machine.
    let site = Site {
        units: Arc::new(Systemd::new(connection.clone())),
        host: Host::this()?,
    };
    let mut registry =
        Registry::start(&directories, configuration, site, outbox.clone(), requests).await?;
    outbox.barrier().await;
    own_name(&connection).await?;
    outbox.open();
    systemd::ready();
    info!(directory = %directories.qmp().display(), "ready, watching for QMP sockets");

    let result = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        () = connection.closed() => Err(Error::BusLost),
        error = registry.failed() => Err(Error::WatchLost(error)),
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

/// Connects with the root object in place: a call that comes before there is any object is
/// never answered.
async fn connect(directory: &Directory, registrar: Registrar) -> zbus::Result<Connection> {
    Builder::system()?
        .serve_at(ROOT_PATH, Manager::new(directory.clone(), registrar))?
        .serve_at(ROOT_PATH, ObjectManager)?
        .build()
        .await
}

async fn own_name(connection: &Connection) -> Result<(), Error> {
    let flags = RequestNameFlags::DoNotQueue.into();
    match connection.request_name_with_flags(BUS_NAME, flags).await {
        Ok(fdo::RequestNameReply::PrimaryOwner) => Ok(()),
        Ok(_) | Err(zbus::Error::NameTaken) => Err(Error::NameTaken),
        Err(error) => Err(error.into()),
    }
}
