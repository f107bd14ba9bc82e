//! A machine, as its owner sees it.

use std::sync::Arc;

use tokio::sync::{Notify, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::handle::Handle;
use super::spec::{ConnectError, MachineConfig, StopReason};
use super::state_file::StateFile;

/// A machine whose future is spawned.
#[derive(Debug)]
pub struct Running {
    pub(super) handle: Handle,
    pub(super) configs: watch::Sender<MachineConfig>,
    pub(super) stop: watch::Sender<Option<StopReason>>,
    pub(super) review: Arc<Notify>,
    pub(super) over: CancellationToken,
    pub(super) state_file: StateFile,
    pub(super) ready: Option<oneshot::Receiver<Ready>>,
}

/// Whether there is a machine, and if not, why.
pub(super) type Ready = Result<(), ConnectError>;

impl Running {
    /// Waits until it is known whether there is a machine: it answered, nothing listens, or it was silent
    /// for two seconds. If there is one that clients can see, its first event is sent before. A second
    /// call returns at once.
    ///
    /// # Errors
    /// Returns the reason if the machine does not exist.
    pub fn settled(&mut self) -> impl Future<Output = Result<(), ConnectError>> + Send + use<> {
        let ready = self.ready.take();
        async {
            match ready {
                Some(ready) => ready.await.unwrap_or(Err(ConnectError::Gone)),
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
        self.configs.send_replace(config);
        self.handle.clone()
    }

    /// Compares the machine with its QEMU and with the kernel: for what neither reports.
    pub fn review(&self) {
        self.review.notify_one();
    }

    /// Ends the machine: its future removes the persisted state, emits the last event, and ends.
    pub fn stop(&self, reason: StopReason) {
        self.stop.send_replace(Some(reason));
    }

    /// Waits until no access of the state file goes on. A caller that aborted the future, as the end of
    /// the service does, can then read the file.
    pub async fn finish(&self) {
        self.state_file.finish().await;
    }
}
