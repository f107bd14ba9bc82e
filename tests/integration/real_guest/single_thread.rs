//! A QEMU that runs all vCPUs in one thread.

use crate::harness::*;

/// Real QEMU with firmware only, dbus-daemon.
#[tokio::test]
async fn a_thread_that_several_vcpus_share_is_no_vcpus_thread() {
    let world = World::without_polkit().await;
    let mut qemu = Qemu::start(&world, "slow", &Boot::ONE_THREAD).await;
    let machine = world.machine("slow").await;
    machine.set(3).await.unwrap();

    let threads = qemu.threads().await;
    assert_eq!(threads.len(), 3);
    assert!(threads.iter().all(|thread| *thread == threads[0]));
    for row in machine.rows().await {
        assert!(!row.contains_key("thread-id"), "{row:?}");
    }
    assert_eq!(machine.leader().await.unwrap(), qemu.pid());
}
