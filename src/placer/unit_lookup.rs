//! Finding, or making, the unit in which a machine has its control groups.

use std::io;
use std::sync::Arc;

use super::memberships;
use crate::blocking::blocking;
use crate::placement::{
    Decision, Kind, NewScope, NoCgroupsReason, PlacementMode, Process, UnitError, UnitFacts,
    UnitPlacement, Units, decide,
};
use crate::process::Leader;

/// What is wanted of a machine's unit.
#[derive(Clone, Copy, Debug)]
pub struct ScopeRequest<'a> {
    /// What kind of place.
    pub wish: PlacementMode,
    /// The scope, where it is to have one of its own.
    pub scope: NewScope<'a>,
}

/// Why a machine has no home, not even one without control groups.
#[derive(Debug, thiserror::Error)]
pub enum UnitLookupError {
    /// What was asked for cannot be had where QEMU is.
    #[error("placement cannot be as asked for: {0}")]
    NoCgroupsReason(#[from] NoCgroupsReason),
    /// The scope could not be started.
    #[error("{scope} could not be started: {error}")]
    Scope {
        /// Its name.
        scope: String,
        /// Why.
        error: UnitError,
    },
    /// QEMU has ended.
    #[error("the QEMU process has ended")]
    Ended,
    /// The kernel does not say where QEMU is.
    #[error("the control groups of QEMU cannot be read: {0}")]
    Kernel(#[source] io::Error),
}

/// Finds the place for the machine of `leader`, and makes it where it has to be made. Where it
/// has no control groups although some were welcome, it is told why.
pub async fn find_unit(
    units: &dyn Units,
    leader: &Arc<Leader>,
    housing: &ScopeRequest<'_>,
) -> Result<(UnitPlacement, Option<NoCgroupsReason>), UnitLookupError> {
    let process = Process {
        pid: leader.pid(),
        pidfd: leader.pidfd(),
    };
    let (facts, decision) = match (housing.wish, units.unit_of(process).await) {
        (PlacementMode::None, facts) => {
            let facts = facts.unwrap_or_default();
            (facts, Decision::Without(NoCgroupsReason::Wished))
        }
        (wish, Ok(mut facts)) => {
            let process = leader.clone();
            let groups = blocking(move || memberships(process.as_ref())).await;
            let groups = groups.map_err(|error| match leader.has_exited() {
                true => UnitLookupError::Ended,
                false => UnitLookupError::Kernel(error),
            })?;
            facts.memberships = groups.paths().map(str::to_owned).collect();
            let decision = decide(wish, &facts, housing.scope.name);
            (facts, decision)
        }
        (_, Err(error)) => {
            let unknown = Decision::Without(NoCgroupsReason::Unknown(error));
            (UnitFacts::default(), unknown)
        }
    };
    let (home, reason) = match decision {
        Decision::Stay(kind) => (home(kind, facts), None),
        Decision::NewScope => (new_scope(units, process, housing.scope).await?, None),
        Decision::Without(reason) if housing.wish.allows(&reason) => {
            (home(Kind::None, facts), Some(reason))
        }
        Decision::Without(reason) => return Err(reason.into()),
    };
    // systemd was asked by PID where it is old.
    match leader.has_exited() {
        true => Err(UnitLookupError::Ended),
        false => Ok((
            home,
            reason.filter(|reason| *reason != NoCgroupsReason::Wished),
        )),
    }
}

fn home(kind: Kind, facts: UnitFacts) -> UnitPlacement {
    UnitPlacement {
        kind,
        unit: facts.unit,
        control_group: facts.control_group,
    }
}

async fn new_scope(
    units: &dyn Units,
    process: Process<'_>,
    scope: NewScope<'_>,
) -> Result<UnitPlacement, UnitLookupError> {
    match units.start_scope(scope, process).await {
        Ok(control_group) => Ok(UnitPlacement {
            kind: Kind::Scope,
            unit: scope.name.to_owned(),
            control_group,
        }),
        Err(error) => Err(UnitLookupError::Scope {
            scope: scope.name.to_owned(),
            error,
        }),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use futures_util::future::{BoxFuture, ready};
    use tokio::net::UnixStream;

    use super::*;

    /// A systemd that says what it is told to; the process is this one.
    #[derive(Debug)]
    struct Scripted {
        unit: Result<UnitFacts, UnitError>,
        scope: Result<String, UnitError>,
    }

    impl Units for Scripted {
        fn unit_of<'a>(
            &'a self,
            process: Process<'a>,
        ) -> BoxFuture<'a, Result<UnitFacts, UnitError>> {
            assert_eq!(process.pid, std::process::id());
            ready(self.unit.clone()).boxed()
        }

        fn start_scope<'a>(
            &'a self,
            scope: NewScope<'a>,
            _: Process<'a>,
        ) -> BoxFuture<'a, Result<String, UnitError>> {
            assert_eq!(scope.name, "vcpud-web.scope");
            ready(self.scope.clone()).boxed()
        }
    }

    async fn home_of(
        wish: PlacementMode,
        systemd: &Scripted,
    ) -> Result<(UnitPlacement, Option<NoCgroupsReason>), UnitLookupError> {
        let (stream, _other) = UnixStream::pair().unwrap();
        let leader = Arc::new(Leader::of_peer(&stream).await.unwrap());
        let scope = NewScope {
            name: "vcpud-web.scope",
            slice: "machine.slice",
            description: "a test",
        };
        find_unit(systemd, &leader, &ScopeRequest { wish, scope }).await
    }

    fn in_unit(unit: &str, delegated: bool) -> Scripted {
        Scripted {
            unit: Ok(UnitFacts {
                unit: unit.to_owned(),
                delegated,
                control_group: format!("/system.slice/{unit}"),
                memberships: Vec::new(),
            }),
            scope: Ok("/machine.slice/vcpud-web.scope".to_owned()),
        }
    }

    #[tokio::test]
    async fn a_scope_is_started_where_it_is_needed() {
        let systemd = in_unit("session-1.scope", false);
        let (home, reason) = home_of(PlacementMode::Auto, &systemd).await.unwrap();
        assert_eq!(home.kind, Kind::Scope);
        assert_eq!(home.unit, "vcpud-web.scope");
        assert_eq!(home.control_group, "/machine.slice/vcpud-web.scope");
        assert_eq!(reason, None);

        let refusing = Scripted {
            scope: Err(UnitError::Job("failed".to_owned())),
            ..systemd
        };
        let error = home_of(PlacementMode::Auto, &refusing).await.unwrap_err();
        let text = "vcpud-web.scope could not be started: systemd's job ended as \"failed\"";
        assert_eq!(error.to_string(), text);
    }

    #[tokio::test]
    async fn a_service_is_left_where_it_is_and_why_is_told() {
        let (home, reason) = home_of(PlacementMode::Auto, &in_unit("vm.service", true))
            .await
            .unwrap();
        assert_eq!((home.kind, reason), (Kind::Unit, None));
        assert_eq!(home.control_group, "/system.slice/vm.service");

        let plain = in_unit("vm.service", false);
        let (home, reason) = home_of(PlacementMode::Auto, &plain).await.unwrap();
        assert_eq!((home.kind, home.unit.as_str()), (Kind::None, "vm.service"));
        assert!(matches!(reason, Some(NoCgroupsReason::NotDelegated { .. })));
        let error = home_of(PlacementMode::Unit, &plain).await.unwrap_err();
        assert!(matches!(error, UnitLookupError::NoCgroupsReason(_)));
        let (home, reason) = home_of(PlacementMode::None, &plain).await.unwrap();
        assert_eq!((home.kind, reason), (Kind::None, None));
    }

    #[tokio::test]
    async fn without_systemd_there_are_no_groups() {
        let absent = Scripted {
            unit: Err(UnitError::Absent("no such name".to_owned())),
            scope: Err(UnitError::Absent("no such name".to_owned())),
        };
        let (home, reason) = home_of(PlacementMode::Auto, &absent).await.unwrap();
        assert_eq!(home.kind, Kind::None);
        assert!(matches!(reason, Some(NoCgroupsReason::Unknown(_))));
        assert!(home_of(PlacementMode::Scope, &absent).await.is_err());
        let (home, reason) = home_of(PlacementMode::None, &absent).await.unwrap();
        assert_eq!((home.kind, reason), (Kind::None, None));
    }
}
