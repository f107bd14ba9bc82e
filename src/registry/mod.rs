//! The registry: the machines of the service, their names, and their tasks.
//!
//! ```text
//!   qmp/NAME.sock appears, disappears ─▶ ┐               decisions
//!   machines.d/NAME.toml, Reload ──────▶ ├ Supervisor ◀────────────▶ Claims (pure)
//!   Registrar: register, unregister ───▶ ┘   │
//!                                            └─▶ a task for each machine (JoinSet)
//! ```
//!
//! [`claims`] decides about the owner of a name. A machine with a socket or a file exists as long as these. A
//! registered machine exists as long as its QEMU, across restarts of the service.
//!
//! The supervisor owns the tasks of all machines. The end of a task removes its machine; a task that
//! panics ends the service with an error. Replies to requests travel in the event queue, so each follows
//! the events of its request.

mod claims;
mod error;
mod registrar;
mod registration;
mod registrations;
mod reviews;
mod sockets;
mod supervisor;
mod tasks;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::time::Duration;

use tokio::sync::watch;
use tracing::{error, warn};

use self::registrar::Request;
use self::registration::Trials;
use self::reviews::Reviews;
use self::sockets::{SocketEvent, Sockets};
use self::supervisor::Supervisor;
use crate::config::{Configuration, Directories};
use crate::machine::{EventSender, HostServices};

pub use error::{Error, SupervisorError};
pub use registrar::{Registrar, Registration, Requests};
pub use sockets::is_empty;

/// The state of the registry, for those that decide about the end of the service.
#[derive(Debug)]
pub struct Registry {
    count: watch::Receiver<usize>,
    idle_exit: watch::Receiver<Duration>,
}

/// The registry at work.
struct Service {
    supervisor: Supervisor,
    sockets: Sockets,
    requests: Requests,
    trials: Trials,
    reviews: Reviews,
    count: watch::Sender<usize>,
    idle_exit: watch::Sender<Duration>,
}

impl Registry {
    /// Starts the machines, and waits until each has answered, or its time limit is over. Events are
    /// sent to `events`.
    ///
    /// Returns the registry and the future that drives it. The caller spawns the future, which ends only
    /// with an error.
    ///
    /// # Errors
    /// Fails if the directory of QMP sockets cannot be created, watched or listed.
    pub async fn start(
        directories: &Directories,
        configuration: Configuration,
        services: HostServices,
        events: EventSender,
        requests: Requests,
    ) -> Result<
        (
            Self,
            impl Future<Output = Result<Infallible, SupervisorError>> + Send + use<>,
        ),
        SupervisorError,
    > {
        let directory = directories.qmp();
        let sockets = Sockets::watch(directory.clone()).await;
        let sockets = sockets.map_err(|source| SupervisorError::Watch { directory, source })?;
        let mut supervisor = Supervisor::new(directories.clone(), configuration, services, events);
        supervisor.restore().await;
        supervisor.apply_configuration().await?;
        // The watch began before, so a socket that appears now is seen twice, and none is missed.
        let listed = sockets.list().await;
        let listed = listed.map_err(|source| sockets.lost(source))?;
        let decisions = supervisor.claims.sockets_listed(&listed);
        supervisor.perform(decisions).await?;
        supervisor.remove_other_states().await;
        supervisor.report_errors().await;
        supervisor.settled().await;
        let (counter, count) = watch::channel(supervisor.claims.count());
        let (limit, idle_exit) = watch::channel(supervisor.configuration().service.idle_exit);
        let service = Service {
            supervisor,
            sockets,
            requests,
            trials: Trials::new(),
            reviews: Reviews::new(),
            count: counter,
            idle_exit: limit,
        };
        Ok((Self { count, idle_exit }, service.run()))
    }

    /// Returns the number of machines. It includes sockets and files whose QEMU does not run, and
    /// registrations whose QEMU has not answered yet.
    pub fn count(&self) -> watch::Receiver<usize> {
        self.count.clone()
    }

    /// Returns how long the service stays without a machine and without a call, according to the
    /// configuration in force.
    pub fn idle_exit(&self) -> watch::Receiver<Duration> {
        self.idle_exit.clone()
    }
}

impl Service {
    /// Handles events and requests, one after the other.
    async fn run(mut self) -> Result<Infallible, SupervisorError> {
        let processes = self.supervisor.processes.clone();
        loop {
            tokio::select! {
                notification = self.sockets.next() => {
                    let notification = notification.map_err(|source| self.sockets.lost(source))?;
                    let event = self.sockets.interpret(notification).await;
                    let event = event.map_err(|source| self.sockets.lost(source))?;
                    self.handle_socket(event).await?;
                }
                Some(request) = self.requests.0.recv() => self.handle(request).await?,
                Some(trial) = self.trials.join_next() => self.supervisor.conclude(trial?).await?,
                () = self.reviews.due(self.supervisor.count()) => {
                    self.supervisor.review(&mut self.reviews);
                    // It changes no claim.
                    continue;
                }
                () = processes.changed() => {}
                ended = self.supervisor.next_ended() => self.supervisor.end(&ended?).await?,
            }
            self.count.send_replace(self.supervisor.claims.count());
            self.supervisor.report_errors().await;
        }
    }

    async fn handle(&mut self, request: Request) -> Result<(), SupervisorError> {
        let supervisor = &mut self.supervisor;
        match request {
            Request::Register(registration, answer) => {
                let trials = &mut self.trials;
                supervisor.register(*registration, answer, trials).await
            }
            Request::Unregister(name, answer) => supervisor.unregister(&name, answer).await,
            Request::Reload(answer) => {
                let machines = supervisor.reload().await?;
                self.list_sockets().await?;
                let supervisor = &mut self.supervisor;
                let idle_exit = supervisor.configuration().service.idle_exit;
                self.idle_exit.send_replace(idle_exit);
                // The errors are reported before the reply, so the caller can read them.
                supervisor.report_errors().await;
                supervisor.events.reply(answer, machines).await;
                Ok(())
            }
        }
    }

    /// Starts and stops machines after `event` in the directory of sockets.
    async fn handle_socket(&mut self, event: Option<SocketEvent>) -> Result<(), SupervisorError> {
        let claims = &mut self.supervisor.claims;
        let decisions = match event {
            Some(SocketEvent::Appeared(name)) => claims.socket_appeared(&name),
            Some(SocketEvent::Removed(name)) => claims.socket_removed(&name),
            Some(SocketEvent::Overflow) => {
                warn!("events of the socket directory were lost: listing it again");
                return self.list_sockets().await;
            }
            Some(SocketEvent::Replaced) => {
                let directory = self.sockets.directory().display();
                warn!(%directory, "a file system was mounted on or unmounted from {directory}: watching and listing the directory at this path");
                // A socket in another directory is another one, also if it has the same name.
                let decisions = claims.sockets_listed(&BTreeSet::new());
                self.supervisor.perform(decisions).await?;
                return self.list_sockets().await;
            }
            None => return Ok(()),
        };
        self.supervisor.perform(decisions).await
    }

    /// Lists the directory of sockets, and starts and stops machines accordingly. Does nothing if it
    /// cannot be listed.
    async fn list_sockets(&mut self) -> Result<(), SupervisorError> {
        match self.sockets.list().await {
            Ok(names) => {
                let decisions = self.supervisor.claims.sockets_listed(&names);
                self.supervisor.perform(decisions).await
            }
            Err(error) => {
                let directory = self.sockets.directory().display();
                error!(%directory, %error, "cannot list the QMP sockets in {directory}: {error}");
                Ok(())
            }
        }
    }
}
