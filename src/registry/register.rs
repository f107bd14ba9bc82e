//! Machines that somebody registers: from the request to the end of their QEMU.

use std::path::Path;
use std::sync::Arc;

use futures_util::FutureExt;
use tracing::info;

use super::machines::{Machines, New, Origin};
use super::registrar::{Answer, Error, Registration};
use super::registrations::Registered;
use crate::blocking::blocking;
use crate::ids::{Pid, Uid};
use crate::machine::{ConnectError, Lifetime, QmpEndpoint};
use crate::names::MachineName;
use crate::placer::Host;
use crate::process::{Leader, ProcessId, SocketFile};

/// How many machines a user may register; root may register as many as there may be.
const LIMIT_OF_USER: usize = 64;
/// How many machines may be registered in all; systemd keeps two descriptors of each.
const LIMIT: usize = 4096;

/// What happens with a registration.
pub(super) enum Event {
    /// It is known whether there is such a machine.
    Settled {
        name: MachineName,
        generation: u64,
        result: Result<(), ConnectError>,
        answer: Answer,
    },
    /// It has ended.
    Ended(MachineName, u64),
}

impl Machines {
    /// Takes up what a former run of the service had registered.
    pub(super) async fn recall(&mut self) {
        for (name, registered) in self.registrations.load().await {
            let leader = match registered.leader {
                None => None,
                Some(id) => match recall_leader(id, registered.uid).await {
                    Some(leader) => Some(leader),
                    None => {
                        self.registrations.remove(&name).await;
                        continue;
                    }
                },
            };
            let endpoint = match &registered.settings.qmp {
                Some(path) => QmpEndpoint::Socket(socket_file(path, registered.uid)),
                None => QmpEndpoint::Connection(None),
            };
            let new = New {
                origin: Origin::Registration(registered.uid),
                endpoint,
                lifetime: Lifetime::Restored,
                own: registered.settings,
                leader,
            };
            self.start(&name, new);
            self.await_end(&name);
        }
    }

    /// Registers a machine. The answer comes when it is known whether the machine exists.
    pub(super) async fn register(&mut self, registration: Registration, answer: Answer) {
        let name = registration.name.clone();
        if self
            .known
            .get(&name)
            .is_some_and(|known| known.running.is_over())
        {
            // Clients know that it ended; only the registry does not yet.
            self.stop(&name).await;
        }
        match self.prepare(registration).await {
            Ok(new) => self.start(&name, new),
            Err(error) => {
                let _ = answer.send(Err(error));
                return;
            }
        }
        let Some(known) = self.known.get_mut(&name) else {
            return;
        };
        let (settled, generation) = (known.running.settled(), known.generation);
        let event = settled.map(move |result| Event::Settled {
            name,
            generation,
            result,
            answer,
        });
        self.events.push(event.boxed());
    }

    /// Checks `registration` and saves it, to be confirmed. Returns the machine to start.
    async fn prepare(&mut self, registration: Registration) -> Result<New, Error> {
        self.check(&registration)?;
        check_host(&self.site.host, &registration).await?;
        let Registration {
            name,
            endpoint,
            mut settings,
            leader,
            uid,
        } = registration;
        let leader = match leader {
            Some(pid) => Some(Arc::new(hold_leader(pid, uid).await?)),
            None => None,
        };
        settings.qmp = match &endpoint {
            QmpEndpoint::Socket(socket) => Some(socket.path().to_owned()),
            QmpEndpoint::Connection(_) => None,
        };
        let id = leader.as_ref().map(|leader| leader.id());
        let registered = Registered::new(uid, settings.clone(), id);
        let prepared = self.registrations.prepare(&name, registered).await;
        prepared.map_err(|error| Error::NotRemembered(error.to_string()))?;
        Ok(New {
            origin: Origin::Registration(uid),
            endpoint,
            lifetime: Lifetime::Registered,
            own: settings,
            leader,
        })
    }

    /// Checks that a machine may be registered.
    fn check(&self, registration: &Registration) -> Result<(), Error> {
        let Registration { name, uid, .. } = registration;
        if let Some(known) = self.known.get(name) {
            return Err(Error::Exists(known.origin.to_string()));
        }
        let file = self.configuration.machines.get(name);
        if let Some(file) = file.filter(|file| file.settings.is_none()) {
            return Err(Error::Disabled(file.path.clone()));
        }
        let users = self.known.values().filter_map(|known| known.origin.user());
        let users: Vec<Uid> = users.collect();
        let own = users.iter().filter(|user| *user == uid).count();
        if users.len() >= LIMIT {
            return Err(Error::TooMany(LIMIT));
        }
        if !uid.is_root() && own >= LIMIT_OF_USER {
            let (uid, limit) = (*uid, LIMIT_OF_USER);
            return Err(Error::TooManyOfUser { uid, limit });
        }
        Ok(())
    }

    /// Something happened with a registration.
    pub(super) async fn take(&mut self, event: Event) {
        match event {
            Event::Settled {
                name,
                generation,
                result,
                answer,
            } => {
                let is_there = self.is_there(&name, generation);
                let result = match (result, is_there) {
                    (Ok(()), true) => {
                        self.registrations.confirm(&name).await;
                        self.await_end(&name);
                        Ok(())
                    }
                    (Ok(()), false) => Err(Error::ConnectError(ConnectError::Gone)),
                    (Err(reason), is_there) => {
                        if is_there {
                            self.stop(&name).await;
                            self.let_others(&name).await;
                        }
                        Err(match reason {
                            ConnectError::OtherMachine(name) => Error::OtherMachine(name),
                            other => Error::ConnectError(other),
                        })
                    }
                };
                let _ = answer.send(result);
            }
            Event::Ended(name, generation) if self.is_there(&name, generation) => {
                self.stop(&name).await;
                self.let_others(&name).await;
            }
            Event::Ended(..) => {}
        }
    }

    /// Forgets the machine `name`.
    pub(super) async fn unregister(&mut self, name: &MachineName) -> Result<(), Error> {
        if !self.known.contains_key(name) {
            return Err(Error::NoSuchMachine);
        }
        info!(machine = %name, "unregistered; the VM runs on as it is");
        self.stop(name).await;
        self.let_others(name).await;
        Ok(())
    }

    /// Waits for the end of the machine `name`, which was registered.
    fn await_end(&mut self, name: &MachineName) {
        if let Some(known) = self.known.get(name) {
            let (ended, event) = (
                known.done.clone().cancelled_owned(),
                Event::Ended(name.clone(), known.generation),
            );
            self.events.push(ended.map(|()| event).boxed());
        }
    }
}

/// Checks that the host has what `registration` asks for. Refusals of the kernel are logged later.
async fn check_host(host: &Host, registration: &Registration) -> Result<(), Error> {
    let host = host.clone();
    match blocking(move || host.cpus()).await {
        Ok(cpus) => {
            let tuning = registration.settings.settings.tuning();
            tuning.check(&cpus).map_err(Error::Unavailable)
        }
        Err(_) => Ok(()),
    }
}

/// The socket file at `path`, which the user `uid` chose.
fn socket_file(path: &Path, uid: Uid) -> SocketFile {
    if uid.is_root() {
        SocketFile::chosen_by_root(path.to_owned())
    } else {
        SocketFile::chosen_by_user(path.to_owned())
    }
}

/// Holds the process `pid`, which must be of user `uid`, unless that is root.
async fn hold_leader(pid: Pid, uid: Uid) -> Result<Leader, Error> {
    let wrong = |error| Error::Leader { pid, error };
    let leader = Leader::of_pid(pid).await.map_err(wrong)?;
    if !uid.is_root() && uid != leader.user() {
        return Err(Error::ForeignLeader { pid, uid });
    }
    Ok(leader)
}

/// Holds the process `id`, which user `uid` registered with a previous instance. Returns `None` if
/// it has ended, or is another user's now.
async fn recall_leader(id: ProcessId, uid: Uid) -> Option<Arc<Leader>> {
    let leader = hold_leader(id.pid, uid).await.ok()?;
    (leader.id() == id).then(|| Arc::new(leader))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_has_room_for_the_descriptors_of_all_that_may_be_registered() {
        let unit = include_str!("../../systemd/vcpud.service");
        let room = format!("FileDescriptorStoreMax={}", 2 * LIMIT);
        assert!(unit.lines().any(|line| line == room), "no {room}");
    }
}
