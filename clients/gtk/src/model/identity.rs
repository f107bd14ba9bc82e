//! Owns the comparison of QEMU processes: whether properties are those of the same machine, or of a later one with the
//! same name. It must not know what else a machine has.

use super::dict::{Dict, get};

/// The difference between two times of the start of the same process, in microseconds, is less than this. The service
/// calculates the time from the clock of the host, which can change between two instances of the service.
const SAME_START: u64 = 1_000_000;

/// A QEMU process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    /// The PID.
    leader: u32,
    /// The time of its start, in microseconds, or 0 if it is not known.
    since: u64,
}

impl Process {
    /// Returns the process, or `None` if the service does not know it. `others` has the properties that `properties` does
    /// not have.
    pub(crate) fn of(properties: &Dict, others: &Dict) -> Option<Self> {
        let leader = get(properties, "Leader").or_else(|| get(others, "Leader"));
        let since = get(properties, "Since").or_else(|| get(others, "Since"));
        Some(Self {
            leader: leader.filter(|leader| *leader != 0)?,
            since: since.unwrap_or(0),
        })
    }

    /// Returns whether both are the same process. A PID can be used again.
    pub(crate) fn is_same(self, other: Self) -> bool {
        let is_unknown = self.since == 0 || other.since == 0;
        let is_close = self.since.abs_diff(other.since) < SAME_START;
        self.leader == other.leader && (is_close || is_unknown)
    }
}
