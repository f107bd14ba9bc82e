//! The processes of registered machines: their leaders, and their ends.

use std::os::unix::fs::PermissionsExt;

use tokio::io::AsyncWriteExt;

use super::*;

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
    world.signals.removal_of("web", mark).await;
    assert_eq!(world.names().await, [] as [&str; 0]);
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
        world.signals.removal_of("web", mark).await;
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
