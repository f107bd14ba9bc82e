//! A guest that needs its agent to use new CPUs.

use vcpud::names::error_name;

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
    let seen = async { while machine.online().await.get(2) != Some(&(2, false)) {} };
    within("ListVcpus to say that 2 is offline", seen).await;

    let mark = world.signals.mark().await;
    assert_eq!(set(2).await, Ok(Outcome::removed([2, 3])));
    qemu.online("0-1").await;
    let gone = removed(&world.signals.since(mark).await);
    assert_eq!(ids(&gone).len(), 2);
    assert_eq!(machine.online().await, [(0, true), (1, true)]);
}

/// Uses a real QEMU with a Linux guest and its agent, and dbus-daemon. The guest numbers its CPUs again at a reset.
#[tokio::test]
async fn a_vcpu_above_a_free_one_is_not_another_cpu_of_the_guest() {
    let world = World::without_polkit().await;
    let boot = Boot {
        vcpus: 1,
        agent: true,
        ..Boot::default()
    };
    let mut qemu = Qemu::start(&world, "web", &boot).await;
    let machine = world.machine("web").await;
    qemu.online("0").await;
    let limit = ("timeout-usec", 60_000_000u64.into());
    let [with_guest] = WITH_GUEST;
    let options = [with_guest, limit];
    let set = async |vcpu, online| machine.set_these_with(&[vcpu], online, &options).await;

    assert_eq!(set(5, true).await, Ok(Outcome::added([5])));
    assert_eq!(machine.online().await, [(0, true), (5, true)]);
    assert_eq!(set(3, true).await, Ok(Outcome::added([3])));
    qemu.reset().await;
    // Now CPU 1 is vCPU 3.
    let failure = set(3, false).await.unwrap_err();
    let text = ["other numbers for vCPU 3", "nothing was changed"];
    failure.assert(error_name::NOT_SUPPORTED, &text);
    assert_eq!(machine.online().await, [(0, true)]);
    let removed = machine.set_these_with(&[3], false, &options[1..]).await;
    assert_eq!(removed, Ok(Outcome::removed([3])));
    qemu.online("0,2").await;
    // An answer of the guest agent is shared for a time.
    let seen = async { while machine.online().await != [(0, true), (5, true)] {} };
    within("ListVcpus to say that 5 is online", seen).await;
    assert_eq!(set(5, false).await, Ok(Outcome::removed([5])));
    qemu.online("0").await;
}
