//! What systemd keeps for the service while that is down.

use std::collections::{BTreeMap, HashMap};

use crate::harness::*;

/// A world without a service, and a systemd to run one.
async fn world() -> (World, Systemd) {
    let world = World::without_service().await;
    let systemd = Systemd::start(&world.bus);
    (world, systemd)
}

/// Starts the service, and waits until systemd keeps the connection to the machine `web`.
async fn serve_web(world: &mut World, systemd: &mut Systemd) {
    world.serve_under(systemd).await;
    systemd.keeps(&["pidfd-web", "qmp-web"]).await;
}

async fn kill(world: &mut World) {
    let mut service = world.service.take().expect("it runs");
    service.kill().await;
}

/// Scripted QEMU and systemd, dbus-daemon.
#[tokio::test]
async fn a_connection_outlives_the_service_and_what_came_over_it_meanwhile_is_heard() {
    let (mut world, mut systemd) = world().await;
    let mut model = Model::x86(4, 6);
    model.removal = Removal::Held;
    let peer = world.peer("web", model);
    serve_web(&mut world, &mut systemd).await;
    systemd.is_told("READY=1").await;
    let machine = world.machine("web").await;
    let pending = machine.set_async(2).await;
    assert_eq!(pending, Ok(Outcome::pending([2, 3])));

    let mark = world.signals.mark().await;
    kill(&mut world).await;
    // The guest keeps one, which nobody tells again, and gives up the other; the service had
    // read the beginning of the first line.
    let refusal = format!("{}\r\n", ost(2, None, 3, 130));
    peer.send_raw(&refusal.as_bytes()[20..]);
    peer.send(&ost(2, None, 3, 130));
    let path = peer.model().unplug(3);
    peer.send(&deleted(&path));
    world.serve_under(&systemd).await;
    let told = world.signals.wait("both", mark, |told| {
        !removed(told).is_empty() && !removal_failed(told).is_empty()
    });
    let told = told.await;
    assert_eq!(removed(&told), [Vcpu::by_request("web", 3, "")]);
    assert_eq!(removal_failed(&told)[0].0, Vcpu::by_request("web", 2, ""));
    assert_eq!(peer.clients(), 1, "it was never left");
    assert_eq!(peer.count("device_del"), 2);
    assert_eq!(machine.set(4).await, Ok(Outcome::added([3])));
}

/// Scripted QEMU and systemd, dbus-daemon.
#[tokio::test]
async fn a_service_that_ends_in_peace_leaves_its_connection_open() {
    let (mut world, mut systemd) = world().await;
    let peer = world.peer("web", Model::x86(2, 6));
    serve_web(&mut world, &mut systemd).await;
    let machine = world.machine("web").await;
    let mut service = world.service.take().expect("it runs");
    service.terminate();
    assert!(service.wait().await.success());

    let mark = world.signals.mark().await;
    let path = peer.model().unplug(1);
    peer.send(&deleted(&path));
    world.serve_under(&systemd).await;
    let told = world
        .signals
        .wait("the vCPU", mark, |told| !removed(told).is_empty());
    assert_eq!(ids(&removed(&told.await)), [1]);
    assert_eq!(peer.clients(), 1, "it was never left");
    systemd.keeps(&["pidfd-web", "qmp-web"]).await;
    assert_eq!(machine.set(2).await, Ok(Outcome::added([1])));
}

/// Scripted QEMU and systemd, dbus-daemon.
#[tokio::test]
async fn a_reply_to_a_service_that_is_no_more_is_passed_over() {
    let (mut world, mut systemd) = world().await;
    let peer = world.peer("web", Model::x86(2, 6));
    serve_web(&mut world, &mut systemd).await;
    let machine = world.machine("web").await;
    let (sender, mut asked) = tokio::sync::watch::channel(None);
    peer.script(move |model, call| {
        (call.command == "device_add").then(|| {
            sender.send_replace(Some(model.answer(call)));
            Vec::new()
        })
    });
    let waiting = machine.start_set(3);
    let reply = within("device_add", asked.wait_for(Option::is_some)).await;
    let reply = reply.unwrap().clone().expect("it was asked");
    let mark = world.signals.mark().await;
    kill(&mut world).await;
    reply.iter().for_each(|message| peer.send(message));
    peer.script(|_, _| None);
    world.serve_under(&systemd).await;
    let told = world
        .signals
        .wait("the vCPU", mark, |told| !added(told).is_empty());
    assert_eq!(added(&told.await), [Vcpu::by_request("web", 2, "vcpu2")]);
    assert_eq!(machine.state().await.unwrap(), "running");
    assert_eq!(peer.clients(), 1);
    waiting.abort();
}

/// Scripted QEMU and systemd, dbus-daemon.
#[tokio::test]
async fn a_connection_that_broke_is_not_kept() {
    let (mut world, mut systemd) = world().await;
    let peer = world.peer("web", Model::x86(2, 6));
    let other = world.peer("other", Model::x86(1, 1));
    world.serve_under(&systemd).await;
    systemd
        .keeps(&["pidfd-other", "pidfd-web", "qmp-other", "qmp-web"])
        .await;
    peer.hang_up();
    systemd.keeps(&["pidfd-other", "qmp-other"]).await;
    peer.accept();
    systemd
        .keeps(&["pidfd-other", "pidfd-web", "qmp-other", "qmp-web"])
        .await;

    // A machine that goes while the service is down leaves nothing.
    kill(&mut world).await;
    drop(other);
    std::fs::remove_file(world.socket("other")).unwrap();
    world.serve_under(&systemd).await;
    systemd.keeps(&["pidfd-web", "qmp-web"]).await;
    assert_eq!(systemd.kept().len(), 2);
    let machine = world.machine("web").await;
    assert_eq!(machine.set(3).await, Ok(Outcome::added([2])));
}

/// Scripted QEMU and systemd, dbus-daemon.
#[tokio::test]
async fn a_machine_that_was_registered_with_a_connection_goes_on() {
    let (mut world, mut systemd) = world().await;
    let socket = world.bus.directory().join("elsewhere");
    let peer = Peer::start(&socket, Model::x86(1, 4));
    world.serve_under(&systemd).await;
    let connection = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    let manager = world.manager().await;
    let fd = zbus::Fd::from(&connection);
    let registered = manager.register_machine_with_fd("own", fd, HashMap::new());
    registered.await.unwrap();
    drop(connection);
    let machine = world.machine("own").await;
    assert_eq!(machine.set(2).await, Ok(Outcome::added([1])));
    systemd.keeps(&["pidfd-own", "qmp-own"]).await;

    kill(&mut world).await;
    world.serve_under(&systemd).await;
    assert_eq!(machine.set(3).await, Ok(Outcome::added([2])));
    assert_eq!(peer.clients(), 1);

    // The service cannot connect to it again.
    let mark = world.signals.mark().await;
    peer.hang_up();
    world.signals.removal_of("own", mark).await;
    systemd.keeps(&[]).await;
}

/// systemd, scripted; dbus-daemon.
#[tokio::test]
async fn a_service_with_nothing_to_do_ends_and_not_before() {
    let (mut world, mut systemd) = world().await;
    let configuration = world.bus.configuration_directory();
    std::fs::create_dir_all(&configuration).unwrap();
    std::fs::write(
        configuration.join("vcpud.toml"),
        "[service]\nidle-exit = '1s'\n",
    )
    .unwrap();
    let peer = world.peer("web", Model::x86(1, 4));
    world.serve_under(&systemd).await;
    let machine = world.machine("web").await;
    assert_eq!(machine.set(2).await, Ok(Outcome::added([1])));

    let mark = world.signals.mark().await;
    drop(peer);
    std::fs::remove_file(world.socket("web")).unwrap();
    world.signals.removal_of("web", mark).await;
    let service = world.service.as_mut().expect("it runs");
    assert!(service.wait().await.success());
    systemd.is_told("STOPPING=1").await;
    assert!(service.log().contains("nothing to do"));
}

/// Scripted systemd, dbus-daemon.
#[tokio::test]
async fn systemd_is_told_of_a_reload() {
    let (mut world, mut systemd) = world().await;
    world.serve_under(&systemd).await;
    world.configure("vcpud.toml", "[defaults]\nslce = 'x.slice'\n");
    let service = world.service.as_ref().expect("it runs");
    service.reload();
    systemd.is_told("RELOADING=1").await;
    service.has_logged("slce").await;
    // The service publishes the error after it has logged it.
    world.lists_errors(&["slce"]).await;
}

/// Scripted QEMU and systemd, dbus-daemon.
#[tokio::test]
async fn systemd_is_told_that_the_service_is_well_and_how_it_is() {
    let (mut world, mut systemd) = world().await;
    let _peer = world.peer("web", Model::x86(2, 6));
    world.serve_under(&systemd).await;
    systemd.is_told("STATUS=1 machine.").await;
    systemd.is_told("WATCHDOG=1").await;
    world.service.as_ref().expect("it runs").terminate();
    systemd.is_told("STOPPING=1").await;
}

/// Real QEMU with firmware only, scripted systemd, dbus-daemon.
#[tokio::test]
async fn a_real_qemu_goes_on_with_the_next_service() {
    let (mut world, mut systemd) = world().await;
    let boot = Boot {
        linux: false,
        ..Boot::default()
    };
    let mut qemu = Qemu::start(&world, "web", &boot).await;
    serve_web(&mut world, &mut systemd).await;
    let machine = world.machine("web").await;
    for count in 2..5 {
        assert_eq!(machine.set(count).await, Ok(Outcome::added([count - 1])));
        kill(&mut world).await;
        // Told while nobody listens, and heard all the same.
        let mark = world.signals.mark().await;
        qemu.execute("stop", serde_json::json!({})).await;
        world.serve_under(&systemd).await;
        assert_eq!(machine.state().await.unwrap(), "paused");
        qemu.execute("cont", serde_json::json!({})).await;
        machine.wait_for("State", "running").await;
        let told = world.signals.since(mark).await;
        let states = changes_of(&told, "State");
        assert!(!states.contains(&"disconnected".into()), "{states:?}");
    }
    assert_eq!(machine.present().await, [0, 1, 2, 3]);
}

/// The next of a row of numbers that look random, and are the same in every run.
fn next(state: &mut u64) -> u64 {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1);
    *state >> 33
}

/// Scripted QEMU and systemd, dbus-daemon.
#[tokio::test]
async fn a_service_that_is_killed_again_and_again_tells_the_whole_truth() {
    const KILLS: usize = 60;
    let (mut world, mut systemd) = world().await;
    let peer = world.peer("web", Model::x86(1, 8));
    serve_web(&mut world, &mut systemd).await;
    let mark = world.signals.mark().await;
    let machine = world.machine("web").await;
    let mut seed = 1;
    for _ in 0..KILLS {
        let client = machine.clone();
        let count = 1 + next(&mut seed) as u32 % 8;
        // The request gets no reply if the service is killed before.
        let mut request = tokio::spawn(async move {
            let options = std::collections::HashMap::new();
            let _ = client.set_vcpus(count, options).await;
        });
        // The service is killed after a few more commands, so in the middle of the request.
        let moment = peer.all_calls() + next(&mut seed) as usize % 12;
        tokio::select! {
            () = peer.asked_at_all(moment) => {}
            _ = &mut request => {}
        }
        kill(&mut world).await;
        request.abort();
        world.serve_under(&systemd).await;
    }
    machine.wait_for("State", "running").await;
    machine.set_patiently(3).await.unwrap();

    assert_eq!(peer.clients(), 1, "it was never left");
    let there = machine.present().await;
    assert_eq!(there.len(), 3);
    // The signals of each vCPU alternate, and end with the present state. The signals just before the
    // service was killed may come again after it.
    let mut stories: BTreeMap<u32, Vec<bool>> = BTreeMap::new();
    for signal in world.signals.since(mark).await {
        match signal {
            Signal::Added(vcpu) => stories.entry(vcpu.id).or_default().push(true),
            Signal::Removed(vcpu) => stories.entry(vcpu.id).or_default().push(false),
            _ => {}
        }
    }
    for vcpu in 1..8 {
        let mut story = stories.remove(&vcpu).unwrap_or_default();
        story.dedup();
        assert!(
            story.first().is_none_or(|came| *came),
            "vCPU {vcpu}: {story:?}"
        );
        let is_there = there.contains(&vcpu);
        assert_eq!(
            story.last().copied().unwrap_or(false),
            is_there,
            "vCPU {vcpu}"
        );
        // QEMU was asked once for each time that it came, and for each that it went.
        let came = story.iter().filter(|came| **came).count();
        let id = format!("vcpu{vcpu}");
        let adds = peer.calls("device_add").into_iter();
        let adds = adds
            .filter(|call| call.arguments["id"] == id.as_str())
            .count();
        assert_eq!(adds, came, "vCPU {vcpu}");
    }
}

/// Scripted systemd, a socket file without a listener, dbus-daemon.
#[tokio::test]
async fn a_dead_socket_says_nothing_to_systemd() {
    let (mut world, mut systemd) = world().await;
    drop(std::os::unix::net::UnixListener::bind(world.socket("dead")).unwrap());
    let peer = world.peer("web", Model::x86(1, 4));
    world.serve_under(&systemd).await;
    systemd.keeps(&["pidfd-web", "qmp-web"]).await;
    // The service has tried the dead socket when its name is owned.
    peer.hang_up();
    systemd.keeps(&[]).await;
    peer.accept();
    systemd.keeps(&["pidfd-web", "qmp-web"]).await;
    assert_eq!(
        systemd.count("FDSTOREREMOVE=1"),
        2,
        "for the machine web only"
    );
}
