//! Registrations of machines: from the request of a user to the reply.

use std::path::Path;
use std::sync::Arc;

use tokio::task::{self, JoinSet};
use tracing::info;

use super::error::{Error, SupervisorError};
use super::registrar::{Answer, Registration};
use super::registrations::Registered;
use super::supervisor::{NewMachine, Supervisor};
use crate::blocking::blocking;
use crate::ids::{Pid, Uid};
use crate::machine::{ConnectError, Lifetime, QmpEndpoint};
use crate::names::MachineName;
use crate::placement::Tuning;
use crate::placer::Host;
use crate::process::{Leader, ProcessId, SocketFile};

/// The registrations whose QEMU has not answered yet. Each is a task.
pub(super) type Trials = JoinSet<Trial>;

/// The result of the first attempt to connect to a machine that a user registers.
pub(super) struct Trial {
    name: MachineName,
    /// The task of the machine.
    task: task::Id,
    result: Result<(), ConnectError>,
    answer: Answer,
}

impl Supervisor {
    /// Starts the machines that were registered with a previous instance.
    pub(super) async fn restore(&mut self) {
        for (name, registered) in self.registrations.load().await {
            let leader = match registered.leader {
                None => None,
                Some(id) => match restore_leader(id, registered.uid).await {
                    Some(leader) => Some(leader),
                    None => {
                        self.registrations.remove(&name).await;
                        continue;
                    }
                },
            };
            let (uid, socket) = (registered.uid, registered.settings.qmp.clone());
            let endpoint = match &socket {
                Some(path) => QmpEndpoint::Socket(socket_file(path, uid)),
                None => QmpEndpoint::Connection(None),
            };
            self.claims.register(&name, uid, socket);
            let new = NewMachine {
                endpoint,
                lifetime: Lifetime::Restored,
                registration: Some(registered),
                leader,
            };
            self.start(&name, new);
        }
    }

    /// Registers a machine. The reply follows when its QEMU has answered.
    ///
    /// # Errors
    /// Fails if a task failed. Other errors are replies.
    pub(super) async fn register(
        &mut self,
        registration: Registration,
        answer: Answer,
        trials: &mut Trials,
    ) -> Result<(), SupervisorError> {
        let name = registration.name.clone();
        if self.running(&name).is_some_and(|running| running.is_over()) {
            // Clients have seen its end, so for them the name is free.
            self.end(&name).await?;
        }
        let new = match self.prepare(registration).await {
            Ok(new) => new,
            Err(error) => {
                self.events.reply(answer, Err(error)).await;
                return Ok(());
            }
        };
        let task = self.start(&name, new);
        if let Some(running) = self.running(&name) {
            let settled = running.settled();
            trials.spawn(async move {
                let result = settled.await;
                Trial {
                    name,
                    task,
                    result,
                    answer,
                }
            });
        }
        Ok(())
    }

    /// Checks `registration`, prepares its file, and claims the name. Returns the machine to start.
    async fn prepare(&mut self, registration: Registration) -> Result<NewMachine, Error> {
        let Registration {
            name,
            endpoint,
            mut settings,
            leader,
            uid,
        } = registration;
        self.claims.check_registration(&name, uid)?;
        check_host(&self.services.host, &settings.settings.tuning()).await?;
        let leader = match leader {
            Some(pid) => Some(Arc::new(hold_leader(pid, uid).await?)),
            None => None,
        };
        settings.qmp = match &endpoint {
            QmpEndpoint::Socket(socket) => Some(socket.path().to_owned()),
            QmpEndpoint::Connection(_) => None,
        };
        let socket = settings.qmp.clone();
        let id = leader.as_ref().map(|leader| leader.id());
        let registered = Registered::new(uid, settings, id);
        let prepared = self.registrations.prepare(&name, registered.clone()).await;
        prepared.map_err(Error::NotSaved)?;
        self.claims.register(&name, uid, socket);
        Ok(NewMachine {
            endpoint,
            lifetime: Lifetime::Registered,
            registration: Some(registered),
            leader,
        })
    }

    /// Completes a registration, and replies. A registration that failed leaves nothing.
    ///
    /// # Errors
    /// Fails if a task failed.
    pub(super) async fn conclude(&mut self, trial: Trial) -> Result<(), SupervisorError> {
        let Trial {
            name,
            task,
            result,
            answer,
        } = trial;
        // Otherwise it was unregistered, or it has ended.
        let is_current = self.is_current(&name, task);
        let result = match result {
            Ok(()) if is_current => {
                self.registrations.commit(&name).await;
                Ok(())
            }
            Ok(()) => Err(ConnectError::Gone.into()),
            Err(error) => {
                if is_current {
                    self.end(&name).await?;
                }
                Err(error.into())
            }
        };
        self.events.reply(answer, result).await;
        Ok(())
    }

    /// Unregisters the machine `name`. The reply follows its last event.
    ///
    /// # Errors
    /// Fails if a task failed. Other errors are replies.
    pub(super) async fn unregister(
        &mut self,
        name: &MachineName,
        answer: Answer,
    ) -> Result<(), SupervisorError> {
        let result = match self.claims.unregister(name) {
            Ok(decisions) => {
                info!(vm_name = %name, "{name}: unregistered; the VM continues to run");
                self.perform(decisions).await?;
                Ok(())
            }
            Err(error) => Err(error),
        };
        self.events.reply(answer, result).await;
        Ok(())
    }
}

/// Checks that the host has the CPUs, memory nodes and caches of `tuning`. The kernel may still refuse
/// them when the machine is placed.
async fn check_host(host: &Host, tuning: &Tuning) -> Result<(), Error> {
    let host = host.clone();
    match blocking(move || host.cpus()).await {
        Ok(cpus) => tuning.check(&cpus).map_err(Error::Unavailable),
        Err(_) => Ok(()),
    }
}

/// Returns the socket file at `path`, which the user `uid` chose.
fn socket_file(path: &Path, uid: Uid) -> SocketFile {
    if uid.is_root() {
        SocketFile::chosen_by_root(path.to_owned())
    } else {
        SocketFile::chosen_by_user(path.to_owned())
    }
}

/// Holds the process `pid`. It must belong to the user `uid`, unless that is root.
async fn hold_leader(pid: Pid, uid: Uid) -> Result<Leader, Error> {
    let leader = Leader::of_pid(pid).await;
    let leader = leader.map_err(|error| Error::Leader { pid, error })?;
    if !uid.is_root() && uid != leader.user() {
        return Err(Error::ForeignLeader { pid, uid });
    }
    Ok(leader)
}

/// Holds the process `id`, which the user `uid` registered with a previous instance. Returns `None` if the
/// process has ended, or belongs to another user now.
async fn restore_leader(id: ProcessId, uid: Uid) -> Option<Arc<Leader>> {
    let leader = hold_leader(id.pid, uid).await.ok()?;
    (leader.id() == id).then(|| Arc::new(leader))
}
