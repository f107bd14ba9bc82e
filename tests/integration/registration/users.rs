//! Registrations by users other than root.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::*;

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
    world.signals.removal_of("vm7", mark).await;
    let (last, leader) = connections.next().expect("there are 66");
    let path = world
        .with_nobody(
            move |manager| async move { register_fd_of(&manager, "vm", last, leader).await },
        )
        .await;
    assert_eq!(path.unwrap().as_str(), "/org/vcpud1/machine/vm");
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
