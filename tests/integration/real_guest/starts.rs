//! Guests that start their vCPUs, and guests that do not. The evidence is the CPU time of threads.

use std::time::Duration;

use vcpud::names::error_name;
use zbus::Variant;

use crate::harness::*;

const MOMENT: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(600);

/// Real QEMU with a Linux guest, dbus-daemon.
#[tokio::test]
async fn a_guest_that_uses_new_vcpus_starts_them() {
    let world = World::without_polkit().await;
    let mut qemu = Qemu::start(&world, "web", &Boot::default()).await;
    let machine = world.machine("web").await;
    qemu.online("0").await;
    let set = machine.set_until_started(3, LONG).await;
    assert_eq!(set, Ok(Outcome::added([1, 2])));
    let expected = [1, 2].map(|id| Vcpu::by_request("web", id, &format!("vcpu{id}")));
    let mut started = world.signals.all_started().await;
    started.sort_by_key(|vcpu| vcpu.id);
    assert_eq!(started, expected);
    assert_eq!(machine.started().await, [(0, true), (1, true), (2, true)]);
    qemu.online("0-2").await;
}

/// Real QEMU with a Linux guest that leaves new CPUs offline, and its agent, dbus-daemon.
#[tokio::test]
async fn a_guest_that_leaves_new_vcpus_offline_starts_them_with_its_agent_or_after_a_reset() {
    let world = World::without_polkit().await;
    let boot = Boot {
        agent: true,
        ..Boot::default()
    };
    let mut qemu = Qemu::start(&world, "web", &boot).await;
    let machine = world.machine("web").await;
    qemu.online("0").await;
    machine.wait_for("StartedVcpus", 1u32).await;
    let failure = machine.set_until_started(2, MOMENT).await.unwrap_err();
    let texts = ["did not start vCPU 1 within 1 s", "added: vCPU 1"];
    failure.assert(error_name::GUEST_DID_NOT_START, &texts);
    assert_eq!(machine.started().await, [(0, true), (1, false)]);

    let mut options = WITH_GUEST.to_vec();
    let limit = LONG.as_micros() as u64;
    options.extend([
        ("until", Variant::from("started")),
        ("timeout-usec", limit.into()),
    ]);
    let set = machine.set_with(3, &options).await;
    assert_eq!(set, Ok(Outcome::added([2])));
    assert_eq!(machine.started_vcpus().await.unwrap(), 3);

    machine.set(4).await.unwrap();
    assert_eq!(machine.started_vcpus().await.unwrap(), 3);
    // Linux starts all present vCPUs at its boot.
    qemu.reset().await;
    machine.wait_for("StartedVcpus", 4u32).await;
    // The signals follow the property.
    world.signals.started(3).await;
    let started = world.signals.all_started().await;
    assert_eq!(ids(&started), [1, 2, 3]);
}

/// Real QEMU whose guest does not run, dbus-daemon.
#[tokio::test]
async fn a_paused_guest_starts_nothing() {
    let world = World::without_polkit().await;
    let boot = Boot {
        vcpus: 2,
        paused: true,
        ..Boot::default()
    };
    let mut qemu = Qemu::start(&world, "web", &boot).await;
    let machine = world.machine("web").await;
    let failure = machine.set_until_started(3, MOMENT).await.unwrap_err();
    let texts = ["did not start vCPUs 0-2", "in the state \"prelaunch\""];
    failure.assert(error_name::GUEST_DID_NOT_START, &texts);
    assert_eq!(
        machine.started().await,
        [(0, false), (1, false), (2, false)]
    );
    // Linux starts all present vCPUs at its boot.
    qemu.execute("cont", serde_json::json!({})).await;
    qemu.online("0-2").await;
    let set = machine.set_until_started(3, LONG).await;
    assert_eq!(set, Ok(Outcome::default()));
    assert_eq!(ids(&world.signals.all_started().await), [2]);
}

/// Real QEMU with firmware only, dbus-daemon.
#[tokio::test]
async fn one_thread_for_all_vcpus_is_no_evidence() {
    let world = World::without_polkit().await;
    let mut qemu = Qemu::start(&world, "slow", &Boot::ONE_THREAD).await;
    let machine = world.machine("slow").await;
    let failure = machine.set_until_started(3, LONG).await.unwrap_err();
    failure.assert(error_name::NOT_SUPPORTED, &["no evidence", "\"until\""]);
    assert_eq!(qemu.threads().await.len(), 2);
    machine.set(3).await.unwrap();
    assert_eq!(machine.started().await, []);
    assert_eq!(machine.started_vcpus().await.unwrap(), 0);
}
