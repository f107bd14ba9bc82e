//! The end of a machine.

use std::fs;

use serde_json::json;
use vcpud::names::error_name;

use crate::harness::*;

/// Real QEMU with a Linux guest, dbus-daemon.
#[tokio::test]
async fn a_qemu_that_is_killed_in_the_middle_of_a_removal_is_gone_and_can_come_back() {
    let world = World::without_polkit().await;
    let mut qemu = Qemu::start(&world, "web", &Boot::default()).await;
    let machine = world.machine("web").await;
    qemu.online("0").await;
    machine.set(2).await.unwrap();
    qemu.online("0-1").await;
    qemu.execute("stop", json!({})).await;
    let waiting = machine.start_set(1);
    machine.wait_for("PendingRemovals", vec![1u32]).await;

    let mark = world.signals.mark().await;
    qemu.kill().await;
    let failure = waiting.await.unwrap().unwrap_err();
    failure.assert(error_name::NO_SUCH_MACHINE, &["web"]);
    is_gone(&world, &machine, mark).await;
    let service = world.service.as_ref().expect("it runs");
    service.has_logged("web: gone: QEMU has exited").await;
    drop(qemu);

    // The file of the socket is still there; the next QEMU replaces it.
    let mark = world.signals.mark().await;
    let boot = Boot {
        linux: false,
        ..Boot::default()
    };
    let qemu = Qemu::start(&world, "web", &boot).await;
    world.signals.addition_of("web", mark).await;
    assert_eq!(machine.leader().await.unwrap(), qemu.pid());
    assert_eq!(machine.vcpus().await.unwrap(), 1);
    assert_eq!(machine.pending().await, [] as [u32; 0]);
}

/// Real QEMU with firmware only, dbus-daemon.
#[tokio::test]
async fn a_machine_whose_socket_goes_away_is_gone_and_its_qemu_runs_on() {
    let world = World::without_polkit().await;
    let boot = Boot {
        linux: false,
        ..Boot::default()
    };
    let mut qemu = Qemu::start(&world, "web", &boot).await;
    let machine = world.machine("web").await;

    let mark = world.signals.mark().await;
    fs::remove_file(world.socket("web")).unwrap();
    is_gone(&world, &machine, mark).await;
    let service = world.service.as_ref().expect("it runs");
    let reason = "web: gone: its QMP socket was removed";
    service.has_logged(reason).await;
    assert_eq!(qemu.threads().await.len(), 1);
}

/// Waits for the signal, and checks that no object is left.
async fn is_gone(world: &World, machine: &Machine, mark: usize) {
    let told = world.signals.removal_of("web", mark).await;
    let object = Signal::InterfacesRemoved(machine.path().to_owned());
    assert!(told.contains(&object), "{told:?}");
    let failure = Failure::of(machine.vcpus().await.unwrap_err());
    assert_eq!(failure.name, "org.freedesktop.DBus.Error.UnknownObject");
    let manager = world.manager().await;
    assert_eq!(manager.list_machines().await.unwrap(), []);
    let failure = Failure::of(manager.get_machine("web").await.unwrap_err());
    failure.assert(error_name::NO_SUCH_MACHINE, &["web"]);
}

/// Uses a real QEMU with firmware only and two QMP sockets, and dbus-daemon.
#[tokio::test]
async fn a_qemu_is_one_machine() {
    let world = World::without_polkit().await;
    let boot = Boot {
        linux: false,
        ..Boot::default()
    };
    let qemu = Qemu::start(&world, "web", &boot).await;
    let machine = world.machine("web").await;
    std::fs::hard_link(qemu.witness_socket(), world.socket("alias")).unwrap();
    let service = world.service.as_ref().expect("it runs");
    let reason = "its QEMU process is already the machine web";
    service.has_logged(reason).await;
    assert_eq!(world.names().await, ["web"]);
    let listed =
        "qmp/alias.sock: ignored, because the QEMU process of alias is already the machine web";
    world.lists_errors(&[listed]).await;
    assert_eq!(machine.set(2).await, Ok(Outcome::added([1])));

    // When the first name ends, the other is free.
    let mark = world.signals.mark().await;
    std::fs::remove_file(world.socket("web")).unwrap();
    world.signals.removal_of("web", mark).await;
    let alias = world.machine("alias").await;
    assert_eq!(alias.present().await, [0, 1]);
    world.lists_errors(&[]).await;
}

/// Uses a real QEMU with firmware only, and dbus-daemon. QEMU does not greet the second client of a socket.
#[tokio::test]
async fn a_file_with_the_socket_of_another_machine_is_listed() {
    let world = World::without_polkit().await;
    let boot = Boot {
        linux: false,
        ..Boot::default()
    };
    let _qemu = Qemu::start(&world, "web", &boot).await;
    let machine = world.machine("web").await;
    let text = format!("qmp = {:?}\n", world.socket("web"));
    world.configure("machines.d/b.toml", &text);
    world.manager().await.reload().await.unwrap();
    let listed = "b.toml: ignored, because the QEMU process of b is already the machine web";
    world.lists_errors(&[listed]).await;
    assert_eq!(machine.set(2).await, Ok(Outcome::added([1])));
    world.configure("machines.d/b.toml", "");
    world.manager().await.reload().await.unwrap();
    world.lists_errors(&[]).await;
}
