//! In which unit of systemd a machine has its control groups.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::str::FromStr;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::ids::Pid;

/// What is wanted of a machine's unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PlacementMode {
    /// Its present unit where that is delegated to it, a new scope where that is harmless, else
    /// none.
    #[default]
    Auto,
    /// A scope of its own.
    Scope,
    /// The unit that it is in.
    Unit,
    /// None: affinity and schedulers only.
    None,
}

/// What is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A scope that was made for the machine.
    Scope,
    /// The unit that QEMU was started in.
    Unit,
    /// No control groups.
    None,
}

/// Where a machine is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitPlacement {
    /// What kind of place it is.
    pub kind: Kind,
    /// The unit, or empty where it is not known.
    pub unit: String,
    /// The unit's control group as systemd writes it, or empty.
    pub control_group: String,
}

/// What systemd and the kernel say about a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnitFacts {
    /// The name of its unit.
    pub unit: String,
    /// Whether systemd leaves what is below the unit's control group to the unit (`Delegate=`).
    pub delegated: bool,
    /// The unit's control group.
    pub control_group: String,
    /// Every control group that the process is in; several in version 1.
    pub memberships: Vec<String>,
}

/// What is to be done for a machine's unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Use the unit that it is in, which is a home of this kind.
    Stay(Kind),
    /// Start a scope and move it there.
    NewScope,
    /// Do without control groups.
    Without(NoCgroupsReason),
}

/// A process, held so that no other can take its PID.
#[derive(Clone, Copy, Debug)]
pub struct Process<'a> {
    /// Its PID.
    pub pid: Pid,
    /// What holds it.
    pub pidfd: BorrowedFd<'a>,
}

/// A scope to be started.
#[derive(Clone, Copy, Debug)]
pub struct NewScope<'a> {
    /// Its name, which ends in `.scope`.
    pub name: &'a str,
    /// The slice that it is put in.
    pub slice: &'a str,
    /// What people are told that it is.
    pub description: &'a str,
}

/// Who keeps the units of the host: systemd.
pub trait Units: fmt::Debug + Send + Sync {
    /// The unit of a process: all of its facts but the memberships, which the kernel knows.
    fn unit_of<'a>(&'a self, process: Process<'a>) -> BoxFuture<'a, Result<UnitFacts, UnitError>>;

    /// Starts a scope and moves the process there. Returns when it is done, with the scope's
    /// control group.
    fn start_scope<'a>(
        &'a self,
        scope: NewScope<'a>,
        process: Process<'a>,
    ) -> BoxFuture<'a, Result<String, UnitError>>;
}

/// What systemd did not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// It is not there.
    #[error("systemd is not on the system bus: {0}")]
    Absent(String),
    /// It said no, in its words.
    #[error("systemd refused: {0}")]
    Refused(String),
    /// It began and did not succeed; this is its word for how the job ended.
    #[error("systemd's job ended as \"{0}\"")]
    Job(String),
    /// It did not answer, or did not finish.
    #[error("systemd did not do it within {} s", .0.as_secs())]
    Silent(Duration),
}

/// Why a machine has no control groups of its own.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoCgroupsReason {
    /// It was wished so.
    #[error("no control groups were asked for")]
    Wished,
    /// Moving it would take it from the service that looks after it.
    #[error(
        "{unit} does not delegate control groups (set Delegate=yes in it, or placement \"scope\")"
    )]
    NotDelegated {
        /// The service.
        unit: String,
    },
    /// systemd could not say where it is.
    #[error("systemd does not say in which unit it is: {0}")]
    Unknown(UnitError),
    /// Another manager keeps groups there, such as libvirt.
    #[error("the control groups in {unit} are kept by another manager")]
    Foreign {
        /// The unit.
        unit: String,
    },
}

impl PlacementMode {
    /// Whether `reason` is what was wished, or may come of it. Else the wish cannot be granted.
    pub fn allows(self, reason: &NoCgroupsReason) -> bool {
        match self {
            Self::Auto => true,
            Self::None => *reason == NoCgroupsReason::Wished,
            Self::Scope | Self::Unit => false,
        }
    }
}

/// What is to be done for a process with these `facts`, whose own scope would be `scope`.
///
/// Where another manager keeps groups nothing is changed, whatever was wished.
pub fn decide(wish: PlacementMode, facts: &UnitFacts, scope: &str) -> Decision {
    let unit = facts.unit.clone();
    if wish == PlacementMode::None {
        return Decision::Without(NoCgroupsReason::Wished);
    }
    if unit == scope {
        return Decision::Stay(Kind::Scope);
    }
    let users = is_user_manager(&unit).then(|| users_unit(facts)).flatten();
    if is_kept_by_another(facts) && users.is_none() {
        return Decision::Without(NoCgroupsReason::Foreign { unit });
    }
    // What a user's manager was delegated is the manager's, not the process's.
    let delegated = facts.delegated && !is_user_manager(&unit);
    let innermost = users.unwrap_or(&unit);
    match wish {
        PlacementMode::Auto | PlacementMode::Unit if delegated => Decision::Stay(Kind::Unit),
        PlacementMode::Scope => Decision::NewScope,
        PlacementMode::Auto if !innermost.ends_with(".service") => Decision::NewScope,
        _ => Decision::Without(NoCgroupsReason::NotDelegated {
            unit: innermost.to_owned(),
        }),
    }
}

/// Whether the unit is the manager of a user's own units (`user@.service(5)`).
fn is_user_manager(unit: &str) -> bool {
    unit.starts_with("user@") && unit.ends_with(".service")
}

/// The unit of a user's manager that the process is in, unless it is in a group below one.
fn users_unit(facts: &UnitFacts) -> Option<&str> {
    let below = |path: &'_ &String| below(path, &facts.control_group).is_some();
    let path = facts.memberships.iter().find(below)?;
    let last = path.rsplit('/').next()?;
    let is_unit = [".scope", ".service", ".slice"]
        .iter()
        .any(|suffix| last.ends_with(suffix));
    is_unit.then_some(last)
}

/// Whether the process is in a group below the unit's which is not of our making, or the unit
/// is one that libvirt makes.
fn is_kept_by_another(facts: &UnitFacts) -> bool {
    let ours = |below: &str| below == "vcpud" || below.starts_with("vcpud/");
    let kept = |path: &String| below(path, &facts.control_group).is_some_and(|b| !ours(b));
    facts.unit.starts_with(r"machine-qemu\x2d") || facts.memberships.iter().any(kept)
}

/// The part of `path` that is below control group `unit`, if it is.
fn below<'a>(path: &'a str, unit: &str) -> Option<&'a str> {
    let below = path.strip_prefix(unit)?.strip_prefix('/')?;
    (!unit.is_empty() && !below.is_empty()).then_some(below)
}

impl FromStr for PlacementMode {
    type Err = String;

    /// Reads the word; the error says which there are.
    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "auto" => Ok(Self::Auto),
            "scope" => Ok(Self::Scope),
            "unit" => Ok(Self::Unit),
            "none" => Ok(Self::None),
            _ => {
                let word: String = word.chars().take(32).collect();
                Err(format!(
                    "{word:?} is no placement: there are auto, scope, unit and none"
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

    /// A process in `group`, which is or is below that of its unit.
    fn facts(control_group: &str, delegated: bool, group: &str) -> UnitFacts {
        UnitFacts {
            unit: control_group.rsplit('/').next().unwrap().to_owned(),
            delegated,
            control_group: control_group.to_owned(),
            memberships: vec!["/".into(), format!("{control_group}{group}")],
        }
    }

    fn new_scope() -> Decision {
        Decision::NewScope
    }

    fn not_delegated(unit: &str) -> Decision {
        let unit = unit.to_owned();
        Decision::Without(NoCgroupsReason::NotDelegated { unit })
    }

    fn foreign(unit: &str) -> Decision {
        let unit = unit.to_owned();
        Decision::Without(NoCgroupsReason::Foreign { unit })
    }

    /// Where QEMU is → what is done for `auto`, `scope` and `unit`.
    #[test]
    fn each_place_has_its_answer() {
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
                foreign("vm.service"),
                foreign("vm.service"),
                foreign("vm.service"),
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
                foreign(libvirt),
                foreign(libvirt),
                foreign(libvirt),
            ),
            (
                "libvirt before it made its groups",
                facts(LIBVIRT, true, ""),
                foreign(libvirt),
                foreign(libvirt),
                foreign(libvirt),
            ),
            (
                "our own scope",
                facts(own, true, "/vcpud/emulator"),
                stay(Kind::Scope),
                stay(Kind::Scope),
                stay(Kind::Scope),
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
                foreign("user@1000.service"),
                foreign("user@1000.service"),
                foreign("user@1000.service"),
            ),
        ] {
            for (wish, wanted) in [
                (PlacementMode::Auto, auto),
                (PlacementMode::Scope, scope),
                (PlacementMode::Unit, unit),
                (
                    PlacementMode::None,
                    Decision::Without(NoCgroupsReason::Wished),
                ),
            ] {
                assert_eq!(decide(wish, &facts, OWN), wanted, "{what}: {wish:?}");
            }
        }
    }

    #[test]
    fn a_wish_that_cannot_be_granted_is_told_from_one_that_need_not_be() {
        let unit = "x".to_owned();
        let reason = NoCgroupsReason::NotDelegated { unit };
        assert!(PlacementMode::Auto.allows(&reason));
        assert!(!PlacementMode::Unit.allows(&reason));
        assert!(PlacementMode::None.allows(&NoCgroupsReason::Wished));
        assert_eq!("unit".parse(), Ok(PlacementMode::Unit));
        assert!("Scope".parse::<PlacementMode>().is_err());
    }
}
