//! The files of the administrator.

use std::fs;
use std::process::Stdio;

use tokio::process::Command;
use vcpud::names::error_name;

use crate::harness::*;

/// Runs `vcpud --check-config`: its exit status and what it prints.
async fn check(world: &World) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vcpud"));
    command
        .arg("--check-config")
        .env(
            "CONFIGURATION_DIRECTORY",
            world.bus.configuration_directory(),
        )
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = within("vcpud --check-config", command.output())
        .await
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    (output.status.code().unwrap(), text)
}

/// Scripted QEMUs, dbus-daemon, vcpuctl.
#[tokio::test]
async fn a_bad_file_disables_one_machine_and_everybody_can_see_why() {
    let mut world = World::without_service().await;
    let sockets = ["web", "db"].map(|name| world.bus.directory().join(name));
    let [_web, _db] = sockets
        .each_ref()
        .map(|socket| Peer::start(socket, Model::x86(1, 4)));
    let socket = |n: usize| format!("qmp = {:?}\n", sockets[n].to_str().unwrap());
    world.configure("machines.d/web.toml", &socket(0));
    world.configure("machines.d/db.toml", &(socket(1) + "affinty = \"0\"\n"));
    world.configure(
        "vcpud.toml",
        "[defaults]\nplacement = \"none\"\nslice = 3\n",
    );
    let (status, printed) = check(&world).await;
    assert_eq!(status, 1);
    let lines: Vec<&str> = printed.lines().collect();
    assert!(
        lines[0].contains("machines.d/db.toml:2: affinty: unknown key; did you mean \"affinity\"?"),
        "{printed}"
    );
    assert!(lines[1].contains("vcpud.toml:3: slice: "), "{printed}");
    assert_eq!(lines.len(), 2);

    world.serve().await;
    let machine = world.machine("web").await;
    assert_eq!(machine.placement().await.unwrap(), "none");
    let manager = world.manager().await;
    let failure = Failure::of(manager.get_machine("db").await.unwrap_err());
    failure.assert(error_name::NO_SUCH_MACHINE, &["db"]);
    let call = manager.register_machine("db", "/run/db.sock", Default::default());
    let failure = Failure::of(call.await.unwrap_err());
    failure.assert(error_name::MACHINE_EXISTS, &["db.toml has errors"]);
    assert_eq!(manager.configuration_errors().await.unwrap(), lines);
    let log = world.service.as_ref().unwrap().log();
    for line in &lines {
        assert_eq!(log.matches(line).count(), 1, "{log}");
    }
    let (status, printed, _) = world.vcpuctl(&["status"]).await;
    assert_eq!(status, 0);
    assert!(lines.iter().all(|line| printed.contains(line)), "{printed}");
    let (status, _, complaint) = world.vcpuctl(&["reload"]).await;
    assert_eq!(status, 1);
    assert!(
        lines.iter().all(|line| complaint.contains(line)),
        "{complaint}"
    );

    world.configure("machines.d/db.toml", &socket(1));
    world.configure("vcpud.toml", "");
    assert_eq!(check(&world).await, (0, String::new()));
    assert_eq!(
        world.vcpuctl(&["reload"]).await,
        (0, String::new(), String::new())
    );
    assert_eq!(world.machine("db").await.vcpus().await.unwrap(), 1);
    assert_eq!(
        manager.configuration_errors().await.unwrap(),
        [] as [&str; 0]
    );
    let (_, printed, _) = world.vcpuctl(&["status"]).await;
    assert!(
        printed.contains("no errors") && printed.contains("Machines: 2"),
        "{printed}"
    );
}

/// Scripted QEMUs, dbus-daemon.
#[tokio::test]
async fn reload_brings_machines_and_takes_them() {
    let world = World::without_polkit().await;
    let manager = world.manager().await;
    let sockets = ["one", "two"].map(|name| world.bus.directory().join(name));
    let [one, two] = sockets
        .each_ref()
        .map(|socket| Peer::start(socket, Model::x86(1, 4)));
    let socket = |n: usize| format!("qmp = {:?}\n", sockets[n].to_str().unwrap());
    world.configure("machines.d/web.toml", &socket(0));
    assert_eq!(manager.list_machines().await.unwrap(), []);
    manager.reload().await.unwrap();
    let machine = world.machine("web").await;
    assert_eq!(machine.set(2).await, Ok(Outcome::added([1])));
    // Nothing has changed.
    let mark = world.signals.mark().await;
    manager.reload().await.unwrap();
    assert_eq!(world.signals.since(mark).await, []);
    assert_eq!(one.clients(), 1);
    // Another QEMU.
    world.configure("machines.d/web.toml", &socket(1));
    manager.reload().await.unwrap();
    two.had_clients(1).await;
    // While the file has a mistake, what is in force stays.
    world.configure("machines.d/web.toml", "nonsense");
    manager.reload().await.unwrap();
    let machine = world.machine("web").await;
    assert_eq!(machine.vcpus().await.unwrap(), 1);
    assert_eq!(manager.configuration_errors().await.unwrap().len(), 1);

    let mark = world.signals.mark().await;
    fs::remove_file(
        world
            .bus
            .configuration_directory()
            .join("machines.d/web.toml"),
    )
    .unwrap();
    manager.reload().await.unwrap();
    let gone = Signal::MachineRemoved("web".to_owned());
    assert!(world.signals.since(mark).await.contains(&gone));
    assert_eq!(two.count("device_del"), 0);
    assert_eq!(
        manager.configuration_errors().await.unwrap(),
        [] as [&str; 0]
    );
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn what_the_files_want_anew_goes_before_calls_and_the_rest_stays() {
    let mut world = World::without_service().await;
    let web = "scheduler = \"batch\"\nremoval-timeout = \"10min\"\nplacement = \"none\"\n";
    world.configure("machines.d/web.toml", web);
    let mut model = Model::x86(2, 4);
    model.removal = Removal::Held;
    let _peer = world.peer("web", model);
    world.serve().await;
    let machine = world.machine("web").await;
    let scheduler = async || machine.rows().await[1]["scheduler"].clone();
    assert_eq!(scheduler().await, "batch");
    let nothing = std::collections::HashMap::new;
    machine.pin_vcpus(&[], "0", nothing()).await.unwrap();

    let manager = world.manager().await;
    let changed = web.replace("batch", "idle").replace("10min", "1ms");
    world.configure("machines.d/web.toml", &changed);
    manager.reload().await.unwrap();
    assert_eq!(scheduler().await, "idle");
    assert_eq!(machine.affinity().await.unwrap(), "0");
    let failure = machine.set(1).await.unwrap_err();
    failure.assert(error_name::REMOVAL_PENDING, &["0.001 s"]);

    // By call, while the file says the same as before: the call stays, also across a restart.
    machine
        .set_scheduler(&[], "batch", 0, nothing())
        .await
        .unwrap();
    manager.reload().await.unwrap();
    assert_eq!(scheduler().await, "batch");
    world.service.take().expect("it runs").kill().await;
    world.serve().await;
    world.machine("web").await;
    assert_eq!(scheduler().await, "batch");
    assert_eq!(machine.affinity().await.unwrap(), "0");
    // The file changes while the service is down.
    world.service.take().expect("it runs").kill().await;
    world.configure("machines.d/web.toml", &changed.replace("idle", "other"));
    world.serve().await;
    world.machine("web").await;
    assert_eq!(scheduler().await, "other");
    assert_eq!(machine.affinity().await.unwrap(), "0");
}

/// Scripted QEMUs, dbus-daemon.
#[tokio::test]
async fn a_name_has_one_machine_and_the_first_stays() {
    let world = World::without_polkit().await;
    let manager = world.manager().await;
    let elsewhere = world.bus.directory().join("vm.sock");
    let first = Peer::start(&elsewhere, Model::x86(1, 4));
    let address = elsewhere.to_str().unwrap();
    assert_eq!(
        world
            .vcpuctl(&["register", "web", address, "--placement", "none"])
            .await
            .0,
        0
    );
    let mark = world.signals.mark().await;
    let second = world.peer("web", Model::x86(2, 4));
    let told = world
        .signals
        .wait("the conflict", mark, |told| !told.is_empty())
        .await;
    let errors = manager.configuration_errors().await.unwrap();
    assert_eq!(errors.len(), 1);
    for part in ["qmp/web.sock: ignored", "a registration by user 0"] {
        assert!(errors[0].contains(part), "{errors:?}");
    }
    assert_eq!(
        changes_of(&told, "ConfigurationErrors"),
        [serde_json::json!(errors)]
    );
    assert_eq!(second.clients(), 0);
    let machine = world.machine("web").await;
    assert_eq!(machine.vcpus().await.unwrap(), 1);
    // Its turn.
    assert_eq!(world.vcpuctl(&["unregister", "web"]).await.0, 0);
    second.had_clients(1).await;
    let machine = world.machine("web").await;
    assert_eq!(machine.vcpus().await.unwrap(), 2);
    assert_eq!(
        manager.configuration_errors().await.unwrap(),
        [] as [&str; 0]
    );
    let (status, _, complaint) = world.vcpuctl(&["register", "web", address]).await;
    assert_eq!(status, 7);
    assert!(
        complaint.contains("machine web: it already exists"),
        "{complaint}"
    );
    // vcpuctl connects first, because the service has no access to /tmp.
    assert_eq!(first.clients(), 2);
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn a_machine_that_is_unregistered_comes_back_with_reload() {
    let world = World::without_polkit().await;
    let manager = world.manager().await;
    let peer = world.peer("web", Model::x86(1, 4));
    world.machine("web").await;
    manager.unregister_machine("web").await.unwrap();
    assert_eq!(manager.list_machines().await.unwrap(), []);
    manager.reload().await.unwrap();
    peer.had_clients(2).await;
    world.machine("web").await;
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn the_service_ends_when_the_last_machine_is_gone_and_the_configured_time_is_over() {
    let mut world = World::without_service().await;
    world.configure("vcpud.toml", "[service]\nidle-exit = \"1s\"");
    let socket = world.bus.directory().join("vm.sock");
    let web = format!("qmp = {:?}", socket.to_str().unwrap());
    world.configure("machines.d/web.toml", &web);
    world.serve().await;
    // It is awaited, so there is something to do.
    let _peer = Peer::start(&socket, Model::x86(1, 4));
    world.machine("web").await;
    let file = world
        .bus
        .configuration_directory()
        .join("machines.d/web.toml");
    fs::remove_file(file).unwrap();
    world.manager().await.reload().await.unwrap();
    let status = world.service.as_mut().expect("it runs").wait().await;
    assert!(status.success(), "{status}");
}

/// dbus-daemon.
#[tokio::test]
async fn reload_changes_how_long_the_service_stays_without_anything_to_do() {
    let mut world = World::without_service().await;
    world.configure("vcpud.toml", "[service]\nidle-exit = \"1h\"");
    world.serve().await;
    world.configure("vcpud.toml", "[service]\nidle-exit = \"1s\"");
    world.manager().await.reload().await.unwrap();
    let status = world.service.as_mut().expect("it runs").wait().await;
    assert!(status.success(), "{status}");
}
