//! Removals that end while the service is not connected.

use super::player::play_each;
use crate::harness::*;

/// Scripted QEMU (recordings of 7.2 and 11.1), dbus-daemon.
#[tokio::test]
async fn what_ended_while_nobody_was_connected_is_found_and_told() {
    for player in play_each(&["detached-7.2-q35", "detached-11.1-q35"]).await {
        let gone = removed(&player.signals().await);
        let expected = [1, 2, 3].map(|id| Vcpu::by_request("web", id, &format!("vcpu{id}")));
        assert_eq!(gone, expected);
        assert_eq!(player.machine.present().await, [0, 4]);
        assert_eq!(player.machine.pending().await, [] as [u32; 0]);
    }
}
