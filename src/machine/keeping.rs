//! What of a machine outlives a run of the service: its connection, the hold on its process, and
//! what is written down of it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use tokio::net::UnixStream;
use tracing::{info, warn};

use super::actor::Actor;
use super::error::Error;
use super::link::Socket;
use super::record::Record;
use crate::inventory::Inventory;
use crate::placement::Tuning;
use crate::process::Leader;

impl Actor {
    /// The connection and the process that a former run of the service held.
    pub(super) async fn take_kept(&self) -> Option<(Socket, Arc<Leader>)> {
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
            (None, Some(pidfd)) => Leader::of_peer_held_by(&stream, pidfd).await.map(Arc::new),
            (None, None) => Leader::of_peer(&stream).await.map(Arc::new),
        };
        match leader {
            Ok(leader) if leader.verify().await.is_ok() => Some((Socket::Kept(stream), leader)),
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

    /// Takes up what a former run of the service knew of the QEMU `leader`.
    pub(super) async fn recall(&mut self, leader: &Leader) {
        match self.record.load().await {
            Ok(Some(record)) if record.leader == leader.id() => {
                self.backoff.restore(record.breaches);
                info!(machine = %self.source.name, removals = record.removals.len(), "remembered");
                self.recalled = Some(Arc::new(Inventory::from_record(record.present)));
                self.removals.recall(record.removals);
                self.plugging = record.plugging;
                self.telling = record.telling;
                if let Some(tuning) = record.tuning {
                    // The configuration may have changed meanwhile.
                    let before = record.configured.as_ref().unwrap_or(&self.configured);
                    self.placing.tuning = Arc::new(tuning.rebased(before, &self.configured));
                }
            }
            Ok(_) => {}
            Err(error) => {
                warn!(machine = %self.source.name, file = %self.source.record.display(), %error, "what was remembered cannot be read");
            }
        }
    }

    /// Persists the state of the machine. A write that fails is repeated later.
    pub(super) async fn remember(&mut self) {
        let _ = self.try_remember().await;
    }

    /// Persists the state of the machine, for a step that needs it.
    ///
    /// # Errors
    /// Fails where it cannot be written. A failure is logged once until it is over.
    pub(super) async fn try_remember(&mut self) -> Result<(), Error> {
        let snapshot = self.snapshot();
        self.persist(&snapshot.inventory).await
    }

    /// The same with the vCPUs of `inventory`.
    pub(super) async fn persist(&mut self, inventory: &Inventory) -> Result<(), Error> {
        let Some(leader) = self.leader.as_ref().map(|leader| leader.id()) else {
            return Ok(());
        };
        let mut record = Record::new(leader);
        record.breaches = self.backoff.breaches();
        record.present = inventory.to_record();
        record.removals = self.removals.record();
        record.plugging = self.plugging.clone();
        record.telling = self.telling.clone();
        record.tuning = Some(Tuning::clone(&self.placing.tuning));
        record.configured = Some(self.configured.clone());
        let (machine, file) = (&self.source.name, self.source.record.display());
        let was_behind = self.record.is_behind();
        match self.record.save(record).await {
            Ok(()) if was_behind => {
                info!(%machine, %file, "what is to be remembered is written again");
            }
            Ok(()) => {}
            Err(error) => {
                if self.record.is_too_large() {
                    let mut record = Record::new(leader);
                    record.breaches = self.backoff.breaches();
                    self.record.replace_too_large(record).await;
                }
                if !was_behind {
                    warn!(%machine, %file, %error, "what is to be remembered cannot be written: until it can, requests are refused, and a restart of the service may tell again what was told");
                }
                return Err(Error::NotRemembered(error.to_string()));
            }
        }
        Ok(())
    }

    fn kept_names(&self) -> [String; 2] {
        ["qmp", "pidfd"].map(|what| format!("{what}-{}", self.source.name))
    }
}
