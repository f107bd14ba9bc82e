//! What defines a machine: its QMP endpoint, its lifetime and its configuration.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::UnixStream;

use super::processes::Processes;
use crate::audit::Audit;
use crate::config::{Limits, Uuid};
use crate::fd_store::FdStore;
use crate::ids::Uid;
use crate::names::MachineName;
use crate::placement::{PlacementMode, Tuning, Units};
use crate::placer::{Host, Watches};
use crate::process::{Leader, LeaderError, SocketError, SocketFile};
use crate::qmp::{self, Closed};

/// What defines a machine: where its QEMU is found, and its configuration.
#[derive(Debug)]
pub struct MachineSpec {
    /// The name.
    pub name: MachineName,
    /// How the service reaches QMP.
    pub endpoint: QmpEndpoint,
    /// How long the machine exists.
    pub lifetime: Lifetime,
    /// Why the service knows it.
    pub origin: Origin,
    /// The socket of its guest agent, which may not exist.
    pub agent: PathBuf,
    /// The file of its persisted state.
    pub state_file: PathBuf,
    /// The UUID that the VM must have, if it has one.
    pub uuid: Option<Uuid>,
    /// The QEMU process, if another process serves QMP.
    pub leader: Option<Arc<Leader>>,
    /// The processes of all machines of the service.
    pub processes: Processes,
    /// The first configuration.
    pub config: MachineConfig,
}

/// The services of the host that machines use.
#[derive(Clone, Debug)]
pub struct HostServices {
    /// The units: systemd.
    pub units: Arc<dyn Units>,
    /// The kernel.
    pub host: Host,
    /// The watched control groups, if the kernel has room for them.
    pub watches: Option<Watches>,
    /// The audit log.
    pub audit: Arc<Audit>,
    /// The store of connections that outlive an instance of the service.
    pub fd_store: Arc<dyn FdStore>,
}

/// How the service reaches the QMP of a machine.
#[derive(Debug)]
pub enum QmpEndpoint {
    /// A socket, to which the service can connect again and again.
    Socket(SocketFile),
    /// A connection that a client made and passed. The service cannot make it again: `None` after it
    /// was used.
    Connection(Option<UnixStream>),
}

/// Why the service knows a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Its socket is in the directory of QMP sockets.
    Socket,
    /// A configuration file names its socket.
    File,
    /// A user registered it.
    Registration(Uid),
}

impl Origin {
    /// Returns the word for it on D-Bus.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Socket => "socket",
            Self::File => "file",
            Self::Registration(_) => "registration",
        }
    }

    /// Returns the user who registered the machine.
    pub fn registrant(self) -> Option<Uid> {
        match self {
            Self::Registration(uid) => Some(uid),
            Self::Socket | Self::File => None,
        }
    }
}

/// Why the owner of a machine stops it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// Its socket was removed.
    SocketRemoved,
    /// Another socket has the path of its socket.
    SocketReplaced,
    /// The configuration defines it no longer, or at another socket.
    Reconfigured,
    /// A call unregistered it.
    Unregistered,
    /// Its registration failed, or it has ended by itself.
    Ended,
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SocketRemoved => "its QMP socket was removed",
            Self::SocketReplaced => "its QMP socket was replaced",
            Self::Reconfigured => "its configuration file names this socket no longer",
            Self::Unregistered => "it was unregistered",
            Self::Ended => "it has ended",
        })
    }
}

/// How long a machine exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// As long as its endpoint: when its QEMU exits, another one may use the endpoint.
    Endpoint,
    /// As long as its QEMU, which must answer at the first attempt.
    Registered,
    /// As long as its QEMU, which answered a previous instance of the service.
    Restored,
}

/// The configuration of a machine, which can change.
#[derive(Clone, Debug, PartialEq)]
pub struct MachineConfig {
    /// The time limits.
    pub limits: Limits,
    /// The placement.
    pub placement: PlacementConfig,
}

/// The configuration of the placement of a machine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PlacementConfig {
    /// The kind of unit.
    pub mode: PlacementMode,
    /// The slice of the scope, if the machine gets one of its own.
    pub slice: String,
    /// The tuning of the vCPUs, until a caller changes it.
    pub tuning: Tuning,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The socket cannot be connected to.
    #[error(transparent)]
    Connect(#[from] SocketError),
    /// The process cannot be held.
    #[error(transparent)]
    Leader(#[from] LeaderError),
    /// The peer does not speak QMP, or not in time.
    #[error(transparent)]
    Qmp(#[from] qmp::Error),
    /// It is another VM.
    #[error("QEMU has the UUID {found}, not {wanted}")]
    OtherUuid {
        /// The UUID that it must have.
        wanted: Uuid,
        /// The UUID that it has.
        found: String,
    },
    /// The process is another machine already.
    #[error(
        "its QEMU process is already the machine {0}, and a machine has one name; remove the second socket or file"
    )]
    OtherMachine(MachineName),
    /// QEMU broke the limits of the protocol too often, so the next attempt comes later.
    #[error(
        "QEMU broke the limits of the protocol {breaches} times; the service waits before it connects again"
    )]
    LeftAlone {
        /// How often it did.
        breaches: u32,
    },
    /// The process exited, or the machine was forgotten.
    #[error("QEMU has exited, or the machine was unregistered")]
    Gone,
}

impl From<Closed> for ConnectError {
    fn from(closed: Closed) -> Self {
        Self::Qmp(closed.into())
    }
}

impl ConnectError {
    /// Returns whether a QEMU exists that does not answer, for example because it is stopped. Such a
    /// machine is shown.
    pub(super) fn is_silence(&self) -> bool {
        let is_late = matches!(self, Self::Qmp(qmp::Error::Closed(Closed::Timeout { .. })));
        is_late || matches!(self, Self::LeftAlone { .. })
    }

    /// Returns whether QEMU broke a rule or a limit of the protocol.
    pub(super) fn is_breach(&self) -> bool {
        matches!(self, Self::Qmp(error) if error.is_breach())
    }
}

impl fmt::Display for QmpEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(socket) => socket.path().display().fmt(f),
            Self::Connection(_) => f.write_str("a connection"),
        }
    }
}

impl Lifetime {
    /// Returns whether the machine ends with its process.
    pub(super) fn ends_with_process(self) -> bool {
        self != Self::Endpoint
    }
}
