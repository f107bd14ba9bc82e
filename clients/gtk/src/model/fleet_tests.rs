//! Owns the tests of the machines. It must not be part of the application.

use super::*;
use crate::model::choice::Question;
use crate::model::dict::dict;

fn properties(name: &str) -> Dict {
    dict([("Name", name.into()), ("Vcpus", 2_u32.into())])
}

#[test]
fn the_view_follows_the_service() {
    let mut fleet = Fleet::default();
    assert_eq!(fleet.view(), View::Connecting);
    fleet.apply(Event::Lost(Loss::Bus("gone".into())));
    assert_eq!(fleet.view(), View::Lost(Loss::Bus("gone".into())));
    fleet.apply(Event::Machines(Vec::new()));
    assert_eq!(fleet.view(), View::Empty);
    fleet.apply(Event::Lost(Loss::Service("it exited".into())));
    assert_eq!(fleet.view(), View::Empty, "an idle service exits");
    fleet.apply(Event::MachineAdded("/web".into(), properties("web")));
    assert_eq!(fleet.view(), View::Machines);
    fleet.apply(Event::Lost(Loss::Service("it failed".into())));
    assert_eq!(fleet.view(), View::Lost(Loss::Service("it failed".into())));
    fleet.apply(Event::Machines(vec![("/web".into(), properties("web"))]));
    fleet.apply(Event::Silent(true));
    assert_eq!(fleet.view(), View::Lost(Loss::Silent));
    fleet.apply(Event::Silent(false));
    assert_eq!(fleet.view(), View::Machines);
}

#[test]
fn a_service_that_starts_again_keeps_the_rows() {
    let mut fleet = Fleet::default();
    fleet.apply(Event::MachineAdded("/web".into(), properties("web")));
    fleet.apply(Event::Listed(
        "/web".into(),
        vec![dict([("id", 0_u32.into())])],
    ));
    let machines = vec![
        ("/db".into(), properties("db")),
        ("/web".into(), properties("web")),
    ];
    fleet.apply(Event::Machines(machines));
    assert_eq!(fleet.get("/web").unwrap().vcpus.len(), 1);
    assert_eq!(fleet.paths(), ["/db", "/web"]);
    for name in ["web10", "web9"] {
        fleet.apply(Event::MachineAdded(format!("/{name}"), properties(name)));
    }
    assert_eq!(fleet.paths(), ["/db", "/web", "/web9", "/web10"]);
    assert!(fleet.get_mut("/db").unwrap().vcpus.is_empty());
}

#[test]
fn a_reply_about_a_machine_that_ended_is_ignored() {
    let mut fleet = Fleet::default();
    assert!(
        fleet
            .apply(Event::Listed("/web".into(), Vec::new()))
            .is_empty()
    );
    fleet.apply(Event::MachineAdded("/web".into(), properties("web")));
    let effects = fleet.apply(Event::PropertiesChanged(
        "/web".into(),
        dict([("Vcpus", 3_u32.into())]),
    ));
    assert_eq!(effects, [Effect::Machine("/web".into())]);
    assert_eq!(fleet.get("/web").unwrap().present(), 3);
    fleet.apply(Event::MachineRemoved("/web".into()));
    assert!(fleet.get("/web").is_none());
}

#[test]
fn a_message_names_its_machine() {
    let mut fleet = Fleet::default();
    // The machine has ended before the reply.
    let failure = failure::describe("org.vcpud1.Error.NoSuchMachine", "why");
    let failed = fleet.apply(Event::Failed("/web".into(), "web".into(), failure));
    assert!(matches!(
        &failed[..],
        [Effect::Failure(path, failure)] if path == "/web" && failure.title == "web: The machine has ended"
    ));
    let done = Event::Done("/web".into(), "web".into(), "Added vCPU 2".into());
    assert_eq!(
        fleet.apply(done),
        [Effect::Note("/web".into(), "web: Added vCPU 2".into())]
    );
}

#[test]
fn what_a_plan_depends_on_makes_it_old() {
    let mut fleet = Fleet::default();
    fleet.apply(Event::MachineAdded("/web".into(), properties("web")));
    let mut last = fleet.get("/web").unwrap().version;
    let changes = [
        Event::PropertiesChanged("/web".into(), dict([("State", "paused".into())])),
        Event::VcpusChanged("/web".into()),
        Event::Machines(vec![("/web".into(), properties("web"))]),
        Event::MachineAdded("/web".into(), properties("web")),
    ];
    for change in changes {
        let text = format!("{change:?}");
        let effects = fleet.apply(change);
        let is_shown = |effect: &Effect| matches!(effect, Effect::Machine(_) | Effect::Machines);
        assert!(effects.iter().any(is_shown), "{text}");
        let now = fleet.get("/web").unwrap().version;
        assert_ne!(now, last, "{text}");
        last = now;
    }
    fleet.apply(Event::Listed("/web".into(), Vec::new()));
    assert_eq!(fleet.get("/web").unwrap().version, last);
}

#[test]
fn a_plan_that_failed_is_asked_again() {
    let mut fleet = Fleet::default();
    fleet.apply(Event::MachineAdded("/web".into(), properties("web")));
    assert!(!fleet.forget_failed_plan("/web"));
    let version = fleet.get("/web").unwrap().version;
    let question = Question {
        count: 3,
        version,
        serial: 1,
    };
    let failure = failure::describe("org.vcpud1.Error.LimitExceeded", "too many");
    let plan = Plan::Failed(failure);
    assert!(!plan.is_possible(&[]));
    assert_eq!(plan.text(&[], &[]).0, "Too many requests");
    fleet.apply(Event::Planned("/web".into(), question, plan));
    assert!(fleet.forget_failed_plan("/web"));
    assert_ne!(fleet.get("/web").unwrap().version, version);
    assert!(!fleet.forget_failed_plan("/web"));
}

#[test]
fn a_decision_names_the_machine() {
    let mut fleet = Fleet::default();
    fleet.apply(Event::MachineAdded("/web".into(), properties("web")));
    assert_eq!(
        fleet.apply(Event::Decided("web".into())),
        [Effect::ReadScaling("/web".into())]
    );
    assert!(fleet.apply(Event::Decided("db".into())).is_empty());
    let refused = Event::RemovalFailed {
        path: "/web".into(),
        vcpu: 1,
        code: "busy".into(),
        reason: "busy".into(),
    };
    assert!(matches!(
        &fleet.apply(refused)[..],
        [Effect::Refusal(..), Effect::Machine(_)]
    ));
    assert_eq!(fleet.get("/web").unwrap().refusals.len(), 1);
}

fn process(leader: u32, since: u64) -> Dict {
    dict([
        ("Name", "web".into()),
        ("Leader", leader.into()),
        ("Since", since.into()),
    ])
}

/// Returns machines with one that has a row.
fn listed(properties: Dict) -> Fleet {
    let mut fleet = Fleet::default();
    fleet.apply(Event::Machines(vec![("/web".into(), properties)]));
    let rows = vec![dict([("id", 0_u32.into())])];
    fleet.apply(Event::Listed("/web".into(), rows));
    fleet
}

#[test]
fn another_machine_with_the_same_name_inherits_nothing() {
    let ended = Effect::Ended("/web".into());
    for (leader, since) in [(8, 1), (7, 9_000_000)] {
        let mut fleet = listed(process(7, 1));
        let machines = vec![("/web".into(), process(leader, since))];
        let effects = fleet.apply(Event::Machines(machines));
        assert_eq!(effects, [Effect::Ended("/web".into()), Effect::Machines]);
        assert!(fleet.get("/web").unwrap().vcpus.is_empty());
        let mut fleet = listed(process(7, 1));
        let added = Event::MachineAdded("/web".into(), process(leader, since));
        assert!(fleet.apply(added).contains(&ended));
        assert!(fleet.get("/web").unwrap().vcpus.is_empty());
    }
    let mut fleet = listed(process(7, 1));
    assert!(fleet.apply(Event::Machines(Vec::new())).contains(&ended));
    let mut fleet = listed(process(7, 1));
    let removed = Event::MachineRemoved("/web".into());
    assert!(fleet.apply(removed).contains(&ended));
}

#[test]
fn a_connection_to_another_process_inherits_nothing() {
    let changed = |leader: u32, since: u64| {
        let change = dict([("Leader", leader.into()), ("Since", since.into())]);
        Event::PropertiesChanged("/web".into(), change)
    };
    let mut fleet = listed(process(7, 1));
    // The service loses the connection, and makes it again.
    fleet.apply(changed(0, 0));
    fleet.apply(Event::Machines(vec![("/web".into(), process(0, 0))]));
    fleet.apply(changed(7, 1));
    assert_eq!(fleet.get("/web").unwrap().vcpus.len(), 1);
    fleet.apply(changed(0, 0));
    let effects = fleet.apply(changed(8, 2));
    assert!(effects.contains(&Effect::Ended("/web".into())));
    assert!(fleet.get("/web").unwrap().vcpus.is_empty());
    assert_eq!(fleet.get("/web").unwrap().name(), "web");
}

#[test]
fn a_machine_that_is_added_after_the_list_stays() {
    let mut fleet = listed(process(7, 1));
    // After its restart, the service has calculated the time again.
    let effects = fleet.apply(Event::MachineAdded("/web".into(), process(7, 300)));
    let read = [
        Effect::Machines,
        Effect::ReadVcpus("/web".into()),
        Effect::ReadScaling("/web".into()),
    ];
    assert_eq!(effects, read);
    assert_eq!(fleet.get("/web").unwrap().vcpus.len(), 1);
}
