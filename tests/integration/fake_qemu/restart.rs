//! What happens while the service is down.

use crate::harness::*;

/// Kills the service, runs `change`, and starts the service again.
async fn restart(world: &mut World, change: impl FnOnce()) {
    let mut service = world.service.take().expect("it runs");
    service.kill().await;
    change();
    world.serve().await;
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn a_removal_that_completes_while_the_service_is_down_is_told_with_who_asked() {
    let mut world = World::without_polkit().await;
    let mut model = Model::x86(4, 6);
    model.removal = Removal::Held;
    let peer = world.peer("web", model);
    let machine = world.machine("web").await;
    let pending = machine.set_async(2).await;
    assert_eq!(pending, Ok(Outcome::pending([2, 3])));

    let mark = world.signals.mark().await;
    restart(&mut world, || {
        peer.model().unplug(3);
        peer.model().plug(4, "other");
    })
    .await;
    let told = world
        .signals
        .wait("both", mark, |told| !added(told).is_empty());
    let told = told.await;
    assert_eq!(removed(&told), [Vcpu::by_request("web", 3, "")]);
    assert_eq!(
        added(&told),
        [Vcpu::by_cause("web", 4, "other", "reconnect")]
    );
    // The service emits it after it owns its name.
    assert_eq!(machine.pending().await, [2]);
    assert_eq!(machine.present().await, [0, 1, 2, 4]);

    let looks = peer.count("query-hotpluggable-cpus");
    let waiting = machine.start_set(3);
    peer.asked("query-hotpluggable-cpus", looks + 1).await;
    // The look can be one of the service itself. It answers this call after it has the first one.
    assert_eq!(machine.set_async(3).await, Ok(Outcome::pending([2])));
    let mark = world.signals.mark().await;
    let path = peer.model().unplug(2);
    peer.send(&deleted(&path));
    assert_eq!(waiting.await.unwrap(), Ok(Outcome::removed([2])));
    let told = world.signals.since(mark).await;
    assert_eq!(removed(&told), [Vcpu::by_request("web", 2, "")]);
    assert_eq!(peer.count("device_del"), 2, "nothing is asked for twice");
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn a_restart_without_news_tells_nothing() {
    let mut world = World::without_polkit().await;
    let _peer = world.peer("web", Model::x86(2, 4));
    let machine = world.machine("web").await;
    assert_eq!(machine.set(3).await, Ok(Outcome::added([2])));
    // A kill before this is saved makes the signal come twice.
    let state = world.bus.runtime_directory().join("machines/web.json");
    let is_saved = || {
        let state = std::fs::read_to_string(&state).unwrap_or_default();
        state.contains("\"telling\":[]")
    };
    until("the saved state", is_saved).await;
    let mark = world.signals.mark().await;
    restart(&mut world, || {}).await;
    assert_eq!(machine.set(4).await, Ok(Outcome::added([3])));
    let told = world.signals.since(mark).await;
    assert_eq!(added(&told), [Vcpu::by_request("web", 3, "vcpu3")]);
    assert_eq!(removed(&told), []);
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn who_asked_for_a_vcpu_that_came_without_a_reply_is_known() {
    let mut world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(2, 4));
    let machine = world.machine("web").await;
    // It does what it is asked and says nothing.
    peer.script(|model, call| {
        (call.command == "device_add").then(|| {
            model.answer(call);
            Vec::new()
        })
    });
    let waiting = machine.start_set(3);
    peer.asked("device_add", 1).await;
    let mark = world.signals.mark().await;
    restart(&mut world, || peer.script(|_, _| None)).await;
    let told = world
        .signals
        .wait("the vCPU", mark, |told| !added(told).is_empty());
    assert_eq!(added(&told.await), [Vcpu::by_request("web", 2, "vcpu2")]);
    waiting.abort();
}

/// Scripted QEMUs, dbus-daemon.
#[tokio::test]
async fn what_was_known_of_another_qemu_is_forgotten() {
    let mut world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(4, 6));
    let machine = world.machine("web").await;
    let records = world.bus.runtime_directory().join("machines");
    assert!(records.join("web.json").exists());
    let socket = world.socket("web");
    // As if an earlier process had had the socket.
    let record = std::fs::read_to_string(records.join("web.json")).unwrap();
    let start = record.find("\"start\":").expect("a start") + 8;
    let former = format!("{}1{}", &record[..start], &record[start..]);
    let mark = world.signals.mark().await;
    restart(&mut world, || {
        std::fs::write(records.join("web.json"), former).unwrap();
        std::fs::write(records.join("gone.json"), "{}").unwrap();
        peer.model().unplug(3);
    })
    .await;
    assert_eq!(machine.present().await, [0, 1, 2]);
    assert!(!records.join("gone.json").exists());
    std::fs::remove_file(socket).unwrap();
    world.signals.removal_of("web", mark).await;
    assert_eq!(removed(&world.signals.since(mark).await), []);
    assert!(!records.join("web.json").exists());
}

/// Scripted QEMUs, dbus-daemon.
#[tokio::test]
async fn what_cannot_be_written_down_is_not_begun() {
    const IO_ERROR: &str = "org.freedesktop.DBus.Error.IOError";
    let mut world = World::without_service().await;
    // A file is where the directory should be.
    let run = world.bus.runtime_directory();
    std::fs::create_dir_all(&run).unwrap();
    let wrong = [run.join("machines"), run.join("registrations")];
    for path in &wrong {
        std::fs::write(path, "").unwrap();
    }
    let peer = world.peer("web", Model::x86(2, 4));
    world.serve().await;
    let machine = world.machine("web").await;
    let parts = &["cannot be written", "nothing was changed"];
    for count in [3, 1] {
        let failure = machine.set(count).await.unwrap_err();
        failure.assert(IO_ERROR, parts);
    }
    let pinned = machine.pin_vcpus(&[0], "0", Default::default()).await;
    Failure::of(pinned.unwrap_err()).assert(IO_ERROR, parts);
    let changes = [peer.count("device_add"), peer.count("device_del")];
    assert_eq!(changes, [0, 0]);
    let socket = world.bus.directory().join("elsewhere");
    let other = Peer::start(&socket, Model::x86(1, 4));
    let manager = world.manager().await;
    let address = socket.to_str().unwrap();
    // The test's process is the machine `web`.
    let process = sleeper(command("sleep")).await;
    other.model().threads = Threads::Of(process.pid());
    let leader = || [("leader", process.pid().into())].into();
    let registered = manager.register_machine("other", address, leader());
    let failure = Failure::of(registered.await.unwrap_err());
    failure.assert(IO_ERROR, &["other", "cannot be saved"]);
    assert_eq!(other.clients(), 0);
    let log = world.service.as_ref().expect("it runs").log();
    assert_eq!(log.matches("web: cannot save the state").count(), 1);

    for path in &wrong {
        std::fs::remove_file(path).unwrap();
    }
    assert_eq!(machine.set(3).await, Ok(Outcome::added([2])));
    let registered = manager.register_machine("other", address, leader());
    registered.await.unwrap();
    restart(&mut world, || ()).await;
    assert_eq!(machine.set(1).await, Ok(Outcome::removed([1, 2])));
    assert_eq!(world.machine("other").await.vcpus().await, Ok(1));
}
