//! CPUs that come, go and come again.

use serde_json::{Value, json};

use super::player::{Player, play_each};
use crate::harness::*;

/// Scripted QEMU (recordings of 7.2, 10.0 and 11.1), dbus-daemon.
#[tokio::test]
async fn a_cpu_that_came_and_went_comes_again() {
    let recordings = [
        "cycle-7.2-pc-tcg",
        "cycle-7.2-q35-tcg",
        "cycle-7.2-q35-single-thread",
        "cycle-10.0-pc-tcg",
        "cycle-10.0-q35-tcg",
        "cycle-11.1-q35-tcg",
    ];
    for player in play_each(&recordings).await {
        // Under emulation QEMU does not say in time that the CPU itself is gone.
        let in_time = |sent: &Sent| !sent.gone.is_empty() && sent.data.get("device").is_some();
        assert!(!player.events.iter().any(in_time));
        // The reports of Linux about a CPU that it took, and one that it gave up, do not refuse anything.
        assert_eq!(removal_failed(&player.signals().await), []);
    }
}

/// Scripted QEMU (recordings of 11.1), dbus-daemon.
#[tokio::test]
async fn the_belated_end_of_a_cpu_is_not_taken_for_the_end_of_its_successor() {
    for player in play_each(&["cycle-11.1-q35-tcg", "wait-11.1-q35"]).await {
        assert_eq!(player.belated, 2);
        // Held by the player: no signal but one for each CPU that came or went.
        let gone = removed(&player.signals().await);
        assert_eq!(gone, vec![Vcpu::by_request("web", 1, "vcpu1"); 3]);
    }
}

/// Scripted QEMU (recordings of 7.2, 10.0 and 11.1), dbus-daemon.
#[tokio::test]
async fn what_comes_long_after_a_removal_is_told_as_it_is() {
    let recordings = [
        "wait-7.2-pc",
        "wait-7.2-q35",
        "wait-10.0-q35",
        "wait-11.1-q35",
    ];
    for player in play_each(&recordings).await {
        let states = player.changes_of("State").await;
        let pair: [Value; 2] = ["paused".into(), "running".into()];
        assert!(!states.is_empty());
        assert!(states.chunks(2).all(|two| two == pair), "{states:?}");
    }
}

/// Scripted QEMU (recordings of 7.2 and 11.1), dbus-daemon.
#[tokio::test]
async fn seven_that_leave_together_leave_one_by_one() {
    let mut player = Player::start("seven-11.1-q35").await;
    player.play_rest().await;
    let left = (0..=7u32).rev().map(|n| (8 - n..8).collect::<Vec<u32>>());
    let mut pending: Vec<Value> = left.map(|vcpus| json!(vcpus)).collect();
    // One more came while QEMU told the belated ends of all seven, and went.
    pending.extend([json!([1]), json!([])]);
    assert_eq!(player.changes_of("PendingRemovals").await, pending);
    assert_eq!(
        player.changes_of("Vcpus").await,
        [8, 7, 6, 5, 4, 3, 2, 1, 2, 1]
    );

    play_each(&["seven-7.2-q35"]).await;
}

/// Scripted QEMU (a recording of 7.2), dbus-daemon.
#[tokio::test]
async fn a_cpu_in_another_place_than_the_one_that_went() {
    let [player] = &play_each(&["crash-7.2-q35"]).await[..] else {
        panic!("one was played");
    };
    assert_eq!(player.machine.present().await, [0, 4]);
}
