//! Owns the tests of one machine. It must not be part of the application.

use super::*;
use crate::model::dict::dict;

#[test]
fn the_summary_has_what_is_unusual() {
    let mut web = machine("web", 4, 16);
    assert_eq!(web.summary(), "Running");
    web.change(dict([
        ("StartedVcpus", 3_u32.into()),
        ("PendingRemovals", vec![3_u32].into()),
    ]));
    assert_eq!(web.summary(), "Running · 1 not started · 1 removing");
    web.change(dict([("State", "disconnected".into())]));
    assert_eq!(web.summary(), "Not connected · 1 removing");
    assert!(!web.is_connected());
    web.change(dict([("State", "colo".into())]));
    assert_eq!(web.state(), "colo");
}

#[test]
fn a_machine_without_properties_has_safe_limits() {
    let empty = Machine::new(Dict::new());
    assert_eq!((empty.min(), empty.max(), empty.per_slot()), (1, 1, 1));
    assert!(empty.vcpus.is_empty() && !empty.has_control_groups());
    assert_eq!(empty.process(), "Process not known");
}

#[test]
fn a_vcpu_can_start_late() {
    let mut web = machine("web", 1, 2);
    let row = |present: bool, started: bool| {
        dict([
            ("id", 0_u32.into()),
            ("present", present.into()),
            ("started", started.into()),
        ])
    };
    for (present, started, is_starting) in [
        (true, false, true),
        (true, true, false),
        (false, false, false),
    ] {
        web.list(&[row(present, started)]);
        assert_eq!(web.is_starting(), is_starting);
    }
}

#[test]
fn the_answer_to_the_last_question_is_the_plan() {
    let mut web = machine("web", 1, 4);
    let question = |count, serial| Question {
        count,
        version: 0,
        serial,
    };
    web.take_plan(question(3, 2), Plan::Unchanged);
    web.take_plan(question(2, 1), Plan::Unchanged);
    assert_eq!(web.plan, Some((question(3, 2), Plan::Unchanged)));
    web.take_plan(question(4, 3), Plan::Unchanged);
    assert_eq!(web.plan, Some((question(4, 3), Plan::Unchanged)));
}

#[test]
fn a_pin_can_be_that_of_the_others() {
    let mut web = machine("web", 2, 4);
    web.list(&[dict([("id", 0_u32.into())]), dict([("id", 1_u32.into())])]);
    let pins = vec![(1_u32, "0-1")];
    web.tune(&dict([("affinity", "0-1".into()), ("pins", pins.into())]));
    let shown: Vec<&str> = web.vcpus.iter().map(|vcpu| vcpu.pin.as_str()).collect();
    assert_eq!((shown, web.default_pin.as_str()), (vec!["", "0-1"], "0-1"));
    web.tune(&dict([]));
    assert!(web.vcpus.iter().all(|vcpu| vcpu.pin.is_empty()) && web.default_pin.is_empty());
}

#[test]
fn the_connection_is_the_first_reason() {
    let mut web = machine("web", 0, 0);
    web.change(dict([
        ("State", "disconnected".into()),
        ("HotplugMethod", "none".into()),
    ]));
    assert!(web.range().contains("no connection") && !web.can_change());
    web.change(dict([("State", "running".into())]));
    assert!(web.range().contains("cannot change") && !web.can_change());
}

#[test]
fn a_refusal_ends_with_a_new_request_and_with_the_vcpu() {
    let mut web = machine("web", 4, 4);
    let row = |id: u32, is_present: bool| dict([("id", id.into()), ("present", is_present.into())]);
    let refused = |web: &Machine| {
        let vcpus = web.refusals.iter().map(|refusal| refusal.vcpu);
        vcpus.collect::<Vec<u32>>()
    };
    web.refusals = [1, 2, 3]
        .map(|vcpu| Refusal::new(vcpu, "busy", String::new()))
        .into();
    web.list(&[row(1, true), row(2, true), row(3, true)]);
    assert_eq!(refused(&web), [1, 2, 3]);
    web.change(dict([("PendingRemovals", vec![2_u32].into())]));
    assert_eq!(refused(&web), [1, 3]);
    // The signal of a refusal arrives before the new list.
    web.refusals.push(Refusal::new(2, "busy", String::new()));
    web.change(dict([("State", "running".into())]));
    assert_eq!(refused(&web), [1, 3, 2]);
    web.list(&[row(1, true), row(2, true), row(3, false)]);
    assert_eq!(refused(&web), [1, 2]);
}

#[test]
fn slots_limit_the_numbers() {
    let mut power = machine("power", 8, 32);
    power.change(dict([("VcpusPerSlot", 8_u32.into())]));
    assert_eq!((power.min(), power.per_slot()), (8, 8));
}
