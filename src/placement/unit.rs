//! The unit of systemd that has the control groups of a machine.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::str::FromStr;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::ids::Pid;

/// The setting `placement`: which unit has the control groups of a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PlacementMode {
    /// The present unit if it delegates control groups and has no other processes, else a new scope if that
    /// takes the machine from no service and from no other manager, else none.
    #[default]
    Auto,
    /// A scope of its own.
    Scope,
    /// The present unit.
    Unit,
    /// None. vcpud sets affinity and schedulers only.
    None,
}

/// The kind of unit that a machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A scope that vcpud started for the machine.
    Scope,
    /// The unit in which QEMU was started.
    Unit,
    /// A unit without control groups of vcpud.
    None,
}

/// The unit of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitPlacement {
    /// The kind of unit.
    pub kind: Kind,
    /// The name of the unit, or empty if it is not known.
    pub unit: String,
    /// The unit's control group as systemd writes it, or empty.
    pub control_group: String,
}

impl UnitPlacement {
    /// Returns the placement of a machine in `unit` without control groups of vcpud.
    pub fn without_groups(unit: String) -> Self {
        Self {
            kind: Kind::None,
            unit,
            control_group: String::new(),
        }
    }
}

/// The properties of the unit of a process, from systemd and the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnitFacts {
    /// The name of its unit.
    pub unit: String,
    /// Whether the unit has `Delegate=`: systemd leaves the groups below the unit's control group alone.
    pub delegated: bool,
    /// The unit's control group.
    pub control_group: String,
    /// All control groups of the process; several in version 1.
    pub memberships: Vec<String>,
    /// Whether the control group has processes that are not of QEMU.
    pub is_shared: bool,
    /// The limits of the control group, as the settings of systemd.
    pub limits: Vec<&'static str>,
}

/// A process. The pidfd keeps other processes from getting its PID.
#[derive(Clone, Copy, Debug)]
pub struct Process<'a> {
    /// Its PID.
    pub pid: Pid,
    /// Its pidfd.
    pub pidfd: BorrowedFd<'a>,
}

/// A scope to be started.
#[derive(Clone, Copy, Debug)]
pub struct NewScope<'a> {
    /// Its name, which ends in `.scope`.
    pub name: &'a str,
    /// Its slice.
    pub slice: &'a str,
    /// The name of the machine, for the description and the log.
    pub machine: &'a str,
    /// The unit that the process leaves, or empty. The scope takes its place in the order of the shutdown.
    pub previous: &'a str,
}

/// The manager of the host's units: systemd.
pub trait Units: fmt::Debug + Send + Sync {
    /// Returns the facts about the unit of `process`, without the memberships.
    ///
    /// # Errors
    ///
    /// Fails if the process is in no unit, or if systemd does not answer.
    fn unit_of<'a>(&'a self, process: Process<'a>) -> BoxFuture<'a, Result<UnitFacts, UnitError>>;

    /// Starts a scope and moves the process there. Returns the scope's control group when the job is
    /// done.
    ///
    /// # Errors
    ///
    /// Fails if the scope cannot be started.
    fn start_scope<'a>(
        &'a self,
        scope: NewScope<'a>,
        process: Process<'a>,
    ) -> BoxFuture<'a, Result<String, UnitError>>;

    /// Returns when the manager is there, after it was [`UnitError::Absent`].
    fn appeared(&self) -> BoxFuture<'_, ()>;
}

/// When a search for the unit that found no control groups is repeated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Retry {
    /// Not before QEMU starts again.
    #[default]
    Never,
    /// After a pause.
    Later,
    /// When systemd is on the bus again.
    WhenPresent,
}

/// The reason why systemd did not do what vcpud asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// systemd is not on the bus, or the connection to the bus is lost.
    #[error("systemd is not on the system bus: {0}")]
    Absent(String),
    /// The process is in no unit that can have control groups. The text says why.
    #[error("systemd refused: {0}")]
    NoUnit(String),
    /// systemd does not accept the configured slice. The text is systemd's.
    #[error("systemd does not accept the configuration of the scope: {0}")]
    Invalid(String),
    /// systemd, or the bus in its place, refused for another reason, with this text.
    #[error("systemd refused: {0}")]
    Refused(String),
    /// The bus failed.
    #[error("systemd cannot be asked: {0}")]
    Bus(String),
    /// The job did not succeed; this is its result.
    #[error("systemd's job ended as \"{0}\"")]
    Job(String),
    /// systemd did not answer within this time.
    #[error("systemd did not do it within {} s", .0.as_secs())]
    Silent(Duration),
}

/// The reason why a machine has no control groups of vcpud.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoCgroupsReason {
    /// The setting says so.
    #[error("placement is \"none\"")]
    Disabled,
    /// A new scope would take the machine from the service that manages it.
    #[error(
        "{unit} does not delegate control groups (set Delegate=yes in it, or placement \"scope\")"
    )]
    NotDelegated {
        /// The service.
        unit: String,
    },
    /// systemd does not say which unit it is in.
    #[error("the unit of the process is not known: {0}")]
    Unknown(UnitError),
    /// Another manager has groups in the unit, such as libvirt.
    #[error("the control groups in {unit} are kept by another manager")]
    ManagedElsewhere {
        /// The unit.
        unit: String,
    },
    /// The scope has limits, which a new scope would not have.
    #[error(
        "{unit} has limits that a new scope does not have: {} (start it with Delegate=yes, or set placement \"scope\")", limits.join(", ")
    )]
    Limited {
        /// The scope.
        unit: String,
        /// The limits.
        limits: Vec<&'static str>,
    },
    /// The unit has other processes, which would have to move too.
    #[error(
        "{unit} has processes that do not belong to QEMU, such as those of a container (set placement \"unit\" to move all of them, or placement \"scope\" to take QEMU out of {unit})"
    )]
    Shared {
        /// The unit.
        unit: String,
    },
}

impl UnitError {
    /// Returns when the same request may succeed without a change by the administrator.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Absent(_) => Retry::WhenPresent,
            Self::Refused(_) | Self::Bus(_) | Self::Job(_) | Self::Silent(_) => Retry::Later,
            Self::NoUnit(_) | Self::Invalid(_) => Retry::Never,
        }
    }
}

impl NoCgroupsReason {
    /// Returns when the machine may get control groups without a change by the administrator.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Unknown(error) => error.retry(),
            Self::Shared { .. } => Retry::Later,
            Self::Disabled
            | Self::NotDelegated { .. }
            | Self::ManagedElsewhere { .. }
            | Self::Limited { .. } => Retry::Never,
        }
    }

    /// Returns whether it is a failure that may pass, and not a property of the unit.
    pub fn is_failure(&self) -> bool {
        matches!(self, Self::Unknown(error) if error.retry() == Retry::Later)
    }

    /// Returns whether another manager decides the placement of the machine: it has groups or other processes
    /// in the unit, or it started the process outside of all units. While a present systemd does not say, it
    /// may.
    pub fn is_managed_elsewhere(&self) -> bool {
        match self {
            Self::ManagedElsewhere { .. } | Self::Shared { .. } => true,
            Self::Unknown(error) => !matches!(error, UnitError::Absent(_)),
            Self::Disabled | Self::NotDelegated { .. } | Self::Limited { .. } => false,
        }
    }
}

impl PlacementMode {
    /// Returns whether a machine may be without control groups for `reason`. If not, that is an error.
    pub fn allows(self, reason: &NoCgroupsReason) -> bool {
        match self {
            Self::Auto => true,
            Self::None => *reason == NoCgroupsReason::Disabled,
            Self::Scope | Self::Unit => false,
        }
    }
}

impl FromStr for PlacementMode {
    type Err = String;

    /// Reads the setting. The error lists the valid values.
    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "auto" => Ok(Self::Auto),
            "scope" => Ok(Self::Scope),
            "unit" => Ok(Self::Unit),
            "none" => Ok(Self::None),
            _ => {
                let word: String = word.chars().take(32).collect();
                Err(format!(
                    "{word:?} is not a placement; the placements are auto, scope, unit and none"
                ))
            }
        }
    }
}

impl fmt::Display for PlacementMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Scope => "scope",
            Self::Unit => "unit",
            Self::None => "none",
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scope => "scope",
            Self::Unit => "unit",
            Self::None => "none",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_auto_allows_a_unit_that_does_not_delegate() {
        let unit = "x".to_owned();
        let reason = NoCgroupsReason::NotDelegated { unit };
        assert!(PlacementMode::Auto.allows(&reason));
        assert!(!PlacementMode::Unit.allows(&reason));
        assert!(PlacementMode::None.allows(&NoCgroupsReason::Disabled));
        assert_eq!("unit".parse(), Ok(PlacementMode::Unit));
        assert!("Scope".parse::<PlacementMode>().is_err());
    }

    #[test]
    fn only_the_configuration_and_the_unit_are_final_reasons() {
        let text = String::new;
        let job = |result: &str| UnitError::Job(result.to_owned());
        for (error, expected) in [
            (UnitError::Absent(text()), Retry::WhenPresent),
            (UnitError::Silent(Duration::from_secs(10)), Retry::Later),
            (UnitError::Refused(text()), Retry::Later),
            (job("canceled"), Retry::Later),
            (job("failed"), Retry::Later),
            (UnitError::NoUnit(text()), Retry::Never),
            (UnitError::Invalid(text()), Retry::Never),
        ] {
            assert_eq!(error.retry(), expected, "{error}");
            let reason = NoCgroupsReason::Unknown(error);
            assert_eq!(reason.retry(), expected, "{reason}");
        }
        let unit = text;
        for reason in [
            NoCgroupsReason::Disabled,
            NoCgroupsReason::NotDelegated { unit: unit() },
            NoCgroupsReason::ManagedElsewhere { unit: unit() },
        ] {
            assert_eq!(reason.retry(), Retry::Never, "{reason}");
        }
    }

    #[test]
    fn a_process_outside_of_all_units_is_managed_elsewhere() {
        let unknown = |error| NoCgroupsReason::Unknown(error).is_managed_elsewhere();
        assert!(unknown(UnitError::NoUnit(String::new())));
        assert!(
            unknown(UnitError::Silent(Duration::from_secs(10))),
            "it may be"
        );
        assert!(
            !unknown(UnitError::Absent(String::new())),
            "a host without systemd"
        );
        assert!(!NoCgroupsReason::Disabled.is_managed_elsewhere());
    }
}
