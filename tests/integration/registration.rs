//! Machines that are registered by a call.

use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use futures_util::future::join_all;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tokio::io::AsyncWriteExt;
use vcpud::names::error_name;
use vcpud::proxy::ManagerProxy;
use zbus::{Fd, OwnedObjectPath, Variant};

use crate::harness::*;

type Options<'a> = &'a [(&'a str, Variant<'a>)];

/// `RegisterMachine`.
async fn register(
    manager: &ManagerProxy<'_>,
    name: &str,
    address: &str,
    options: Options<'_>,
) -> Result<OwnedObjectPath, Failure> {
    let options: HashMap<&str, Variant<'_>> = options
        .iter()
        .map(|(key, value)| (*key, value.try_clone().expect("no descriptors")))
        .collect();
    let call = manager.register_machine(name, address, options);
    let result = within(format!("the registration of {name}"), call).await;
    result.map_err(Failure::of)
}

/// `RegisterMachineWithFd`.
async fn register_fd(
    manager: &ManagerProxy<'_>,
    name: &str,
    connection: impl AsFd,
) -> Result<OwnedObjectPath, Failure> {
    register_fd_of(manager, name, connection, None).await
}

/// `RegisterMachineWithFd` with the PID of the leader.
async fn register_fd_of(
    manager: &ManagerProxy<'_>,
    name: &str,
    connection: impl AsFd,
    leader: Option<u32>,
) -> Result<OwnedObjectPath, Failure> {
    let options = leader.map(|pid| ("leader", Variant::from(pid)));
    let options: HashMap<&str, Variant<'_>> = options.into_iter().collect();
    let call = manager.register_machine_with_fd(name, Fd::from(&connection), options);
    let result = within(format!("the registration of {name}"), call).await;
    result.map_err(Failure::of)
}

/// A socket that is not where the service looks by itself.
fn elsewhere(world: &World, name: &str) -> PathBuf {
    world.bus.directory().join(name)
}

/// The two ends of a connection.
fn pair() -> (tokio::net::UnixStream, OwnedFd) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let ours = tokio::net::UnixStream::from_std(ours).unwrap();
    (ours, theirs.into())
}

/// The signals about whole machines.
fn of_machines(signals: Vec<Signal>) -> Vec<Signal> {
    let is_of_machine = |signal: &Signal| {
        matches!(
            signal,
            Signal::MachineAdded(_)
                | Signal::MachineRemoved(_)
                | Signal::InterfacesAdded(_)
                | Signal::InterfacesRemoved(_)
        )
    };
    signals.into_iter().filter(is_of_machine).collect()
}

fn came(name: &str, path: &OwnedObjectPath) -> [Signal; 2] {
    let path = path.to_string();
    [
        Signal::InterfacesAdded(path),
        Signal::MachineAdded(name.to_owned()),
    ]
}

fn went(name: &str, path: &OwnedObjectPath) -> [Signal; 2] {
    let path = path.to_string();
    [
        Signal::InterfacesRemoved(path),
        Signal::MachineRemoved(name.to_owned()),
    ]
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn a_machine_is_registered_by_its_socket_and_unregistered() {
    let world = World::without_polkit().await;
    let socket = elsewhere(&world, "vm.sock");
    let peer = Peer::start(&socket, Model::x86(1, 4));
    let manager = world.manager().await;
    let address = format!("unix:{}", socket.display());
    for round in 0..2 {
        let mark = world.signals.mark().await;
        let path = register(&manager, "web", &address, &[]).await.unwrap();
        assert_eq!(path.as_str(), "/org/vcpud1/machine/web");
        let told = of_machines(world.signals.since(mark).await);
        assert_eq!(told, came("web", &path));
        let machine = world.machine("web").await;
        let now = round + 1;
        assert_eq!(machine.set(now + 1).await, Ok(Outcome::added([now])));

        let mark = world.signals.mark().await;
        manager.unregister_machine("web").await.unwrap();
        let told = of_machines(world.signals.since(mark).await);
        assert_eq!(told, went("web", &path));
        let failure = Failure::of(manager.unregister_machine("web").await.unwrap_err());
        failure.assert(error_name::NO_SUCH_MACHINE, &["web"]);
    }
    // The VM runs on as it was.
    assert_eq!(peer.count("device_add"), 2);
    assert_eq!(peer.count("device_del"), 0);
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn a_machine_is_registered_by_its_connection_and_goes_with_it() {
    let world = World::without_polkit().await;
    let manager = world.manager().await;
    for _ in 0..2 {
        let (ours, theirs) = pair();
        let peer = Peer::on(ours, Model::x86(1, 4));
        let path = register_fd(&manager, "web", theirs).await.unwrap();
        let machine = world.machine("web").await;
        assert_eq!(machine.set(3).await, Ok(Outcome::added([1, 2])));
        let mark = world.signals.mark().await;
        peer.hang_up();
        let told = world.removal_of("web", mark).await;
        assert_eq!(of_machines(told), went("web", &path));
    }
}

/// Scripted QEMUs and other peers, dbus-daemon.
#[tokio::test]
async fn a_registration_that_fails_says_why_and_leaves_nothing() {
    let world = World::without_polkit().await;
    let taken = world.peer("taken", Model::x86(1, 4));
    let machine = world.machine("taken").await;
    let manager = world.manager().await;
    let at = |name: &str| elsewhere(&world, name).display().to_string();
    let good = Peer::start(&elsewhere(&world, "good"), Model::x86(1, 4));
    let _ssh = Peer::start_with(&elsewhere(&world, "ssh"), "SSH-2.0-OpenSSH\r\n");
    let _silent = Peer::start_silent(&elsewhere(&world, "silent"), Model::x86(1, 4));
    let stalled = Peer::start(&elsewhere(&world, "stalled"), Model::x86(1, 4));
    stalled.script(|_, call| (call.command == "query-cpus-fast").then(Vec::new));
    fs::write(elsewhere(&world, "file"), "").unwrap();
    drop(std::os::unix::net::UnixListener::bind(elsewhere(&world, "dead")).unwrap());

    let soon = || ("qmp-timeout", Variant::from("200ms"));
    let long = "x".repeat(65);
    const OTHER_UUID: &str = "00000000-1111-4222-8333-444444444444";
    let invalid = error_name::INVALID_ARGS;
    let disconnected = error_name::DISCONNECTED;
    type Case<'a> = (
        &'a str,
        String,
        Vec<(&'static str, Variant<'static>)>,
        &'a str,
        &'a [&'a str],
    );
    let cases: Vec<Case<'_>> = vec![
        (
            "taken",
            at("good"),
            vec![],
            error_name::MACHINE_EXISTS,
            &["taken", "socket"],
        ),
        ("-x", at("good"), vec![], invalid, &["-x", "machine name"]),
        (&long, at("good"), vec![], invalid, &["machine name"]),
        (
            "web",
            "good".into(),
            vec![],
            invalid,
            &["good", "absolute path"],
        ),
        (
            "web",
            "tcp:127.0.0.1:1".into(),
            vec![],
            invalid,
            &["absolute path"],
        ),
        (
            "web",
            at("none"),
            vec![],
            disconnected,
            &["web", "does not exist"],
        ),
        (
            "web",
            at("dead"),
            vec![],
            disconnected,
            &["web", "no process listens"],
        ),
        ("web", at("file"), vec![], invalid, &["web", "not a socket"]),
        ("web", at("ssh"), vec![], disconnected, &["web", "QMP"]),
        (
            "web",
            at("silent"),
            vec![soon()],
            error_name::QMP_TIMEOUT,
            &["web", "0.2 s"],
        ),
        (
            "web",
            at("stalled"),
            vec![soon()],
            error_name::QMP_TIMEOUT,
            &["web", "0.2 s"],
        ),
        (
            "web",
            at("good"),
            vec![("uuid", OTHER_UUID.into())],
            invalid,
            &["web", UUID, OTHER_UUID],
        ),
        (
            "web",
            at("good"),
            vec![("uuid", "x".into())],
            invalid,
            &["uuid", "not a UUID"],
        ),
        (
            "web",
            at("good"),
            vec![("afinity", "0".into())],
            invalid,
            &["\"afinity\"", "\"affinity\""],
        ),
        (
            "web",
            at("good"),
            vec![("qmp", "/x".into())],
            invalid,
            &["\"qmp\"", "unknown"],
        ),
        (
            "web",
            at("good"),
            vec![("affinity", 3u32.into())],
            invalid,
            &["\"affinity\""],
        ),
        (
            "web",
            at("good"),
            vec![("affinity", "8191".into())],
            error_name::CPU_UNAVAILABLE,
            &["8191"],
        ),
        (
            "web",
            at("good"),
            vec![("scheduler", "fifo".into())],
            invalid,
            &["\"scheduler\"", "priority"],
        ),
        (
            "web",
            at("good"),
            vec![("leader", "1".into())],
            invalid,
            &["\"leader\"", "an integer"],
        ),
        (
            "web",
            at("good"),
            vec![("leader", 1u32.into())],
            invalid,
            &["process 1 cannot be its leader", "none of its threads"],
        ),
        (
            "web",
            at("good"),
            vec![("leader", 0u32.into())],
            invalid,
            &["process 0"],
        ),
    ];
    // The test's process is the machine `taken`.
    let qemu = sleeper(command("sleep")).await;
    good.model().threads = Threads::Of(qemu.pid());
    let asked = good.all_calls();
    let mark = world.signals.mark().await;
    let service = world.service.as_ref().expect("it runs");
    // The first looks at a machine open files.
    machine.wait_for("StartedVcpus", 1u32).await;
    let before = service.descriptors();
    for (name, address, options, error, parts) in &cases {
        let options = options.iter();
        let options =
            options.map(|(key, value)| (*key, value.try_clone().expect("no descriptors")));
        let mut options: Vec<_> = options.collect();
        if !options.iter().any(|(key, _)| *key == "leader") {
            options.push(("leader", qemu.pid().into()));
        }
        let result = register(&manager, name, address, &options).await;
        let failure = result.expect_err(&format!("{address} {options:?}"));
        failure.assert(error, parts);
    }
    let file = fs::File::open(elsewhere(&world, "file")).unwrap();
    let failure = register_fd(&manager, "web", file).await.unwrap_err();
    // It is refused before the arguments are read.
    failure.assert(invalid, &["not a connected Unix stream socket"]);
    let (ours, theirs) = pair();
    drop(ours);
    let leader = Some(qemu.pid());
    let failure = register_fd_of(&manager, "web", theirs, leader)
        .await
        .unwrap_err();
    failure.assert(disconnected, &["web", "closed"]);
    let failure = register(&manager, "web", &at("good"), &[])
        .await
        .unwrap_err();
    failure.assert(error_name::MACHINE_EXISTS, &["web", "the machine taken"]);
    let mixed = sleeper({
        let mut command = command("setpriv");
        command.args(["--euid=65534", "sleep"]);
        command
    });
    let mixed = mixed.await;
    let options = [("leader", Variant::from(mixed.pid()))];
    let failure = register(&manager, "web", &at("good"), &options)
        .await
        .unwrap_err();
    failure.assert(invalid, &["web", "real, effective, saved", "65534"]);

    assert_eq!(world.names().await, ["taken"]);
    assert_eq!(world.signals.since(mark).await, []);
    assert!(good.all_calls() > asked, "its UUID was asked for");
    assert_eq!(good.count("device_add"), 0);
    let run = world.bus.runtime_directory();
    let count = |directory: &str| fs::read_dir(run.join(directory)).unwrap().count();
    // The service closes them after its answer. It also saves the state of the machine `taken` from time to time.
    let are_released =
        || (count("machines"), count("registrations")) == (1, 0) && service.descriptors() <= before;
    until("the end of descriptors and files", are_released).await;
    // The name is free.
    let options = [("uuid", UUID.into()), ("leader", qemu.pid().into())];
    register(&manager, "web", &at("good"), &options)
        .await
        .unwrap();
    assert_eq!(taken.clients(), 1);
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn what_a_registration_says_is_in_force() {
    let world = World::without_polkit().await;
    let socket = elsewhere(&world, "vm.sock");
    let peer = Peer::start(&socket, Model::x86(2, 4));
    let none = "00000000-0000-0000-0000-000000000000";
    peer.script(move |_, call| {
        let reply = || vec![call.reply(serde_json::json!({"UUID": none}))];
        (call.command == "query-uuid").then(reply)
    });
    let manager = world.manager().await;
    world.configure(
        "machines.d/web.toml",
        "affinity = \"0\"\nscheduler = \"idle\"",
    );
    world.configure("vcpud.toml", "[defaults]\nplacement = \"none\"");
    manager.reload().await.unwrap();
    let share = HashMap::from([("vcpus", "0"), ("schemata", "L3:0=f")]);
    let options = [
        ("scheduler", Variant::from("batch")),
        ("uuid", Variant::from(UUID.to_uppercase())),
        ("bandwidth-quota", Variant::from(-1i64)),
        ("bandwidth-period", Variant::from(50_000u32)),
        ("cache", Variant::from(vec![share])),
    ];
    let socket = socket.display().to_string();
    register(&manager, "web", &socket, &options).await.unwrap();
    let machine = world.machine("web").await;
    assert_eq!(machine.uuid().await.unwrap(), UUID);
    assert_eq!(machine.affinity().await.unwrap(), "0");
    assert_eq!(machine.placement().await.unwrap(), "none");
    assert_eq!(machine.bandwidth_period_usec().await.unwrap(), 50_000);
    assert_eq!(machine.rows().await[1]["scheduler"], "batch");
}

/// Scripted QEMU, another process, dbus-daemon.
#[tokio::test]
async fn the_leader_may_be_another_than_who_serves_qmp() {
    let world = World::without_polkit().await;
    let socket = elsewhere(&world, "vm.sock");
    let peer = Peer::start(&socket, Model::x86(2, 4));
    let manager = world.manager().await;
    let mut qemu = Process::spawn("sleep", command("sleep").arg("600"));
    peer.model().threads = Threads::Of(qemu.pid());
    let options = [("leader", Variant::from(qemu.pid()))];
    let path = register(&manager, "web", &socket.display().to_string(), &options).await;
    let path = path.unwrap();
    let machine = world.machine("web").await;
    assert_eq!(machine.leader().await.unwrap(), qemu.pid());
    let found = manager.get_machine_by_pid(qemu.pid()).await.unwrap();
    assert_eq!(found, path);
    // Threads that are not its own are nobody's.
    assert!(
        machine
            .rows()
            .await
            .iter()
            .all(|row| !row.contains_key("thread-id"))
    );
    let mark = world.signals.mark().await;
    qemu.kill().await;
    world.removal_of("web", mark).await;
    assert_eq!(world.names().await, [] as [&str; 0]);
}

/// Scripted QEMUs, dbus-daemon.
#[tokio::test]
async fn a_registration_survives_a_restart_as_long_as_its_qemu_can_be_reached() {
    let mut world = World::without_polkit().await;
    let socket = elsewhere(&world, "vm.sock");
    let peer = Peer::start(&socket, Model::x86(2, 4));
    let (ours, theirs) = pair();
    let other = Peer::on(ours, Model::x86(1, 4));
    let manager = world.manager().await;
    let address = socket.display().to_string();
    register(&manager, "web", &address, &[("affinity", "0".into())])
        .await
        .unwrap();
    let others = [
        sleeper(command("sleep")).await,
        sleeper(command("sleep")).await,
    ];
    let [of_fd, of_gone] = others.each_ref().map(Process::pid);
    other.model().threads = Threads::Of(of_fd);
    register_fd_of(&manager, "fd", theirs, Some(of_fd))
        .await
        .unwrap();
    let gone = Peer::start(&elsewhere(&world, "gone"), Model::x86(1, 4));
    gone.model().threads = Threads::Of(of_gone);
    let gone_at = elsewhere(&world, "gone").display().to_string();
    register(&manager, "gone", &gone_at, &[("leader", of_gone.into())])
        .await
        .unwrap();

    let mark = world.signals.mark().await;
    world.service.take().expect("it runs").kill().await;
    peer.model().plug(2, "other");
    drop(gone);
    fs::remove_file(&gone_at).unwrap();
    world.serve().await;
    assert_eq!(world.names().await, ["web"]);
    let machine = world.machine("web").await;
    assert_eq!(machine.affinity().await.unwrap(), "0");
    let told = world
        .signals
        .wait("vCPU 2", mark, |told| !added(told).is_empty())
        .await;
    assert_eq!(
        added(&told),
        [Vcpu::by_cause("web", 2, "other", "reconnect")]
    );
    let run = world.bus.runtime_directory();
    let count = || fs::read_dir(run.join("registrations")).unwrap().count();
    // The service removes that of a machine that is gone while its name is owned already.
    until("one registration", || count() == 1).await;
    world
        .manager()
        .await
        .unregister_machine("web")
        .await
        .unwrap();
    assert_eq!(count(), 0);
}

/// Scripted QEMU and systemd, dbus-daemon.
#[tokio::test]
async fn a_connection_that_was_passed_outlives_the_service() {
    let mut world = World::without_service().await;
    let mut systemd = Systemd::start(&world.bus);
    world.serve_under(&systemd).await;
    let (ours, theirs) = pair();
    let peer = Peer::on(ours, Model::x86(1, 4));
    let manager = world.manager().await;
    register_fd(&manager, "web", theirs).await.unwrap();
    systemd.keeps(&["pidfd-web", "qmp-web"]).await;

    world.service.take().expect("it runs").kill().await;
    world.serve_under(&systemd).await;
    let machine = world.machine("web").await;
    assert_eq!(machine.set(3).await, Ok(Outcome::added([1, 2])));
    let mark = world.signals.mark().await;
    peer.hang_up();
    world.removal_of("web", mark).await;
    systemd.keeps(&[]).await;
    assert_eq!(world.names().await, [] as [&str; 0]);
}

/// A rule for the owners of VMs.
const RULE: &str = r#"
polkit.addRule(function(action, subject) {
    if (action.id == "org.vcpud1.manage-machines" && subject.user == "nobody" &&
        action.lookup("uid") == "65534" &&
        (action.lookup("owner") == "65534" || !action.lookup("address")) &&
        ["", "leader", undefined].indexOf(action.lookup("options")) >= 0 &&
        action.lookup("machine").indexOf("nobody-") == 0) {
        return polkit.Result.YES;
    }
});
"#;

/// Scripted QEMUs, one of them in front of nobody's socat, dbus-daemon, polkitd, a client as nobody.
#[tokio::test]
async fn an_owner_registers_his_own_vm_if_a_rule_lets_him() {
    let world = World::with_polkit(RULE).await;
    let socket = elsewhere(&world, "vm.sock");
    let roots = Peer::start(&socket, Model::x86(1, 4));
    let home = elsewhere(&world, "home");
    fs::create_dir(&home).unwrap();
    let qmp = home.join("qmp.sock");
    let (_process, ours) = world.nobody_listens(&qmp).await;
    let peer = Peer::on(ours, Model::x86(1, 4));
    let own = UnixStream::connect(&qmp).unwrap();

    let address = socket.display().to_string();
    let (denied, path, leader) = world
        .with_nobody(move |manager| async move {
            let mut denied = Vec::new();
            let reload = manager.reload().await;
            denied.push(reload.map_err(Failure::of).unwrap_err());
            // The service would connect to a socket that the caller must not reach.
            denied.push(
                register(&manager, "nobody-a", &address, &[])
                    .await
                    .unwrap_err(),
            );
            denied.push(register_fd(&manager, "web", &own).await.unwrap_err());
            let options =
                HashMap::from([("scheduler", "idle".into()), ("slice", "x.slice".into())]);
            let call = manager.register_machine_with_fd("nobody-a", Fd::from(&own), options);
            denied.push(call.await.map_err(Failure::of).unwrap_err());
            let path = register_fd(&manager, "nobody-a", &own).await;
            let (_, other) = UnixStream::pair().unwrap();
            let options = HashMap::from([("leader", Variant::from(1u32))]);
            let call = manager.register_machine_with_fd("nobody-b", Fd::from(&other), options);
            (denied, path, call.await.map_err(Failure::of).unwrap_err())
        })
        .await;
    for failure in denied {
        let error = error_name::INTERACTIVE_AUTHORIZATION_REQUIRED;
        let error = [error, error_name::ACCESS_DENIED];
        assert!(error.contains(&failure.name.as_str()), "{failure:?}");
        failure.assert(&failure.name.clone(), &["org.vcpud1.manage-machines"]);
    }
    leader.assert(error_name::ACCESS_DENIED, &["process 1", "user 65534"]);
    assert_eq!(path.unwrap().as_str(), "/org/vcpud1/machine/nobody_2da");
    assert_eq!(world.names().await, ["nobody-a"]);
    assert_eq!(
        roots.clients(),
        0,
        "it was connected to before that was allowed"
    );
    let call = [
        "org.vcpud1",
        "/org/vcpud1",
        "org.vcpud1.Manager",
        "UnregisterMachine",
        "s",
    ];
    let call = [&call[..], &["nobody-a"]].concat();
    world
        .as_nobody(Interaction::Forbidden, &call)
        .await
        .unwrap();
    assert_eq!(peer.count("device_add"), 0);
}

/// Scripted QEMUs, dbus-daemon, polkitd, a client as nobody.
#[tokio::test]
async fn a_user_has_a_limited_number_of_registrations() {
    let rule = "polkit.addRule(function(action) { return polkit.Result.YES; });";
    let world = World::with_polkit(rule).await;
    let (mut peers, mut connections, mut processes) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..66 {
        let (ours, theirs) = pair();
        let process = sleeper(command_of_nobody("sleep")).await;
        let mut model = Model::x86(1, 1);
        model.threads = Threads::Of(process.pid());
        peers.push(Peer::on(ours, model));
        connections.push((theirs, Some(process.pid())));
        processes.push(process);
    }
    let mut connections = connections.into_iter();
    let mut first: Vec<_> = connections.by_ref().take(65).collect();
    let failure = world
        .with_nobody(move |manager| async move {
            let (last, leader) = first.pop().expect("there are 65");
            for (n, (connection, leader)) in first.into_iter().enumerate() {
                let name = format!("vm{n}");
                let registered = register_fd_of(&manager, &name, connection, leader);
                registered.await.unwrap();
            }
            let registered = register_fd_of(&manager, "vm", last, leader);
            registered.await.unwrap_err()
        })
        .await;
    let parts = ["vm", "user 65534", "64 registered machines"];
    failure.assert(error_name::LIMIT_EXCEEDED, &parts);
    // One that went does not count.
    let mark = world.signals.mark().await;
    peers[7].hang_up();
    world.removal_of("vm7", mark).await;
    let (last, leader) = connections.next().expect("there are 66");
    let path = world
        .with_nobody(
            move |manager| async move { register_fd_of(&manager, "vm", last, leader).await },
        )
        .await;
    assert_eq!(path.unwrap().as_str(), "/org/vcpud1/machine/vm");
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn registrations_by_the_hundred_leave_nothing() {
    let world = World::without_polkit().await;
    let manager = world.manager().await;
    let service = world.service.as_ref().expect("it runs");
    let visit = async |n: usize| {
        let name = format!("vm{n}");
        let (ours, theirs) = pair();
        let peer = Peer::on(ours, Model::x86(1, 4));
        let mark = world.signals.mark().await;
        let process = sleeper(command("sleep")).await;
        peer.model().threads = Threads::Of(process.pid());
        let leader = Some(process.pid());
        let registered = register_fd_of(&manager, &name, theirs, leader);
        registered.await.unwrap();
        peer.hang_up();
        let told = world.removal_of(&name, mark).await;
        let own = |signal: &&Signal| {
            let added = Signal::MachineAdded(name.clone());
            let removed = Signal::MachineRemoved(name.clone());
            **signal == added || **signal == removed
        };
        assert_eq!(told.iter().filter(own).count(), 2);
    };
    visit(0).await;
    let before = service.descriptors();
    for _ in 0..4 {
        join_all((0..50).map(&visit)).await;
    }
    let is_empty = |directory: &str| {
        let directory = world.bus.runtime_directory().join(directory);
        fs::read_dir(directory).unwrap().count() == 0
    };
    // The service cleans up after it reported the end of a machine.
    let are_released =
        || service.descriptors() <= before + 1 && is_empty("machines") && is_empty("registrations");
    until("the end of descriptors and files", are_released).await;
}

/// Scripted QEMU in front of nobody's socat, dbus-daemon, polkitd, a client as nobody.
#[tokio::test]
async fn an_unprivileged_users_path_leads_where_it_says() {
    let allow = "polkit.addRule(function() { return polkit.Result.YES; });";
    let world = World::with_polkit(allow).await;
    let directory = elsewhere(&world, "qemu");
    fs::create_dir(&directory).unwrap();
    let (_process, ours) = world.nobody_listens(&directory.join("qmp")).await;
    let _peer = Peer::on(ours, Model::x86(1, 4));
    let roots = Peer::start(&directory.join("roots"), Model::x86(1, 4));
    // A file of the user's, with a listener of root's.
    let given = Peer::start(&directory.join("given"), Model::x86(1, 4));
    std::os::unix::fs::chown(directory.join("given"), Some(65534), None).unwrap();
    std::os::unix::fs::symlink(&directory, elsewhere(&world, "link")).unwrap();
    let at = |path: &str| elsewhere(&world, path).display().to_string();
    let invalid = error_name::INVALID_ARGS;
    let cases = [
        (at("link/qmp"), invalid, "symbolic link"),
        (at("qemu/../qemu/qmp"), invalid, "component"),
        (at("qemu/./qmp"), invalid, "component"),
        (
            at("qemu/given"),
            error_name::DISCONNECTED,
            "uid 0 listens on it",
        ),
        (at("qemu/none"), error_name::DISCONNECTED, "does not exist"),
    ];
    let (link, good) = (at("link/roots"), at("qemu/qmp"));
    world
        .with_nobody(move |manager| async move {
            for (address, error, text) in cases {
                let failure = register(&manager, "vm", &address, &[]).await.unwrap_err();
                failure.assert(error, &[text]);
            }
            register(&manager, "vm", &good, &[]).await.unwrap();
        })
        .await;
    assert_eq!(roots.clients(), 0);
    assert_eq!(given.all_calls(), 0);
    // Root may use links.
    let manager = world.manager().await;
    register(&manager, "roots", &link, &[]).await.unwrap();
}

/// Scripted QEMUs, dbus-daemon, polkitd, a client as nobody.
#[tokio::test]
async fn the_defaults_are_not_for_machines_that_users_register() {
    let allow = "polkit.addRule(function() { return polkit.Result.YES; });";
    let world = World::with_polkit(allow).await;
    let defaults =
        "[defaults]\naffinity = \"0\"\nbandwidth-period = \"10ms\"\nscheduler = \"batch\"";
    world.configure("vcpud.toml", defaults);
    let manager = world.manager().await;
    manager.reload().await.unwrap();
    let (ours, theirs) = pair();
    let _users = Peer::on(ours, Model::x86(1, 4));
    let register = move |manager| async move { register_fd(&manager, "users", theirs).await };
    world.with_nobody(register).await.unwrap();
    let _roots = world.peer("roots", Model::x86(1, 4));

    let (users, roots) = (world.machine("users").await, world.machine("roots").await);
    assert_eq!(roots.bandwidth_period_usec().await, Ok(10_000));
    assert_eq!(users.bandwidth_period_usec().await, Ok(100_000));
    let text = format!("[service]\ndefaults-for-users = true\n{defaults}");
    world.configure("vcpud.toml", &text);
    manager.reload().await.unwrap();
    assert_eq!(users.bandwidth_period_usec().await, Ok(10_000));
}

/// Scripted QEMUs, other processes, dbus-daemon.
#[tokio::test]
async fn a_process_is_one_machine() {
    let world = World::without_polkit().await;
    let manager = world.manager().await;
    let at = |name: &str| elsewhere(&world, name).display().to_string();
    let web = Peer::start(&elsewhere(&world, "web"), Model::x86(1, 4));
    let _db = Peer::start(&elsewhere(&world, "db"), Model::x86(1, 4));
    let process = sleeper(command("sleep")).await;
    web.model().threads = Threads::Of(process.pid());
    let leader = || [("leader", Variant::from(process.pid()))];
    register(&manager, "web", &at("web"), &leader())
        .await
        .unwrap();
    let failure = register(&manager, "db", &at("db"), &leader())
        .await
        .unwrap_err();
    failure.assert(error_name::MACHINE_EXISTS, &["db", "the machine web"]);
    assert_eq!(world.names().await, ["web"]);
    assert_eq!(web.clients(), 1);
    // The QEMU behind the socket is another process: the test's.
    register(&manager, "db", &at("db"), &[]).await.unwrap();
    manager.unregister_machine("web").await.unwrap();
    manager.unregister_machine("db").await.unwrap();
    register(&manager, "other", &at("web"), &leader())
        .await
        .unwrap();
}

/// Scripted QEMUs, other processes, dbus-daemon.
#[tokio::test]
async fn the_name_of_a_machine_is_free_when_its_end_is_reported() {
    let world = World::without_polkit().await;
    let manager = world.manager().await;
    let socket = elsewhere(&world, "web");
    let address = socket.display().to_string();
    for _ in 0..4 {
        let peer = Peer::start(&socket, Model::x86(1, 4));
        let mut process = sleeper(command("sleep")).await;
        peer.model().threads = Threads::Of(process.pid());
        let leader = [("leader", Variant::from(process.pid()))];
        register(&manager, "web", &address, &leader).await.unwrap();
        let machine = world.machine("web").await;
        // The service cannot connect any more, so it pauses between attempts when QEMU exits.
        fs::remove_file(&socket).unwrap();
        let mark = world.signals.mark().await;
        peer.hang_up();
        machine.wait_for("State", "disconnected").await;
        process.kill().await;
        world.removal_of("web", mark).await;
    }
    let _peer = Peer::start(&socket, Model::x86(1, 4));
    register(&manager, "web", &address, &[]).await.unwrap();
}

/// Scripted QEMU, a process that executes a setuid program, dbus-daemon.
#[tokio::test]
async fn a_process_that_became_another_users_is_disconnected() {
    let world = World::without_polkit().await;
    let manager = world.manager().await;
    let socket = elsewhere(&world, "web");
    let peer = Peer::start(&socket, Model::x86(1, 4));
    let setuid = elsewhere(&world, "sleep");
    copy_program("/bin/sleep", &setuid);
    fs::set_permissions(&setuid, fs::Permissions::from_mode(0o4755)).unwrap();
    let parent = setuid.parent().unwrap();
    fs::set_permissions(parent, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = command_of_nobody("sh");
    command
        .args(["-c", "read line; exec \"$0\" 600"])
        .arg(&setuid)
        .stdin(std::process::Stdio::piped());
    let mut process = Process::spawn("sh", &mut command);
    let pid = process.pid();
    peer.model().threads = Threads::Of(pid);
    let comm = format!("/proc/{pid}/comm");
    until("sh", || fs::read_to_string(&comm).unwrap() == "sh\n").await;
    let leader = [("leader", Variant::from(pid))];
    let address = socket.display().to_string();
    register(&manager, "web", &address, &leader).await.unwrap();
    let machine = world.machine("web").await;
    assert_eq!(machine.set(2).await, Ok(Outcome::added([1])));

    let mut stdin = process.child.stdin.take().unwrap();
    stdin.write_all(b"\n").await.unwrap();
    let runs = || fs::read_to_string(&comm).unwrap() == "sleep\n";
    until("the setuid program", runs).await;
    let failure = machine.set(3).await.unwrap_err();
    let parts = ["web", &format!("process {pid}"), "65534, 0, 0, 0"];
    failure.assert(error_name::DISCONNECTED, &parts);
    assert_eq!(peer.count("device_add"), 1);
    machine.wait_for("State", "disconnected").await;
}

/// Scripted QEMUs whose threads are confined to host CPU 0, dbus-daemon, polkitd, a client as nobody.
#[tokio::test]
async fn a_machine_that_a_user_registers_stays_on_its_host_cpus() {
    let allow = "polkit.addRule(function() { return polkit.Result.YES; });";
    let world = World::with_polkit(allow).await;
    let all = sched_getaffinity(None).expect("it runs");
    let mut first = CpuSet::new();
    first.set(0);
    sched_setaffinity(None, &first).expect("host CPU 0 is online");
    // Its threads begin with the affinity of this one.
    let models = [Model::x86(1, 2), Model::x86(1, 2)];
    sched_setaffinity(None, &all).expect("they were allowed before");
    let [users, roots] = models;
    let (ours, theirs) = pair();
    let _users = Peer::on(ours, users);
    let register = move |manager| async move { register_fd(&manager, "users", theirs).await };
    world.with_nobody(register).await.unwrap();
    let _roots = world.peer("roots", roots);
    let affinity = async |name: &str| world.machine(name).await.rows().await[0]["affinity"].clone();
    assert_eq!(affinity("users").await, "0");
    if all.count() > 1 {
        assert_ne!(affinity("roots").await, "0");
    }
}
