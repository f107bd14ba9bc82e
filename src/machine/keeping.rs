//! What of a machine outlives a run of the service: its connection and the hold on its process.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use tokio::net::UnixStream;

use super::actor::Actor;
use super::link::Socket;
use crate::host::Leader;

impl Actor {
    /// The connection and the process that a former run of the service held.
    pub(super) fn take_kept(&self) -> Option<(Socket, Arc<Leader>)> {
        let [qmp, pidfd] = self.kept_names().map(|name| self.site.keeper.take(&name));
        let Some(qmp) = qmp else {
            // Where there was no room for both, the other is of no use.
            if pidfd.is_some() {
                self.release();
            }
            return None;
        };
        let stream = std::os::unix::net::UnixStream::from(qmp);
        stream.set_nonblocking(true).ok()?;
        let stream = UnixStream::from_std(stream).ok()?;
        let leader = match (&self.source.leader, pidfd) {
            (Some(leader), _) => Ok(leader.clone()),
            (None, Some(pidfd)) => Leader::of_peer_held_by(&stream, pidfd).map(Arc::new),
            (None, None) => Leader::of_peer(&stream).map(Arc::new),
        };
        match leader {
            Ok(leader) if !leader.has_exited() => Some((Socket::Kept(stream), leader)),
            _ => {
                self.release();
                None
            }
        }
    }

    /// Lets the connection outlive the service, and the process be held meanwhile.
    pub(super) fn keep(&self, connection: Option<OwnedFd>) {
        let [qmp, pidfd] = self.kept_names();
        if let Some((connection, leader)) = connection.zip(self.leader.as_ref()) {
            self.site.keeper.keep(&qmp, connection.as_fd());
            self.site.keeper.keep(&pidfd, leader.pidfd());
        }
    }

    /// Else QEMU would hold an end of a connection for which nobody speaks, and take no other.
    pub(super) fn release(&self) {
        for name in self.kept_names() {
            self.site.keeper.release(&name);
        }
    }

    fn kept_names(&self) -> [String; 2] {
        ["qmp", "pidfd"].map(|what| format!("{what}-{}", self.source.name))
    }
}
