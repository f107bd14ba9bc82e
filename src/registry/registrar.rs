//! Requests to the registry: to register and unregister machines, and to reload the configuration.

use futures_util::future::join_all;
use tokio::sync::{mpsc, oneshot};

use super::error::Error;
use crate::config::MachineSettings;
use crate::ids::{Pid, Uid};
use crate::machine::{Handle, QmpEndpoint};
use crate::names::MachineName;

/// The number of requests that may wait. Further callers wait until the queue has room.
const QUEUE: usize = 64;

/// A machine that a user registers.
#[derive(Debug)]
pub struct Registration {
    /// The name of the machine.
    pub name: MachineName,
    /// How the service reaches its QMP.
    pub endpoint: QmpEndpoint,
    /// The settings of the machine. The registry replaces `qmp` by the path of `endpoint`.
    pub settings: MachineSettings,
    /// The PID of its QEMU, if another process serves QMP.
    pub leader: Option<Pid>,
    /// The user that registers it.
    pub uid: Uid,
}

/// The sender of the reply to a request.
pub(super) type Answer = oneshot::Sender<Result<(), Error>>;

/// A request to the registry.
#[derive(Debug)]
pub(super) enum Request {
    Register(Box<Registration>, Answer),
    Unregister(MachineName, Answer),
    /// To read the configuration again. The reply contains the machines, which apply it themselves.
    Reload(oneshot::Sender<Vec<Handle>>),
}

/// The sender of requests to the registry.
#[derive(Clone, Debug)]
pub struct Registrar {
    requests: mpsc::Sender<Request>,
}

/// The receiver of the requests of a [`Registrar`].
#[derive(Debug)]
pub struct Requests(pub(super) mpsc::Receiver<Request>);

impl Registrar {
    /// Returns a registrar, and the receiver of its requests for the registry.
    pub fn new() -> (Self, Requests) {
        let (requests, receiver) = mpsc::channel(QUEUE);
        (Self { requests }, Requests(receiver))
    }

    /// Registers a machine. Returns after its QEMU has answered and its first event was emitted.
    ///
    /// # Errors
    /// Fails if the registry refuses the registration, or if no QEMU answers in time. Nothing is left of
    /// the registration then.
    pub async fn register(&self, registration: Registration) -> Result<(), Error> {
        self.call(|answer| Request::Register(Box::new(registration), answer))
            .await?
    }

    /// Unregisters the machine `name`, of whatever origin; its VM continues to run. Returns after the last
    /// event of the machine was emitted.
    ///
    /// # Errors
    /// Fails if the machine does not exist.
    pub async fn unregister(&self, name: MachineName) -> Result<(), Error> {
        self.call(|answer| Request::Unregister(name, answer))
            .await?
    }

    /// Reads the configuration again. Returns when it is in force in all machines, and its events were
    /// emitted.
    ///
    /// # Errors
    /// Fails only if the service is ending. Errors in the files are reported by an event.
    pub async fn reload(&self) -> Result<(), Error> {
        let machines = self.call(Request::Reload).await?;
        join_all(machines.iter().map(Handle::config_applied)).await;
        Ok(())
    }

    /// Sends a request, and waits for its reply.
    async fn call<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<T>) -> Request,
    ) -> Result<T, Error> {
        let (answer, reply) = oneshot::channel();
        let sent = self.requests.send(request(answer)).await;
        sent.map_err(|_| Error::Ending)?;
        reply.await.map_err(|_| Error::Ending)
    }
}
