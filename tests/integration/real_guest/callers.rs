//! Several callers at once.

use crate::harness::*;

/// Real QEMU with a Linux guest, dbus-daemon.
#[tokio::test]
async fn two_callers_at_once_both_get_a_true_answer() {
    let world = World::without_polkit().await;
    let mut qemu = Qemu::start(&world, "web", &Boot::default()).await;
    let machine = world.machine("web").await;
    qemu.online("0").await;

    let mark = world.signals.mark().await;
    let (three, five) = tokio::join!(machine.set_patiently(3), machine.set_patiently(5));
    let told = world.signals.since(mark).await;
    let (three, five) = (three.unwrap(), five.unwrap());
    // One of them was first, and so was a growth; the other found what that had left.
    let (came, went) = if three.removed.is_empty() {
        assert_eq!(three.added, [1, 2]);
        assert_eq!(five, Outcome::added([3, 4]));
        qemu.online("0-4").await;
        (vec![1, 2, 3, 4], vec![])
    } else {
        assert_eq!(five, Outcome::added([1, 2, 3, 4]));
        assert_eq!(three, Outcome::removed([3, 4]));
        qemu.online("0-2").await;
        (vec![1, 2, 3, 4], vec![3, 4])
    };
    assert_eq!(ids(&added(&told)), came);
    assert_eq!(ids(&removed(&told)), went);
    let present = machine.present().await;
    assert_eq!(present.len(), 1 + came.len() - went.len());
    assert_eq!(machine.vcpus().await.unwrap() as usize, present.len());
    assert_eq!(qemu.threads().await.len(), present.len());
}
