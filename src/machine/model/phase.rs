//! The phases of a machine.

use std::time::{Duration, Instant};

use super::input::Opened;
use crate::qmp::Closed;

/// A QEMU that listens but does not answer is shown as disconnected after this time, and one that answers
/// is served without its unit if systemd does not.
pub(super) const ANSWER_GRACE: Duration = Duration::from_secs(2);
/// QEMU closes QMP a moment before it exits. Only one that is still there after this time is
/// disconnected.
pub(super) const EXIT_GRACE: Duration = Duration::from_millis(250);

/// The phase of a machine. The drawing in [`crate::machine`] has the phases as clients see them.
#[derive(Debug)]
pub(super) enum Phase {
    /// There is no connection until the next attempt. The machine is dormant, or disconnected if
    /// clients can see it.
    Paused {
        /// When the next attempt begins.
        until: Instant,
    },
    /// An attempt to connect goes on.
    Handshake(Attempt),
    /// QEMU answers.
    Connected {
        /// The begin of the connection.
        since: Instant,
        /// When earlier breaches of the limits of the protocol no longer count, if there were some.
        forgiven_at: Option<Instant>,
    },
    /// The connection was lost, and the process may exit.
    Lost {
        /// Why.
        closed: Closed,
        /// When the process counts as alive.
        until: Instant,
    },
    /// The machine has ended.
    Gone,
}

/// An attempt to connect.
#[derive(Debug)]
pub(super) struct Attempt {
    /// When the machine is shown as unresponsive or served without its unit, if that is not done yet.
    pub grace_until: Option<Instant>,
    /// The first answers of QEMU, while the search for the unit or an operation goes on.
    pub opened: Option<Box<Opened>>,
}
