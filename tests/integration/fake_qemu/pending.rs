//! Requests while removals are open.

use vcpud::names::error_name;

use crate::harness::*;

/// A machine of four vCPUs of six whose guest takes its time.
async fn machine_of_four(world: &World) -> (Peer, Machine) {
    let mut model = Model::x86(4, 6);
    model.removal = Removal::Held;
    let peer = world.peer("web", model);
    let machine = world.machine("web").await;
    (peer, machine)
}

/// Takes vCPU `n` away, as a guest does that comes round.
fn give_up(peer: &Peer, n: usize) {
    let path = peer.model().unplug(n);
    peer.send(&deleted(&path));
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn to_ask_again_for_what_is_pending_is_no_error_and_qemu_is_asked_once() {
    let world = World::without_polkit().await;
    let (peer, machine) = machine_of_four(&world).await;

    let mark = world.signals.mark().await;
    for _ in 0..2 {
        assert_eq!(machine.set_async(2).await, Ok(Outcome::pending([2, 3])));
    }
    // One that waits, which it does when it has looked for itself.
    let looks = peer.count("query-hotpluggable-cpus");
    let waiting = machine.start_set(2);
    peer.asked("query-hotpluggable-cpus", looks + 1).await;
    let pending = machine.set_async(2).await;
    assert_eq!(pending, Ok(Outcome::pending([2, 3])));

    give_up(&peer, 3);
    give_up(&peer, 2);
    assert_eq!(waiting.await.unwrap(), Ok(Outcome::removed([2, 3])));
    let told = world.signals.since(mark).await;
    assert_eq!(ids(&removed(&told)), [2, 3]);
    assert_eq!(peer.count("device_del"), 2);
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn growth_takes_other_vcpus_than_those_that_are_leaving_or_says_busy() {
    let world = World::without_polkit().await;
    let (peer, machine) = machine_of_four(&world).await;
    assert_eq!(machine.set_async(3).await, Ok(Outcome::pending([3])));

    assert_eq!(machine.set(5).await, Ok(Outcome::added([4, 5])));
    let failure = machine.set(6).await.unwrap_err();
    failure.assert(
        error_name::BUSY,
        &["web", "the number of vCPUs to 6", "still pending"],
    );
    assert_eq!(peer.count("device_add"), 2);
    assert_eq!(machine.pending().await, [3]);
    assert_eq!(machine.vcpus().await.unwrap(), 6);

    give_up(&peer, 3);
    machine.wait_for("Vcpus", 5u32).await;
    assert_eq!(machine.set(6).await, Ok(Outcome::added([3])));
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn a_call_that_waits_holds_nothing_up() {
    let world = World::without_polkit().await;
    let (peer, machine) = machine_of_four(&world).await;
    let waiting = machine.start_set(3);
    machine.wait_for("PendingRemovals", vec![3u32]).await;

    assert_eq!(machine.set(4).await, Ok(Outcome::added([4])));
    let lower = machine.start_set(2);
    machine.wait_for("PendingRemovals", vec![2u32, 3, 4]).await;
    assert_eq!(machine.present().await, [0, 1, 2, 3, 4]);
    assert!(!waiting.is_finished());
    assert!(!lower.is_finished());

    give_up(&peer, 3);
    assert_eq!(waiting.await.unwrap(), Ok(Outcome::removed([3])));
    give_up(&peer, 2);
    give_up(&peer, 4);
    assert_eq!(lower.await.unwrap(), Ok(Outcome::removed([2, 3, 4])));
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn each_call_has_its_own_time() {
    let world = World::without_polkit().await;
    let (peer, machine) = machine_of_four(&world).await;
    let patient = machine.start_set(3);
    machine.wait_for("PendingRemovals", vec![3u32]).await;
    let options = [("timeout-usec", 0u64.into())];
    let failure = machine.set_with(3, &options).await.unwrap_err();
    failure.assert(error_name::REMOVAL_PENDING, &["still pending: vCPU 3"]);
    assert!(!patient.is_finished());
    give_up(&peer, 3);
    assert_eq!(patient.await.unwrap(), Ok(Outcome::removed([3])));
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn what_is_pending_for_long_is_asked_of_qemu_again() {
    let world = World::without_polkit().await;
    let (peer, machine) = machine_of_four(&world).await;
    let mark = world.signals.mark().await;
    assert_eq!(machine.set_async(3).await, Ok(Outcome::pending([3])));
    // As some QEMUs do, which is no failure.
    peer.script(|_, call| {
        let refusal = "Device vcpu3 is already in the process of unplug";
        (call.command == "device_del").then(|| vec![call.refusal(refusal)])
    });
    let again = async {
        while peer.count("device_del") < 2 {
            let pending = machine.set_async(3).await;
            assert_eq!(pending, Ok(Outcome::pending([3])));
        }
    };
    within("the request to be passed on again", again).await;
    assert_eq!(removal_failed(&world.signals.since(mark).await), []);
    assert_eq!(machine.pending().await, [3]);
}
