//! A machine that does not just run.

use std::collections::HashMap;

use serde_json::json;
use vcpud::names::error_name;

use crate::harness::*;

const FIRMWARE: Boot = Boot {
    vcpus: 1,
    ..Boot::FIRMWARE
};

/// Real QEMU with firmware only, dbus-daemon.
#[tokio::test]
async fn a_machine_that_is_paused_grows() {
    let world = World::without_polkit().await;
    let mut qemu = Qemu::start(&world, "web", &FIRMWARE).await;
    let machine = world.machine("web").await;
    assert_eq!(machine.state().await.unwrap(), "running");

    let mark = world.signals.mark().await;
    qemu.execute("stop", json!({})).await;
    machine.wait_for("State", "paused").await;
    assert_eq!(machine.set(2).await, Ok(Outcome::added([1])));
    qemu.execute("system_reset", json!({})).await;
    qemu.execute("cont", json!({})).await;
    let runs = |told: &[Signal]| changes_of(told, "State").last() == Some(&"running".into());
    let told = world.signals.wait("the end of the pause", mark, runs).await;
    let states = changes_of(&told, "State");
    // A state that was too short for a refresh may be missing.
    assert_eq!(states.first(), Some(&"paused".into()), "{states:?}");
    assert_eq!(states.last(), Some(&"running".into()), "{states:?}");
    assert_eq!(ids(&added(&told)), [1]);
    assert_eq!(machine.present().await, [0, 1]);
}

/// Real QEMU with firmware only, dbus-daemon.
#[tokio::test]
async fn a_machine_that_is_migrated_neither_grows_nor_shrinks_until_that_is_over() {
    let world = World::without_polkit().await;
    let mut qemu = Qemu::start(&world, "web", &FIRMWARE).await;
    let machine = world.machine("web").await;
    machine.set(2).await.unwrap();

    // So slow that it does not end by itself.
    let limit = |bandwidth: u64| json!({"max-bandwidth": bandwidth});
    let to_nowhere = json!({"uri": "exec:cat >/dev/null"});
    qemu.execute("migrate-set-parameters", limit(4096)).await;
    qemu.execute("migrate", to_nowhere.clone()).await;
    let mark = world.signals.mark().await;
    let meaning = "try again when the migration is over";
    let grow = machine.set(3).await.unwrap_err();
    let text = "device_add not allowed while migrating";
    grow.assert(error_name::QMP_FAILED, &["web", "vCPU 2", text, meaning]);
    let shrink = machine.set(1).await.unwrap_err();
    let text = "device_del not allowed while migrating";
    shrink.assert(error_name::QMP_FAILED, &["web", "vCPU 1", text, meaning]);
    let told = world.signals.since(mark).await;
    assert_eq!(added(&told), []);
    assert_eq!(removal_failed(&told).len(), 1, "{told:?}");
    assert_eq!(machine.pending().await, [] as [u32; 0]);
    assert_eq!(machine.present().await, [0, 1]);

    qemu.execute("migrate_cancel", json!({})).await;
    qemu.migration("cancelled").await;
    assert_eq!(machine.set(3).await, Ok(Outcome::added([2])));

    qemu.execute("migrate-set-parameters", limit(1 << 30)).await;
    qemu.execute("migrate", to_nowhere).await;
    machine.wait_for("State", "postmigrate").await;
    assert_eq!(machine.present().await, [0, 1, 2]);
}

/// Real QEMU with firmware only, dbus-daemon.
#[tokio::test]
async fn a_machine_that_is_not_made_yet_has_no_vcpus_and_gets_none() {
    let world = World::without_polkit().await;
    let boot = Boot {
        hardware: Hardware::PRECONFIG,
        vcpus: 2,
        ..FIRMWARE
    };
    let mut qemu = Qemu::start(&world, "web", &boot).await;
    let machine = world.machine("web").await;
    assert_eq!(machine.state().await.unwrap(), "prelaunch");
    assert_eq!(machine.vcpus().await.unwrap(), 0);
    assert_eq!(machine.max_vcpus().await.unwrap(), MAX_VCPUS);

    let failure = machine.set(3).await.unwrap_err();
    let text = "permitted only after machine initialization has completed";
    failure.assert(error_name::QMP_FAILED, &["web", "vCPUs 0-2", text]);
    assert_eq!(machine.vcpus().await.unwrap(), 0);

    let mark = world.signals.mark().await;
    qemu.execute("x-exit-preconfig", json!({})).await;
    machine.wait_for("State", "running").await;
    machine.wait_for("Vcpus", 2u32).await;
    let told = world
        .signals
        .wait("VcpuAdded", mark, |told| added(told).len() == 2);
    let came = added(&told.await);
    assert_eq!(
        came,
        [0, 1].map(|id| Vcpu::by_cause("web", id, "", "external"))
    );
    assert_eq!(machine.set(3).await, Ok(Outcome::added([2])));
}

/// Uses a real QEMU with a Linux guest, and dbus-daemon.
#[tokio::test]
async fn a_guest_that_is_paused_gives_up_no_vcpu_until_it_runs() {
    let world = World::without_polkit().await;
    let mut qemu = Qemu::start(&world, "web", &Boot::default()).await;
    let machine = world.machine("web").await;
    qemu.online("0").await;
    assert_eq!(machine.set(2).await, Ok(Outcome::added([1])));
    qemu.online("0-1").await;
    qemu.execute("stop", json!({})).await;
    machine.wait_for("State", "paused").await;

    let failure = machine
        .set_with(1, &[("timeout-usec", 1_000u64.into())])
        .await
        .unwrap_err();
    let text = ["web", "the guest does not run", "\"paused\""];
    failure.assert(error_name::REMOVAL_PENDING, &text);
    let mark = world.signals.mark().await;
    qemu.execute("cont", json!({})).await;
    let told = world
        .signals
        .wait("VcpuRemoved", mark, |told| !removed(told).is_empty())
        .await;
    assert_eq!(ids(&removed(&told)), [1]);
}

/// Uses a real QEMU with a Linux guest, and dbus-daemon. QEMU 10 with TCG aborts if it creates more vCPUs than
/// the maximum in its life.
#[tokio::test]
async fn qemu_is_asked_for_no_vcpu_that_would_make_it_abort() {
    let mut world = World::without_polkit().await;
    let boot = Boot {
        hardware: Hardware {
            shape: "maxcpus=3",
            ..Hardware::Q35
        },
        ..Boot::default()
    };
    let mut qemu = Qemu::start(&world, "web", &boot).await;
    let machine = world.machine("web").await;
    qemu.online("0").await;
    for _ in 0..2 {
        assert_eq!(machine.set(2).await, Ok(Outcome::added([1])));
        qemu.online("0-1").await;
        let result = machine.set_patiently(1).await;
        assert_eq!(result, Ok(Outcome::removed([1])));
    }
    // The next instance of the service knows it too.
    world.service.take().expect("it runs").kill().await;
    world.serve().await;
    let machine = world.machine("web").await;
    let failure = machine.set(2).await.unwrap_err();
    let text = ["web", "at most 3 vCPUs in its life", "has added 3"];
    failure.assert(error_name::NOT_SUPPORTED, &text);
    // A plan says the same.
    let plan = machine.plan(2, HashMap::new()).await.unwrap();
    let plan = dict(&plan);
    assert_eq!(plan["error"], error_name::NOT_SUPPORTED);
    assert_eq!(plan["reason"], failure.text);
    assert_eq!(plan["nearest"], json!([1]));
    assert_eq!(plan["reason-code"], "tcg-limit");
    // So does the same QEMU when it is registered again.
    let manager = world.manager().await;
    manager.unregister_machine("web").await.unwrap();
    manager.reload().await.unwrap();
    let machine = world.machine("web").await;
    assert_eq!(machine.set(2).await.unwrap_err().text, failure.text);
    assert_eq!(qemu.count("device_add"), 2);
}
