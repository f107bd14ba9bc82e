//! Run states: `State` is true, and told once.

use serde_json::Value;

use super::player::{Player, play_each};
use crate::harness::*;

/// Plays a recording, and checks that these were the states, each told by one signal.
async fn has_states(recording: &str, expected: &[&str]) -> Player {
    let mut played = play_each(&[recording]).await;
    let player = played.pop().expect("it was played");
    let expected: Vec<Value> = expected.iter().map(|state| (*state).into()).collect();
    assert_eq!(player.changes_of("State").await, expected, "{recording}");
    let last = expected.last().and_then(Value::as_str);
    if let Some(last) = last {
        assert_eq!(player.machine.state().await.unwrap(), last);
    }
    player
}

/// Scripted QEMU (recordings of 7.2 and 11.1), dbus-daemon.
#[tokio::test]
async fn a_shutdown_is_told() {
    for recording in ["shutdown-7.2-q35", "shutdown-11.1-q35"] {
        has_states(recording, &["shutdown"]).await;
    }
}

/// Scripted QEMU (recordings of 7.2 and 11.1), dbus-daemon. One was cancelled; 11.1's failed.
#[tokio::test]
async fn a_migration_is_told_when_it_is_over() {
    has_states("migration-7.2-q35", &["postmigrate"]).await;
    has_states("migration-11.1-q35", &[]).await;
}

/// Scripted QEMU (recordings of 7.2 and 11.1), dbus-daemon.
#[tokio::test]
async fn a_machine_that_waits_for_a_migration_says_so() {
    for recording in ["incoming-7.2-q35", "incoming-11.1-q35"] {
        let player = has_states(recording, &[]).await;
        assert_eq!(player.machine.state().await.unwrap(), "inmigrate");
    }
}

/// Scripted QEMU (recordings of 7.2 and 11.1), dbus-daemon.
#[tokio::test]
async fn a_machine_that_is_not_made_yet_has_no_vcpus() {
    for recording in ["preconfig-7.2-q35", "preconfig-11.1-q35"] {
        let player = has_states(recording, &[]).await;
        assert_eq!(player.machine.state().await.unwrap(), "prelaunch");
        assert_eq!(player.machine.vcpus().await.unwrap(), 0);
        assert_eq!(player.machine.max_vcpus().await.unwrap(), 4);
    }
}

/// Scripted QEMU (a recording of 11.1), dbus-daemon.
#[tokio::test]
async fn a_panic_is_told() {
    has_states("s390x-11.1", &["guest-panicked"]).await;
}

/// Scripted QEMU (recordings of 7.2 and 11.1), dbus-daemon.
#[tokio::test]
async fn a_guest_that_resets_itself_changes_nothing() {
    for recording in ["reboot-7.2-q35", "reboot-11.1-q35"] {
        let player = has_states(recording, &[]).await;
        let resets = player.events.iter().filter(|sent| sent.name == "RESET");
        assert!(resets.count() > 0);
        assert_eq!(player.signals().await, []);
    }
}

/// Scripted QEMU (recordings of 7.2 and 11.1), dbus-daemon.
#[tokio::test]
async fn a_machine_grows_before_it_starts_and_while_it_is_paused() {
    for recording in ["prelaunch-7.2-q35", "prelaunch-11.1-q35"] {
        let player = has_states(recording, &["running", "paused"]).await;
        assert_eq!(ids(&added(&player.signals().await)), [1, 2]);
    }
}

/// Scripted QEMU (recordings of 7.2 and 11.1), dbus-daemon. The player checks
/// that an ejection by the guest has the cause "guest", and that the pending removal stays pending.
#[tokio::test]
async fn a_reset_of_a_pc_completes_no_removal() {
    for recording in ["replug-7.2-q35", "replug-11.1-q35"] {
        let player = has_states(recording, &[]).await;
        assert_eq!(player.machine.pending().await, [4]);
        let gone = removed(&player.signals().await);
        let expected = [
            Vcpu::by_request("web", 5, "vcpu5"),
            Vcpu::by_cause("web", 1, "", "external"),
            Vcpu::by_cause("web", 6, "vcpu6", "external"),
        ];
        assert_eq!(gone, expected, "{recording}");
    }
}
