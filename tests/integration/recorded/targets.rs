//! Other machines than PCs.

use vcpud::names::error_name;

use super::player::{Player, play_each};
use crate::harness::*;

/// Scripted QEMU (recordings of 7.2 and 11.1), dbus-daemon. Held by the player: one signal for every
/// vCPU of a core, and none is pending.
#[tokio::test]
async fn the_firmware_of_a_pseries_gives_up_a_core_at_once() {
    for player in play_each(&["pseries-7.2", "pseries-11.1", "pseries-4-11.1"]).await {
        assert_eq!(player.changes_of("PendingRemovals").await, [] as [u32; 0]);
        let width = player.machine.vcpus_per_slot().await.unwrap() as usize;
        assert_eq!(removed(&player.signals().await).len(), width);
    }
}

/// Scripted QEMU (a recording of 11.1), dbus-daemon.
#[tokio::test]
async fn a_linux_on_a_pseries_gives_up_a_core_and_all_its_vcpus_go() {
    let [player] = &play_each(&["pseries-4-linux-11.1"]).await[..] else {
        panic!("one was played");
    };
    let four = [4, 5, 6, 7].map(|id| Vcpu::by_request("web", id, "vcpu4"));
    assert_eq!(
        removed(&player.signals().await),
        [four.clone(), four.clone(), four].concat()
    );
    // Events of its threads do not make the core go.
    let counts = player.changes_of("Vcpus").await;
    assert_eq!(counts, [8, 4, 8, 4, 8, 4]);
}

/// Scripted QEMU (a recording of 11.1), dbus-daemon.
#[tokio::test]
async fn a_linux_on_a_pseries_keeps_a_core() {
    let [player] = &play_each(&["pseries-refusal-11.1"]).await[..] else {
        panic!("one was played");
    };
    let reason = "the guest refused to give up the CPU".to_owned();
    let failed = removal_failed(&player.signals().await);
    let expected = (Vcpu::by_request("web", 1, "vcpu1"), reason);
    assert_eq!(failed, vec![expected; 3]);
    assert_eq!(player.machine.present().await, [0, 1]);
}

/// Scripted QEMU (recordings of 7.2 and 11.1), dbus-daemon.
#[tokio::test]
async fn an_s390x_is_never_asked_to_unplug() {
    for player in play_each(&["s390x-7.2", "s390x-11.1", "s390x-linux-11.1"]).await {
        assert!(player.machine.vcpus().await.unwrap() > 1);
        let failure = player.machine.set(1).await.unwrap_err();
        failure.assert(error_name::NOT_SUPPORTED, &["web", "s390x"]);
        assert_eq!(player.replay.peer.count("device_del"), 0);
    }
}

/// Scripted QEMU (recordings of 7.2 and 11.1), dbus-daemon.
#[tokio::test]
async fn machines_without_slots_for_cpus_are_asked_for_none() {
    let other = "machine does not support hot-plugging CPUs";
    for (recording, text) in [
        // QEMU 7.2 aborts when it is asked to unplug a boot CPU.
        (
            "aarch64-7.2",
            "The feature 'query-hotpluggable-cpus' is not enabled",
        ),
        ("aarch64-11.1", other),
        ("microvm-11.1", other),
    ] {
        let player = Player::start(recording).await;
        let machine = &player.machine;
        assert_eq!(machine.hotplug_method().await.unwrap(), "none");
        let present = machine.vcpus().await.unwrap();
        assert_eq!(machine.max_vcpus().await.unwrap(), present);
        let failure = machine.set_these(&[0], false).await.unwrap_err();
        failure.assert(error_name::NOT_SUPPORTED, &["web", text]);
        let failure = machine.set(present + 1).await.unwrap_err();
        failure.assert(error_name::NOT_SUPPORTED, &["web", text]);
        let peer = &player.replay.peer;
        assert_eq!(peer.count("device_add") + peer.count("device_del"), 0);
    }
}
