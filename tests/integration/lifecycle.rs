//! The service from its start to its end.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use futures_util::StreamExt;
use vcpud::names::error_name;
use zbus::fdo::ObjectManagerProxy;
use zbus::message::Type;
use zbus::{MatchRule, MessageStream, OwnedObjectPath, OwnedVariant};

use crate::harness::*;

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn who_sees_the_name_finds_the_machines() {
    let mut world = World::without_service().await;
    let peer = Peer::start_silent(&world.socket("web"), Model::x86(3, 4));
    world.start_service();
    // It has not answered yet, so the name is not taken.
    peer.accept();
    peer.asked("qmp_capabilities", 1).await;
    owned(&world.connection, "org.vcpud1").await;
    let manager = world.manager().await;
    let path = manager.get_machine("web").await.unwrap();
    assert_eq!(path.as_str(), "/org/vcpud1/machine/web");
    let machine = world.machine("web").await;
    assert_eq!(machine.vcpus().await.unwrap(), 3);
}

/// Scripted QEMUs, dbus-daemon.
#[tokio::test]
async fn a_machine_that_stalls_does_not_keep_the_service_from_starting() {
    for stalled in ["query-commands", "query-cpus-fast"] {
        let mut world = World::without_service().await;
        let peer = world.peer("slow", Model::x86(1, 4));
        let _other = world.peer("web", Model::x86(2, 4));
        peer.script(move |_, call| (call.command == stalled).then(Vec::new));
        world.serve().await;
        assert_eq!(peer.clients(), 1, "it was waited for until it was given up");
        let machine = world.machine("web").await;
        assert_eq!(machine.set(3).await, Ok(Outcome::added([2])));
        let slow = world.machine_in_any_state("slow").await;
        assert_eq!(slow.state().await.unwrap(), "disconnected", "{stalled}");
        assert_eq!(peer.clients(), 1);
    }
}

/// A file system that is mounted on a directory until this is dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn new(directory: PathBuf) -> Self {
        let mounted = Self(directory);
        mounted.run("mount", &["-t", "tmpfs", "-o", "mode=755", "vcpud-test"]);
        mounted
    }

    fn run(&self, program: &str, options: &[&str]) -> bool {
        let mut command = std::process::Command::new(program);
        let ran = command.args(options).arg(&self.0).status();
        ran.is_ok_and(|status| status.success())
    }

    fn unmount(&self) -> bool {
        self.run("umount", &[])
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.run("umount", &["--quiet", "--lazy"]);
    }
}

/// Scripted QEMUs, dbus-daemon, a file system on the directory of sockets that is unmounted.
#[tokio::test]
async fn sockets_are_found_after_their_directory_was_unmounted() {
    let mut world = World::without_service().await;
    let directory = world.socket("web").parent().unwrap().to_owned();
    let mounted = Mounted::new(directory);
    let gone = world.peer("gone", Model::x86(1, 2));
    world.serve().await;
    assert_eq!(world.names().await, ["gone"]);

    drop(gone);
    // A socket keeps its file system until it is closed.
    until("the end of the mount", || mounted.unmount()).await;
    let _web = world.peer("web", Model::x86(2, 4));
    let machine = world.machine("web").await;
    assert_eq!(machine.set(3).await, Ok(Outcome::added([2])));
    assert_eq!(world.names().await, ["web"]);
}

/// Scripted QEMUs, dbus-daemon, a file system that is mounted on the directory of sockets later.
#[tokio::test]
async fn sockets_are_found_after_a_file_system_was_mounted_on_their_directory() {
    let mut world = World::without_service().await;
    let directory = world.socket("web").parent().unwrap().to_owned();
    let hidden = [("hidden", 1), ("web", 1)].map(|(name, n)| world.peer(name, Model::x86(n, 2)));
    world.serve().await;
    assert_eq!(world.names().await, ["hidden", "web"]);

    // The service announces the machines that it found at its start after it owns its name.
    world.signals.addition_of("web", 0).await;
    let mark = world.signals.mark().await;
    let mounted = Mounted::new(directory);
    let web = world.peer("web", Model::x86(2, 4));
    // The socket of the same name is another one.
    world.signals.addition_of("web", mark).await;
    let machine = world.machine("web").await;
    assert_eq!(machine.set(3).await, Ok(Outcome::added([2])));
    assert_eq!(world.names().await, ["web"]);

    drop((web, hidden));
    until("the end of the mount", || mounted.unmount()).await;
    let _last = world.peer("last", Model::x86(1, 2));
    world.machine("last").await;
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn ignores_files_that_are_not_sockets_of_machines() {
    let mut world = World::without_service().await;
    fs::write(world.socket("file"), "").unwrap();
    std::os::unix::fs::symlink(world.socket("web"), world.socket("link")).unwrap();
    let odd = world.peer(" odd ", Model::x86(1, 1));
    let hidden = world.peer(".hidden", Model::x86(1, 1));
    let forger = world.peer("x\nERROR forged\u{1b}[31m", Model::x86(1, 1));
    let _peer = world.peer("web", Model::x86(1, 1));
    world.serve().await;
    assert_eq!(world.names().await, ["web"]);
    let service = world.service.as_ref().expect("it runs");
    service.has_logged(r"x\nERROR forged\u{1b}[31m.sock").await;
    assert!(!service.log().lines().any(|line| line.starts_with("ERROR")));
    // The same for what comes later.
    fs::write(world.socket("file2"), "").unwrap();
    fs::rename(world.socket("file2"), world.socket("file3")).unwrap();
    let _last = world.peer("z-last", Model::x86(1, 1));
    world.machine("z-last").await;
    assert_eq!(world.names().await, ["web", "z-last"]);
    assert_eq!(odd.clients() + hidden.clients() + forger.clients(), 0);
    let log = world.service.as_ref().unwrap().log();
    assert!(log.contains(r"x\nERROR forged\u{1b}[31m.sock"), "{log}");
    assert!(!log.contains('\u{1b}') && !log.contains("\nERROR forged"));
}

/// Scripted QEMU in front of nobody's socat, dbus-daemon.
#[tokio::test]
async fn only_the_owner_of_a_socket_or_root_can_be_behind_it() {
    let world = World::without_polkit().await;
    let socket = world.socket("web");
    let (process, ours) = world.nobody_listens(&socket).await;
    let _peer = Peer::on(ours, Model::x86(1, 1));
    let machine = world.machine("web").await;
    machine.wait_for("Leader", process.pid()).await;

    // Of another user, though nobody listens there.
    let stolen = world.socket("stolen");
    let (_process, ours) = world.nobody_listens(&world.socket(".hidden")).await;
    let _peer = Peer::on(ours, Model::x86(1, 1));
    std::os::unix::fs::chown(world.socket(".hidden"), Some(1), None).unwrap();
    fs::rename(world.socket(".hidden"), &stolen).unwrap();
    let service = world.service.as_ref().unwrap();
    let reason = "the socket file belongs to uid 1, and a process of uid 65534 listens on it";
    service.has_logged(reason).await;
    assert_eq!(world.names().await, ["web"]);
}

/// Scripted QEMU in front of nobody's socket, dbus-daemon.
#[tokio::test]
async fn a_process_that_became_another_users_is_no_machine() {
    let world = World::without_polkit().await;
    // The thread is nobody's, and the process root's: as if it had changed since.
    let socket = world.socket("web");
    fs::set_permissions(socket.parent().unwrap(), fs::Permissions::from_mode(0o1777)).unwrap();
    let listen = move |_| async move { UnixListener::bind(socket).unwrap() };
    let _listener = world.with_nobody(listen).await;
    let service = world.service.as_ref().unwrap();
    let reason = "the process that listens on the QMP socket had uid 65534 and has uid 0 now";
    service.has_logged(reason).await;
    assert_eq!(world.names().await, [""; 0]);
}

/// Scripted QEMU, dbus-daemon. The second service does not connect to the QEMU of the first.
#[tokio::test]
async fn there_is_one_service_on_a_bus() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(1, 4));
    world.machine("web").await;
    let mut second = Service::start_as(&world.bus, "second");
    let status = second.wait().await;
    assert!(!status.success());
    let log = second.log();
    assert!(
        log.contains("org.vcpud1 is owned by another process"),
        "{log}"
    );
    assert!(!log.contains("web"), "{log}");
    assert_eq!(peer.clients(), 1);
    assert!(is_owned(&world.connection, "org.vcpud1").await);
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn a_service_that_is_told_to_end_gives_up_its_name_and_leaves_machines_alone() {
    let mut world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(2, 4));
    let machine = world.machine("web").await;
    machine.set(3).await.unwrap();
    let asked = peer.changing_calls();

    let mut service = world.service.take().unwrap();
    service.terminate();
    let status = service.wait().await;
    assert!(status.success(), "{status}");
    assert!(!is_owned(&world.connection, "org.vcpud1").await);
    assert_eq!(peer.changing_calls(), asked);
    assert!(world.socket("web").exists());

    // The next one finds the machine as it is.
    world.serve().await;
    let machine = world.machine("web").await;
    assert_eq!(machine.present().await, [0, 1, 2]);
    assert_eq!(machine.rows().await[2]["alias"], "vcpu2");
}

/// Scripted QEMUs, real QEMU with firmware only, dbus-daemon.
#[tokio::test]
async fn every_way_to_find_machines_leads_to_the_same() {
    let world = World::without_polkit().await;
    let _peer = world.peer("db-1", Model::x86(1, 4));
    let boot = Boot {
        linux: false,
        ..Boot::default()
    };
    let qemu = Qemu::start(&world, "web", &boot).await;
    let web = world.machine("web").await;
    let db = world.machine("db-1").await;
    assert_eq!(db.path(), "/org/vcpud1/machine/db_2d1");
    assert_eq!(db.name().await.unwrap(), "db-1");
    assert_eq!(db.uuid().await.unwrap(), UUID);
    assert_eq!(web.uuid().await.unwrap(), "");

    let manager = world.manager().await;
    let mut found = Vec::new();
    for (machine, pid) in [(&db, std::process::id()), (&web, qemu.pid())] {
        let path = manager.get_machine_by_pid(pid).await.unwrap();
        assert_eq!(path.as_str(), machine.path());
        found.push((machine.name().await.unwrap(), path, pid));
    }
    assert_eq!(manager.list_machines().await.unwrap(), found);
    for pid in [0, 1] {
        let failure = Failure::of(manager.get_machine_by_pid(pid).await.unwrap_err());
        failure.assert(error_name::NO_SUCH_MACHINE, &[&pid.to_string()]);
    }
    // The path of all machines is not an object.
    let objects = managed_objects(&world).await;
    assert_eq!(objects.keys().collect::<Vec<_>>(), [db.path(), web.path()]);
    assert_eq!(objects[db.path()]["Vcpus"], 1);
    assert_eq!(objects[web.path()]["Leader"], qemu.pid());
}

/// The properties of all machines by path, as `GetManagedObjects` gives them.
async fn managed_objects(world: &World) -> BTreeMap<String, Dict> {
    let builder = ObjectManagerProxy::builder(&world.connection);
    let builder = builder.destination("org.vcpud1");
    let proxy = builder.path("/org/vcpud1").build().await.unwrap();
    let objects = proxy.get_managed_objects().await.unwrap();
    let machines = objects.into_iter().filter_map(|(path, interfaces)| {
        if path.as_str() == "/org/vcpud1" {
            let properties = dict(&interfaces["org.vcpud1.Manager"]);
            assert_eq!(properties["Version"], env!("CARGO_PKG_VERSION"));
            return None;
        }
        let properties = &interfaces["org.vcpud1.Machine"];
        Some((path.to_string(), dict(properties)))
    });
    machines.collect()
}

/// Scripted QEMU that stops answering, dbus-daemon. A reload waits for it.
#[tokio::test]
async fn a_service_that_reloads_still_ends_when_it_is_told_to() {
    let mut world = World::without_service().await;
    world.configure("vcpud.toml", "[defaults]\nqmp-timeout = \"1h\"");
    world.serve().await;
    let peer = world.peer("web", Model::x86(1, 4));
    let machine = world.machine("web").await;
    peer.script(|_, call| (call.command == "device_add").then(Vec::new));
    let call = machine.start_set(2);
    peer.asked("device_add", 1).await;
    let mut service = world.service.take().expect("it runs");
    service.reload();
    service.has_logged("reloading the configuration").await;
    service.terminate();
    assert!(service.wait().await.success());
    call.abort();
}

/// Uses fake QEMUs and dbus-daemon.
#[tokio::test]
async fn a_machine_that_is_there_at_the_start_is_announced_once() {
    let mut world = World::without_service().await;
    let _web = world.peer("web", Model::x86(1, 4));
    let client = world.bus.connect().await;
    let rule = MatchRule::builder().msg_type(Type::Signal);
    let rule = rule.sender("org.vcpud1").build().unwrap();
    let mut signals = MessageStream::for_match_rule(rule, &client, None)
        .await
        .unwrap();
    // The bus passes the signals of a name on from when the name is owned.
    world.serve().await;
    let names = announced(&mut signals, "web").await;
    assert_eq!(names, ["InterfacesAdded web", "MachineAdded web"]);

    // The next instance announces what the first one did not.
    let machine = world.machine("web").await;
    machine.set(2).await.unwrap();
    world.service.take().expect("it runs").kill().await;
    let _db = world.peer("db", Model::x86(1, 4));
    world.serve().await;
    let names = announced(&mut signals, "db").await;
    assert_eq!(names, ["InterfacesAdded db", "MachineAdded db"]);
}

/// Returns the announcements of machines up to `MachineAdded` of the machine `last`.
async fn announced(signals: &mut MessageStream, last: &str) -> Vec<String> {
    let mut announced = Vec::new();
    loop {
        let signal = within("a signal", signals.next()).await.unwrap().unwrap();
        let member = signal.header().member().unwrap().to_string();
        let body = signal.body();
        let name = match member.as_str() {
            "MachineAdded" => body.deserialize::<(String, OwnedObjectPath)>().unwrap().0,
            "InterfacesAdded" => {
                let added: (
                    OwnedObjectPath,
                    HashMap<String, HashMap<String, OwnedVariant>>,
                ) = body.deserialize().unwrap();
                assert_eq!(added.1["org.vcpud1.Machine"]["Vcpus"], 1u32.into());
                added.0.rsplit('/').next().unwrap().to_owned()
            }
            _ => continue,
        };
        announced.push(format!("{member} {name}"));
        if member == "MachineAdded" && name == last {
            return announced;
        }
    }
}
