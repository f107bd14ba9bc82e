//! The reasons why a command has no result, and why a connection ended.

use std::time::Duration;

use super::codec::{CommandError, Malformed};
use super::event::MAX_EVENTS;
use crate::text::Text;

/// The reason why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Closed {
    /// QEMU closed the connection, or exited.
    #[error("QEMU closed the QMP connection")]
    Hangup,
    /// QEMU sent data that is not QMP, or that exceeds a limit.
    #[error("QEMU broke the QMP protocol: {0}")]
    Malformed(String),
    /// The peer does not begin with a greeting, so it is not QEMU.
    #[error("the peer is not a QMP server: {0}")]
    NoGreeting(String),
    /// The process behind the connection changed.
    #[error("{0}")]
    OtherProcess(String),
    /// QEMU did not send a reply in time.
    #[error("QEMU did not answer {command} within {} s", after.as_secs_f64())]
    Timeout {
        /// The oldest command without a reply, or the expected message.
        command: &'static str,
        /// The time limit.
        after: Duration,
    },
    /// QEMU sent too many different events at once.
    #[error("QEMU sent more than {MAX_EVENTS} different events at once")]
    TooManyEvents,
}

impl Closed {
    /// Returns whether QEMU broke a rule or a limit of the protocol.
    pub fn is_breach(&self) -> bool {
        matches!(self, Self::Malformed(_) | Self::TooManyEvents)
    }
}

/// The reason why a command has no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// QEMU refused the command.
    #[error("QEMU refused {command}: {error}")]
    Command {
        /// The command.
        command: &'static str,
        /// The class and the text of QEMU.
        error: CommandError,
    },
    /// The reply of QEMU does not have the type of the command.
    #[error("QEMU sent an invalid reply to {command}: {why}")]
    Unexpected {
        /// The command.
        command: &'static str,
        /// The text of the parser, which may quote the reply.
        why: Text,
    },
    /// The connection ended before the reply.
    #[error(transparent)]
    Closed(#[from] Closed),
}

impl Error {
    /// Returns whether QEMU broke a rule or a limit of the protocol.
    pub fn is_breach(&self) -> bool {
        match self {
            Self::Command { .. } => false,
            Self::Unexpected { .. } => true,
            Self::Closed(closed) => closed.is_breach(),
        }
    }
}

impl From<Malformed> for Closed {
    fn from(error: Malformed) -> Self {
        match error {
            Malformed::Io(_) => Self::Hangup,
            other => Self::Malformed(other.to_string()),
        }
    }
}
