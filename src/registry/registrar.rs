//! How others reach the registry: who registers machines, or wants the configuration read again.

use std::path::PathBuf;

use futures_util::future::join_all;
use tokio::sync::{mpsc, oneshot};

use crate::config::MachineSettings;
use crate::ids::{Pid, Uid};
use crate::machine::{ConnectError, EventSender, Handle, QmpEndpoint};
use crate::names::MachineName;
use crate::placement::Unavailable;
use crate::process::LeaderError;

/// How many requests may wait before who makes more waits too.
const QUEUE: usize = 64;

/// A machine that somebody registers.
#[derive(Debug)]
pub struct Registration {
    /// Its name.
    pub name: MachineName,
    /// How the service reaches its QMP.
    pub endpoint: QmpEndpoint,
    /// What is said of it; `qmp` in it does not count.
    pub settings: MachineSettings,
    /// The PID of its QEMU, where that is not who serves QMP.
    pub leader: Option<Pid>,
    /// The user who registers it.
    pub uid: Uid,
}

/// Why a machine is not registered or unregistered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name is taken.
    #[error("there is one already, from {0}; choose another name, or unregister that one first")]
    Exists(String),
    /// It has a file, with mistakes in it, so it is not known what it is to be.
    #[error("its file {} has mistakes, which vcpuctl status shows; correct and reload it, or choose another name", _0.display())]
    Disabled(PathBuf),
    /// There is none.
    #[error("there is none; ListMachines tells which there are")]
    NoSuchMachine,
    /// The user has too many.
    #[error(
        "user {uid} has {limit} machines registered, and nobody but root may have more; unregister some"
    )]
    TooManyOfUser {
        /// The user.
        uid: Uid,
        /// The limit.
        limit: usize,
    },
    /// There are too many.
    #[error("{0} machines are registered, and the service takes no more; unregister some")]
    TooMany(usize),
    /// The host has not what is wanted.
    #[error("{0}")]
    Unavailable(Unavailable),
    /// The process that should be its QEMU cannot be.
    #[error("process {pid} cannot be its leader: {error}")]
    Leader {
        /// Its PID.
        pid: Pid,
        /// Why.
        error: LeaderError,
    },
    /// The process that should be its QEMU is another user's.
    #[error(
        "process {pid} cannot be its leader: it is not of user {uid}, and only root may name another user's"
    )]
    ForeignLeader {
        /// Its PID.
        pid: Pid,
        /// The user who named it.
        uid: Uid,
    },
    /// Its process is another machine.
    #[error("its QEMU process is the machine {0} already; unregister that one first")]
    OtherMachine(MachineName),
    /// There is no QEMU that answers.
    #[error(
        "it was not registered: {0}; see that QEMU runs and has this QMP socket, and that no other client is attached to it"
    )]
    ConnectError(ConnectError),
    /// A restart of the service would forget it.
    #[error(
        "it was not registered, as it cannot be written down for a restart of the service: {0}; make room in the runtime directory and ask again"
    )]
    NotRemembered(String),
    /// The service ends.
    #[error("the service is ending; ask again")]
    Ending,
}

/// Where the result of a request goes.
pub(super) type Answer = oneshot::Sender<Result<(), Error>>;

/// What the registry can be asked.
#[derive(Debug)]
pub(super) enum Request {
    Register(Box<Registration>, Answer),
    Unregister(MachineName, Answer),
    /// To read the configuration again. The answer is who takes it up.
    Reload(oneshot::Sender<Vec<Handle>>),
}

/// The way to ask the registry.
#[derive(Clone, Debug)]
pub struct Registrar {
    requests: mpsc::Sender<Request>,
    outbox: EventSender,
}

/// What the registry is asked through its [`Registrar`].
#[derive(Debug)]
pub struct Requests(pub(super) mpsc::Receiver<Request>);

impl Registrar {
    /// A registrar, and what it asks. What it tells goes to `outbox`, as all of the registry does.
    pub fn new(outbox: EventSender) -> (Self, Requests) {
        let (requests, requested) = mpsc::channel(QUEUE);
        (Self { requests, outbox }, Requests(requested))
    }

    /// Registers a machine. Returns when it has answered, and that was passed on to those who
    /// listen; after a failure there is nothing left of it.
    pub async fn register(&self, registration: Registration) -> Result<(), Error> {
        self.ask(|answer| Request::Register(Box::new(registration), answer))
            .await
    }

    /// Forgets the machine `name`; the VM runs on as it is. Returns when that was passed on to
    /// those who listen.
    pub async fn unregister(&self, name: MachineName) -> Result<(), Error> {
        self.ask(|answer| Request::Unregister(name, answer)).await
    }

    /// Reads the configuration again. Returns when it is in force, and what it changed was passed
    /// on to those who listen.
    pub async fn reload(&self) -> Result<(), Error> {
        let (answer, handles) = oneshot::channel();
        let sent = self.requests.send(Request::Reload(answer)).await;
        sent.map_err(|_| Error::Ending)?;
        let handles = handles.await.map_err(|_| Error::Ending)?;
        join_all(handles.iter().map(Handle::config_applied)).await;
        self.outbox.barrier().await;
        Ok(())
    }

    async fn ask(&self, request: impl FnOnce(Answer) -> Request) -> Result<(), Error> {
        let (answer, result) = oneshot::channel();
        let sent = self.requests.send(request(answer)).await;
        sent.map_err(|_| Error::Ending)?;
        let result = result.await.unwrap_or(Err(Error::Ending));
        self.outbox.barrier().await;
        result
    }
}
