//! The unit of a machine depends on the place where its QEMU was started.

use super::*;

const NOT_SUPPORTED: &str = "org.vcpud1.Error.NotSupported";

/// Returns a property of a unit.
async fn show(unit: &str, property: &str) -> String {
    output(
        "systemctl",
        &["show", "--value", "--property", property, unit],
    )
    .await
}

/// Waits until systemd has unloaded `unit` and removed its group.
async fn gone(unit: &str, groups: &Groups) {
    until(format!("the group of {unit}"), false, || groups.exist()).await;
    let forgotten = async {
        // systemd emits no event for that.
        while show(unit, "LoadState").await != "not-found" {}
    };
    within(format!("the end of {unit}"), forgotten).await;
}

/// Asserts that the machine is in a new scope, which ends with it, and is stopped before the units `after`.
async fn assert_own_scope(place: Place, name: &str, scope: &str, after: &[&str]) {
    let host = Host::enter().await;
    let mut guest = Guest::paused_in(place, name).await;
    let former = Groups::around(guest.pid());
    let machine = host.machine(name).await;

    machine.wait_for("Placement", "scope").await;
    assert_eq!(machine.unit().await.as_deref(), Ok(scope));
    let groups = Groups::of(&machine).await;
    assert_eq!(groups.unit, format!("/machine.slice/{scope}"));
    assert_placed(&groups, &guest);
    for (property, value) in [
        ("ActiveState", "active"),
        ("Slice", "machine.slice"),
        ("Delegate", "yes"),
        ("CollectMode", "inactive-or-failed"),
        ("TasksMax", "16384"),
        ("Description", &format!("Virtual machine {name}")),
    ] {
        assert_eq!(show(scope, property).await, value, "{property}");
    }
    let order = show(scope, "After").await;
    for unit in after {
        assert!(order.split(' ').any(|other| other == *unit), "{order}");
    }
    assert_eq!(limit(&machine, 50_000, 10_000).await, Ok(()));
    assert_eq!(of_all(&groups, &guest, "cpu.max"), ["10000 50000"]);
    // Regardless of the options of QEMU.
    assert_eq!(affinities(&machine, &groups, &guest).await, [online()]);

    guest.kill().await;
    gone(scope, &groups).await;
    if former.unit != groups.unit {
        until("the group of the previous unit", false, || former.exist()).await;
    }
}

#[tokio::test]
async fn a_qemu_in_a_scope_gets_a_new_scope_that_ends_with_it() {
    assert_own_scope(Place::ScopeOnOneCpu, "web-1", "vcpud-web_2d1.scope", &[]).await;
}

#[tokio::test]
async fn a_qemu_in_a_login_session_gets_a_scope() {
    // systemd-logind orders the session after it.
    let after = ["systemd-user-sessions.service"];
    assert_own_scope(Place::Session, "web", "vcpud-web.scope", &after).await;
}

#[tokio::test]
async fn a_qemu_in_a_scope_of_a_user_gets_a_system_scope() {
    assert_own_scope(Place::UsersScope, "web", "vcpud-web.scope", &[]).await;
}

#[tokio::test]
async fn a_machine_that_returns_at_once_has_a_scope_again() {
    let host = Host::enter().await;
    for _ in 0..3 {
        // The previous one is killed just before this one starts.
        let guest = Guest::paused_in(Place::Scope, "web").await;
        let machine = host.machine_of(&guest).await;
        machine.wait_for("Placement", "scope").await;
        assert_placed(&Groups::of(&machine).await, &guest);
    }
}

/// The control group of a scope that systemd does not know any more.
#[tokio::test]
async fn a_qemu_in_the_group_of_its_forgotten_scope_gets_the_scope_again() {
    let group = "machine.slice/vcpud-web.scope";
    assert_own_scope(Place::Group(group), "web", "vcpud-web.scope", &[]).await;
}

#[tokio::test]
async fn a_delegated_service_is_used_as_it_is() {
    let host = Host::enter().await;
    let guest = Guest::paused_in(Place::DelegatedService, "web").await;
    let machine = host.machine("web").await;

    machine.wait_for("Placement", "unit").await;
    assert_eq!(machine.unit().await.as_deref(), Ok("lab-web.service"));
    let groups = Groups::of(&machine).await;
    assert_eq!(groups.unit, "/system.slice/lab-web.service");
    assert_placed(&groups, &guest);
    assert_eq!(machine.set(3).await, Ok(Outcome::added([1, 2])));
    assert_placed(&groups, &guest);
    assert_eq!(
        show("lab-web.service", "MainPID").await,
        guest.pid().to_string()
    );
    assert_eq!(show("vcpud-web.scope", "LoadState").await, "not-found");
}

#[tokio::test]
async fn groups_that_the_kernel_refused_are_created_later() {
    let host = Host::enter().await;
    host.stop_service().await;
    let guest = Guest::paused_in(Place::DelegatedService, "web").await;
    let groups = Groups::around(guest.pid());
    groups.write("cgroup.max.descendants", "0");
    let machine = host.machine("web").await;
    assert_eq!(machine.placement().await.as_deref(), Ok("none"));
    let errors = machine.placement_errors().await;
    let errors = errors.expect("the property can be read");
    let is_reason = |error: &String| error.contains("Resource temporarily unavailable");
    assert!(errors.iter().any(is_reason), "{errors:?}");

    groups.write("cgroup.max.descendants", "max");
    machine.wait_for("Placement", "unit").await;
    machine
        .wait_for("PlacementErrors", Vec::<String>::new())
        .await;
    assert_placed(&groups, &guest);
}

#[tokio::test]
async fn a_service_that_does_not_delegate_keeps_its_qemu_as_it_is() {
    let host = Host::enter().await;
    let log = Log::from_now().await;
    let guest = Guest::paused_in(Place::Service, "web").await;
    let machine = host.machine("web").await;

    let groups = Groups::of(&machine).await;
    assert_eq!(groups.unit, "/system.slice/lab-web.service");
    assert_eq!(machine.placement().await.as_deref(), Ok("none"));
    assert_eq!(machine.unit().await.as_deref(), Ok("lab-web.service"));
    assert_eq!(groups.below(""), Vec::<String>::new());
    let said = log
        .of("lab-web.service does not delegate control groups")
        .await;
    assert_eq!(said.len(), 1, "{said:?}");

    // Settings without control groups are available.
    assert_eq!(pin(&machine, &[0], "1").await, Ok(()));
    assert_eq!(list_of(guest.thread(0)), "1");
    assert_eq!(schedule(&machine, &[0], "batch", 0).await, Ok(()));
    assert_eq!(scheduling_of(guest.thread(0)).await, "SCHED_BATCH 0");
    let refused = limit(&machine, 50_000, 10_000).await.unwrap_err();
    refused.assert(NOT_SUPPORTED, &["no control groups"]);
}

/// Units and groups as libvirt creates them, with and without systemd-machined.
#[tokio::test]
async fn the_groups_of_another_manager_are_not_changed() {
    let unit = r"machine-qemu\x2d9\x2dweb.scope";
    assert_left_alone(Place::ScopeNamed(unit), unit, "kept by another manager").await;
    let group = "machine/qemu-9-web.libvirt-qemu";
    assert_left_alone(Place::Group(group), "", "does not belong to any").await;
    for group in [group, "machine"] {
        let gone = std::fs::remove_dir(format!("/sys/fs/cgroup/{group}"));
        gone.expect("nothing is left in it");
    }
}

#[tokio::test]
async fn a_scope_with_limits_keeps_its_qemu() {
    let host = Host::enter().await;
    let guest = Guest::paused_in(Place::LimitedScope, "web").await;
    let group = Groups::around(guest.pid());
    let machine = host.machine_of(&guest).await;
    assert_eq!(machine.placement().await.as_deref(), Ok("none"));
    assert_eq!(machine.unit().await.as_deref(), Ok("lab-web.scope"));
    let errors = machine.placement_errors().await;
    let errors = errors.expect("the property can be read");
    let is_reason = |error: &String| error.contains("CPUQuota=, MemoryMax=");
    assert!(errors.iter().any(is_reason), "{errors:?}");
    assert_eq!(Groups::around(guest.pid()).unit, group.unit);
    assert_eq!(group.read("cpu.max"), "50000 100000");
}

/// A program can enter the control group of a container (`docker exec`) only if it has no threaded groups below.
#[tokio::test]
async fn the_processes_of_a_container_are_not_moved() {
    let unit = "docker-0123.scope";
    let why = "processes that do not belong to QEMU";
    assert_left_alone(Place::ContainerScope, unit, why).await;
    output("systemctl", &["stop", unit]).await;
}

async fn assert_left_alone(place: Place, unit: &str, why: &str) {
    let host = Host::enter().await;
    let log = Log::from_now().await;
    let mut guest = Guest::paused_in(place, "web").await;
    let group = Groups::around(guest.pid());
    output(
        "taskset",
        &[
            "--all-tasks",
            "--cpu-list",
            "--pid",
            "2",
            &guest.pid().to_string(),
        ],
    )
    .await;
    let machine = host.machine_of(&guest).await;

    assert_eq!(machine.placement().await.as_deref(), Ok("none"));
    assert_eq!(machine.unit().await.as_deref(), Ok(unit));
    assert_eq!(group.below(""), Vec::<String>::new());
    assert_eq!(Groups::around(guest.pid()).unit, group.unit);
    assert_eq!(list_of(guest.thread(0)), "2");
    let said = log.of(why).await;
    assert_eq!(said.len(), 1, "{said:?}");
    // An explicit setting is in force.
    assert_eq!(pin(&machine, &[0], "1").await, Ok(()));
    assert_eq!(list_of(guest.thread(0)), "1");
    guest.kill().await;
}
