//! An attempt of the actor to connect to its QEMU.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::warn;

use super::actor::Actor;
use super::link::{Failed, Link, Look, Socket};
use super::placing::{self, Found};
use super::source::{ConnectError, QmpEndpoint};
use crate::config::Uuid;
use crate::process::Leader;
use crate::qmp::Closed;

/// A QEMU that listens but does not answer is shown as disconnected after this time.
const ANSWER_GRACE: Duration = Duration::from_secs(2);
/// Why a machine that was never connected is shown as disconnected.
const UNANSWERED: &str = "QEMU listens and has not answered yet: it is starting or stopped, or another QMP client is attached";

/// A QEMU that answered, the first look at it, and the result of the search for its home.
type Opened = ((Link, Look), Option<Found>);

/// Why an attempt to connect failed.
enum Unopened {
    /// The conversation failed.
    Failed(Failed),
    /// It is another QEMU.
    Other(ConnectError),
}

impl Actor {
    /// Connects, negotiates and takes a first look. Requests are turned away until it returns, and a
    /// QEMU that listens but does not answer is shown after a while.
    pub(super) async fn establish(&mut self) -> Result<(Link, Look), ConnectError> {
        let (socket, leader) = match self.take_kept().await {
            Some(kept) => kept,
            None => self.reach().await?,
        };
        let duplicate = socket.stream().as_fd().try_clone_to_owned().ok();
        self.adopt(&leader).await?;
        let attempt = self.open(socket, leader);
        match self.attend(attempt).await {
            Ok((opened, home)) => {
                if let Some(home) = home {
                    self.move_in(home).await;
                }
                self.keep(duplicate);
                Ok(opened)
            }
            Err(Unopened::Failed(Failed { error, events })) => {
                if let Some(mut events) = events {
                    self.note_last_events(&mut events);
                }
                Err(error.into())
            }
            Err(Unopened::Other(reason)) => Err(reason),
        }
    }

    /// Makes a connection, and holds the process of the QEMU.
    async fn reach(&mut self) -> Result<(Socket, Arc<Leader>), ConnectError> {
        let stream = match &mut self.source.endpoint {
            QmpEndpoint::Socket(socket) => socket.connect().await?,
            QmpEndpoint::Connection(connection) => connection.take().ok_or(ConnectError::Gone)?,
        };
        let leader = match &self.source.leader {
            Some(leader) => {
                leader.verify().await?;
                leader.clone()
            }
            None => Arc::new(Leader::of_peer(&stream).await?),
        };
        Ok((Socket::New(stream), leader))
    }

    /// Makes `leader` the process of the machine. If it was another, that machine is gone.
    async fn adopt(&mut self, leader: &Arc<Leader>) -> Result<(), ConnectError> {
        if let Some(before) = &self.leader
            && (before.has_exited() || before.pid() != leader.pid())
        {
            self.vanish().await;
            if self.has_ended() {
                return Err(ConnectError::Gone);
            }
        }
        if self.leader.replace(leader.clone()).is_none() {
            self.claim(leader)?;
            self.recall(leader).await;
        }
        self.leaders.send_replace(Some(leader.clone()));
        match self.backoff.is_due() {
            true => Err(ConnectError::LeftAlone {
                breaches: self.backoff.breaches(),
            }),
            false => Ok(()),
        }
    }

    /// Claims the process for this machine. A call cannot make it another one; files and sockets of
    /// the administrator may give it more names.
    fn claim(&self, leader: &Leader) -> Result<(), ConnectError> {
        let (processes, name) = (&self.source.processes, &self.source.name);
        match self.is_on_trial() {
            true => {
                let claimed = processes.claim(leader.id(), name);
                claimed.map_err(ConnectError::OtherMachine)
            }
            false => {
                processes.share(leader.id(), name);
                Ok(())
            }
        }
    }

    /// Speaks with the QEMU, and finds its home at the same time where that is not known. Borrows
    /// nothing of the actor.
    fn open(
        &self,
        socket: Socket,
        leader: Arc<Leader>,
    ) -> impl Future<Output = Result<Opened, Unopened>> + use<> {
        let home = (!self.placing.is_at_home()).then(|| self.look_for_home(leader.clone()));
        let silence = self.treatment.borrow().limits.qmp_timeout;
        let is_on_trial = self.is_on_trial();
        let uuid = self.source.uuid.clone();
        async move {
            let opening = Link::open(socket, leader, silence);
            let opened = match is_on_trial {
                // A caller waits for it.
                true => timeout(silence, opening).await.unwrap_or_else(|_| {
                    let command = "all that it is asked at first";
                    let after = silence;
                    Err(Failed::new(Closed::Timeout { command, after }, None))
                }),
                false => opening.await,
            };
            let opened = opened.map_err(Unopened::Failed)?;
            if let Some(wanted) = uuid {
                check_uuid(wanted, opened.0.identity.uuid.as_str())?;
            }
            let home = match home {
                Some(home) => Some(home.await),
                None => None,
            };
            Ok((opened, home))
        }
    }

    fn look_for_home(&self, leader: Arc<Leader>) -> impl Future<Output = Found> + use<> {
        let (site, placement) = (self.site.clone(), self.placement());
        let scope = self.source.name.scope();
        let description = format!("Virtual machine {}", self.source.name);
        placing::look_for_home(site, leader, placement, scope, description)
    }

    /// Serves callers until `attempt` ends.
    async fn attend(
        &mut self,
        attempt: impl Future<Output = Result<Opened, Unopened>>,
    ) -> Result<Opened, Unopened> {
        tokio::pin!(attempt);
        let grace = sleep(ANSWER_GRACE);
        tokio::pin!(grace);
        let mut shown = self.visible || self.is_on_trial();
        loop {
            let deadline = self.removals.next_deadline();
            tokio::select! {
                result = &mut attempt => return result,
                Some(command) = self.requested.recv() => self.turn_away(command),
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    self.answer_due();
                }
                () = &mut grace, if !shown => {
                    shown = true;
                    warn!(machine = %self.source.name, "{UNANSWERED}");
                    self.show_disconnected(UNANSWERED).await;
                }
            }
        }
    }
}

/// Checks that a VM with the UUID `found` may be the one `wanted`. A VM without one may be.
fn check_uuid(wanted: Uuid, found: &str) -> Result<(), Unopened> {
    match found.is_empty() || found.eq_ignore_ascii_case(wanted.as_str()) {
        true => Ok(()),
        false => Err(Unopened::Other(ConnectError::OtherUuid {
            wanted,
            found: found.to_owned(),
        })),
    }
}
