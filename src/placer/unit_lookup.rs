//! Finds the unit that has the control groups of a machine, or starts a scope.

use std::io;
use std::sync::Arc;

use super::cgroup;
use super::host::Host;
use super::observe::memberships;
use crate::blocking::blocking;
use crate::ids::Pid;
use crate::placement::{
    Decision, Kind, NewScope, NoCgroupsReason, PlacementMode, Process, Retry, UnitError, UnitFacts,
    UnitPlacement, Units, decide, forgotten_scope,
};
use crate::process::Leader;

/// A request for the unit of a machine.
#[derive(Clone, Copy, Debug)]
pub struct ScopeRequest<'a> {
    /// The setting of the machine.
    pub mode: PlacementMode,
    /// The scope, if the machine gets one of its own.
    pub scope: NewScope<'a>,
}

/// The reason why the unit of a machine is not known.
#[derive(Debug, thiserror::Error)]
pub enum UnitLookupError {
    /// The mode needs control groups, and the machine cannot have them.
    #[error("placement is not possible as configured: {0}")]
    NoCgroupsReason(#[from] NoCgroupsReason),
    /// The scope could not be started.
    #[error("{scope} could not be started: {error}")]
    Scope {
        /// Its name.
        scope: String,
        /// The reason.
        error: UnitError,
    },
    /// QEMU has exited.
    #[error("the QEMU process has exited")]
    Ended,
    /// The kernel does not return the control groups of QEMU.
    #[error("the control groups of QEMU cannot be read: {0}")]
    Kernel(#[source] io::Error),
}

impl UnitLookupError {
    /// Returns when the same request may succeed without a change by the administrator.
    pub fn retry(&self) -> Retry {
        match self {
            Self::NoCgroupsReason(reason) => reason.retry(),
            Self::Scope { error, .. } => error.retry(),
            Self::Ended => Retry::Never,
            // vcpud or the host was out of descriptors or memory.
            Self::Kernel(error) => match error.raw_os_error() {
                Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM) => Retry::Later,
                _ => Retry::Never,
            },
        }
    }
}

/// Finds the unit of the machine of `leader`, and starts a scope if it needs one. If the mode allows
/// control groups and the machine gets none, the reason is returned too.
///
/// # Errors
///
/// Fails if the mode needs control groups and the machine cannot have them, if the scope cannot be started,
/// and if QEMU has exited.
pub async fn find_unit(
    units: &dyn Units,
    host: &Host,
    leader: &Arc<Leader>,
    request: &ScopeRequest<'_>,
) -> Result<(UnitPlacement, Option<NoCgroupsReason>), UnitLookupError> {
    let process = Process {
        pid: leader.pid(),
        pidfd: leader.pidfd(),
    };
    let (facts, decision) = match (request.mode, units.unit_of(process).await) {
        (PlacementMode::None, facts) => {
            let facts = facts.unwrap_or_default();
            (facts, Decision::Without(NoCgroupsReason::Disabled))
        }
        (mode, Ok(mut facts)) => {
            facts.memberships = memberships_of(leader).await?;
            survey(host, &mut facts, leader.pid()).await;
            let decision = decide(mode, &facts, request.scope.name);
            (facts, decision)
        }
        (_, Err(error)) => {
            let unknown = Decision::Without(NoCgroupsReason::Unknown(error));
            (UnitFacts::default(), unknown)
        }
    };
    let (placement, reason) = match decision {
        Decision::Stay(kind) => (unit_placement(kind, facts), None),
        Decision::NewScope => {
            if let Some(group) = forgotten_scope(&facts, request.scope.name) {
                release(host, group, request.scope.machine).await;
            }
            let scope = NewScope {
                previous: &facts.unit,
                ..request.scope
            };
            (new_scope(units, process, scope).await?, None)
        }
        Decision::Without(reason) if request.mode.allows(&reason) => {
            (unit_placement(Kind::None, facts), Some(reason))
        }
        Decision::Without(reason) => return Err(reason.into()),
    };
    // An old systemd was asked by PID, which another process may have now.
    if leader.has_exited() {
        return Err(UnitLookupError::Ended);
    }
    let reason = reason.filter(|reason| *reason != NoCgroupsReason::Disabled);
    Ok((placement, reason))
}

/// Completes `facts` with the limits of the unit, and whether it has processes that are not of `leader`.
async fn survey(host: &Host, facts: &mut UnitFacts, leader: Pid) {
    let (mounts, group) = (host.mounts.clone(), facts.control_group.clone());
    let surveyed = blocking(move || {
        let is_shared = cgroup::is_shared(&mounts, &group, leader);
        (is_shared, cgroup::limits(&mounts, &group))
    });
    (facts.is_shared, facts.limits) = surveyed.await;
}

/// Returns whether `leader` is still in `unit`, together with processes that are not its own. systemd is not
/// asked: only the kernel knows when the other processes exit.
pub async fn is_still_shared(host: &Host, unit: &UnitPlacement, leader: &Arc<Leader>) -> bool {
    let (mounts, group) = (host.mounts.clone(), unit.control_group.clone());
    let leader = leader.clone();
    blocking(move || {
        let is_inside = memberships(leader.as_ref()).is_ok_and(|groups| groups.is_in(&group));
        is_inside && cgroup::is_shared(&mounts, &group, leader.pid())
    })
    .await
}

/// Lets systemd start a scope whose control group exists with groups of vcpud. If the kernel refuses, systemd
/// reports it.
async fn release(host: &Host, group: &str, vm_name: &str) {
    let (mounts, group) = (host.mounts.clone(), group.to_owned());
    let released = blocking(move || cgroup::release(&mounts, &group)).await;
    if let Err(error) = released {
        tracing::info!(vm_name, %error, "{vm_name}: the control group of a previous scope cannot be used again: {error}");
    }
}

async fn memberships_of(leader: &Arc<Leader>) -> Result<Vec<String>, UnitLookupError> {
    let process = leader.clone();
    match blocking(move || memberships(process.as_ref())).await {
        Ok(groups) => Ok(groups.paths().map(str::to_owned).collect()),
        Err(_) if leader.has_exited() => Err(UnitLookupError::Ended),
        Err(error) => Err(UnitLookupError::Kernel(error)),
    }
}

fn unit_placement(kind: Kind, facts: UnitFacts) -> UnitPlacement {
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
    use std::path::Path;

    use futures_util::FutureExt;
    use futures_util::future::{BoxFuture, ready};
    use tokio::net::UnixStream;

    use super::super::cgroup::Mounts;
    use super::*;

    /// A systemd with scripted answers; the process is this one.
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
            assert_eq!(scope.previous, self.unit.as_ref().unwrap().unit);
            ready(self.scope.clone()).boxed()
        }

        fn appeared(&self) -> BoxFuture<'_, ()> {
            ready(()).boxed()
        }
    }

    async fn lookup(
        mode: PlacementMode,
        systemd: &Scripted,
    ) -> Result<(UnitPlacement, Option<NoCgroupsReason>), UnitLookupError> {
        lookup_on(&Host::this().unwrap(), mode, systemd).await
    }

    async fn lookup_on(
        host: &Host,
        mode: PlacementMode,
        systemd: &Scripted,
    ) -> Result<(UnitPlacement, Option<NoCgroupsReason>), UnitLookupError> {
        let (stream, _other) = UnixStream::pair().unwrap();
        let leader = Arc::new(Leader::of_peer(&stream).await.unwrap());
        let scope = NewScope {
            name: "vcpud-web.scope",
            slice: "machine.slice",
            machine: "web",
            previous: "",
        };
        let request = ScopeRequest { mode, scope };
        find_unit(systemd, host, &leader, &request).await
    }

    /// Returns a host whose hierarchy of version 2 is the directory `root`.
    fn host_at(root: &Path) -> Host {
        let root = root.display();
        let mounts = format!("29 25 0:26 / {root} rw - cgroup2 cgroup2 rw\n");
        Host {
            mounts: Mounts::parse(&mounts).into(),
            ..Host::this().unwrap()
        }
    }

    fn in_unit(unit: &str, delegated: bool) -> Scripted {
        Scripted {
            unit: Ok(UnitFacts {
                unit: unit.to_owned(),
                delegated,
                control_group: format!("/system.slice/{unit}"),
                ..UnitFacts::default()
            }),
            scope: Ok("/machine.slice/vcpud-web.scope".to_owned()),
        }
    }

    #[tokio::test]
    async fn starts_a_scope_for_a_process_of_a_session() {
        let systemd = in_unit("session-1.scope", false);
        let (placement, reason) = lookup(PlacementMode::Auto, &systemd).await.unwrap();
        assert_eq!(placement.kind, Kind::Scope);
        assert_eq!(placement.unit, "vcpud-web.scope");
        assert_eq!(placement.control_group, "/machine.slice/vcpud-web.scope");
        assert_eq!(reason, None);

        let refusing = Scripted {
            scope: Err(UnitError::Job("failed".to_owned())),
            ..systemd
        };
        let error = lookup(PlacementMode::Auto, &refusing).await.unwrap_err();
        let text = "vcpud-web.scope could not be started: systemd's job ended as \"failed\"";
        assert_eq!(error.to_string(), text);
    }

    #[tokio::test]
    async fn uses_a_service_only_if_it_delegates() {
        let (placement, reason) = lookup(PlacementMode::Auto, &in_unit("vm.service", true))
            .await
            .unwrap();
        assert_eq!((placement.kind, reason), (Kind::Unit, None));
        assert_eq!(placement.control_group, "/system.slice/vm.service");

        let plain = in_unit("vm.service", false);
        let (placement, reason) = lookup(PlacementMode::Auto, &plain).await.unwrap();
        assert_eq!(
            (placement.kind, placement.unit.as_str()),
            (Kind::None, "vm.service")
        );
        assert!(matches!(reason, Some(NoCgroupsReason::NotDelegated { .. })));
        let error = lookup(PlacementMode::Unit, &plain).await.unwrap_err();
        assert!(matches!(error, UnitLookupError::NoCgroupsReason(_)));
        let (placement, reason) = lookup(PlacementMode::None, &plain).await.unwrap();
        assert_eq!((placement.kind, reason), (Kind::None, None));
    }

    #[tokio::test]
    async fn uses_a_delegated_unit_with_other_processes_only_if_configured() {
        let root = tempfile::tempdir().unwrap();
        let unit = root.path().join("system.slice/docker-0123.scope");
        std::fs::create_dir_all(&unit).unwrap();
        let host = host_at(root.path());
        let systemd = in_unit("docker-0123.scope", true);
        for (others, auto) in [("", Kind::Unit), ("1\n", Kind::None)] {
            let processes = format!("{}\n{others}", std::process::id());
            std::fs::write(unit.join("cgroup.procs"), processes).unwrap();
            let found = lookup_on(&host, PlacementMode::Auto, &systemd).await;
            let (placement, reason) = found.unwrap();
            assert_eq!(placement.kind, auto);
            let is_shared = matches!(reason, Some(NoCgroupsReason::Shared { .. }));
            assert_eq!(is_shared, auto == Kind::None);
            let found = lookup_on(&host, PlacementMode::Unit, &systemd).await;
            assert_eq!(found.unwrap().0.kind, Kind::Unit);
        }
    }

    #[tokio::test]
    async fn starts_no_scope_for_a_process_of_a_scope_with_limits() {
        let root = tempfile::tempdir().unwrap();
        let unit = root.path().join("system.slice/run-rab.scope");
        std::fs::create_dir_all(&unit).unwrap();
        let host = host_at(root.path());
        let systemd = in_unit("run-rab.scope", false);
        for (limit, auto) in [("max", Kind::Scope), ("4294967296", Kind::None)] {
            std::fs::write(unit.join("memory.max"), limit).unwrap();
            let found = lookup_on(&host, PlacementMode::Auto, &systemd).await;
            let (placement, reason) = found.unwrap();
            assert_eq!(placement.kind, auto);
            let is_limited = matches!(reason, Some(NoCgroupsReason::Limited { .. }));
            assert_eq!(is_limited, auto == Kind::None);
            let found = lookup_on(&host, PlacementMode::Scope, &systemd).await;
            assert_eq!(found.unwrap().0.kind, Kind::Scope);
        }
    }

    #[tokio::test]
    async fn uses_no_groups_without_systemd() {
        let absent = Scripted {
            unit: Err(UnitError::Absent("no such name".to_owned())),
            scope: Err(UnitError::Absent("no such name".to_owned())),
        };
        let (placement, reason) = lookup(PlacementMode::Auto, &absent).await.unwrap();
        assert_eq!(placement.kind, Kind::None);
        assert!(matches!(reason, Some(NoCgroupsReason::Unknown(_))));
        assert!(lookup(PlacementMode::Scope, &absent).await.is_err());
        let (placement, reason) = lookup(PlacementMode::None, &absent).await.unwrap();
        assert_eq!((placement.kind, reason), (Kind::None, None));
    }

    #[test]
    fn a_lookup_is_repeated_unless_its_reason_is_final() {
        let scope = |error| UnitLookupError::Scope {
            scope: "vcpud-web.scope".to_owned(),
            error,
        };
        let kernel = |errno| UnitLookupError::Kernel(io::Error::from_raw_os_error(errno));
        let absent = || UnitError::Absent("no such name".to_owned());
        let text = String::new;
        for (error, expected) in [
            (scope(UnitError::Job("timeout".to_owned())), Retry::Later),
            (scope(UnitError::Refused(text())), Retry::Later),
            (scope(UnitError::Invalid(text())), Retry::Never),
            (
                NoCgroupsReason::Unknown(absent()).into(),
                Retry::WhenPresent,
            ),
            (NoCgroupsReason::Disabled.into(), Retry::Never),
            (kernel(libc::EMFILE), Retry::Later),
            (kernel(libc::EACCES), Retry::Never),
            (UnitLookupError::Ended, Retry::Never),
        ] {
            assert_eq!(error.retry(), expected, "{error}");
        }
    }
}
