use super::super::effect::{Batch, Effect};
use super::super::event::{Cause, MachineEvent};
use super::super::input::{Exchanged, Input};
use super::super::request::{Command, Wait};
use super::super::saved_state::{SavedState, UnemittedChange};
use super::super::testing::{Driver, PROCESS, inventory, opened, state};
use super::super::tests::{batches, events, replies, saved};
use std::sync::Arc;

use super::*;
use crate::ids::Uid;
use crate::inventory::Target;
use crate::qmp::{Closed, Event};
use crate::text::Text;

const MS: Duration = Duration::from_millis(1);

/// Returns vCPU 3 of the request of a user, after it was added.
fn added(now: Instant) -> Starts {
    let mut starts = Starts::default();
    starts.added(now, [change(3)].into_iter());
    starts
}

fn change(vcpu: u32) -> VcpuChange {
    VcpuChange {
        id: VcpuId(vcpu),
        alias: format!("vcpu{vcpu}"),
        cause: Cause::Request,
        uid: Some(Uid(1000)),
    }
}

/// Returns whether a look that finds this shows that vCPU 3 is started.
fn shows(starts: &mut Starts, now: Instant, reading: Reading, is_running: bool) -> bool {
    let started = starts.note(now, &[(VcpuId(3), reading)].into(), is_running);
    started == [change(3)]
}

fn exits(exits: u64) -> Reading {
    Reading {
        exits: Some(exits),
        // It counts only without exits.
        cpu_time: Some(Duration::from_secs(exits)),
    }
}

fn cpu_time(cpu_time: Duration) -> Reading {
    Reading {
        exits: None,
        cpu_time: Some(cpu_time),
    }
}

#[test]
fn a_vcpu_that_exits_is_started() {
    let now = Instant::now();
    let mut starts = added(now);
    assert!(!shows(&mut starts, now, exits(0), true));
    assert!(!shows(&mut starts, now + MS, exits(0), true));
    assert!(shows(&mut starts, now + MS, exits(1), true));
    assert!(starts.awaited().is_empty());
    assert!(!shows(&mut starts, now + MS, exits(2), true), "once");
}

#[test]
fn the_exits_of_a_removed_vcpu_are_not_those_of_the_next_one() {
    let now = Instant::now();
    let mut starts = added(now);
    assert!(!shows(&mut starts, now, exits(700), true));
    assert!(!shows(&mut starts, now + MS, exits(700), true));
    assert!(shows(&mut starts, now + MS, exits(701), true));
}

#[test]
fn a_thread_that_runs_for_longer_than_qemu_wakes_it_shows_a_start() {
    let (now, created) = (Instant::now(), 7 * MS);
    let hour = Duration::from_secs(3600);
    let mut starts = added(now);
    assert!(!shows(&mut starts, now, cpu_time(created), true));
    let woken = cpu_time(created + 5 * MS);
    assert!(!shows(&mut starts, now + MS, woken, true));
    let woken = cpu_time(created + 300 * MS);
    assert!(!shows(&mut starts, now + hour, woken, true));
    let ran = cpu_time(created + 400 * MS);
    assert!(shows(&mut starts, now + hour, ran, true));
}

#[test]
fn a_guest_that_does_not_run_starts_nothing() {
    let now = Instant::now();
    let mut starts = added(now);
    assert!(!shows(&mut starts, now, cpu_time(MS), false));
    assert!(!shows(&mut starts, now + MS, cpu_time(100 * MS), false));
    assert!(!shows(&mut starts, now + MS, cpu_time(101 * MS), true));
    assert!(shows(&mut starts, now + 2 * MS, cpu_time(140 * MS), true));
}

#[test]
fn a_guest_that_does_not_run_is_looked_at_once() {
    let now = Instant::now();
    let mut starts = added(now);
    assert!(!shows(&mut starts, now, exits(7), false));
    assert_eq!(starts.look_due(), None);
    starts.watch(now);
    assert_eq!(starts.look_due(), Some(now + FIRST_PAUSE));
    assert!(shows(&mut starts, now, exits(8), true));
}

#[test]
fn other_additions_and_a_lost_connection_wake_threads() {
    let now = Instant::now();
    let mut starts = added(now);
    assert!(!shows(&mut starts, now, cpu_time(MS), true));
    starts.added(now, [change(4)].into_iter());
    assert!(!shows(&mut starts, now + MS, cpu_time(40 * MS), true));
    starts.discard_times();
    assert!(!shows(&mut starts, now + MS, cpu_time(80 * MS), true));
    assert!(shows(&mut starts, now + MS, cpu_time(90 * MS), true));
}

#[test]
fn a_thread_without_figures_shows_nothing() {
    let now = Instant::now();
    let mut starts = added(now);
    for _ in 0..2 {
        assert!(!shows(&mut starts, now, Reading::default(), true));
    }
    assert_eq!(starts.awaited(), [VcpuId(3)]);
}

#[test]
fn what_qemu_started_with_needs_one_look() {
    let own = crate::inventory::PresentSlot {
        id: crate::ids::SlotId(0),
        width: 1,
        acpi_slot: 0,
        qom_path: Text::lossy("/machine/unattached/device[0]"),
        threads: vec![],
    };
    let mut starts = Starts::default();
    starts.begin(&Inventory::from_saved(vec![own]));
    assert_eq!(starts.awaited(), [VcpuId(0)]);
    let readings = [(VcpuId(0), exits(1))].into();
    assert_eq!(starts.note(Instant::now(), &readings, true), []);
    assert!(starts.awaited().is_empty());
}

#[test]
fn looks_with_growing_pauses_for_a_minute() {
    let now = Instant::now();
    let mut starts = added(now);
    let mut looks = Vec::new();
    while let Some(due) = starts.look_due() {
        looks.push((due - now).as_millis());
        assert_eq!(starts.begin_look(due), [VcpuId(3)].into());
    }
    assert_eq!(looks[..4], [20, 60, 140, 300]);
    assert!(
        looks.len() <= 12 && looks.last() <= Some(&60_000),
        "{looks:?}"
    );
}

// From here on, the whole model.

/// Returns a machine whose vCPU 0 is started, and to which a user added vCPU 1. The guest is not looked at yet.
fn grown() -> Driver {
    let (mut driver, _) = Driver::connected(1, None);
    let effects = driver.set_vcpus(1, 2, Wait::No);
    driver.save(&effects);
    let effects = driver.answer(2);
    let effects = driver.save(&effects);
    assert!(matches!(replies(&effects)[..], [(1, Ok(_))]));
    driver.save(&effects);
    driver
}

/// Lets the next look find that vCPU 1 has these exits. Returns the effects after the state is saved.
fn look(driver: &mut Driver, count: u32, found: u64) -> Vec<Effect> {
    let mut at = state(count);
    at.readings = [(VcpuId(1), exits(found))].into();
    let effects = driver.input(Input::Exchanged(Box::new(Exchanged {
        refused: Vec::new(),
        ospm: Vec::new(),
        state: at,
    })));
    let mut rest = driver.save(&effects);
    let mut all = effects;
    all.append(&mut rest);
    all
}

/// Waits until a look begins.
fn pass_to_look(driver: &mut Driver) {
    let effects = driver.pass(20);
    let [Batch::Look(_, vcpus)] = batches(&effects)[..] else {
        panic!("{effects:?}");
    };
    assert_eq!(*vcpus, [VcpuId(1)].into());
}

fn awaited(vcpus: &[u32], seconds: u64) -> Command {
    let vcpus: BTreeSet<VcpuId> = vcpus.iter().copied().map(VcpuId).collect();
    let left = Duration::from_secs(seconds);
    Command::AwaitStart(AwaitStart {
        asked: Target::Count(2),
        added: vec![VcpuId(1)],
        vcpus,
        left,
        patience: left,
    })
}

fn started(effects: &[Effect]) -> Vec<&VcpuChange> {
    let events = events(effects).into_iter();
    let started = events.filter_map(|event| match event {
        MachineEvent::VcpuStarted(vcpu) => Some(vcpu),
        _ => None,
    });
    started.collect()
}

#[test]
fn a_start_is_saved_and_then_reported_once() {
    let mut driver = grown();
    assert_eq!(driver.model.snapshot().awaited, [VcpuId(1)]);
    pass_to_look(&mut driver);
    assert!(started(&look(&mut driver, 2, 0)).is_empty());
    driver.pass(40);
    let mut at = state(2);
    at.readings = [(VcpuId(1), exits(9))].into();
    let effects = driver.input(Input::Exchanged(Box::new(Exchanged {
        refused: Vec::new(),
        ospm: Vec::new(),
        state: at,
    })));
    assert!(events(&effects).is_empty(), "it is not saved");
    let file = saved(&effects);
    assert_eq!(file.unemitted_starts, [change(1)]);
    assert_eq!(file.awaited, Some(AwaitedVcpus::new()));
    let effects = driver.save(&effects);
    assert_eq!(started(&effects), [&change(1)]);
    assert_eq!(driver.model.snapshot().started_count(), 2);
    let mut flushes = effects.iter().filter_map(|effect| match effect {
        Effect::Flush(flush) => Some(*flush),
        _ => None,
    });
    let flush = flushes.next_back().unwrap();
    let effects = driver.input(Input::Flushed(flush));
    assert!(saved(&effects).unemitted_starts.is_empty());
}

#[test]
fn the_next_instance_reports_a_start_that_may_not_have_been_emitted() {
    let file = |changes: Vec<UnemittedChange>| SavedState {
        present: state(2).inventory.to_saved(),
        awaited: Some(AwaitedVcpus::new()),
        unemitted: changes,
        unemitted_starts: vec![change(1)],
        ..SavedState::new(PROCESS)
    };
    let reported = |file: SavedState, count| {
        let (mut driver, effects) = Driver::connected(count, Some(file));
        let effects = driver.save(&effects);
        started(&effects).len()
    };
    let (added, removed) = (UnemittedChange::Added, UnemittedChange::Removed);
    assert_eq!(reported(file(vec![]), 2), 1);
    let again = vec![removed(change(1)), added(change(1))];
    assert_eq!(reported(file(again), 2), 1);
    let gone = vec![added(change(1)), removed(change(1))];
    assert_eq!(reported(file(gone), 2), 0, "it was removed after that");
}

#[test]
fn the_next_instance_goes_on_waiting() {
    let mut driver = grown();
    pass_to_look(&mut driver);
    let effects = look(&mut driver, 2, 5);
    let file = saved(&effects).clone();
    assert_eq!(file.awaited.as_ref().unwrap()[&VcpuId(1)].exits, Some(5));
    let (mut driver, effects) = Driver::connected(2, Some(file));
    driver.save(&effects);
    pass_to_look(&mut driver);
    assert_eq!(started(&look(&mut driver, 2, 6)), [&change(1)]);
}

#[test]
fn the_file_of_the_previous_version_says_nothing_about_starts() {
    let file = SavedState {
        present: state(2).inventory.to_saved(),
        ..SavedState::new(PROCESS)
    };
    let (mut driver, _) = Driver::connected(2, Some(file));
    assert_eq!(driver.model.snapshot().awaited, [VcpuId(0), VcpuId(1)]);
    driver.pass(20);
    look(&mut driver, 2, 5);
    driver.pass(40);
    let effects = look(&mut driver, 2, 6);
    assert!(started(&effects).is_empty(), "it was never added");
    assert_eq!(driver.model.snapshot().awaited, [VcpuId(0)]);
}

#[test]
fn a_vcpu_that_is_removed_before_its_start_has_none() {
    let mut driver = grown();
    let effects = driver.input(Input::Command(RequestId(2), awaited(&[0, 1], 60)));
    assert!(replies(&effects).is_empty());
    pass_to_look(&mut driver);
    let effects = look(&mut driver, 1, 7);
    assert!(started(&effects).is_empty());
    let removed = |event: &&MachineEvent| matches!(event, MachineEvent::VcpuRemoved(_));
    assert_eq!(events(&effects).into_iter().filter(removed).count(), 1);
    // The request waits for no vCPU any more.
    assert!(matches!(replies(&effects)[..], [(2, Ok(_))]));
    assert!(driver.model.snapshot().awaited.is_empty());
}

#[test]
fn a_request_is_answered_after_the_start_is_reported() {
    let mut driver = grown();
    driver.input(Input::Command(RequestId(2), awaited(&[0, 1], 60)));
    pass_to_look(&mut driver);
    look(&mut driver, 2, 0);
    driver.pass(40);
    let effects = look(&mut driver, 2, 1);
    let event = effects
        .iter()
        .position(|e| matches!(e, Effect::Emit(MachineEvent::VcpuStarted(_))));
    let reply = effects
        .iter()
        .position(|e| matches!(e, Effect::Reply(RequestId(2), Ok(_))));
    assert!(event.is_some() && event < reply, "{effects:?}");
    // All are started, so the next request does not wait.
    let effects = driver.input(Input::Command(RequestId(3), awaited(&[0, 1], 60)));
    assert!(matches!(replies(&effects)[..], [(3, Ok(_))]));
}

#[test]
fn a_request_learns_in_time_that_the_guest_did_not_start_a_vcpu() {
    let mut driver = grown();
    driver.input(Input::Command(RequestId(2), awaited(&[0, 1], 5)));
    pass_to_look(&mut driver);
    look(&mut driver, 2, 0);
    assert!(replies(&driver.pass(4_979)).is_empty());
    let effects = driver.pass(1);
    let [(2, Err(error))] = replies(&effects)[..] else {
        panic!("{effects:?}");
    };
    let expected = Error::DidNotStart {
        asked: Target::Count(2),
        added: vec![VcpuId(1)],
        vcpus: vec![VcpuId(1)],
        waited: Duration::from_secs(5),
        stopped: None,
    };
    assert_eq!(*error, expected);
    let text = error.to_string();
    assert!(
        text.contains("did not start vCPU 1 within 5 s") && text.contains("added: vCPU 1"),
        "{text}"
    );
    let mut paused = expected;
    if let Error::DidNotStart { stopped, .. } = &mut paused {
        *stopped = Some(Text::lossy("paused"));
    }
    let text = paused.to_string();
    assert!(
        text.contains("\"paused\"; continue the VM; ") && !text.contains("udev"),
        "{text}"
    );
    // The guest starts it later.
    driver.pass(60_000);
    look(&mut driver, 2, 0);
    driver.pass(100);
    driver.input(Input::Command(RequestId(3), Command::Refresh));
    assert_eq!(started(&look(&mut driver, 2, 1)).len(), 1);
}

#[test]
fn looks_each_second_while_a_request_waits() {
    let mut driver = grown();
    driver.input(Input::Command(RequestId(2), awaited(&[1], 90)));
    let mut looks = 0;
    for _ in 0..4_400 {
        let effects = driver.pass(20);
        if !batches(&effects).is_empty() {
            looks += 1;
            look(&mut driver, 2, 0);
        }
    }
    assert!((85..110).contains(&looks), "{looks} looks");
}

#[test]
fn a_request_waits_across_connections_and_not_longer_than_the_process() {
    let mut driver = grown();
    driver.input(Input::Command(RequestId(2), awaited(&[1], 60)));
    let effects = driver.input(Input::Disconnected(Closed::Hangup));
    assert!(replies(&effects).is_empty());
    driver.pass(250);
    driver.pass(10);
    driver.input(Input::Reached(PROCESS));
    driver.input(opened(2));
    driver.pass(20);
    look(&mut driver, 2, 0);
    driver.pass(40);
    let effects = look(&mut driver, 2, 1);
    assert!(matches!(replies(&effects)[..], [(2, Ok(_))]));

    let mut driver = grown();
    driver.input(Input::Command(RequestId(2), awaited(&[1], 60)));
    let effects = driver.input(Input::ProcessExited);
    assert!(matches!(replies(&effects)[..], [(2, Err(Error::Gone))]));
}

#[test]
fn a_reset_is_followed_by_looks_and_a_started_vcpu_stays_started() {
    let mut driver = grown();
    driver.pass(20);
    look(&mut driver, 2, 0);
    for _ in 0..3 {
        driver.pass(60_000);
        look(&mut driver, 2, 0);
    }
    assert!(batches(&driver.pass(600_000)).is_empty());
    let effects = driver.input(Input::Event(Event::Reset));
    assert!(matches!(batches(&effects)[..], [Batch::Refresh(vcpus)] if vcpus.is_empty()));
    driver.answer(2);
    pass_to_look(&mut driver);
    assert_eq!(started(&look(&mut driver, 2, 1)), [&change(1)]);

    driver.pass(100);
    driver.input(Input::Event(Event::Reset));
    driver.answer(2);
    assert!(driver.model.snapshot().awaited.is_empty());
    assert!(batches(&driver.pass(20)).is_empty());
}

#[test]
fn a_look_does_not_take_the_place_of_a_refresh() {
    let mut driver = grown();
    driver.pass(15);
    let effects = driver.input(Input::Event(Event::RunState));
    assert!(matches!(batches(&effects)[..], [Batch::Refresh(vcpus)] if vcpus.is_empty()));
    driver.answer(2);
    driver.pass(1);
    // The refresh after this event is due 10 ms after the last one, and the look before that.
    driver.input(Input::Event(Event::RunState));
    assert!(batches(&driver.pass(8)).is_empty());
    let effects = driver.pass(1);
    let [Batch::Refresh(vcpus)] = batches(&effects)[..] else {
        panic!("{effects:?}");
    };
    assert_eq!(*vcpus, [VcpuId(1)].into(), "the look is due too");
}

#[test]
fn a_reader_after_an_addition_gets_a_look() {
    let mut driver = grown();
    let read = |driver: &mut Driver, id| {
        let effects = driver.input(Input::Command(RequestId(id), Command::Refresh));
        batches(&effects).len()
    };
    assert_eq!(read(&mut driver, 2), 1, "QEMU was queried without a look");
    look(&mut driver, 2, 0);
    assert_eq!(read(&mut driver, 3), 0, "a moment ago");
}

#[test]
fn the_guest_agent_starts_what_it_reports_as_online() {
    let mut driver = grown();
    let online = |inventory, vcpu| {
        let command = Command::GuestOnline(Arc::new(inventory), vec![VcpuId(vcpu)]);
        Input::Command(RequestId(2), command)
    };
    // Another CPU was in the slot when the agent reported it.
    let other = inventory(4, &[(0, 10), (1, 99)]);
    let effects = driver.input(online(other, 1));
    assert!(matches!(replies(&effects)[..], [(2, Ok(_))]));
    driver.pass(10);
    assert_eq!(driver.model.snapshot().awaited, [VcpuId(1)]);

    let same = inventory(4, &[(0, 10), (1, 11)]);
    let mut effects = driver.input(online(same, 1));
    effects.extend(driver.pass(10));
    assert!(!batches(&effects).is_empty());
    let effects = driver.answer(2);
    assert_eq!(started(&driver.save(&effects)), [&change(1)]);
}

#[test]
fn vcpus_are_not_added_to_a_confidential_guest() {
    let mut snapshot = Snapshot {
        inventory: Arc::new(inventory(4, &[(0, 10), (1, 11)])),
        is_confidential: true,
        ..Snapshot::default()
    };
    let plan = |snapshot: &Snapshot, count| snapshot.plan(&Target::Count(count));
    assert!(matches!(
        plan(&snapshot, 3),
        Err(Error::Confidential { .. })
    ));
    assert_eq!(snapshot.nearest(3), [2]);
    assert!(plan(&snapshot, 1).is_ok());
    snapshot.is_confidential = false;
    assert!(plan(&snapshot, 3).is_ok());
}
