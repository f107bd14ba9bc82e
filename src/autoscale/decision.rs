//! Decisions of the policy and their reasons, in a form for programs and in words. The module must not decide.

use std::fmt;
use std::time::Duration;

use super::sample::{Load, MachineState};

/// A decision about a machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The number of vCPUs that the machine gets. It has no change if this is [`Details::present`].
    pub goal: u32,
    /// Why.
    pub reason: Reason,
    /// The numbers that led to the decision.
    pub details: Details,
}

impl Decision {
    /// Returns the direction of the change, or `None` if there is no change.
    #[must_use]
    pub fn direction(&self) -> Option<Direction> {
        Direction::between(self.details.present, self.goal)
    }
}

/// The numbers that led to a decision.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Details {
    /// The number of present vCPUs.
    pub present: u32,
    /// The mean load of the last `up-window`, or `None` without complete data.
    pub load: Option<Load>,
    /// The number of vCPUs that the highest load of the last `down-window` needs, or `None` without complete
    /// data.
    pub needed: Option<f64>,
}

/// The direction of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// vCPUs are added.
    Add,
    /// vCPUs are removed.
    Remove,
}

impl Direction {
    /// Returns the direction of a change of the number of vCPUs, or `None` if there is no change.
    #[must_use]
    pub fn between(from: u32, to: u32) -> Option<Self> {
        match from.cmp(&to) {
            std::cmp::Ordering::Less => Some(Self::Add),
            std::cmp::Ordering::Equal => None,
            std::cmp::Ordering::Greater => Some(Self::Remove),
        }
    }
}

/// Why the number of vCPUs changes or does not change.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reason {
    /// Added: so many vCPUs are busy that the demand is not known.
    Saturated {
        /// The use of each vCPU, as a part of one host CPU.
        busy: f64,
    },
    /// Added: the load is above the target.
    Busy {
        /// The use of each vCPU, as a part of one host CPU.
        busy: f64,
        /// The number of vCPUs that the load needs.
        needed: f64,
    },
    /// Added: a few vCPUs, to find out whether the host has free CPUs again.
    Probe {
        /// How often vCPUs were removed because of contention.
        failures: u32,
    },
    /// Removed: the highest load of the window needs fewer vCPUs.
    Idle {
        /// The number of vCPUs that the highest load needs.
        needed: f64,
        /// The window.
        window: Duration,
    },
    /// Removed: the host does not run all of the busy vCPUs.
    Contended {
        /// The part of the wanted CPU time that the host supplies.
        supply: f64,
        /// The number of host CPUs that the machine obtains.
        obtained: f64,
    },
    /// Removed: the guest has not started these vCPUs.
    NeverStarted {
        /// The number of these vCPUs.
        vcpus: u32,
        /// For how long the guest has started none.
        time: Duration,
    },
    /// Added: fewer vCPUs than `min` are present.
    BelowMin {
        /// The minimum.
        min: u32,
    },
    /// Removed: more vCPUs than `max` are present.
    AboveMax {
        /// The maximum.
        max: u32,
    },

    /// No change: the load is between the limits that lead to a change.
    InBand {
        /// The use of each vCPU, as a part of one host CPU.
        busy: f64,
    },
    /// No change: the load needs more vCPUs than `max`.
    AtMax {
        /// The maximum.
        max: u32,
    },
    /// No change: the load needs more vCPUs than the share of the machine on the host.
    AtCap {
        /// The share.
        cap: u32,
    },
    /// No change: the load needs fewer vCPUs than `min`, or than the machine has to keep.
    AtMin {
        /// The minimum.
        min: u32,
    },
    /// No change: the load needs fewer vCPUs than the machine has to keep.
    Pinned {
        /// The number of vCPUs that it keeps.
        floor: u32,
    },
    /// No change: a whole slot does not fit within a limit.
    SlotSize {
        /// The number of vCPUs of a slot.
        slot: u32,
        /// The direction of the wanted change.
        direction: Direction,
        /// The limit that the change would cross.
        limit: u32,
    },
    /// No change: the host does not supply the CPU time that the present vCPUs want.
    Steal {
        /// The part of the wanted CPU time that the host supplies.
        supply: f64,
    },
    /// No change: vCPUs were removed because of contention, and the next change waits.
    ContentionBackoff {
        /// How long the pause lasts.
        remaining: Duration,
    },
    /// No change: requests of this direction failed, and the next one waits.
    FailureBackoff {
        /// The direction.
        direction: Direction,
        /// How long the pause lasts.
        remaining: Duration,
    },
    /// No change: another caller changed the number of vCPUs.
    Hold {
        /// How long that number stays.
        remaining: Duration,
    },
    /// No change: a request of the autoscaler is in progress.
    Requested {
        /// The requested number of vCPUs.
        goal: u32,
    },
    /// No change: the guest has not released vCPUs yet.
    RemovalPending {
        /// The number of these vCPUs.
        pending: u32,
    },
    /// No change: the guest has not started all vCPUs.
    NotStarted {
        /// The number of started vCPUs.
        started: u32,
        /// The number of present vCPUs.
        present: u32,
    },
    /// No change: the guest does not run.
    NotRunning {
        /// The state of the machine.
        state: MachineState,
    },
    /// No change: there is not enough complete data.
    NoData {
        /// For how long there is complete data.
        complete: Duration,
        /// For how long it is needed.
        needed: Duration,
    },
    /// No change: the last sample is too old.
    Stale {
        /// The age of the last sample.
        age: Duration,
    },
}

impl Reason {
    /// Returns the stable name of the reason.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Saturated { .. } => "saturated",
            Self::Busy { .. } => "busy",
            Self::Probe { .. } => "probe",
            Self::Idle { .. } => "idle",
            Self::Contended { .. } => "contended",
            Self::NeverStarted { .. } => "never-started",
            Self::BelowMin { .. } => "below-min",
            Self::AboveMax { .. } => "above-max",
            Self::InBand { .. } => "in-band",
            Self::AtMax { .. } => "at-max",
            Self::AtCap { .. } => "at-cap",
            Self::AtMin { .. } => "at-min",
            Self::Pinned { .. } => "pinned",
            Self::SlotSize { .. } => "slot-size",
            Self::Steal { .. } => "steal",
            Self::ContentionBackoff { .. } => "contention-backoff",
            Self::FailureBackoff { .. } => "failure-backoff",
            Self::Hold { .. } => "hold",
            Self::Requested { .. } => "requested",
            Self::RemovalPending { .. } => "removal-pending",
            Self::NotStarted { .. } => "not-started",
            Self::NotRunning { .. } => "not-running",
            Self::NoData { .. } => "no-data",
            Self::Stale { .. } => "stale",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Saturated { busy } => {
                write!(
                    f,
                    "the vCPUs are {} busy, so the demand is unknown",
                    Percent(busy)
                )
            }
            Self::Busy { busy, needed } => {
                write!(
                    f,
                    "the vCPUs are {} busy; the load needs {needed:.1} vCPUs",
                    Percent(busy)
                )
            }
            Self::Probe { failures } => write!(
                f,
                "the vCPUs are busy, and the host was contended before (failures: {failures})"
            ),
            Self::Idle { needed, window } => write!(
                f,
                "the highest load of the last {} needs {needed:.1} vCPUs",
                Seconds(window)
            ),
            Self::Contended { supply, obtained } => write!(
                f,
                "the host supplies {} of the wanted CPU time: {obtained:.1} host CPUs",
                Percent(supply)
            ),
            Self::NeverStarted { vcpus, time } => write!(
                f,
                "the guest has not started {} for {}",
                Count(vcpus),
                Seconds(time)
            ),
            Self::BelowMin { min } => write!(f, "the minimum is {min}"),
            Self::AboveMax { max } => write!(f, "the maximum is {max}"),
            Self::InBand { busy } => write!(f, "the vCPUs are {} busy", Percent(busy)),
            Self::AtMax { max } => write!(f, "the load needs more vCPUs than the maximum of {max}"),
            Self::AtCap { cap } => write!(
                f,
                "the load needs more vCPUs than the share of {cap} that this machine has of the host"
            ),
            Self::AtMin { min } => {
                write!(f, "the load needs fewer vCPUs than the minimum of {min}")
            }
            _ => self.fmt_wait(f),
        }
    }
}

impl Reason {
    /// Writes the reasons to change nothing.
    fn fmt_wait(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Pinned { floor } => {
                write!(f, "the first {} stay, because one has a pin", Count(floor))
            }
            Self::SlotSize {
                slot,
                direction: Direction::Add,
                limit,
            } => write!(
                f,
                "the vCPUs are added in slots of {slot}, and one more slot exceeds the maximum of {limit}"
            ),
            Self::SlotSize { slot, limit, .. } => write!(
                f,
                "the vCPUs are removed in slots of {slot}, and one slot fewer is below the minimum of {limit}"
            ),
            Self::Steal { supply } => write!(
                f,
                "the host supplies only {} of the wanted CPU time, so more vCPUs do not help",
                Percent(supply)
            ),
            Self::Requested { goal } => write!(f, "a request for {} is in progress", Count(goal)),
            Self::RemovalPending { pending } => {
                write!(f, "the removal of {} is pending", Count(pending))
            }
            Self::NotStarted { started, present } => {
                write!(f, "the guest has started {started} of {}", Count(present))
            }
            Self::NotRunning { state } => write!(f, "the machine is {state}"),
            Self::NoData { complete, needed } => write!(
                f,
                "complete data is needed for {}, and there is only {}",
                Seconds(needed),
                // Less than `needed`, also in whole seconds.
                Seconds(Duration::from_secs(complete.as_secs()))
            ),
            Self::Stale { age } => write!(f, "the last sample is {} old", Seconds(age)),
            _ => self.fmt_pause(f),
        }
    }

    /// Writes the pauses.
    fn fmt_pause(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ContentionBackoff { remaining } => write!(
                f,
                "the host was contended; the next change is possible in {}",
                Seconds(remaining)
            ),
            Self::FailureBackoff {
                direction,
                remaining,
            } => {
                let what = match direction {
                    Direction::Add => "an addition",
                    Direction::Remove => "a removal",
                };
                write!(
                    f,
                    "{what} failed; the next one is possible in {}",
                    Seconds(remaining)
                )
            }
            Self::Hold { remaining } => write!(
                f,
                "another caller set the number of vCPUs; it stays for {}",
                Seconds(remaining)
            ),
            _ => Ok(()),
        }
    }
}

/// A number of vCPUs.
struct Count(u32);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} vCPU{}", self.0, if self.0 == 1 { "" } else { "s" })
    }
}

/// A part, as a percentage.
struct Percent(f64);

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0} %", self.0 * 100.0)
    }
}

/// A time, in seconds, rounded up: a pause of less than a second is not over.
struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} s", self.0.as_millis().div_ceil(1000))
    }
}
