//! Where the threads of vCPUs run on this host. There is no systemd on the test's bus, so there are
//! no control groups: those are seen to in tests/cgroups and in the lab.

use std::collections::HashMap;

use vcpud::ids::Tid;
use vcpud::names::error_name;
use vcpud::placement::CpuList;
use vcpud::placer::{affinity, scheduling};

use crate::harness::*;

/// The values of a vCPU's thread in the kernel: its host CPUs and its scheduler.
fn of_thread(row: &Dict) -> (CpuList, &'static str) {
    let thread = Tid(row["thread-id"].as_u64().expect("a number") as u32);
    let affinity = affinity(thread).expect("the thread is there");
    let scheduling = scheduling(thread).expect("the thread is there");
    (affinity, scheduling.name())
}

fn cpus(list: &str) -> CpuList {
    list.parse().expect("a list")
}

/// Calls `PinVcpus`.
async fn pin(machine: &Machine, vcpus: &[u32], cpus: &str) -> Result<(), Failure> {
    let call = machine.pin_vcpus(vcpus, cpus, HashMap::new());
    within("PinVcpus", call).await.map_err(Failure::of)
}

/// Real QEMU with firmware only, dbus-daemon.
#[tokio::test]
async fn vcpus_run_where_they_are_pinned_whenever_they_come() {
    let mut world = World::without_polkit().await;
    let _qemu = Qemu::start(&world, "web", &Boot::FIRMWARE).await;
    let machine = world.machine("web").await;
    assert_eq!(machine.placement().await.unwrap(), "none");
    let all = machine.affinity().await.unwrap();

    pin(&machine, &[1, 3], "0").await.unwrap();
    let rows = machine.rows().await;
    assert_eq!(of_thread(&rows[0]).0, cpus(&all));
    assert_eq!(of_thread(&rows[1]).0, cpus("0"));
    assert_eq!(rows[1]["affinity"], "0");
    assert_eq!(rows[1]["scheduler"], "other");
    assert_eq!(rows[1]["priority"], 0);

    // One that is not there yet has its pin when the call returns.
    assert_eq!(machine.set(4).await, Ok(Outcome::added([2, 3])));
    let rows = machine.rows().await;
    assert_eq!(of_thread(&rows[2]).0, cpus(&all));
    assert_eq!(of_thread(&rows[3]).0, cpus("0"));

    // The default applies to vCPUs without a pin, and its change is emitted.
    let mark = world.signals.mark().await;
    pin(&machine, &[], "0").await.unwrap();
    let told = world.signals.since(mark).await;
    assert_eq!(changes_of(&told, "Affinity"), ["0"]);
    assert_eq!(of_thread(&machine.rows().await[2]).0, cpus("0"));

    let batch = machine.set_scheduler(&[2], "batch", 0, HashMap::new());
    batch.await.unwrap();
    assert_eq!(of_thread(&machine.rows().await[2]).1, "batch");
    // The policy "" restores the default, and then the policy of the thread.
    let scheduler = async |vcpus: &[u32], policy, priority| {
        let call = machine.set_scheduler(vcpus, policy, priority, HashMap::new());
        within("SetScheduler", call).await.map_err(Failure::of)
    };
    scheduler(&[], "idle", 0).await.unwrap();
    scheduler(&[2], "", 0).await.unwrap();
    assert_eq!(of_thread(&machine.rows().await[2]).1, "idle");
    let arguments = ["scheduler", "web", "all", "default"];
    assert_eq!(world.vcpuctl(&arguments).await.0, 0);
    assert_eq!(of_thread(&machine.rows().await[2]).1, "other");
    let failure = scheduler(&[2], "", 1).await.unwrap_err();
    failure.assert(error_name::INVALID_ARGS, &["no priority but 0"]);
    scheduler(&[2], "batch", 0).await.unwrap();

    // The placement stays after the end of the service.
    let mut service = world.service.take().expect("it runs");
    service.kill().await;
    world.serve().await;
    assert_eq!(machine.affinity().await.unwrap(), "0");
    pin(&machine, &[], "").await.unwrap();
    let rows = machine.rows().await;
    assert_eq!(of_thread(&rows[0]).0, cpus(&all));
    assert_eq!(of_thread(&rows[1]).0, cpus("0"));
    assert_eq!(of_thread(&rows[2]).1, "batch");
    pin(&machine, &[1, 3], "").await.unwrap();
    assert_eq!(of_thread(&machine.rows().await[1]).0, cpus(&all));
}

/// Real QEMU with firmware only, dbus-daemon.
#[tokio::test]
async fn what_cannot_be_had_is_said_and_nothing_is_changed() {
    let world = World::without_polkit().await;
    let _qemu = Qemu::start(&world, "web", &Boot::FIRMWARE).await;
    let machine = world.machine("web").await;
    // The guest may start its vCPU in the meantime.
    let rows = async || {
        let mut rows = machine.rows().await;
        rows.iter_mut().for_each(|row| drop(row.remove("started")));
        rows
    };
    let before = rows().await;

    let failed = async |vcpus: &[u32], list: &str| pin(&machine, vcpus, list).await.unwrap_err();
    failed(&[0], "0-")
        .await
        .assert(error_name::INVALID_CPU_LIST, &[]);
    failed(&[0], "3-1")
        .await
        .assert(error_name::INVALID_CPU_LIST, &["3-1"]);
    let text = ["web", "does not have: 8000", "nothing was changed"];
    failed(&[0], "0,8000")
        .await
        .assert(error_name::CPU_UNAVAILABLE, &text);
    let text = ["web", "no vCPU 64", "0 to 63"];
    failed(&[1, 64], "0")
        .await
        .assert(error_name::INVALID_VCPU, &text);

    let options = HashMap::new;
    let failure = machine.set_bandwidth(100_000, 50_000, options()).await;
    let text = ["web", "no control groups of its own"];
    Failure::of(failure.unwrap_err()).assert(error_name::NOT_SUPPORTED, &text);
    let failure = machine.set_bandwidth(999, 50_000, options()).await;
    Failure::of(failure.unwrap_err()).assert(error_name::INVALID_ARGS, &["999"]);
    let failure = machine
        .set_cache_allocation(&[0], "L3:0=f", options())
        .await;
    Failure::of(failure.unwrap_err()).assert(error_name::NOT_SUPPORTED, &["resctrl"]);
    let failure = machine.set_scheduler(&[0], "fifo", 100, options()).await;
    Failure::of(failure.unwrap_err()).assert(error_name::INVALID_ARGS, &["fifo", "100"]);
    let failure = machine.set_scheduler(&[0], "deadline", 1, options()).await;
    Failure::of(failure.unwrap_err()).assert(error_name::INVALID_ARGS, &["deadline"]);
    assert_eq!(rows().await, before);
}

/// Real QEMU with firmware only, a scripted systemd with control groups of the kernel if the test may create them,
/// dbus-daemon.
#[tokio::test]
async fn a_limit_is_possible_with_control_groups() {
    let mut world = World::without_service().await;
    let units = Units::start(&world.bus).await;
    world.serve().await;
    let mut qemu = Qemu::start(&world, "web", &Boot::FIRMWARE).await;
    let machine = world.machine("web").await;
    machine.wait_for("Unit", "vcpud-web.scope").await;
    machine.wait_for("Placement", units.placement()).await;
    let is_possible = units.placement() == "scope";
    let answer = machine.can_tune("bandwidth").await.unwrap();
    assert_eq!(answer, if is_possible { "yes" } else { "na" });
    let limited = machine.set_bandwidth(100_000, 50_000, HashMap::new()).await;
    assert_eq!(limited.is_ok(), is_possible, "{limited:?}");
    assert_eq!(machine.can_tune("pin").await.unwrap(), "yes");
    // The host has no resctrl.
    assert_eq!(machine.can_tune("cache").await.unwrap(), "na");
    qemu.kill().await;
}

/// Real QEMU with firmware only, dbus-daemon.
#[tokio::test]
async fn a_vcpu_without_a_thread_of_its_own_cannot_be_pinned() {
    let world = World::without_polkit().await;
    let _qemu = Qemu::start(&world, "web", &Boot::ONE_THREAD).await;
    let machine = world.machine("web").await;
    let failure = pin(&machine, &[1], "0").await.unwrap_err();
    failure.assert(
        error_name::NOT_SUPPORTED,
        &["web", "vCPU 1", "thread=single"],
    );
    for operation in ["pin", "bandwidth", "scheduler", "cache"] {
        assert_eq!(machine.can_tune(operation).await.unwrap(), "na");
    }
}

/// Real QEMU with firmware only, in a PID namespace, dbus-daemon.
#[tokio::test]
async fn threads_of_a_qemu_in_a_pid_namespace_are_found() {
    let world = World::without_polkit().await;
    let mut qemu = Qemu::start_in_pid_namespace(&world, "web", &Boot::FIRMWARE).await;
    let machine = world.machine("web").await;
    assert_eq!(machine.set(3).await, Ok(Outcome::added([2])));
    let leader = machine.leader().await.unwrap();
    pin(&machine, &[1, 2], "0").await.unwrap();
    let rows = machine.rows().await;
    let mut reported = Vec::new();
    for row in &rows[..3] {
        let thread = row["thread-id"].as_u64().expect("it has a thread");
        let status = std::fs::read_to_string(format!("/proc/{leader}/task/{thread}/status"));
        let status = status.expect("it is a task of the leader");
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        let own = numbers.unwrap().split_whitespace().last().unwrap();
        assert_ne!(own, thread.to_string());
        reported.push(own.parse::<u64>().unwrap());
    }
    assert_eq!(reported, qemu.threads().await, "each vCPU has its own");
    assert_eq!(of_thread(&rows[1]).0, cpus("0"));
    assert_eq!(of_thread(&rows[2]).0, cpus("0"));
    let all = machine.affinity().await.unwrap();
    assert_eq!(of_thread(&rows[0]).0, cpus(&all));
}

/// Real QEMU with firmware only, dbus-daemon.
#[tokio::test]
async fn the_status_shows_the_pins_if_each_vcpu_has_one() {
    let world = World::without_polkit().await;
    let _qemu = Qemu::start(&world, "web", &Boot::FIRMWARE).await;
    let machine = world.machine("web").await;
    pin(&machine, &[0, 1], "0").await.unwrap();
    let desired = machine.affinity().await.unwrap();
    let (_, status, _) = world.vcpuctl(&["status", "web"]).await;
    let shown = format!("Affinity: 0 (vCPUs without a pin: {desired})\n");
    assert!(status.contains(&shown), "{status}");

    pin(&machine, &[0], "").await.unwrap();
    let (_, status, _) = world.vcpuctl(&["status", "web"]).await;
    let shown = format!("Affinity: {desired}\n");
    assert!(status.contains(&shown), "{status}");
}

/// Scripted QEMU, dbus-daemon. The QEMU reports threads that its process does not have.
#[tokio::test]
async fn the_reason_for_a_missing_thread_is_the_true_one() {
    let world = World::without_polkit().await;
    let mut model = Model::x86(2, 4);
    model.threads = Threads::Foreign;
    let _peer = world.peer("web", model);
    let machine = world.machine("web").await;
    let failure = pin(&machine, &[1], "0").await.unwrap_err();
    let text = ["web", "vCPU 1", "has no such thread"];
    failure.assert(error_name::NOT_SUPPORTED, &text);
}

/// Real QEMU with firmware only, dbus-daemon.
#[tokio::test]
async fn a_limit_that_is_not_in_force_does_not_prevent_other_calls() {
    let mut world = World::without_service().await;
    world.configure("machines.d/web.toml", "bandwidth-quota = \"10ms\"\n");
    let _qemu = Qemu::start(&world, "web", &Boot::FIRMWARE).await;
    world.serve().await;
    let machine = world.machine("web").await;
    assert_eq!(machine.placement().await.unwrap(), "none");
    assert_eq!(machine.bandwidth_quota_usec().await.unwrap(), 10_000);
    assert_eq!(machine.effective_bandwidth_quota_usec().await.unwrap(), -1);
    let (_, status, _) = world.vcpuctl(&["status", "web"]).await;
    let shown = "CPU quota: unlimited (desired: 10000 µs per 100000 µs)";
    assert!(status.contains(shown), "{status}");

    assert_eq!(machine.set(3).await, Ok(Outcome::added([2])));
    pin(&machine, &[2], "0").await.unwrap();
    assert_eq!(of_thread(&machine.rows().await[2]).0, cpus("0"));
    let batch = machine.set_scheduler(&[], "batch", 0, HashMap::new());
    batch.await.unwrap();
    assert_eq!(of_thread(&machine.rows().await[0]).1, "batch");
    let limit = machine.set_bandwidth(100_000, 20_000, HashMap::new());
    let text = ["web", "no control groups of its own", "nothing was changed"];
    Failure::of(limit.await.unwrap_err()).assert(error_name::NOT_SUPPORTED, &text);
    assert_eq!(machine.bandwidth_quota_usec().await.unwrap(), 10_000);
    // No limit is what the machine has.
    let unlimited = machine.set_bandwidth(100_000, -1, HashMap::new());
    unlimited.await.unwrap();
    assert_eq!(machine.bandwidth_quota_usec().await.unwrap(), -1);
}

/// Scripted QEMU, dbus-daemon, polkitd.
#[tokio::test]
async fn an_unauthorized_caller_places_nothing() {
    let world = World::with_polkit("").await;
    let _peer = world.peer("web", Model::x86(2, 4));
    let machine = world.machine("web").await;
    let before = machine.affinity().await.unwrap();
    let path = machine.path();
    for call in [
        ["PinVcpus", "ausa{sv}", "0", "0", "0"].as_slice(),
        // Whether the vCPU and the host CPU exist is only checked for an authorized caller.
        &["PinVcpus", "ausa{sv}", "1", "999", "8191", "0"],
        &["SetBandwidth", "txa{sv}", "100000", "1000", "0"],
        &["SetScheduler", "ausia{sv}", "0", "fifo", "1", "0"],
        &["SetCacheAllocation", "ausa{sv}", "0", "L3:0=f", "0"],
    ] {
        let method = ["org.vcpud1", path, "org.vcpud1.Machine"];
        let call = [&method[..], call].concat();
        let failure = world
            .as_nobody(Interaction::Forbidden, &call)
            .await
            .unwrap_err();
        failure.assert(
            error_name::INTERACTIVE_AUTHORIZATION_REQUIRED,
            &["tune-vcpus"],
        );
    }
    assert_eq!(machine.affinity().await.unwrap(), before);
}
