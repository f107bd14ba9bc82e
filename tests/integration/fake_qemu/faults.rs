//! One conversation, broken at each of its messages, in each of the ways in which it can break.

use std::time::Duration;

use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use vcpud::names::error_name;

use crate::harness::*;

/// The errors that a call may return if QEMU breaks during the call.
const HONEST: [&str; 5] = [
    error_name::DISCONNECTED,
    error_name::GUEST_REFUSED,
    error_name::QMP_FAILED,
    error_name::QMP_TIMEOUT,
    error_name::REMOVAL_PENDING,
];

/// So many faults at a time keep a machine busy.
const AT_A_TIME: usize = 4;

/// How often a caller tries: one fault spoils one call, and where it was the guest's refusal of a
/// removal that is lost, QEMU gets no second request for five seconds.
const TRIES: usize = 20;

/// Calls until it works.
async fn insist(machine: &Machine, count: u32) {
    let patience = Duration::from_secs(1).as_micros() as u64;
    for _ in 0..TRIES {
        machine.wait_for("State", "running").await;
        let options = [("timeout-usec", patience.into())];
        match machine.set_with(count, &options).await {
            Ok(_) => return,
            Err(failure) => assert!(HONEST.contains(&failure.name.as_str()), "{failure:?}"),
        }
    }
    panic!("{} has not come to {count} vCPUs", machine.path());
}

/// A machine's story with `fault` in it: it grows, shrinks, grows, and shrinks after the guest has
/// refused to. Returns its QEMU.
async fn live(world: &World, name: &str, fault: Option<(usize, Fault)>) -> Peer {
    let peer = Peer::start_faulty(&world.socket(name), Model::x86(1, 3), fault);
    let mut refuses = false;
    let mut shrinks = 0;
    peer.script(move |model, call| {
        if call.command != "device_del" {
            return None;
        }
        shrinks += 1;
        if shrinks == 3 {
            refuses = true;
        }
        let n = model.at(call.arguments["id"].as_str()?)?;
        if !std::mem::take(&mut refuses) {
            return None;
        }
        Some(vec![
            call.reply(serde_json::json!({})),
            ost(n, None, 3, 130),
        ])
    });
    let machine = world.machine(name).await;
    for count in [3, 1, 2, 1] {
        insist(&machine, count).await;
    }
    machine.wait_for("State", "running").await;
    machine.wait_for("Vcpus", 1u32).await;
    assert_eq!(machine.present().await, [0]);
    assert_eq!(machine.pending().await, [0; 0]);
    assert_eq!(peer.model().superfluous(), [""; 0], "{name}");
    peer
}

/// Whether each of the vCPUs came and went in turn, as `told` has it.
fn assert_true(name: &str, told: &[Signal]) {
    for vcpu in 0..3 {
        let is_it = |other: &Vcpu| other.machine == name && other.id == vcpu;
        let story = told.iter().filter_map(|signal| match signal {
            Signal::Added(vcpu) if is_it(vcpu) => Some(true),
            Signal::Removed(vcpu) if is_it(vcpu) => Some(false),
            _ => None,
        });
        let story: Vec<bool> = story.collect();
        let expected: &[bool] = match vcpu {
            0 => &[],
            1 => &[true, false, true, false],
            _ => &[true, false],
        };
        assert_eq!(story, expected, "vCPU {vcpu} of {name}");
    }
}

/// The stories of as many machines as there are messages, each with `fault` at another, with a
/// machine beside them that is well.
async fn break_everywhere(fault: Fault) {
    let mut world = World::without_service().await;
    if matches!(fault, Fault::Lost | Fault::Silence) {
        // Only a time limit reveals these; a busy machine must not look like one of them.
        world.configure("vcpud.toml", "[defaults]\nqmp-timeout = \"4s\"\n");
    }
    world.serve().await;
    let well = live(&world, "well", None).await;
    let messages = well.sent();
    assert!(messages > 30, "{messages}");

    let mark = world.signals.mark().await;
    let names: Vec<String> = (0..messages).map(|at| format!("{fault:?}{at}")).collect();
    let stories = names.iter().enumerate();
    let stories = stories.map(|(at, name)| live(&world, name, Some((at, fault))));
    // The end of a peer would be another line.
    let _peers = join_all(stories).await;
    let told = world.signals.since(mark).await;
    let log = world.service.as_ref().expect("it runs").log();
    for name in &names {
        assert_true(name, &told);
        let machine = format!(" vm_name={name} ");
        let complaints = log.lines().filter(|line| {
            let is_one = line.contains(" disconnected ") || line.contains(" cannot connect ");
            is_one && line.contains(&machine)
        });
        assert!(complaints.count() <= 1, "one fault of {name} is one line");
    }
    assert_eq!(well.clients(), 1, "the neighbour's connection broke");
}

/// Scripted QEMUs, dbus-daemons.
#[tokio::test]
async fn whatever_breaks_at_whatever_message_the_story_ends_well_and_is_told_right() {
    let all = stream::iter(Fault::ALL.map(break_everywhere));
    all.buffer_unordered(AT_A_TIME).collect::<()>().await;
}
