//! CPUs that were there from the start.

use vcpud::names::error_name;

use super::player::Player;

/// Scripted QEMU (recordings of 7.2 and 11.1), dbus-daemon.
#[tokio::test]
async fn all_boot_cpus_but_the_first_can_be_asked_for() {
    for recording in ["boot-cpu-7.2-q35", "boot-cpu-11.1-q35"] {
        let mut player = Player::start(recording).await;
        let rows = player.machine.rows().await;
        assert_eq!(rows[0]["removable"], false);
        assert_eq!(rows[1]["removable"], true);
        let failure = player.machine.set_these(&[0], false).await.unwrap_err();
        failure.assert(error_name::NOT_REMOVABLE, &["web", "vCPU 0"]);
        assert_eq!(player.replay.peer.count("device_del"), 0);

        player.play_rest().await;
        let asked = player.replay.peer.calls("device_del");
        let paths = ["/machine/unattached/device[2]", "/machine/peripheral/vcpu2"];
        let asked: Vec<&str> = asked
            .iter()
            .filter_map(|call| call.arguments["id"].as_str())
            .collect();
        assert_eq!(asked, paths);
        assert_eq!(player.machine.pending().await, [1, 2]);
    }
}
