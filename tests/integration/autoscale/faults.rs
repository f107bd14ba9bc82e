//! Many machines, and the ends of the program and of the bus.

use crate::harness::*;

/// The number of machines.
const COUNT: usize = 200;

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn two_hundred_machines_reach_their_minimum_though_the_program_is_killed() {
    let mut world = World::without_service().await;
    let peer = |n: usize| world.peer(&format!("vm-{n}"), Model::x86(1, 4));
    let _peers: Vec<Peer> = (0..COUNT).map(peer).collect();
    world.serve().await;
    // The machines do not have enough data before the end of this window.
    let default = "host-cpus = 64\nmin = 2\ndown-window = \"5min\"\n";
    Autoscaler::configure(&world, "autoscale.toml", default);
    for n in 0..COUNT {
        Autoscaler::configure(&world, &format!("autoscale.d/vm-{n}.toml"), "");
    }
    let begin = world.signals.mark().await;
    let has_added = |count: usize| move |signals: &[Signal]| added(signals).len() >= count;
    let mut autoscaler = Autoscaler::start(&world).await;
    let some = world.signals.wait("50 additions", begin, has_added(50));
    some.await;
    autoscaler.process.kill().await;
    let autoscaler = Autoscaler::start(&world).await;
    let all = world.signals.wait("all additions", begin, has_added(COUNT));
    all.await;
    // Another sample follows the last addition, and changes nothing.
    autoscaler.explains("vm-0", "no-data").await;
    autoscaler.explains("vm-199", "no-data").await;
    let vcpus = added(&world.signals.since(begin).await);
    assert_eq!(vcpus.len(), COUNT);
    assert!(vcpus.iter().all(|vcpu| vcpu.id == 1));
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn without_the_bus_the_program_fails() {
    let mut world = World::without_polkit().await;
    let _peer = world.peer("web", Model::x86(1, 4));
    world.machine("web").await;
    Autoscaler::configure(&world, "autoscale.d/web.toml", "");
    let mut autoscaler = Autoscaler::start(&world).await;
    autoscaler.explains("web", "no-data").await;
    world.bus.stop().await;
    let status = autoscaler.process.wait().await;
    assert_eq!(status.code(), Some(1));
}
