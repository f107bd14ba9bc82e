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
}

/// The decision about the unit of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Use the present unit, which is of this kind.
    Stay(Kind),
    /// Start a scope and move the process there.
    NewScope,
    /// Use no control groups.
    Without(NoCgroupsReason),
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
    /// Its description for people.
    pub description: &'a str,
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
            Self::Disabled | Self::NotDelegated { .. } | Self::ManagedElsewhere { .. } => {
                Retry::Never
            }
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
            Self::Disabled | Self::NotDelegated { .. } => false,
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

/// Decides about the unit of a process with these `facts`. A scope of its own would have the name `scope`.
///
/// Groups of another manager are left alone in every mode.
pub fn decide(mode: PlacementMode, facts: &UnitFacts, scope: &str) -> Decision {
    let unit = facts.unit.clone();
    if mode == PlacementMode::None {
        return Decision::Without(NoCgroupsReason::Disabled);
    }
    if unit == scope {
        return Decision::Stay(Kind::Scope);
    }
    if forgotten_scope(facts, scope).is_some() {
        return Decision::NewScope;
    }
    let users_unit = is_user_manager(&unit).then(|| users_unit(facts)).flatten();
    if is_managed_elsewhere(facts) && users_unit.is_none() {
        return Decision::Without(NoCgroupsReason::ManagedElsewhere { unit });
    }
    // The groups of a user's manager are delegated to the manager, not to its units.
    let delegated = facts.delegated && !is_user_manager(&unit);
    let innermost = users_unit.unwrap_or(&unit);
    match mode {
        // If vcpud has groups in the unit, the other processes have moved already.
        PlacementMode::Auto if delegated && facts.is_shared && !has_our_groups(facts) => {
            Decision::Without(NoCgroupsReason::Shared { unit })
        }
        PlacementMode::Auto | PlacementMode::Unit if delegated => Decision::Stay(Kind::Unit),
        PlacementMode::Scope => Decision::NewScope,
        PlacementMode::Auto if !innermost.ends_with(".service") => Decision::NewScope,
        _ => Decision::Without(NoCgroupsReason::NotDelegated {
            unit: innermost.to_owned(),
        }),
    }
}

/// Returns the control group of `scope`, if the process is in it and systemd does not know the scope any more.
/// systemd then returns a slice above it.
pub fn forgotten_scope<'a>(facts: &'a UnitFacts, scope: &str) -> Option<&'a str> {
    let slice = facts.control_group.trim_end_matches('/');
    let name = format!("/{scope}");
    let group = |path: &'a String| {
        let inside = path.strip_prefix(slice)?;
        let end = slice.len() + inside.find(&name)? + name.len();
        let (group, below) = path.split_at(end);
        let is_whole = below.is_empty() || below.starts_with('/');
        (is_whole && inside.starts_with('/')).then_some(group)
    };
    let mut memberships = facts.memberships.iter();
    let is_slice = facts.unit.ends_with(".slice");
    is_slice.then(|| memberships.find_map(group)).flatten()
}

/// Returns whether the unit is the manager of a user's units (`user@.service(5)`).
fn is_user_manager(unit: &str) -> bool {
    unit.starts_with("user@") && unit.ends_with(".service")
}

/// Returns the unit of a user's manager that the process is in. `None`: the process is in a group below
/// such a unit.
fn users_unit(facts: &UnitFacts) -> Option<&str> {
    let below = |path: &'_ &String| below(path, &facts.control_group).is_some();
    let path = facts.memberships.iter().find(below)?;
    let last = path.rsplit('/').next()?;
    let is_unit = [".scope", ".service", ".slice"]
        .iter()
        .any(|suffix| last.ends_with(suffix));
    is_unit.then_some(last)
}

/// Returns whether the process is in a group of vcpud below the unit's.
fn has_our_groups(facts: &UnitFacts) -> bool {
    let is_ours = |path: &String| below(path, &facts.control_group).is_some_and(is_ours);
    facts.memberships.iter().any(is_ours)
}

/// Returns whether the part of a path below a unit's control group is a group of vcpud.
fn is_ours(below: &str) -> bool {
    below == "vcpud" || below.starts_with("vcpud/")
}

/// Returns whether libvirt made the unit, or the process is in a group below the unit's that vcpud did not
/// create.
fn is_managed_elsewhere(facts: &UnitFacts) -> bool {
    let is_other = |path: &String| below(path, &facts.control_group).is_some_and(|b| !is_ours(b));
    facts.unit.starts_with(r"machine-qemu\x2d") || facts.memberships.iter().any(is_other)
}

/// Returns the part of `path` below control group `unit`, if it is below.
fn below<'a>(path: &'a str, unit: &str) -> Option<&'a str> {
    let below = path.strip_prefix(unit)?.strip_prefix('/')?;
    (!unit.is_empty() && !below.is_empty()).then_some(below)
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

    const OWN: &str = "vcpud-web.scope";
    const LIBVIRT: &str = r"/machine.slice/machine-qemu\x2d1\x2dweb.scope";
    const MANAGER: &str = "/user.slice/user-1000.slice/user@1000.service";

    /// Returns the facts of a process in `group`, which is below the control group of its unit or empty.
    fn facts(control_group: &str, delegated: bool, group: &str) -> UnitFacts {
        UnitFacts {
            unit: control_group.rsplit('/').next().unwrap().to_owned(),
            delegated,
            control_group: control_group.to_owned(),
            memberships: vec!["/".into(), format!("{control_group}{group}")],
            ..UnitFacts::default()
        }
    }

    fn new_scope() -> Decision {
        Decision::NewScope
    }

    fn not_delegated(unit: &str) -> Decision {
        let unit = unit.to_owned();
        Decision::Without(NoCgroupsReason::NotDelegated { unit })
    }

    fn managed_elsewhere(unit: &str) -> Decision {
        let unit = unit.to_owned();
        Decision::Without(NoCgroupsReason::ManagedElsewhere { unit })
    }

    /// The unit of QEMU → the decisions for `auto`, `scope` and `unit`.
    #[test]
    fn decides_by_the_unit_and_the_mode() {
        let session = "/user.slice/user-0.slice/session-3.scope";
        let run = "/system.slice/run-rab.scope";
        let service = "/system.slice/vm.service";
        let own = "/machine.slice/vcpud-web.scope";
        let libvirt = LIBVIRT.rsplit('/').next().unwrap();
        let stay = Decision::Stay;
        for (what, facts, auto, scope, unit) in [
            (
                "a login session",
                facts(session, false, ""),
                new_scope(),
                new_scope(),
                not_delegated("session-3.scope"),
            ),
            (
                "systemd-run --scope",
                facts(run, false, ""),
                new_scope(),
                new_scope(),
                not_delegated("run-rab.scope"),
            ),
            (
                "systemd-run --scope -p Delegate=yes",
                facts(run, true, ""),
                stay(Kind::Unit),
                new_scope(),
                stay(Kind::Unit),
            ),
            (
                "a plain slice",
                facts("/machine.slice", false, ""),
                new_scope(),
                new_scope(),
                not_delegated("machine.slice"),
            ),
            (
                "a delegated service",
                facts(service, true, ""),
                stay(Kind::Unit),
                new_scope(),
                stay(Kind::Unit),
            ),
            (
                "the same after a restart",
                facts(service, true, "/vcpud/emulator"),
                stay(Kind::Unit),
                new_scope(),
                stay(Kind::Unit),
            ),
            (
                "a delegated service that keeps its own groups",
                facts(service, true, "/payload"),
                managed_elsewhere("vm.service"),
                managed_elsewhere("vm.service"),
                managed_elsewhere("vm.service"),
            ),
            (
                "a plain service",
                facts(service, false, ""),
                not_delegated("vm.service"),
                new_scope(),
                not_delegated("vm.service"),
            ),
            (
                "libvirt",
                facts(LIBVIRT, true, "/libvirt/emulator"),
                managed_elsewhere(libvirt),
                managed_elsewhere(libvirt),
                managed_elsewhere(libvirt),
            ),
            (
                "libvirt before it made its groups",
                facts(LIBVIRT, true, ""),
                managed_elsewhere(libvirt),
                managed_elsewhere(libvirt),
                managed_elsewhere(libvirt),
            ),
            (
                "our own scope",
                facts(own, true, "/vcpud/emulator"),
                stay(Kind::Scope),
                stay(Kind::Scope),
                stay(Kind::Scope),
            ),
            (
                "our own scope, which systemd forgot",
                facts("/machine.slice", false, "/vcpud-web.scope"),
                new_scope(),
                new_scope(),
                new_scope(),
            ),
            (
                "the same with groups",
                facts("/machine.slice", false, "/vcpud-web.scope/vcpud/emulator"),
                new_scope(),
                new_scope(),
                new_scope(),
            ),
            (
                "a forgotten scope of another machine",
                facts("/machine.slice", false, "/vcpud-web.scope2"),
                managed_elsewhere("machine.slice"),
                managed_elsewhere("machine.slice"),
                managed_elsewhere("machine.slice"),
            ),
            (
                "a scope of a user's manager",
                facts(MANAGER, true, "/app.slice/vm.scope"),
                new_scope(),
                new_scope(),
                not_delegated("vm.scope"),
            ),
            (
                "a service of a user's manager",
                facts(MANAGER, true, "/app.slice/vm.service"),
                not_delegated("vm.service"),
                new_scope(),
                not_delegated("vm.service"),
            ),
            (
                "a group below a user's unit",
                facts(MANAGER, true, "/app.slice/vm.service/payload"),
                managed_elsewhere("user@1000.service"),
                managed_elsewhere("user@1000.service"),
                managed_elsewhere("user@1000.service"),
            ),
        ] {
            for (mode, expected) in [
                (PlacementMode::Auto, auto),
                (PlacementMode::Scope, scope),
                (PlacementMode::Unit, unit),
                (
                    PlacementMode::None,
                    Decision::Without(NoCgroupsReason::Disabled),
                ),
            ] {
                assert_eq!(decide(mode, &facts, OWN), expected, "{what}: {mode:?}");
            }
        }
    }

    #[test]
    fn other_processes_of_a_delegated_unit_are_moved_only_if_that_is_configured() {
        for container in ["/system.slice/docker-0123.scope", "/system.slice/k3s.service"] {
            let unit = container.rsplit('/').next().unwrap().to_owned();
            let decide = |mode, group: &str| {
                let shared = UnitFacts {
                    is_shared: true,
                    ..facts(container, true, group)
                };
                super::decide(mode, &shared, OWN)
            };
            let shared = NoCgroupsReason::Shared { unit };
            assert!(shared.is_managed_elsewhere() && !shared.is_failure());
            assert_eq!(shared.retry(), Retry::Later, "the others may exit");
            assert_eq!(
                decide(PlacementMode::Auto, ""),
                Decision::Without(shared),
                "{container}"
            );
            let stay = Decision::Stay(Kind::Unit);
            assert_eq!(decide(PlacementMode::Unit, ""), stay);
            assert_eq!(decide(PlacementMode::Scope, ""), new_scope());
            // After a restart of the service.
            assert_eq!(decide(PlacementMode::Auto, "/vcpud/emulator"), stay);
        }
        // QEMU leaves the others behind.
        let shared = UnitFacts {
            is_shared: true,
            ..facts("/system.slice/run-rab.scope", false, "")
        };
        assert_eq!(decide(PlacementMode::Auto, &shared, OWN), new_scope());
    }

    #[test]
    fn finds_the_group_of_a_scope_that_systemd_forgot() {
        let of = |unit: &str, control_group: &str, group: &str| {
            let facts = UnitFacts {
                unit: unit.to_owned(),
                control_group: control_group.to_owned(),
                memberships: vec!["/".into(), group.into()],
                ..UnitFacts::default()
            };
            forgotten_scope(&facts, OWN).map(str::to_owned)
        };
        let scope = "/machine.slice/vcpud-web.scope";
        let emulator = format!("{scope}/vcpud/emulator");
        assert_eq!(of("machine.slice", "/machine.slice", scope).unwrap(), scope);
        assert_eq!(
            of("machine.slice", "/machine.slice", &emulator).unwrap(),
            scope
        );
        // The slice is not loaded either.
        assert_eq!(of("-.slice", "/", &emulator).unwrap(), scope);
        assert_eq!(of("x.service", "/machine.slice", scope), None);
        assert_eq!(of("machine.slice", "/machine", scope), None);
    }

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
