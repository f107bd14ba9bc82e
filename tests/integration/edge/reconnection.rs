//! A bus that goes away and comes back.

use super::{Served, owner};
use crate::harness::*;

/// Scripted QEMU, dbus-daemon, which is killed and started again. The service stays the same
/// process, and what happened in between is there.
#[tokio::test]
async fn a_restart_of_the_bus_loses_nothing() {
    let Served {
        mut world,
        machine,
        peer,
        ..
    } = Served::start().await;
    let pid = world.service.as_ref().unwrap().pid();
    drop(machine);
    world.bus.restart().await;
    // No client is there to receive the signal.
    peer.send(&deleted(&peer.model().unplug(1)));
    let clients = peer.clients();
    world.reconnect().await;
    owned(&world.connection, "org.vcpud1").await;
    let machine = world.machine("web").await;
    machine.wait_for("Vcpus", 1u32).await;
    assert_eq!(machine.set(3).await.unwrap().added, [1, 2]);
    assert_eq!(world.service.as_ref().unwrap().pid(), pid);
    assert_eq!(peer.clients(), clients, "QEMU is not connected to again");
    assert!(owner(&world).await.starts_with(':'));

    world.bus.restart().await;
    world.reconnect().await;
    owned(&world.connection, "org.vcpud1").await;
    let _second = world.peer("db", Model::x86(1, 2));
    assert_eq!(world.machine("db").await.vcpus().await.unwrap(), 1);
    assert_eq!(world.machine("web").await.vcpus().await.unwrap(), 3);
}

/// Scripted QEMU, dbus-daemon, polkitd, which does not answer. A caller of before the restart is
/// not acted for: the bus gives its name to others.
#[tokio::test]
async fn an_authorization_ends_with_the_bus_that_it_began_on() {
    let mut world = World::with_polkit("polkit.addRule(function() { return \"yes\"; });").await;
    let peer = world.peer("web", Model::x86(1, 4));
    let machine = world.machine("web").await;
    let path = machine.path().to_owned();
    let polkit = world.polkit.take().expect("it runs");
    polkit.pause();
    let mut nobody = RawClient::nobody(&world.bus).await;
    let none: std::collections::HashMap<&str, zbus::Variant<'_>> = Default::default();
    let (_, bytes) = nobody.call_of(&path, "org.vcpud1.Machine", "SetVcpus", &(3u32, none));
    nobody.send(&bytes, &[]).await;
    let service = world.service.as_ref().unwrap();
    service.has_logged("polkit is asked").await;
    drop(machine);
    world.bus.restart().await;
    polkit.resume();
    world.reconnect().await;
    owned(&world.connection, "org.vcpud1").await;
    assert_eq!(world.machine("web").await.set(2).await.unwrap().added, [1]);
    assert_eq!(peer.count("device_add"), 1);
}
