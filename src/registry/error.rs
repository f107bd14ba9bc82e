//! The errors of the registry.

use std::io;
use std::path::PathBuf;

use tokio::task::JoinError;

use crate::ids::{Pid, Uid};
use crate::machine::ConnectError;
use crate::names::MachineName;
use crate::placement::Unavailable;
use crate::process::{LeaderError, SocketError};

/// Why the registry refuses a request. The texts follow the name of the machine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another machine has the name. The text describes its origin.
    #[error("it already exists, from {0}; choose another name, or unregister that machine first")]
    Exists(String),
    /// The machine has a configuration file with errors, so its settings are not known.
    #[error("its file {} has errors, which \"vcpuctl status\" lists; correct the file and reload the configuration, or choose another name", _0.display())]
    Disabled(PathBuf),
    /// No machine has the name.
    #[error("it does not exist; call ListMachines to list the machines")]
    NoSuchMachine,
    /// The user has registered as many machines as a user can.
    #[error(
        "user {uid} has {limit} registered machines, which is the limit of each user except root; unregister some"
    )]
    TooManyOfUser {
        /// The user.
        uid: Uid,
        /// The limit.
        limit: usize,
    },
    /// The service has as many registered machines as it can.
    #[error("{0} machines are registered, which is the limit of the service; unregister some")]
    TooMany(usize),
    /// The host does not have the CPUs, memory nodes or caches of the registration.
    #[error("{0}")]
    Unavailable(Unavailable),
    /// The process that the registration names cannot be the QEMU of the machine.
    #[error("process {pid} cannot be its leader: {error}")]
    Leader {
        /// The PID of the process.
        pid: Pid,
        /// The reason.
        error: LeaderError,
    },
    /// The process that the registration names belongs to another user.
    #[error(
        "process {pid} cannot be its leader: it does not belong to user {uid}, and only root can name a process of another user"
    )]
    ForeignLeader {
        /// The PID of the process.
        pid: Pid,
        /// The user that named it.
        uid: Uid,
    },
    /// The QEMU process is another machine.
    #[error("its QEMU process is already the machine {0}; unregister that machine first")]
    OtherMachine(MachineName),
    /// No QEMU answered.
    #[error(
        "it was not registered: {0}; check that QEMU runs with this QMP socket, and that no other client is connected to it"
    )]
    ConnectError(ConnectError),
    /// The path or the descriptor is not one of a socket that the user can register.
    #[error("it was not registered: {_0}; {}", socket_advice(_0))]
    NotASocket(SocketError),
    /// The registration cannot be saved, so it would not survive a restart of the service.
    #[error(
        "it was not registered, because the registration cannot be saved: {0}; free space in the runtime directory and try again"
    )]
    NotSaved(io::Error),
    /// The service is ending.
    #[error("the service is ending; try again")]
    Ending,
}

/// Why the registry cannot start, or cannot continue.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// The directory of QMP sockets cannot be watched.
    #[error("cannot watch {} for QMP sockets: {source}", directory.display())]
    Watch {
        /// The directory.
        directory: PathBuf,
        /// The error of the kernel.
        source: io::Error,
    },
    /// A task of the registry or of a machine panicked.
    #[error("a task of a machine failed: {0}")]
    Task(#[from] JoinError),
}

/// Returns what a user can register instead.
fn socket_advice(error: &SocketError) -> &'static str {
    match error {
        SocketError::NotAConnection => "pass a connection to the QMP socket of QEMU",
        SocketError::Link => "name the path without links",
        _ => "name the QMP socket of QEMU",
    }
}

impl From<ConnectError> for Error {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::OtherMachine(name) => Self::OtherMachine(name),
            ConnectError::Leader(error @ LeaderError::NoThread { pid }) => {
                Self::Leader { pid, error }
            }
            ConnectError::Connect(
                error @ (SocketError::NotASocket | SocketError::NotAConnection | SocketError::Link),
            ) => Self::NotASocket(error),
            other => Self::ConnectError(other),
        }
    }
}
