//! An actor at work, as who started it sees it.

use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::handle::Handle;
use super::record_file::RecordFile;
use super::source::{ConnectError, MachineConfig};

/// An actor at work.
#[derive(Debug)]
pub struct Running {
    pub(super) handle: Handle,
    pub(super) treatment: watch::Sender<MachineConfig>,
    pub(super) cancel: CancellationToken,
    pub(super) done: CancellationToken,
    pub(super) over: CancellationToken,
    pub(super) record: RecordFile,
    pub(super) task: JoinHandle<()>,
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

    /// Waits until the actor has ended by itself, or was stopped, and that was told.
    pub fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        self.done.clone().cancelled_owned()
    }

    /// Returns whether the end of the machine is reported, or about to be: its name is free.
    pub fn is_over(&self) -> bool {
        self.over.is_cancelled()
    }

    /// Treats the machine like this from now on. Whoever must know when that is in force asks the
    /// handle, which this returns.
    pub fn treat(&self, treatment: MachineConfig) -> Handle {
        self.treatment.send_replace(treatment);
        self.handle.clone()
    }

    /// Ends the actor as the end of the service does: nothing is told, and what is remembered
    /// stays for the next.
    pub async fn abandon(self) {
        self.task.abort();
        let _ = self.task.await;
        self.record.finish().await;
    }

    /// Forgets the machine and returns when that was told.
    pub async fn stop(self) {
        self.cancel.cancel();
        let _ = self.task.await;
    }
}
