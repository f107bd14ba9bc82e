//! The counters of what the service does for a machine.

use std::time::Duration;

/// What happened to a machine since this instance of the service has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// The requests to change vCPUs that have ended.
    pub requests: u64,
    /// Those of them that failed.
    pub failed_requests: u64,
    /// How long the requests took, in all.
    pub request_time: Duration,
    /// The vCPUs that were added.
    pub added: u64,
    /// The vCPUs that were removed.
    pub removed: u64,
    /// The removals that the guest or QEMU refused.
    pub refused: u64,
    /// The QMP connections on which QEMU answered.
    pub connections: u64,
    /// The values of vCPUs that other programs changed and the service restored.
    pub restored: u64,
}
