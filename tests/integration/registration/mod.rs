//! Machines that are registered by a call.

use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use futures_util::future::join_all;
use vcpud::names::error_name;
use vcpud::proxy::ManagerProxy;
use zbus::{Fd, OwnedObjectPath, Variant};

use crate::harness::*;

mod processes;
mod refusals;
mod users;

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
        let told = world.signals.removal_of("web", mark).await;
        assert_eq!(of_machines(told), went("web", &path));
    }
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
    world.signals.removal_of("web", mark).await;
    systemd.keeps(&[]).await;
    assert_eq!(world.names().await, [] as [&str; 0]);
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
        let told = world.signals.removal_of(&name, mark).await;
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
