//! A guest agent that helps, or does not.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;
use vcpud::names::error_name;

use crate::harness::*;

mod agent;

use agent::Agent;

/// Scripted QEMU and guest agent, dbus-daemon.
#[tokio::test]
async fn new_vcpus_are_brought_online_as_soon_as_the_guest_knows_them() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(2, 6));
    let agent = Agent::start(&world, "web", &[(0, true), (1, true)]);
    let machine = world.machine("web").await;
    assert_eq!(machine.online().await, [(0, true), (1, true)]);

    let call = tokio::spawn({
        let machine = machine.clone();
        async move { machine.set_with(4, &WITH_GUEST).await }
    });
    peer.asked("device_add", 2).await;
    // The guest takes its time.
    machine.wait_for("Vcpus", 4u32).await;
    assert!(!call.is_finished());
    agent.cpus.lock().unwrap().extend([(2, false), (3, true)]);
    assert_eq!(call.await.unwrap(), Ok(Outcome::added([2, 3])));
    assert_eq!(agent.set(), [(2, true)]);
    assert_eq!(
        machine.online().await,
        [(0, true), (1, true), (2, true), (3, true)]
    );

    // Without the option it is left alone.
    agent.cpus.lock().unwrap().insert(4, false);
    assert_eq!(machine.set(5).await, Ok(Outcome::added([4])));
    assert_eq!(agent.set().len(), 1);
    // A second request brings the offline CPUs online, without a time limit.
    let mut options = WITH_GUEST.to_vec();
    options.push(("timeout-usec", u64::MAX.into()));
    assert_eq!(machine.set_with(5, &options).await, Ok(Outcome::default()));
    assert_eq!(agent.set().last(), Some(&(4, true)));
}

/// Scripted QEMU and guest agent, dbus-daemon.
#[tokio::test]
async fn vcpus_are_taken_offline_before_qemu_is_asked() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(3, 6));
    let agent = Agent::start(&world, "web", &[(0, true), (1, true), (2, true)]);
    let machine = world.machine("web").await;
    let (seen, set) = (Arc::new(Mutex::new(None)), agent.set.clone());
    peer.script({
        let seen = seen.clone();
        move |_, call| {
            if call.command == "device_del" {
                *seen.lock().unwrap() = Some(set.borrow().clone());
            }
            None
        }
    });
    assert_eq!(
        machine.set_with(2, &WITH_GUEST).await,
        Ok(Outcome::removed([2]))
    );
    assert_eq!(*seen.lock().unwrap(), Some(vec![(2, false)]));
}

/// Uses a fake QEMU and guest agent, and dbus-daemon.
#[tokio::test]
async fn no_cpu_is_taken_offline_that_may_be_another_vcpu() {
    let mut world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(1, 8));
    let agent = Agent::start(&world, "web", &[(0, true), (1, true)]);
    let machine = world.machine("web").await;
    let added = machine.set_these(&[5], true).await;
    assert_eq!(added, Ok(Outcome::added([5])));
    assert_eq!(machine.online().await, [(0, true), (5, true)]);

    // After a reset of the guest, CPU 1 is vCPU 3, and CPU 2 is vCPU 5.
    let added = machine.set_these(&[3], true).await;
    assert_eq!(added, Ok(Outcome::added([3])));
    agent.cpus.lock().unwrap().insert(2, true);
    peer.send(&event("RESET", json!({})));
    for is_restarted in [false, true] {
        if is_restarted {
            world.service.take().expect("it runs").kill().await;
            world.serve().await;
        }
        let failure = machine.set_these_with(&[3], false, &WITH_GUEST).await;
        let text = ["web", "other numbers for vCPU 3", "nothing was changed"];
        failure
            .unwrap_err()
            .assert(error_name::NOT_SUPPORTED, &text);
        assert_eq!((agent.set(), peer.count("device_del")), (vec![], 0));
        assert_eq!(machine.online().await, [(0, true)]);
    }

    let removed = machine.set_these(&[3], false).await;
    assert_eq!(removed, Ok(Outcome::removed([3])));
    agent.cpus.lock().unwrap().remove(&1);
    assert_eq!(
        machine.set_with(1, &WITH_GUEST).await,
        Ok(Outcome::removed([5]))
    );
    assert_eq!(agent.set()[0], (2, false));
}

/// Uses a fake QEMU and guest agent, and dbus-daemon.
#[tokio::test]
async fn a_cpu_that_the_guest_has_after_the_removal_comes_online_again() {
    let world = World::without_polkit().await;
    let (peer, agent, machine) = machine_with_a_cpu_offline(&world).await;
    peer.send(&deleted(&peer.model().unplug(2)));
    machine.wait_for("Vcpus", 2u32).await;
    agent.was_told(&[(2, false), (2, true)]).await;
}

/// Scripted QEMU and guest agent, dbus-daemon.
#[tokio::test]
async fn what_the_agent_refuses_is_put_back_and_qemu_is_not_asked() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(4, 6));
    let cpus = [(0, true), (1, true), (2, true), (3, true)];
    let agent = Agent::start(&world, "web", &cpus);
    let machine = world.machine("web").await;
    let failure = machine.set_with(2, &WITH_GUEST).await.unwrap_err();
    let text = ["web", "CPU 3 is dear to me", "nothing was changed"];
    failure.assert(error_name::GUEST_REFUSED, &text);
    assert_eq!(agent.set(), [(2, false), (3, false), (2, true)]);
    assert_eq!(peer.count("device_del"), 0);
}

/// Scripted QEMU and guest agent, dbus-daemon.
#[tokio::test]
async fn what_qemu_does_not_remove_is_brought_online_again() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(3, 6));
    let agent = Agent::start(&world, "web", &[(0, true), (1, true), (2, true)]);
    let machine = world.machine("web").await;
    peer.script(|_, call| (call.command == "device_del").then(|| vec![call.refusal("not today")]));
    let failure = machine.set_with(2, &WITH_GUEST).await.unwrap_err();
    failure.assert(error_name::QMP_FAILED, &["not today"]);
    assert_eq!(agent.set(), [(2, false), (2, true)]);
}

/// Scripted QEMU and guest agent, dbus-daemon.
#[tokio::test]
async fn without_an_agent_nothing_is_done() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(2, 6));
    let machine = world.machine("web").await;
    let failure = machine.set_with(3, &WITH_GUEST).await.unwrap_err();
    failure.assert(error_name::NOT_SUPPORTED, &["web", "no guest agent socket"]);

    // One that listens and says nothing.
    let _silent = UnixListener::bind(world.agent_socket("web")).unwrap();
    let mut options = WITH_GUEST.to_vec();
    options.push(("timeout-usec", 1000u64.into()));
    let failure = machine.set_with(3, &options).await.unwrap_err();
    failure.assert(error_name::GUEST_REFUSED, &["web", "does not answer"]);
    assert_eq!(peer.count("device_add"), 0);
    let rows = machine.rows().await;
    assert!(rows.iter().all(|row| !row.contains_key("online")));
    assert_eq!(machine.present().await, [0, 1]);
}

/// Scripted QEMU and guest agent, dbus-daemon.
#[tokio::test]
async fn a_guest_that_does_not_take_a_vcpu_is_told() {
    let world = World::without_polkit().await;
    let _peer = world.peer("web", Model::x86(1, 6));
    let _agent = Agent::start(&world, "web", &[(0, true)]);
    let machine = world.machine("web").await;
    let mut options = WITH_GUEST.to_vec();
    // The agent must answer the first time within the limit, on a busy machine too.
    options.push(("timeout-usec", 3_000_000u64.into()));
    let failure = machine.set_with(2, &options).await.unwrap_err();
    let text = [
        "web",
        "added: vCPU 1",
        "does not use all",
        "lists 1 of 2 CPUs",
    ];
    failure.assert(error_name::GUEST_REFUSED, &text);
    assert!(!failure.text.contains("answer"), "{}", failure.text);
    assert_eq!(machine.present().await, [0, 1]);
}

/// Uses a fake QEMU and guest agent, and dbus-daemon. The agent ends after its first answers.
#[tokio::test]
async fn an_agent_that_stops_answering_is_reported_as_such() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(1, 6));
    let agent = Agent::start(&world, "web", &[(0, true)]);
    let machine = world.machine("web").await;
    let mut options = WITH_GUEST.to_vec();
    options.push(("timeout-usec", 3_000_000u64.into()));
    let call = tokio::spawn({
        let machine = machine.clone();
        async move { machine.set_with(2, &options).await }
    });
    peer.asked("device_add", 1).await;
    machine.wait_for("Vcpus", 2u32).await;
    agent.stick(true);
    let failure = call.await.unwrap().unwrap_err();
    let text = ["web", "added: vCPU 1", "does not answer", "try again"];
    failure.assert(error_name::GUEST_REFUSED, &text);
}

/// Scripted QEMU, an agent's socket that answers nothing, dbus-daemon.
#[tokio::test]
async fn waiting_for_the_agent_ends_at_the_callers_own_limit() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(1, 4));
    let machine = world.machine("web").await;
    let listener = UnixListener::bind(world.agent_socket("web")).unwrap();
    let with_limit = |limit: Duration| {
        let limit = limit.as_micros() as u64;
        [
            ("guest-online", true.into()),
            ("timeout-usec", limit.into()),
        ]
    };
    let long = {
        let machine = machine.clone();
        let options = with_limit(Duration::from_secs(24 * 60 * 60));
        tokio::spawn(async move { machine.set_with(2, &options).await })
    };
    let (mut first, _) = within("the first conversation", listener.accept())
        .await
        .unwrap();
    let options = with_limit(Duration::from_millis(10));
    let failure = machine.set_with(2, &options).await.unwrap_err();
    failure.assert(error_name::GUEST_REFUSED, &["web", "does not answer"]);
    assert!(!long.is_finished());
    assert_eq!(peer.count("device_add"), 0);
    first.shutdown().await.unwrap();
    drop(listener);
    long.abort();
}

/// Uses a fake QEMU and guest agent, and dbus-daemon.
#[tokio::test]
async fn a_cpu_that_the_agent_reports_as_online_is_started() {
    let world = World::without_polkit().await;
    let mut model = Model::x86(2, 4);
    model.starts = Starts::None;
    let _peer = world.peer("web", model);
    let _agent = Agent::start(&world, "web", &[(0, true), (1, false)]);
    let machine = world.machine("web").await;
    let rows = machine.rows_with_online().await;
    let started = json!([rows[0]["started"], rows[1]["started"]]);
    assert_eq!(started, json!([true, false]));
    machine.wait_for("StartedVcpus", 1u32).await;
}

/// A machine of three vCPUs whose guest holds what it is asked for, and whose agent has taken CPU 2
/// offline for a removal that is pending.
async fn machine_with_a_cpu_offline(world: &World) -> (Peer, Agent, Machine) {
    let mut model = Model::x86(3, 6);
    model.removal = Removal::Held;
    let peer = world.peer("web", model);
    let agent = Agent::start(world, "web", &[(0, true), (1, true), (2, true)]);
    let machine = world.machine("web").await;
    let mut options = WITH_GUEST.to_vec();
    options.push(("async", true.into()));
    let outcome = machine.set_with(2, &options).await;
    assert_eq!(outcome, Ok(Outcome::pending([2])));
    assert_eq!(
        agent.set(),
        [(2, false)],
        "it stays offline while it is leaving"
    );
    (peer, agent, machine)
}

/// Uses a fake QEMU and guest agent, and dbus-daemon.
#[tokio::test]
async fn a_cpu_comes_online_again_when_the_guest_refuses_after_the_call() {
    let world = World::without_polkit().await;
    let (peer, agent, _machine) = machine_with_a_cpu_offline(&world).await;
    peer.send(&ost(2, None, 3, 130));
    agent.was_told(&[(2, false), (2, true)]).await;
}

/// Uses a fake QEMU and guest agent, and dbus-daemon.
#[tokio::test]
async fn a_cpu_comes_online_again_when_the_guest_refuses_after_a_restart() {
    let mut world = World::without_polkit().await;
    let (peer, agent, machine) = machine_with_a_cpu_offline(&world).await;
    world.service.take().expect("it runs").kill().await;
    world.serve().await;
    assert_eq!(machine.pending().await, [2]);
    assert_eq!(agent.set(), [(2, false)], "it is still leaving");
    peer.send(&ost(2, None, 3, 130));
    agent.was_told(&[(2, false), (2, true)]).await;
}

/// Uses a fake QEMU and guest agent, and dbus-daemon. The service is killed between the agent and QEMU.
#[tokio::test]
async fn a_cpu_comes_online_again_after_a_restart_that_lost_its_call() {
    let mut world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(3, 6));
    peer.script(|_, call| (call.command == "device_del").then(Vec::new));
    let agent = Agent::start(&world, "web", &[(0, true), (1, true), (2, true)]);
    let machine = world.machine("web").await;
    let call = tokio::spawn({
        let machine = machine.clone();
        async move { machine.set_with(2, &WITH_GUEST).await }
    });
    peer.asked("device_del", 1).await;
    world.service.take().expect("it runs").kill().await;
    let _ = call.await;
    peer.script(|_, _| None);
    world.serve().await;
    agent.was_told(&[(2, false), (2, true)]).await;
    assert_eq!(machine.present().await, [0, 1, 2]);
}

/// Uses a fake QEMU and guest agent, and dbus-daemon.
#[tokio::test]
async fn answers_to_earlier_conversations_are_discarded() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(3, 6));
    let agent = Agent::start(&world, "web", &[(0, true), (1, true), (2, true)]);
    let machine = world.machine("web").await;
    let mut options = WITH_GUEST.to_vec();
    options.push(("timeout-usec", 100_000u64.into()));
    agent.stick(true);
    for _ in 0..3 {
        let failure = machine.set_with(2, &options).await.unwrap_err();
        failure.assert(
            error_name::GUEST_REFUSED,
            &["does not answer", "nothing was changed"],
        );
    }
    let call = tokio::spawn({
        let machine = machine.clone();
        async move { machine.set_with(2, &WITH_GUEST).await }
    });
    agent.stick(false);
    assert_eq!(call.await.unwrap(), Ok(Outcome::removed([2])));
    assert_eq!(peer.count("device_del"), 1);
    let mut ids = agent.synchronizations.lock().unwrap().clone();
    assert!(ids.len() >= 4, "{ids:?}");
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count, "an id was used twice");
}

/// Uses a fake QEMU and guest agent, and dbus-daemon.
#[tokio::test]
async fn a_cpu_that_the_agent_takes_offline_too_late_comes_online_again() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(3, 6));
    let agent = Agent::start(&world, "web", &[(0, true), (1, true), (2, true)]);
    let machine = world.machine("web").await;
    agent.sticks_at_set.store(true, Relaxed);
    let mut options = WITH_GUEST.to_vec();
    options.push(("timeout-usec", 2_000_000u64.into()));
    let failure = machine.set_with(2, &options).await.unwrap_err();
    let text = ["no vCPU was removed", "CPU 2 of the guest may be offline"];
    failure.assert(error_name::GUEST_REFUSED, &text);
    assert_eq!(peer.count("device_del"), 0);
    agent.stick(false);
    agent.was_told(&[(2, false), (2, true)]).await;
}
