//! Machines come and go by the hundred, and nothing of them stays.

use std::fs;

use futures_util::future::join_all;

use crate::harness::*;

/// How many machines come and go, all in all; `VCPUD_SOAK` says otherwise.
const MACHINES: usize = 600;
/// How many of them are there at a time.
const AT_A_TIME: usize = 50;
/// Memory that the allocator may keep: the service grows with its busiest moment, not with time.
const SLACK_KB: u64 = 8 << 10;

/// The descriptors of the process, and its resident memory in kB.
fn usage(pid: u32) -> (usize, u64) {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let resident = resident.unwrap().trim().trim_end_matches(" kB");
    (descriptors, resident.parse().unwrap())
}

/// A machine's whole life: it appears, grows, shrinks, and goes.
async fn live(world: &World, name: &str) {
    let model = Model::x86(1, 4);
    let mark = world.signals.mark().await;
    let peer = world.peer(name, model);
    let machine = world.machine(name).await;
    // On a busy machine the peer may be slow.
    machine.wait_for("State", "running").await;
    assert_eq!(machine.set(4).await, Ok(Outcome::added([1, 2, 3])));
    machine.set_patiently(1).await.unwrap();
    drop(peer);
    fs::remove_file(world.socket(name)).unwrap();
    world.signals.removal_of(name, mark).await;
}

/// Scripted QEMUs, dbus-daemon.
#[tokio::test]
#[expect(clippy::print_stderr, reason = "the figures")]
async fn machines_that_went_leave_nothing_behind() {
    let world = World::without_polkit().await;
    let pid = world.service.as_ref().unwrap().pid();
    let wanted = std::env::var("VCPUD_SOAK")
        .ok()
        .and_then(|n| n.parse().ok());
    let rounds = wanted.unwrap_or(MACHINES) / AT_A_TIME;
    let mut after_warm_up = None;
    for round in 0..rounds {
        let names: Vec<String> = (0..AT_A_TIME).map(|n| format!("vm-{round}-{n}")).collect();
        join_all(names.iter().map(|name| live(&world, name))).await;
        let (descriptors_then, resident_then) = *after_warm_up.get_or_insert_with(|| usage(pid));
        // The service closes the last descriptors of a machine after it reports its end.
        let are_closed = || usage(pid).0 <= descriptors_then;
        until("the end of descriptors", are_closed).await;
        let (descriptors, resident) = usage(pid);
        if round % (rounds / 4).max(1) == 0 {
            eprintln!(
                "{} machines: {descriptors} descriptors, {resident} kB",
                (round + 1) * AT_A_TIME
            );
        }
        if round > 1 {
            assert!(
                resident < resident_then + SLACK_KB,
                "memory leaks: {resident} kB"
            );
        }
    }
    let records = world.bus.runtime_directory().join("machines");
    assert_eq!(fs::read_dir(records).unwrap().count(), 0);
    assert!(
        world
            .manager()
            .await
            .list_machines()
            .await
            .unwrap()
            .is_empty()
    );
}
