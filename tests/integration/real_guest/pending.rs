//! Removals without a call that waits for them.

use serde_json::json;

use crate::harness::*;

/// Real QEMU with a Linux guest, dbus-daemon.
#[tokio::test]
async fn a_removal_that_nobody_waits_for_is_pending_until_the_guest_gave_up_the_cpu() {
    let world = World::without_polkit().await;
    let mut qemu = Qemu::start(&world, "web", &Boot::default()).await;
    let machine = world.machine("web").await;
    qemu.online("0").await;
    machine.set(3).await.unwrap();
    qemu.online("0-2").await;

    // A guest that stands still gives up nothing.
    qemu.execute("stop", json!({})).await;
    machine.wait_for("State", "paused").await;
    let mark = world.signals.mark().await;
    assert_eq!(machine.set_async(1).await, Ok(Outcome::pending([1, 2])));
    let told = world.signals.since(mark).await;
    assert_eq!(changes_of(&told, "PendingRemovals"), [json!([1, 2])]);
    assert_eq!(machine.pending().await, [1, 2]);
    assert_eq!(machine.vcpus().await.unwrap(), 3);
    assert_eq!(machine.rows().await[2]["pending"], true);

    qemu.execute("cont", json!({})).await;
    machine.wait_for("State", "running").await;
    machine.wait_for("Vcpus", 1u32).await;
    // The properties change before the signals of the vCPUs.
    let both = |signals: &[Signal]| ids(&removed(signals)).len() == 2;
    let told = world.signals.wait("both removals", mark, both).await;
    assert_eq!(ids(&removed(&told)), [1, 2]);
    assert_eq!(
        changes_of(&told, "PendingRemovals").last(),
        Some(&json!([]))
    );
    assert_eq!(machine.pending().await, [] as [u32; 0]);
    qemu.online("0").await;
}
