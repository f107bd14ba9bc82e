//! A guest that needs its agent to use new CPUs.

use crate::harness::*;

/// Real QEMU with a Linux guest and its agent, dbus-daemon.
#[tokio::test]
async fn a_guest_uses_new_vcpus_and_gives_them_up_by_its_agent() {
    let world = World::without_polkit().await;
    let boot = Boot {
        vcpus: 2,
        agent: true,
        ..Boot::default()
    };
    let mut qemu = Qemu::start(&world, "web", &boot).await;
    let machine = world.machine("web").await;
    qemu.online("0-1").await;

    let mut options = WITH_GUEST.to_vec();
    options.push(("timeout-usec", 60_000_000u64.into()));
    let set = async |count| machine.set_with(count, &options).await;
    assert_eq!(set(4).await, Ok(Outcome::added([2, 3])));
    qemu.online("0-3").await;
    let all = [(0, true), (1, true), (2, true), (3, true)];
    assert_eq!(machine.online().await, all);

    qemu.order("offline 2").await;
    let seen = async { while machine.online().await[2] != (2, false) {} };
    within("ListVcpus to say that 2 is offline", seen).await;

    let mark = world.signals.mark().await;
    assert_eq!(set(2).await, Ok(Outcome::removed([2, 3])));
    qemu.online("0-1").await;
    let gone = removed(&world.signals.since(mark).await);
    assert_eq!(ids(&gone).len(), 2);
    assert_eq!(machine.online().await, [(0, true), (1, true)]);
}
