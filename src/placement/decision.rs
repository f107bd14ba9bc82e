//! The decision in which unit of systemd a machine has its control groups.

use super::unit::{Kind, NoCgroupsReason, PlacementMode, UnitFacts};

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
        PlacementMode::Auto if is_limited_scope(facts) => {
            let limits = facts.limits.clone();
            Decision::Without(NoCgroupsReason::Limited { unit, limits })
        }
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

/// Returns whether the unit is a scope with limits. The scope of a login session does not count: systemd
/// limits the slice of the user.
fn is_limited_scope(facts: &UnitFacts) -> bool {
    let is_scope = facts.unit.ends_with(".scope") && !facts.unit.starts_with("session-");
    is_scope && !facts.limits.is_empty()
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

#[cfg(test)]
mod tests {
    use super::super::unit::Retry;
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
        for container in [
            "/system.slice/docker-0123.scope",
            "/system.slice/k3s.service",
        ] {
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
    fn a_scope_keeps_its_limits_unless_another_one_is_configured() {
        let limited = |unit: &str, delegated| UnitFacts {
            limits: vec!["CPUQuota=", "MemoryMax="],
            ..facts(&format!("/x.slice/{unit}"), delegated, "")
        };
        let decide = |mode, facts: &UnitFacts| super::decide(mode, facts, OWN);
        let plain = limited("run-rab.scope", false);
        let Decision::Without(reason) = decide(PlacementMode::Auto, &plain) else {
            panic!("it loses its limits");
        };
        let text = reason.to_string();
        assert!(text.starts_with("run-rab.scope has limits"), "{text}");
        assert!(text.contains("CPUQuota=, MemoryMax= (start it"), "{text}");
        assert_eq!(reason.retry(), Retry::Never);
        assert!(!reason.is_managed_elsewhere());
        assert_eq!(decide(PlacementMode::Scope, &plain), new_scope());
        // The limits stay with the unit.
        let delegated = limited("run-rab.scope", true);
        let stay = Decision::Stay(Kind::Unit);
        assert_eq!(decide(PlacementMode::Auto, &delegated), stay);
        for unit in ["session-3.scope", "user-0.slice"] {
            let facts = limited(unit, false);
            assert_eq!(decide(PlacementMode::Auto, &facts), new_scope(), "{unit}");
        }
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
}
