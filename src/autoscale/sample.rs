//! Samples of a machine. The module must not decide.

use std::fmt;
use std::time::Duration;

/// A machine at one time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// The time of the sample.
    pub at: Duration,
    /// The number of present vCPUs.
    pub present: u32,
    /// The number of vCPUs that the guest has started, or `None` if there can be no evidence.
    pub started: Option<u32>,
    /// The number of vCPUs whose removal is pending.
    pub pending: u32,
    /// The state of the machine.
    pub state: MachineState,
    /// The mean load since the previous sample, or `None` if a counter of a vCPU is missing or began again.
    pub load: Option<Load>,
}

/// The load of all vCPUs of a machine, as numbers of host CPUs: 1.0 is one host CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// The CPU time that the vCPUs used.
    pub used: f64,
    /// The time that they waited for a host CPU.
    pub stolen: f64,
    /// The time that a quota throttled them.
    pub throttled: f64,
}

impl Load {
    /// Returns what the vCPUs tried to use: with all vCPUs busy, it is their number.
    #[must_use]
    pub fn wanted(&self) -> f64 {
        self.used + self.stolen + self.throttled
    }

    /// Returns the part of [`Load::wanted`] that the host supplied, from 0.0 to 1.0.
    #[must_use]
    pub fn supply(&self) -> f64 {
        let wanted = self.wanted();
        if wanted > 0.0 {
            self.used / wanted
        } else {
            1.0
        }
    }
}

/// The state of a machine, as far as it decides whether its number of vCPUs can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineState {
    /// The guest runs.
    Running,
    /// The machine has not started its guest yet.
    Starting,
    /// The guest is paused.
    Paused,
    /// The machine is being migrated.
    Migrating,
    /// vcpud has no connection to QEMU, or the guest has shut down.
    Disconnected,
}

impl fmt::Display for MachineState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Starting => "starting",
            Self::Paused => "paused",
            Self::Migrating => "migrating",
            Self::Disconnected => "disconnected",
        })
    }
}
