//! Guests that start their vCPUs at once, late or never.

use std::time::Duration;

use serde_json::json;
use vcpud::names::error_name;

use crate::harness::*;

const MOMENT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(600);

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn a_vcpu_that_the_guest_starts_is_reported_once() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(1, 4));
    let machine = world.machine("web").await;
    machine.wait_for("StartedVcpus", 1u32).await;
    let set = machine.set_until_started(3, LONG).await;
    assert_eq!(set, Ok(Outcome::added([1, 2])));
    // The signals come before the reply.
    let expected = [1, 2].map(|id| Vcpu::by_request("web", id, &format!("vcpu{id}")));
    assert_eq!(world.signals.all_started().await, expected);
    assert_eq!(machine.started_vcpus().await.unwrap(), 3);
    assert_eq!(machine.started().await, [(0, true), (1, true), (2, true)]);
    // Nothing is left to wait for.
    let set = machine.set_until_started(3, LONG).await;
    assert_eq!(set, Ok(Outcome::default()));
    let these = [("until", "started".into())];
    let set = machine.set_these_with(&[3], true, &these).await;
    assert_eq!(set, Ok(Outcome::added([3])));
    assert_eq!(world.signals.all_started().await.len(), 3);
    // QEMU wakes no vCPU that is started.
    let looks = peer.calls("query-stats");
    let last = &looks.last().unwrap().arguments["vcpus"];
    // The second path is that of a core of pseries.
    let path = "/machine/peripheral/vcpu3";
    assert_eq!(*last, json!([path, format!("{path}/thread[0]")]));
    let before = looks.len();
    for _ in 0..3 {
        machine.rows().await;
    }
    assert_eq!(peer.count("query-stats"), before);
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn a_vcpu_that_the_guest_does_not_start_is_an_error_and_stays() {
    let world = World::without_polkit().await;
    let mut model = Model::x86(1, 4);
    model.starts = Starts::None;
    let peer = world.peer("web", model);
    let machine = world.machine("web").await;
    let failure = machine.set_until_started(3, MOMENT).await.unwrap_err();
    let texts = [
        "did not start vCPUs 0-2 within 0.3 s",
        "added: vCPUs 1-2",
        "udev rule",
        "guest-online",
    ];
    failure.assert(error_name::GUEST_DID_NOT_START, &texts);
    assert_eq!(machine.vcpus().await.unwrap(), 3);
    assert_eq!(machine.started_vcpus().await.unwrap(), 0);
    assert_eq!(started_count(&machine).await, 0);
    assert_eq!(world.signals.all_started().await, []);
    let plan = machine.plan(4, Default::default()).await.unwrap();
    let warnings = Vec::<String>::try_from(plan["warnings"].clone()).unwrap();
    assert!(
        warnings[0].contains("has not started vCPUs 0-2"),
        "{warnings:?}"
    );
    let codes = Vec::<String>::try_from(plan["warning-codes"].clone());
    assert_eq!(codes.unwrap(), ["not-started"]);
    assert!(
        !machine
            .plan(2, Default::default())
            .await
            .unwrap()
            .contains_key("warnings")
    );

    // The guest starts them late.
    peer.model().starts = Starts::All;
    let read = async { while machine.started().await != [(0, true), (1, true), (2, true)] {} };
    within("the guest to start all vCPUs", read).await;
    let started = world.signals.started(2).await;
    assert_eq!(ids(&started), [1, 2]);
    assert_eq!(started_count(&machine).await, 3);
    assert!(
        !machine
            .plan(4, Default::default())
            .await
            .unwrap()
            .contains_key("warnings")
    );
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn a_caller_that_leaves_loses_no_vcpu_and_no_signal() {
    let world = World::without_polkit().await;
    let mut model = Model::x86(1, 4);
    model.starts = Starts::None;
    let peer = world.peer("web", model);
    let machine = world.machine("web").await;
    let arguments = [
        "set",
        "web",
        "3",
        "--until",
        "started",
        "--timeout",
        "10min",
    ];
    let (mut caller, _) = world.start_vcpuctl(&arguments);
    // The call waits for the guest.
    machine.wait_for("Vcpus", 3u32).await;
    peer.asked("query-stats", 3).await;
    caller.kill().await;
    assert_eq!(machine.vcpus().await.unwrap(), 3);
    peer.model().starts = Starts::All;
    machine.wait_for("StartedVcpus", 3u32).await;
    let started = world.signals.started(2).await;
    let expected = [1, 2].map(|id| Vcpu::by_request("web", id, &format!("vcpu{id}")));
    assert_eq!(started, expected);
    // Nothing waits any more.
    let looks = peer.count("query-stats");
    let set = machine.set_until_started(3, LONG).await;
    assert_eq!(set, Ok(Outcome::default()));
    assert_eq!(machine.set(1).await, Ok(Outcome::removed([1, 2])));
    assert_eq!(peer.count("query-stats"), looks);
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn a_start_is_reported_by_the_instance_that_finds_it() {
    let mut world = World::without_polkit().await;
    let mut model = Model::x86(1, 4);
    model.starts = Starts::None;
    let peer = world.peer("web", model);
    let machine = world.machine("web").await;
    machine.set(2).await.unwrap();
    // The look before the restart is what the next one is compared with.
    peer.asked("query-stats", 3).await;
    let mut service = world.service.take().expect("it runs");
    service.kill().await;
    peer.model().starts = Starts::All;
    world.serve().await;
    machine.wait_for("StartedVcpus", 2u32).await;
    let expected = Vcpu::by_request("web", 1, "vcpu1");
    assert_eq!(world.signals.started(1).await, [expected]);
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn a_confidential_guest_gets_no_vcpus() {
    let world = World::without_polkit().await;
    let peer = Peer::start_silent(&world.socket("web"), Model::x86(2, 4));
    peer.script(|_, call| {
        (call.command == "qom-get").then(|| vec![call.reply(json!("/objects/tdx0"))])
    });
    peer.accept();
    let machine = world.machine("web").await;
    machine.wait_for("State", "running").await;
    let failure = machine.set(3).await.unwrap_err();
    failure.assert(error_name::NOT_SUPPORTED, &["confidential", "QEMU exits"]);
    assert_eq!(peer.count("device_add"), 0);
    assert_eq!(machine.set(1).await, Ok(Outcome::removed([1])));
}

/// The key `started` of `GetStatistics`.
async fn started_count(machine: &Machine) -> u64 {
    let (counters, _) = machine.statistics(&[]).await.unwrap();
    counters["started"].as_u64().expect("a number")
}
