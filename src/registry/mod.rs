//! The registry: which machines there are, and the actor of each.
//!
//! ```text
//!   qmp/NAME.sock appears, goes ──▶ ┐
//!   machines.d/NAME.toml, Reload ─▶ ├ Machines ──▶ an actor each
//!   Registrar: register, … ───────▶ ┘    │
//!                                        └──▶ what is wrong: files, and names claimed twice
//! ```
//!
//! A name has one machine, and the first stays. Who comes later is told so if it is a call, and
//! passed over, visibly, if it is a socket or a file; when the name is free it is his turn.
//!
//! A machine with a socket or a file is there as long as those are. One that was registered is
//! there as long as its QEMU, and remembered over a restart of the service.

mod machines;
mod register;
mod registrar;
mod registrations;
mod sockets;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{error, warn};

use self::machines::Machines;
use self::registrar::Request;
use self::sockets::{SocketEvent, Sockets};
use crate::config::{Configuration, Directories};
use crate::machine::{EventSender, HostServices};
use crate::names::MachineName;

pub use registrar::{Error, Registrar, Registration, Requests};
pub use sockets::is_empty;

/// The machines of a service, at work as long as the process is.
#[derive(Debug)]
pub struct Registry {
    task: JoinHandle<io::Error>,
    count: watch::Receiver<usize>,
    idle_exit: watch::Receiver<Duration>,
}

/// The directory of QMP sockets cannot be watched.
#[derive(Debug, thiserror::Error)]
#[error("cannot watch {} for QMP sockets: {source}", directory.display())]
pub struct WatchError {
    directory: PathBuf,
    source: io::Error,
}

impl Registry {
    /// Starts to watch, and to do what is asked by `requests`; returns when every machine at hand
    /// has answered or was given its time to. Their news go to `outbox`.
    pub async fn start(
        directories: &Directories,
        configuration: Configuration,
        site: HostServices,
        outbox: EventSender,
        requests: Requests,
    ) -> Result<Self, WatchError> {
        let directory = directories.qmp();
        let failed = |source| WatchError {
            directory: directory.clone(),
            source,
        };
        let sockets = Sockets::watch(directory.clone()).await.map_err(failed)?;
        let mut machines = Machines::new(directories.clone(), configuration, site, outbox);
        machines.recall().await;
        machines.start_configured();
        // Watched first, listed second: what comes in between is seen twice, not never.
        machines
            .set_sockets(sockets.list().await.map_err(failed)?)
            .await;
        machines.forget_departed().await;
        machines.tell_problems().await;
        machines.settled().await;
        let (counter, count) = watch::channel(machines.count());
        let (limit, idle_exit) = watch::channel(machines.configuration.service.idle_exit);
        let task = tokio::spawn(follow(machines, sockets, requests, counter, limit));
        Ok(Self {
            task,
            count,
            idle_exit,
        })
    }

    /// How many machines there are or may come to be where they are awaited: at a socket, at that of
    /// a file, or as a registration.
    pub fn count(&self) -> watch::Receiver<usize> {
        self.count.clone()
    }

    /// How long the service is to stay when there is nothing to do, as the configuration in force
    /// says.
    pub fn idle_exit(&self) -> watch::Receiver<Duration> {
        self.idle_exit.clone()
    }

    /// Waits until the directory cannot be watched any more, which should never be.
    pub async fn failed(&mut self) -> io::Error {
        (&mut self.task).await.unwrap_or_else(io::Error::other)
    }
}

/// Does what happens and what is asked, one after the other.
async fn follow(
    mut machines: Machines,
    mut sockets: Sockets,
    mut requests: Requests,
    counter: watch::Sender<usize>,
    limit: watch::Sender<Duration>,
) -> io::Error {
    loop {
        tokio::select! {
            event = sockets.next() => match event {
                Ok(event) => {
                    let sight = sockets.sight(event).await;
                    take_in(&mut machines, &sockets, sight).await;
                }
                Err(error) => return error,
            },
            Some(request) = requests.0.recv() => match request {
                Request::Register(registration, answer) => {
                    machines.register(*registration, answer).await;
                }
                Request::Unregister(name, answer) => {
                    let _ = answer.send(machines.unregister(&name).await);
                }
                Request::Reload(answer) => {
                    let sockets = list(&sockets).await;
                    let handles = machines.reload(sockets).await;
                    limit.send_replace(machines.configuration.service.idle_exit);
                    // Before the answer, so that who asked can read it.
                    machines.tell_problems().await;
                    let _ = answer.send(handles);
                }
            },
            Some(event) = machines.events.next() => machines.take(event).await,
        }
        counter.send_replace(machines.count());
        machines.tell_problems().await;
    }
}

/// Starts and stops machines because of `sight`.
async fn take_in(machines: &mut Machines, sockets: &Sockets, sight: Option<SocketEvent>) {
    match sight {
        Some(SocketEvent::Came(name)) => {
            // A rename may replace a socket without an event for the old socket.
            machines.remove_socket(&name).await;
            machines.add_socket(&name);
        }
        Some(SocketEvent::Went(name)) => machines.remove_socket(&name).await,
        Some(SocketEvent::Lost) => {
            warn!("events of the socket directory were lost: listing it again");
            if let Some(names) = list(sockets).await {
                machines.set_sockets(names).await;
            }
        }
        None => {}
    }
}

/// Returns the names of the machines whose sockets are in the directory, or `None` if it cannot be
/// read.
async fn list(sockets: &Sockets) -> Option<Vec<MachineName>> {
    let failed = |error: &io::Error| {
        error!(directory = %sockets.directory().display(), %error, "cannot list QMP sockets");
    };
    sockets.list().await.inspect_err(failed).ok()
}
