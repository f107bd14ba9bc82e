//! Attempts to connect to QEMU, and the connections that outlive an instance of the service.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use tokio::net::UnixStream;
use tokio::sync::Mutex;

use super::qmp_session::Socket;
use super::spec::{ConnectError, QmpEndpoint};
use crate::fd_store::FdStore;
use crate::names::MachineName;
use crate::process::Leader;

/// A connection, and the process behind it.
#[derive(Debug)]
pub(super) struct Reached {
    /// The socket, until QEMU is queried.
    pub socket: Option<Socket>,
    pub leader: Arc<Leader>,
    /// A duplicate of the connection, for the store.
    pub duplicate: Option<OwnedFd>,
}

/// How a machine connects. All clones are the same endpoint.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    endpoint: Arc<Mutex<QmpEndpoint>>,
    /// The QEMU process, if another process serves QMP.
    leader: Option<Arc<Leader>>,
    fd_store: Arc<dyn FdStore>,
    names: [String; 2],
}

impl Connector {
    pub(super) fn new(
        name: &MachineName,
        endpoint: QmpEndpoint,
        leader: Option<Arc<Leader>>,
        fd_store: Arc<dyn FdStore>,
    ) -> Self {
        Self {
            endpoint: Arc::new(Mutex::new(endpoint)),
            leader,
            fd_store,
            names: ["qmp", "pidfd"].map(|what| format!("{what}-{name}")),
        }
    }

    /// Returns whether a caller has named the process.
    pub(super) fn has_named_leader(&self) -> bool {
        self.leader.is_some()
    }

    /// Restores the connection of the previous instance, or makes one.
    ///
    /// # Errors
    /// Fails if the socket cannot be connected to, or the process cannot be held.
    pub(super) async fn connect(self) -> Result<Reached, ConnectError> {
        let (socket, leader) = match self.restore().await {
            Some(restored) => restored,
            None => self.reach().await?,
        };
        let duplicate = socket.stream().as_fd().try_clone_to_owned().ok();
        Ok(Reached {
            socket: Some(socket),
            leader,
            duplicate,
        })
    }

    async fn reach(&self) -> Result<(Socket, Arc<Leader>), ConnectError> {
        let stream = match &mut *self.endpoint.lock().await {
            QmpEndpoint::Socket(socket) => socket.connect().await?,
            QmpEndpoint::Connection(connection) => connection.take().ok_or(ConnectError::Gone)?,
        };
        let leader = match &self.leader {
            Some(leader) => {
                leader.verify().await?;
                leader.clone()
            }
            None => Arc::new(Leader::of_peer(&stream).await?),
        };
        Ok((Socket::New(stream), leader))
    }

    /// Returns the connection of the previous instance, if its process is the one that it was.
    async fn restore(&self) -> Option<(Socket, Arc<Leader>)> {
        let [qmp, pidfd] = self.names.each_ref().map(|name| self.fd_store.take(name));
        let restored = match qmp {
            Some(qmp) => self.restore_from(qmp, pidfd).await,
            // If there was no room for both, the other is of no use.
            None if pidfd.is_some() => None,
            None => return None,
        };
        if restored.is_none() {
            self.release();
        }
        restored
    }

    async fn restore_from(
        &self,
        qmp: OwnedFd,
        pidfd: Option<OwnedFd>,
    ) -> Option<(Socket, Arc<Leader>)> {
        let stream = std::os::unix::net::UnixStream::from(qmp);
        stream.set_nonblocking(true).ok()?;
        let stream = UnixStream::from_std(stream).ok()?;
        let leader = match (&self.leader, pidfd) {
            (Some(leader), _) => leader.clone(),
            (None, Some(pidfd)) => Arc::new(Leader::of_peer_held_by(&stream, pidfd).await.ok()?),
            (None, None) => Arc::new(Leader::of_peer(&stream).await.ok()?),
        };
        leader.verify().await.ok()?;
        Some((Socket::Kept(stream), leader))
    }

    /// Stores the connection and the hold on its process for the next instance.
    pub(super) fn keep(&self, connection: &OwnedFd, leader: &Leader) {
        let [qmp, pidfd] = &self.names;
        self.fd_store.keep(qmp, connection.as_fd());
        self.fd_store.keep(pidfd, leader.pidfd());
    }

    /// Releases what is stored: QEMU would keep a connection that nothing reads, and accept no other.
    pub(super) fn release(&self) {
        for name in &self.names {
            self.fd_store.release(name);
        }
    }
}
