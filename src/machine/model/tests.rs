//! The promises of the model, each in a few inputs.

use std::time::Duration;

use super::effect::{Batch, Effect};
use super::error::Error;
use super::event::{Cause, MachineEvent, VcpuChange};
use super::input::{Exchanged, Input, SaveError, UnitFound};
use super::request::{Answer, Command, OfflineCpu, Outcome, RequestId, Wait};
use super::saved_state::{SavedState, UnemittedChange};
use super::starts::AwaitedVcpus;
use super::testing::{Driver, PROCESS, numbering, opened, state};
use crate::ids::{SlotId, Tid, Uid, VcpuId};
use crate::machine::spec::{ConnectError, Lifetime};
use crate::placement::{
    self, ChangedThread, ChangedThreads, Kind, Report, Retry, Scheduler, UnitPlacement,
};
use crate::process::SocketError;
use crate::qmp::{AcpiOst, Closed, CommandError, Event};
use crate::text::Text;

/// Returns the batches that QEMU gets.
pub(super) fn batches(effects: &[Effect]) -> Vec<&Batch> {
    let batches = effects.iter().filter_map(|effect| match effect {
        Effect::Exchange(batch) => Some(batch),
        _ => None,
    });
    batches.collect()
}

/// Returns the answers.
pub(super) fn replies(effects: &[Effect]) -> Vec<(u64, &Answer)> {
    let replies = effects.iter().filter_map(|effect| match effect {
        Effect::Reply(RequestId(id), answer) => Some((*id, answer)),
        _ => None,
    });
    replies.collect()
}

pub(super) fn events(effects: &[Effect]) -> Vec<&MachineEvent> {
    let events = effects.iter().filter_map(|effect| match effect {
        Effect::Emit(event) => Some(event),
        _ => None,
    });
    events.collect()
}

fn seconds(seconds: u64) -> Wait {
    Wait::UpTo(Some(Duration::from_secs(seconds)))
}

/// The state of a previous instance that reported `count` vCPUs.
fn saved_state(count: u32) -> SavedState {
    SavedState {
        present: state(count).inventory.to_saved(),
        awaited: Some(AwaitedVcpus::new()),
        ..SavedState::new(PROCESS)
    }
}

#[test]
fn does_not_ask_qemu_before_the_request_is_saved() {
    let (mut driver, _) = Driver::connected(1, None);
    let effects = driver.set_vcpus(1, 2, Wait::No);
    assert!(batches(&effects).is_empty());
    let effects = driver.save(&effects);
    assert!(matches!(batches(&effects)[..], [Batch::Add(..)]));
}

#[test]
fn does_not_ask_qemu_if_the_request_cannot_be_saved() {
    let (mut driver, _) = Driver::connected(2, None);
    let effects = driver.set_vcpus(1, 1, Wait::No);
    let [Effect::Save(id, _)] = effects[..] else {
        panic!("{effects:?}");
    };
    let error = SaveError::Io("the disk is full".into());
    let effects = driver.input(Input::Saved(id, Err(error)));
    assert!(batches(&effects).is_empty());
    assert!(matches!(
        replies(&effects)[..],
        [(1, Err(Error::NotSaved(_)))]
    ));
}

#[test]
fn a_removal_is_saved_as_pending_before_its_caller_knows() {
    let (mut driver, _) = Driver::connected(2, None);
    let effects = driver.set_vcpus(1, 1, Wait::No);
    driver.save(&effects);
    let effects = driver.answer(2);
    assert_eq!(replies(&effects), []);
    assert!(saved(&effects).removals[0].agreed);
    let effects = driver.save(&effects);
    let pending = Outcome {
        pending: vec![VcpuId(1)],
        ..Outcome::default()
    };
    assert_eq!(replies(&effects), [(1, &Ok(pending))]);
}

#[test]
fn answers_a_removal_at_its_limit_while_qemu_stalls() {
    let (mut driver, _) = Driver::connected(2, None);
    let effects = driver.set_vcpus(1, 1, seconds(3));
    driver.save(&effects);
    assert!(replies(&driver.pass(2_999)).is_empty());
    let effects = driver.pass(1);
    let [(1, Err(Error::RemovalPending { report, .. }))] = replies(&effects)[..] else {
        panic!("{effects:?}");
    };
    assert_eq!(report.pending, [VcpuId(1)]);
}

#[test]
fn answers_a_queued_request_at_its_limit() {
    let (mut driver, _) = Driver::connected(1, None);
    driver.set_vcpus(1, 2, Wait::No);
    driver.set_vcpus(2, 3, seconds(0));
    assert!(replies(&driver.pass(999)).is_empty());
    let effects = driver.pass(1);
    assert!(matches!(
        replies(&effects)[..],
        [(2, Err(Error::NotStarted { .. }))]
    ));
}

#[test]
fn a_second_request_is_served_after_the_first() {
    let (mut driver, _) = Driver::connected(1, None);
    let effects = driver.set_vcpus(1, 2, Wait::No);
    assert!(driver.set_vcpus(2, 3, Wait::No).is_empty());
    driver.save(&effects);
    let effects = driver.answer(2);
    let effects = driver.save(&effects);
    assert!(matches!(replies(&effects)[..], [(1, Ok(_))]));
    assert!(matches!(
        batches(&driver.save(&effects))[..],
        [Batch::Add(..)]
    ));
}

#[test]
fn a_reply_follows_its_events() {
    let (mut driver, _) = Driver::connected(1, None);
    let effects = driver.set_vcpus(1, 2, Wait::No);
    driver.save(&effects);
    let effects = driver.answer(2);
    assert!(events(&effects).is_empty(), "they are not saved");
    let effects = driver.save(&effects);
    let is_event = |e: &Effect| matches!(e, Effect::Emit(MachineEvent::VcpuAdded(_)));
    let event = effects.iter().position(is_event);
    let reply = effects.iter().position(|e| matches!(e, Effect::Reply(..)));
    assert!(event.is_some() && event < reply, "{effects:?}");
}

#[test]
fn an_event_during_an_exchange_needs_another_refresh() {
    let (mut driver, _) = Driver::connected(1, None);
    driver.pass(20);
    let effects = driver.input(Input::Event(Event::Reset));
    assert!(matches!(batches(&effects)[..], [Batch::Refresh(_)]));
    assert!(batches(&driver.input(Input::Event(Event::Reset))).is_empty());
    assert!(batches(&driver.answer(1)).is_empty());
    assert!(matches!(batches(&driver.pass(10))[..], [Batch::Refresh(_)]));
}

#[test]
fn an_addition_is_answered_at_its_limit_and_its_events_follow() {
    let (mut driver, _) = Driver::connected(1, None);
    let effects = driver.set_vcpus(1, 3, seconds(2));
    let asked = driver.save(&effects);
    assert!(matches!(batches(&asked)[..], [Batch::Add(..)]));
    assert!(replies(&driver.pass(1_999)).is_empty());
    let effects = driver.pass(1);
    assert!(matches!(
        replies(&effects)[..],
        [(1, Err(Error::AdditionPending { vcpus, .. }))] if *vcpus == [VcpuId(1), VcpuId(2)]
    ));
    let effects = driver.answer(3);
    let effects = driver.save(&effects);
    let added = |event: &&MachineEvent| matches!(event, MachineEvent::VcpuAdded(vcpu) if vcpu.uid == Some(Uid(1000)));
    assert_eq!(events(&effects).into_iter().filter(added).count(), 2);
    assert!(replies(&effects).is_empty());

    // QEMU is not asked if the state is saved too late.
    let effects = driver.set_vcpus(2, 4, seconds(2));
    let late = driver.pass(2_000);
    assert!(matches!(
        replies(&late)[..],
        [(2, Err(Error::NotStarted { .. }))]
    ));
    let effects = driver.save(&effects);
    let is_addition = |batch: &&Batch| matches!(batch, Batch::Add(..));
    assert!(!batches(&effects).iter().any(is_addition) && replies(&effects).is_empty());
}

#[test]
fn emits_events_of_the_previous_instance_first() {
    let added = VcpuChange {
        id: VcpuId(1),
        alias: "vcpu1".into(),
        cause: Cause::Request,
        uid: Some(Uid(7)),
    };
    let saved_state = SavedState {
        unemitted: vec![UnemittedChange::Added(added.clone())],
        ..saved_state(2)
    };
    let (mut driver, effects) = Driver::connected(3, Some(saved_state));
    let effects = driver.save(&effects);
    let events = events(&effects);
    assert_eq!(
        events[..2],
        [
            &MachineEvent::Appeared { is_known: true },
            &MachineEvent::VcpuAdded(added)
        ]
    );
    assert!(matches!(events[2], MachineEvent::VcpuAdded(vcpu) if vcpu.id == 2));
}

#[test]
fn the_first_vcpus_are_saved_before_they_are_reported() {
    let mut driver = Driver::loaded(None);
    driver.input(Input::UnitFound(UnitFound::default()));
    let effects = driver.input(opened(2));
    assert!(events(&effects).is_empty());
    assert_eq!(saved(&effects).present, state(2).inventory.to_saved());
    assert_eq!(
        events(&driver.save(&effects)),
        [&MachineEvent::Appeared { is_known: false }]
    );
}

#[test]
fn reports_no_vcpu_that_was_never_reported() {
    let (_, effects) = Driver::connected(2, Some(SavedState::new(PROCESS)));
    assert_eq!(
        events(&effects),
        [&MachineEvent::Appeared { is_known: false }]
    );
}

#[test]
fn hot_added_vcpus_keep_their_guest_numbers_after_an_upgrade() {
    let equal_after = |saved: SavedState| {
        let (driver, _) = Driver::connected(3, Some(saved));
        let snapshot = driver.model.snapshot();
        let vcpus = snapshot.inventory.present();
        let vcpus = vcpus.flat_map(|(slot, _)| slot.vcpus());
        assert!(vcpus.eq((0..3).map(VcpuId)), "these never change");
        snapshot.numbering.equal()
    };
    let saved = SavedState {
        numbering: Some(numbering(3)),
        ..saved_state(3)
    };
    let mut file = serde_json::to_value(saved).unwrap();
    let members = file.as_object_mut().unwrap();
    // The later versions added the others.
    members.retain(|name, _| ["version", "leader", "present", "numbering"].contains(&&**name));
    assert_eq!(equal_after(serde_json::from_value(file).unwrap()), 3);
    // Before that, the history is not known, and none of these was present at the start of QEMU.
    assert_eq!(equal_after(saved_state(3)), 0);
}

#[test]
fn restores_offline_guest_cpus_after_a_restart() {
    let cpu = OfflineCpu {
        vcpu: VcpuId(1),
        cpu: 5,
    };
    let saved_state = SavedState {
        offline: vec![cpu],
        ..saved_state(2)
    };
    let (_, effects) = Driver::connected(2, Some(saved_state));
    let is_restored = |e: &Effect| matches!(e, Effect::RestoreGuest(cpus) if cpus[..] == [5]);
    assert!(effects.iter().any(is_restored), "{effects:?}");
}

#[test]
fn the_end_of_a_guest_assist_is_answered_without_a_process() {
    let (mut driver, _) = Driver::connected(2, None);
    driver.input(Input::ProcessExited);
    let released = Command::GuestReleased {
        cpus: vec![5],
        restored: false,
    };
    let effects = driver.input(Input::Command(RequestId(1), released));
    assert!(matches!(replies(&effects)[..], [(1, Ok(_))]));
}

#[test]
fn searches_the_unit_again() {
    let mut driver = Driver::new(Lifetime::Endpoint);
    let is_search = |e: &Effect| matches!(e, Effect::FindUnit(_));
    driver.input(Input::Reached(PROCESS));
    let loaded = driver.input(Input::Loaded(Ok(None)));
    assert!(!loaded.iter().any(is_search), "QEMU may be refused");
    assert!(driver.input(opened(2)).iter().any(is_search));
    let found = |retry| {
        Input::UnitFound(UnitFound {
            retry,
            ..UnitFound::default()
        })
    };
    driver.input(found(Retry::Later));
    assert!(!driver.pass(999).iter().any(is_search));
    assert!(driver.pass(1).iter().any(is_search));

    let effects = driver.input(found(Retry::WhenPresent));
    assert!(effects.iter().any(|e| matches!(e, Effect::AwaitUnits)));
    assert!(!driver.pass(3_600_000).iter().any(is_search));
    let effects = driver.input(Input::UnitsAppeared);
    assert!(effects.iter().any(is_search));
}

#[test]
fn serves_a_machine_whose_unit_systemd_does_not_know_yet() {
    for is_late in [false, true] {
        let mut driver = Driver::loaded(None);
        let first = if is_late { 2_000 } else { 0 };
        let shown = driver.pass(first);
        assert_eq!(events(&shown).is_empty(), !is_late, "QEMU has not answered");
        driver.input(opened(1));
        assert!(events(&driver.pass(1_999)).is_empty());
        let effects = driver.pass(1);
        let is_placed = |e: &Effect| matches!(e, Effect::Place(..));
        assert!(effects.iter().any(is_placed), "without control groups");
        driver.save(&effects);
        driver.input(Input::Placed(Report::default()));
        let snapshot = driver.model.snapshot();
        assert_eq!(snapshot.state(), "running");
        assert_eq!(snapshot.unit, None);
        let errors = ["no control groups: systemd has not answered yet"];
        assert_eq!(snapshot.placement_errors, errors);

        let effects = driver.set_vcpus(1, 2, Wait::No);
        let effects = driver.save(&effects);
        assert!(matches!(batches(&effects)[..], [Batch::Add(..)]));
    }
}

#[test]
fn a_unit_that_is_found_late_is_published_after_its_pass() {
    let mut driver = Driver::loaded(None);
    driver.input(opened(1));
    let effects = driver.pass(2_000);
    driver.save(&effects);
    driver.input(Input::Placed(Report::default()));
    // systemd answers while the result of an addition is saved, and is then published.
    let effects = driver.set_vcpus(1, 2, Wait::No);
    driver.save(&effects);
    let saving = driver.answer(2);
    let unit = UnitPlacement {
        kind: Kind::Scope,
        unit: "vcpud-web.scope".to_owned(),
        control_group: "/vcpud-web.scope".to_owned(),
    };
    driver.input(Input::UnitFound(UnitFound {
        unit: Some(unit.clone()),
        ..UnitFound::default()
    }));
    let effects = driver.save(&saving);
    assert!(matches!(replies(&effects)[..], [(1, Ok(_))]));
    assert_eq!(driver.model.snapshot().unit, None);
    assert!(!driver.model.snapshot().placement_errors.is_empty());
    driver.pass(0);
    driver.answer(2);
    assert_eq!(driver.model.snapshot().unit, None);
    driver.input(Input::Placed(Report::default()));
    assert_eq!(driver.model.snapshot().unit, Some(unit));
}

#[test]
fn the_placer_gets_the_changed_threads_of_a_previous_instance() {
    let changed = |vcpu, thread| -> ChangedThreads {
        let changed = ChangedThread {
            thread: Tid(thread),
            scheduler: Some(Scheduler::Other),
            affinity: false,
        };
        [(VcpuId(vcpu), changed)].into()
    };
    let saved_state = SavedState {
        changed: changed(1, 11),
        ..saved_state(2)
    };
    let mut driver = Driver::loaded(Some(saved_state));
    driver.input(Input::UnitFound(UnitFound {
        unit: Some(UnitPlacement::without_groups(String::new())),
        ..UnitFound::default()
    }));
    let effects = driver.input(opened(2));
    let gets = |e: &Effect| matches!(e, Effect::Place(_, _, got) if *got == changed(1, 11));
    assert!(effects.iter().any(gets), "{effects:?}");

    let outcome = placement::Outcome {
        changed: changed(0, 10).remove(&VcpuId(0)),
        ..placement::Outcome::default()
    };
    let report = Report {
        vcpus: [(VcpuId(0), Box::new(outcome))].into(),
        ..Report::default()
    };
    let effects = driver.input(Input::Placed(report));
    let saves = |e: &Effect| matches!(e, Effect::Save(_, saved) if saved.changed == changed(0, 10));
    assert!(effects.iter().any(saves), "{effects:?}");
}

#[test]
fn the_state_is_saved_while_threads_are_placed_and_both_end_before_the_report() {
    for is_saved_first in [false, true] {
        let mut driver = Driver::loaded(None);
        driver.input(Input::UnitFound(UnitFound {
            unit: Some(UnitPlacement::without_groups(String::new())),
            ..UnitFound::default()
        }));
        let begun = driver.input(opened(2));
        assert!(begun.iter().any(|e| matches!(e, Effect::Place(..))));
        assert_eq!(saved(&begun).present.len(), 2);
        let placed = Input::Placed(Report::default());
        let last = if is_saved_first {
            assert!(events(&driver.save(&begun)).is_empty());
            driver.input(placed)
        } else {
            assert!(events(&driver.input(placed)).is_empty());
            driver.save(&begun)
        };
        assert_eq!(events(&last).len(), 1, "{last:?}");
    }
}

#[test]
fn a_registration_must_answer_at_the_first_attempt() {
    let mut driver = Driver::new(Lifetime::Registered);
    let refused = ConnectError::Connect(SocketError::Refused);
    let effects = driver.input(Input::ConnectFailed(refused));
    assert!(driver.model.is_gone() && events(&effects).is_empty());
    assert!(effects.iter().any(|e| matches!(e, Effect::Ready(Err(_)))));
}

#[test]
fn a_process_exit_answers_all_callers() {
    let (mut driver, _) = Driver::connected(2, None);
    let effects = driver.set_vcpus(1, 1, seconds(60));
    driver.save(&effects);
    driver.answer(2);
    let offline = Command::GuestOffline(Vec::new());
    driver.input(Input::Command(RequestId(2), offline));
    driver.set_vcpus(3, 3, Wait::No);
    driver.set_vcpus(4, 4, Wait::No);
    let effects = driver.input(Input::ProcessExited);
    let gone = replies(&effects);
    assert_eq!(gone.len(), 4);
    assert!(gone.iter().all(|(_, answer)| **answer == Err(Error::Gone)));
    assert_eq!(events(&effects).last(), Some(&&MachineEvent::Vanished));
}

#[test]
fn a_lost_connection_answers_who_waits_for_qemu() {
    let (mut driver, _) = Driver::connected(1, None);
    let effects = driver.set_vcpus(1, 2, Wait::No);
    driver.save(&effects);
    driver.set_vcpus(2, 3, Wait::No);
    let effects = driver.input(Input::Disconnected(Closed::Hangup));
    let answers = replies(&effects);
    assert!(matches!(
        answers[..],
        [
            (1, Err(Error::Interrupted { is_last: false, .. })),
            (2, Err(Error::Disconnected(_)))
        ]
    ));
}

#[test]
fn a_connection_that_cannot_be_made_again_says_so() {
    let (mut driver, _) = Driver::connected(1, None);
    driver.model.facts.is_reconnectable = false;
    let effects = driver.set_vcpus(1, 2, Wait::No);
    driver.save(&effects);
    driver.set_vcpus(2, 3, Wait::No);
    let effects = driver.input(Input::Disconnected(Closed::Hangup));
    let later = driver.set_vcpus(3, 2, Wait::No);
    let answers = [replies(&effects), replies(&later)].concat();
    assert_eq!(answers.len(), 3);
    for (_, answer) in answers {
        let error = answer.as_ref().unwrap_err().to_string();
        assert!(error.ends_with("register the machine again"), "{error}");
    }
}

/// A report of the guest that it refuses to give up the device `alias` (ACPI's `_OST`, ejection
/// request).
fn refusal(alias: &str) -> AcpiOst {
    serde_json::from_value(serde_json::json!({
        "device": alias, "slot": "1", "slot-type": "CPU", "source": 3, "status": 0x82,
    }))
    .unwrap()
}

/// Returns the state that is saved last.
pub(super) fn saved(effects: &[Effect]) -> &SavedState {
    let mut effects = effects.iter().rev();
    let save = effects.find_map(|effect| match effect {
        Effect::Save(_, saved_state) => Some(saved_state),
        _ => None,
    });
    save.unwrap()
}

/// Returns the vCPUs whose removal failed, the requester, and the reason.
fn failures(effects: &[Effect]) -> Vec<(u32, Option<u32>, String)> {
    let failures = events(effects).into_iter().filter_map(|event| match event {
        MachineEvent::VcpuRemovalFailed { vcpu, reason } => {
            Some((vcpu.id.get(), vcpu.uid.map(Uid::get), reason.text.clone()))
        }
        _ => None,
    });
    failures.collect()
}

#[test]
fn a_refusal_is_saved_before_it_is_emitted() {
    let (mut driver, _) = Driver::connected(2, None);
    let effects = driver.set_vcpus(1, 1, seconds(60));
    driver.save(&effects);
    driver.answer(2);
    driver.input(Input::Event(Event::AcpiCpuOst(refusal("vcpu1"))));
    driver.pass(20);
    let effects = driver.answer(2);
    assert!(failures(&effects).is_empty(), "it is not saved");
    let saved_state = saved(&effects).clone();
    assert!(saved_state.removals.is_empty());
    let effects = driver.save(&effects);
    let emitted = failures(&effects);
    assert!(matches!(emitted[..], [(1, Some(1000), _)]), "{effects:?}");
    assert!(matches!(
        replies(&effects)[..],
        [(1, Err(Error::GuestRefused(_)))]
    ));

    // A service that ends before the event was on the bus emits it again.
    let (mut next, effects) = Driver::connected(2, Some(saved_state));
    assert_eq!(failures(&next.save(&effects)), emitted);
}

#[test]
fn a_refusal_of_qemu_is_saved_before_it_is_emitted() {
    let (mut driver, _) = Driver::connected(2, None);
    let effects = driver.set_vcpus(1, 1, seconds(60));
    driver.save(&effects);
    let error = CommandError {
        class: Text::lossy("GenericError"),
        desc: Text::lossy("no"),
    };
    let effects = driver.input(Input::Exchanged(Box::new(Exchanged {
        refused: vec![(SlotId(1), error)],
        ospm: Vec::new(),
        state: state(2),
    })));
    assert!(failures(&effects).is_empty() && replies(&effects).is_empty());
    assert_eq!(saved(&effects).unemitted_refusals.len(), 1);
    let effects = driver.save(&effects);
    assert!(matches!(failures(&effects)[..], [(1, Some(1000), _)]));
    assert!(matches!(
        replies(&effects)[..],
        [(1, Err(Error::QmpFailed(_)))]
    ));
}

#[test]
fn an_old_refusal_ends_no_new_removal() {
    let (mut driver, _) = Driver::connected(2, None);
    let effects = driver.set_vcpus(1, 1, seconds(60));
    // The guest refused what another client of QEMU had asked for.
    driver.input(Input::Event(Event::AcpiCpuOst(refusal("vcpu1"))));
    driver.save(&effects);
    let effects = driver.answer(2);
    let effects = driver.save(&effects);
    assert_eq!(failures(&effects).len(), 1);
    assert!(replies(&effects).is_empty());
    assert_eq!(driver.model.snapshot().pending, [VcpuId(1)]);
}

#[test]
fn a_removal_that_qemu_may_have_received_explains_what_is_gone_later() {
    let (mut driver, _) = Driver::connected(2, None);
    let effects = driver.set_vcpus(1, 1, seconds(60));
    driver.save(&effects);
    let effects = driver.input(Input::Disconnected(Closed::Hangup));
    assert!(matches!(
        replies(&effects)[..],
        [(1, Err(Error::Interrupted { .. }))]
    ));
    driver.pass(250);
    driver.pass(10);
    driver.input(Input::Reached(PROCESS));
    driver.input(opened(2));
    // QEMU may also not have received it.
    assert!(driver.model.snapshot().pending.is_empty());
    driver.pass(20);
    let asked = driver.input(Input::Event(Event::RunState));
    assert!(matches!(batches(&asked)[..], [Batch::Refresh(_)]));
    let effects = driver.answer(1);
    let effects = driver.save(&effects);
    let removed = events(&effects).into_iter().find_map(|event| match event {
        MachineEvent::VcpuRemoved(vcpu) => Some((vcpu.cause, vcpu.uid)),
        _ => None,
    });
    assert_eq!(removed, Some((Cause::Request, Some(Uid(1000)))));
}

#[test]
fn what_another_client_of_qemu_changed_is_known_before_nothing_is_done() {
    let (mut driver, _) = Driver::connected(2, None);
    // Another client has removed vCPU 1, and no event told.
    let effects = driver.set_vcpus(1, 2, Wait::No);
    assert!(matches!(batches(&effects)[..], [Batch::Refresh(_)]));
    let effects = driver.answer(1);
    let effects = driver.save(&effects);
    let asked = driver.save(&effects);
    assert!(matches!(batches(&asked)[..], [Batch::Add(..)]));

    let (mut driver, _) = Driver::connected(2, None);
    driver.set_vcpus(1, 2, Wait::No);
    let effects = driver.answer(2);
    assert!(matches!(replies(&effects)[..], [(1, Ok(outcome))] if *outcome == Outcome::default()));
}

#[test]
fn a_reader_gets_the_current_state_and_does_not_wait_for_a_stalled_qemu() {
    let (mut driver, _) = Driver::connected(2, None);
    let refresh = |id| Input::Command(RequestId(id), Command::Refresh);
    assert_eq!(
        replies(&driver.input(refresh(1))),
        [(1, &Ok(Outcome::default()))],
        "a moment ago"
    );
    driver.pass(100);
    let effects = driver.input(refresh(2));
    assert!(matches!(batches(&effects)[..], [Batch::Refresh(_)]));
    assert_eq!(
        batches(&driver.input(refresh(3))).len(),
        0,
        "it is queried already"
    );
    let effects = driver.answer(3);
    let effects = driver.save(&effects);
    let answers: Vec<u64> = replies(&effects).iter().map(|(id, _)| *id).collect();
    assert_eq!(answers, [2, 3]);
    assert_eq!(driver.model.snapshot().inventory.vcpu_count(), 3);

    driver.pass(100);
    driver.input(refresh(4));
    driver.input(refresh(5));
    let effects = driver.pass(500);
    let late = |(_, answer): &(u64, &Answer)| matches!(answer, Err(Error::NotStarted { .. }));
    assert_eq!(
        replies(&effects).iter().filter(|reply| late(reply)).count(),
        2
    );
}
