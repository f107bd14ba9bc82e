//! Stories of claims, without tasks and files.

use super::*;
use crate::config::parse_machine;

const USER: Uid = Uid(1000);

fn name(text: &str) -> MachineName {
    text.parse().unwrap()
}

fn claims() -> Claims {
    Claims::new("/qmp".into())
}

fn start(machine: &str, socket: &str) -> Decision {
    Decision::Start(name(machine), socket.into())
}

fn stop(machine: &str, reason: StopReason) -> Decision {
    Decision::Stop(name(machine), reason)
}

/// Returns the configuration files of machines. `None` is a file with errors.
fn files(files: &[(&str, Option<&str>)]) -> BTreeMap<MachineName, MachineFile> {
    let file = |(machine, text): &(&str, Option<&str>)| {
        let file = MachineFile {
            path: format!("/etc/{machine}.toml").into(),
            settings: text.map(|text| parse_machine(text).unwrap()),
        };
        (name(machine), file)
    };
    files.iter().map(file).collect()
}

fn conflicts(claims: &Claims) -> Vec<String> {
    let conflicts = claims.conflicts(&SecondNames::new());
    conflicts.iter().map(ToString::to_string).collect()
}

/// Registers without a socket.
fn register(claims: &mut Claims, machine: &str, uid: Uid) {
    let machine = name(machine);
    claims.check_registration(&machine, uid).unwrap();
    claims.register(&machine, uid, None);
}

#[test]
fn a_socket_starts_and_stops_its_machine() {
    let mut claims = claims();
    let web = name("web");
    assert_eq!(claims.socket_removed(&web), []);
    assert_eq!(
        claims.socket_appeared(&web),
        [start("web", "/qmp/web.sock")]
    );
    assert_eq!(claims.count(), 1);
    assert_eq!(conflicts(&claims), [""; 0]);
    assert_eq!(
        claims.socket_removed(&web),
        [stop("web", StopReason::SocketRemoved)]
    );
    assert_eq!(claims.count(), 0);
}

#[test]
fn a_rename_that_replaces_a_socket_restarts_the_machine() {
    let mut claims = claims();
    let web = name("web");
    claims.socket_appeared(&web);
    let restart = [
        stop("web", StopReason::SocketReplaced),
        start("web", "/qmp/web.sock"),
    ];
    assert_eq!(claims.socket_appeared(&web), restart);
    // A file that waits for the name does not get it.
    claims.configuration_changed(&files(&[("web", Some("qmp = '/vm/web'"))]));
    assert_eq!(claims.socket_appeared(&web), restart);
    assert_eq!(claims.count(), 1);
}

#[test]
fn a_list_of_sockets_starts_and_stops_the_difference() {
    let mut claims = claims();
    let list = |names: &[&str]| names.iter().map(|text| name(text)).collect::<BTreeSet<_>>();
    let started = claims.sockets_listed(&list(&["a", "b"]));
    assert_eq!(
        started,
        [start("a", "/qmp/a.sock"), start("b", "/qmp/b.sock")]
    );
    let changed = claims.sockets_listed(&list(&["b", "c"]));
    assert_eq!(
        changed,
        [
            stop("a", StopReason::SocketRemoved),
            start("c", "/qmp/c.sock")
        ]
    );
    assert_eq!(claims.sockets_listed(&list(&["b", "c"])), []);
}

#[test]
fn a_shadowed_socket_starts_when_the_registration_ends() {
    let mut claims = claims();
    let web = name("web");
    register(&mut claims, "web", USER);
    assert_eq!(claims.socket_appeared(&web), []);
    assert_eq!(
        conflicts(&claims),
        [
            "/qmp/web.sock: ignored, because machine web already exists, from a registration by user 1000"
        ]
    );
    let started = claims.machine_ended(&web);
    assert_eq!(started, Some(start("web", "/qmp/web.sock")));
    assert_eq!(conflicts(&claims), [""; 0]);
    assert_eq!(claims.count(), 1);
}

#[test]
fn a_shadowed_socket_starts_when_the_registration_is_withdrawn() {
    let mut claims = claims();
    let web = name("web");
    register(&mut claims, "web", USER);
    claims.socket_appeared(&web);
    let decisions = claims.unregister(&web).unwrap();
    assert_eq!(
        decisions,
        [
            stop("web", StopReason::Unregistered),
            start("web", "/qmp/web.sock")
        ]
    );
}

#[test]
fn a_shadowed_socket_that_disappears_does_not_start() {
    let mut claims = claims();
    let web = name("web");
    register(&mut claims, "web", USER);
    claims.socket_appeared(&web);
    assert_eq!(claims.socket_removed(&web), []);
    assert_eq!(conflicts(&claims), [""; 0]);
    assert_eq!(claims.machine_ended(&web), None);
    assert_eq!(claims.count(), 0);
}

#[test]
fn a_file_takes_precedence_over_a_socket_when_both_are_shadowed() {
    let mut claims = claims();
    let web = name("web");
    register(&mut claims, "web", USER);
    claims.socket_appeared(&web);
    claims.configuration_changed(&files(&[("web", Some("qmp = '/vm/web'"))]));
    assert_eq!(claims.conflicts(&SecondNames::new()).len(), 2);
    assert_eq!(claims.machine_ended(&web), Some(start("web", "/vm/web")));
    assert_eq!(
        conflicts(&claims),
        ["/qmp/web.sock: ignored, because machine web already exists, from /etc/web.toml"]
    );
    // Without the file, the socket is next.
    let decisions = claims.configuration_changed(&files(&[]));
    assert_eq!(
        decisions,
        [
            stop("web", StopReason::Reconfigured),
            start("web", "/qmp/web.sock")
        ]
    );
}

#[test]
fn a_shadowed_file_starts_when_the_socket_disappears() {
    let mut claims = claims();
    let web = name("web");
    claims.socket_appeared(&web);
    let configuration = files(&[("web", Some("qmp = '/vm/web'"))]);
    assert_eq!(claims.configuration_changed(&configuration), []);
    assert_eq!(
        conflicts(&claims),
        [
            "/etc/web.toml: ignored, because machine web already exists, from its socket in the directory qmp"
        ]
    );
    let decisions = claims.socket_removed(&web);
    assert_eq!(
        decisions,
        [
            stop("web", StopReason::SocketRemoved),
            start("web", "/vm/web")
        ]
    );
}

#[test]
fn a_socket_that_its_file_names_has_one_machine() {
    let mut claims = claims();
    let configuration = files(&[("web", Some("qmp = '/qmp/web.sock'"))]);
    let started = claims.configuration_changed(&configuration);
    assert_eq!(started, [start("web", "/qmp/web.sock")]);
    assert_eq!(claims.socket_appeared(&name("web")), []);
    assert_eq!(conflicts(&claims), [""; 0]);
    assert_eq!(claims.socket_removed(&name("web")), []);
}

#[test]
fn a_file_with_errors_disables_its_name() {
    let mut claims = claims();
    let web = name("web");
    claims.configuration_changed(&files(&[("web", None)]));
    assert_eq!(claims.socket_appeared(&web), []);
    assert_eq!(
        conflicts(&claims),
        ["/qmp/web.sock: ignored, because /etc/web.toml has errors"]
    );
    let refused = claims.check_registration(&web, Uid::ROOT);
    assert!(matches!(refused, Err(Error::Disabled(path)) if path == Path::new("/etc/web.toml")));
    // A corrected file does not.
    let started = claims.configuration_changed(&files(&[("web", Some(""))]));
    assert_eq!(started, [start("web", "/qmp/web.sock")]);
    // A machine that runs keeps its name.
    assert_eq!(claims.configuration_changed(&files(&[("web", None)])), []);
    assert_eq!(conflicts(&claims), [""; 0]);
    assert_eq!(
        claims.socket_removed(&web),
        [stop("web", StopReason::SocketRemoved)]
    );
    assert_eq!(claims.socket_appeared(&web), []);
}

#[test]
fn a_reload_moves_a_machine() {
    let mut claims = claims();
    claims.configuration_changed(&files(&[("web", Some("qmp = '/vm/1'"))]));
    let decisions = claims.configuration_changed(&files(&[("web", Some("qmp = '/vm/2'"))]));
    assert_eq!(
        decisions,
        [stop("web", StopReason::Reconfigured), start("web", "/vm/2")]
    );
    let same = files(&[("web", Some("qmp = '/vm/2'\nslice = 'a.slice'"))]);
    assert_eq!(claims.configuration_changed(&same), []);
    assert_eq!(
        claims.configuration_changed(&files(&[])),
        [stop("web", StopReason::Reconfigured)]
    );
}

#[test]
fn a_reload_stops_machines_before_it_starts_others() {
    let mut claims = claims();
    let sockets = |a: &'static str, b: &'static str| files(&[("a", Some(a)), ("b", Some(b))]);
    claims.configuration_changed(&sockets("qmp = '/1'", "qmp = '/2'"));
    let decisions = claims.configuration_changed(&sockets("qmp = '/2'", "qmp = '/1'"));
    let swap = [
        stop("a", StopReason::Reconfigured),
        stop("b", StopReason::Reconfigured),
        start("a", "/2"),
        start("b", "/1"),
    ];
    assert_eq!(decisions, swap);
}

#[test]
fn an_unregistered_socket_starts_when_it_is_replaced() {
    let mut claims = claims();
    let web = name("web");
    claims.socket_appeared(&web);
    assert_eq!(
        claims.unregister(&web).unwrap(),
        [stop("web", StopReason::Unregistered)]
    );
    assert!(matches!(claims.unregister(&web), Err(Error::NoSuchMachine)));
    register(&mut claims, "web", USER);
    assert_eq!(conflicts(&claims), [""; 0]);
    assert_eq!(claims.machine_ended(&web), None);
    let started = claims.socket_appeared(&web);
    assert_eq!(started, [start("web", "/qmp/web.sock")]);
}

#[test]
fn an_unregistered_file_starts_with_the_next_reload() {
    let mut claims = claims();
    let web = name("web");
    let configuration = files(&[("web", Some("qmp = '/vm/web'"))]);
    claims.configuration_changed(&configuration);
    claims.socket_appeared(&web);
    let decisions = claims.unregister(&web).unwrap();
    assert_eq!(
        decisions,
        [
            stop("web", StopReason::Unregistered),
            start("web", "/qmp/web.sock")
        ]
    );
    assert_eq!(
        claims.unregister(&web).unwrap(),
        [stop("web", StopReason::Unregistered)]
    );
    let started = claims.configuration_changed(&configuration);
    assert_eq!(started, [start("web", "/vm/web")]);
}

#[test]
fn a_name_with_an_owner_cannot_be_registered() {
    let mut claims = claims();
    claims.socket_appeared(&name("web"));
    let refused = claims.check_registration(&name("web"), Uid::ROOT);
    assert!(matches!(refused, Err(Error::Exists(origin)) if origin.contains("socket")));
}

#[test]
fn a_user_can_register_a_limited_number_of_machines() {
    let mut claims = claims();
    for n in 0..LIMIT_OF_USER {
        register(&mut claims, &format!("vm{n}"), USER);
    }
    let refused = claims.check_registration(&name("more"), USER);
    assert!(matches!(refused, Err(Error::TooManyOfUser { .. })));
    // Others can, and the user again when one has ended.
    claims.check_registration(&name("more"), Uid(7)).unwrap();
    claims.check_registration(&name("more"), Uid::ROOT).unwrap();
    claims.machine_ended(&name("vm0"));
    claims.check_registration(&name("more"), USER).unwrap();
}

#[test]
fn the_number_of_registered_machines_is_limited() {
    let mut claims = claims();
    claims.socket_appeared(&name("socket"));
    for n in 0..LIMIT {
        claims.register(&name(&format!("vm{n}")), Uid::ROOT, None);
    }
    let refused = claims.check_registration(&name("more"), Uid::ROOT);
    assert!(matches!(refused, Err(Error::TooMany(LIMIT))));
    claims.machine_ended(&name("vm0"));
    claims.check_registration(&name("more"), Uid::ROOT).unwrap();
}

#[test]
fn a_registration_of_a_socket_in_the_directory_does_not_conflict_with_it() {
    let mut claims = claims();
    let web = name("web");
    claims.register(&web, USER, Some("/qmp/web.sock".into()));
    assert_eq!(claims.socket_appeared(&web), []);
    assert_eq!(conflicts(&claims), [""; 0]);
}

#[test]
fn systemd_has_room_for_the_descriptors_of_all_registered_machines() {
    let unit = include_str!("../../../systemd/vcpud.service");
    let room = format!("FileDescriptorStoreMax={}", 2 * LIMIT);
    assert!(unit.lines().any(|line| line == room), "no {room}");
}
