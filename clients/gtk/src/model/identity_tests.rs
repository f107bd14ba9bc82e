//! Owns the tests of what stays of a machine when its path appears again. It must not be part of the application.

use super::dict::{Dict, dict};
use super::fleet::{Effect, Fleet};
use super::message::Event;

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
