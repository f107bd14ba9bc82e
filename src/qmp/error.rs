//! Why a command has no result, and why a connection ended.

use std::time::Duration;

use super::codec::{CommandError, Malformed};
use super::event::MAX_EVENTS;
use crate::text::Text;

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Closed {
    /// QEMU closed it, or ended.
    #[error("QEMU closed the QMP connection")]
    Hangup,
    /// QEMU sent what is no QMP, or too much of it.
    #[error("QEMU does not keep to the protocol: {0}")]
    Malformed(String),
    /// The peer does not begin as QEMU does, so it is another program.
    #[error("the peer does not greet as QMP does: {0}")]
    NoGreeting(String),
    /// The process behind the connection is not the one that it was.
    #[error("{0}")]
    OtherProcess(String),
    /// QEMU owed a reply and was silent for too long.
    #[error("QEMU did not answer {command} within {} s", after.as_secs_f64())]
    Timeout {
        /// The oldest command without a reply, or what else was waited for.
        command: &'static str,
        /// The limit.
        after: Duration,
    },
    /// QEMU sends too many different events at once.
    #[error("QEMU sent more than {MAX_EVENTS} different events at once")]
    TooManyEvents,
}

impl Closed {
    /// Returns whether QEMU broke a rule or a limit of the protocol.
    pub fn is_breach(&self) -> bool {
        matches!(self, Self::Malformed(_) | Self::TooManyEvents)
    }
}

/// Why a command has no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// QEMU refused it.
    #[error("QEMU refused {command}: {error}")]
    Command {
        /// The command.
        command: &'static str,
        /// QEMU's class and text.
        error: CommandError,
    },
    /// QEMU's answer is not of the command's type.
    #[error("QEMU answered {command} with something else: {why}")]
    Unexpected {
        /// The command.
        command: &'static str,
        /// The parser's text, which may quote the reply.
        why: Text,
    },
    /// The connection ended before the answer.
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
