//! A machine, as its owner sees it.

use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::handle::Handle;
use super::record_file::RecordFile;
use super::source::{ConnectError, MachineConfig};

/// A machine whose future is spawned.
#[derive(Debug)]
pub struct Running {
    pub(super) handle: Handle,
    pub(super) treatment: watch::Sender<MachineConfig>,
    pub(super) cancel: CancellationToken,
    pub(super) over: CancellationToken,
    pub(super) record: RecordFile,
    pub(super) settled: Option<oneshot::Receiver<Settled>>,
}

/// Whether there is a machine, and if not, why.
pub(super) type Settled = Result<(), ConnectError>;

impl Running {
    /// Waits until it is known whether there is a machine: it answered, nobody listens, or it
    /// was silent for two seconds. What followed of that was told. Known once, it is not told again.
    pub fn settled(&mut self) -> impl Future<Output = Result<(), ConnectError>> + Send + use<> {
        let settled = self.settled.take();
        async {
            match settled {
                Some(settled) => settled.await.unwrap_or(Err(ConnectError::Gone)),
                None => Ok(()),
            }
        }
    }

    /// Returns whether the end of the machine is reported, or about to be: its name is free.
    pub fn is_over(&self) -> bool {
        self.over.is_cancelled()
    }

    /// Replaces the configuration of the machine. [`Handle::config_applied`] of the returned handle waits
    /// until it is in force.
    pub fn configure(&self, config: MachineConfig) -> Handle {
        self.treatment.send_replace(config);
        self.handle.clone()
    }

    /// Ends the machine: its future removes the persisted state, emits the last event, and ends.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Waits until no access of the state file is under way. Who aborted the future, as the end of the
    /// service does, can then read the file.
    pub async fn finish(&self) {
        self.record.finish().await;
    }
}
