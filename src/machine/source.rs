//! Where a machine is found, for how long, and how it is treated.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::UnixStream;

use super::placing::PlacementConfig;
use super::processes::Processes;
use crate::config::{Limits, Uuid};
use crate::ids::Uid;
use crate::names::MachineName;
use crate::process::{Leader, LeaderError, SocketError, SocketFile};
use crate::qmp::{self, Closed};

/// Where a machine is found, and how it is treated.
#[derive(Debug)]
pub struct Source {
    /// Its name.
    pub name: MachineName,
    /// The way to its QMP.
    pub access: Access,
    /// For how long there is such a machine.
    pub tenure: Lifetime,
    /// The user who registered it.
    pub registrant: Option<Uid>,
    /// The socket of its guest agent, where there is one.
    pub agent: PathBuf,
    /// The file in which it is remembered over a restart of the service.
    pub record: PathBuf,
    /// The UUID that its QEMU must have, if it has any.
    pub uuid: Option<Uuid>,
    /// Its QEMU, where that is not who serves QMP.
    pub leader: Option<Arc<Leader>>,
    /// The processes of all machines of the service.
    pub processes: Processes,
    /// How it is treated, to begin with.
    pub treatment: MachineConfig,
}

/// The way to a QMP.
#[derive(Debug)]
pub enum Access {
    /// A socket that can be connected to again and again.
    Socket(SocketFile),
    /// A connection that somebody else made. It cannot be made again: `None` where it is used up.
    Connection(Option<UnixStream>),
}

/// For how long there is a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// As long as its place: when its QEMU ends another may come there.
    Place,
    /// As long as its QEMU, which must answer at the first attempt.
    Registration,
    /// As long as its QEMU, which has answered to a former run of the service.
    Remembered,
}

/// What can change of how a machine is treated.
#[derive(Clone, Debug, PartialEq)]
pub struct MachineConfig {
    /// Its time limits.
    pub limits: Limits,
    /// Where it is to be on the host.
    pub placement: PlacementConfig,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The socket cannot be connected to.
    #[error(transparent)]
    Connect(#[from] SocketError),
    /// Its process cannot be held.
    #[error(transparent)]
    Leader(#[from] LeaderError),
    /// It does not speak QMP, or not in time.
    #[error(transparent)]
    Qmp(#[from] qmp::Error),
    /// It is another VM.
    #[error("QEMU has the UUID {found}, not {wanted}")]
    OtherUuid {
        /// The one that it must have.
        wanted: Uuid,
        /// The one that it has.
        found: String,
    },
    /// Its process is another machine, which a call cannot register again.
    #[error("its QEMU process is the machine {0} already; unregister that one first")]
    OtherMachine(MachineName),
    /// It broke the limits of the protocol too often, so the next attempt comes later.
    #[error(
        "QEMU broke the limits of the protocol {breaches} times; the service waits before it connects again"
    )]
    LeftAlone {
        /// How often it did.
        breaches: u32,
    },
    /// It ended, or nobody wants it any more.
    #[error("QEMU has ended, or the machine was unregistered meanwhile")]
    Gone,
}

impl ConnectError {
    /// Returns whether there is a QEMU, though it does not answer: a QEMU that is stopped, for
    /// example. Such a machine is shown.
    pub(super) fn is_silence(&self) -> bool {
        let is_late = matches!(self, Self::Qmp(qmp::Error::Closed(Closed::Timeout { .. })));
        is_late || matches!(self, Self::LeftAlone { .. })
    }

    /// Returns whether QEMU broke a rule or a limit of the protocol.
    pub(super) fn is_breach(&self) -> bool {
        matches!(self, Self::Qmp(error) if error.is_breach())
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(socket) => socket.path().display().fmt(f),
            Self::Connection(_) => f.write_str("a connection"),
        }
    }
}

impl Lifetime {
    /// Whether there is no such machine any more when its QEMU has ended.
    pub(super) fn ends_with_leader(self) -> bool {
        self != Self::Place
    }
}
