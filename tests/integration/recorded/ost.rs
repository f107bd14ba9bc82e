//! The reports of the guest about its CPUs by ACPI's `_OST`.

use super::player::play_each;
use crate::harness::*;

/// The reasons in the signals, and whether each is about a request.
async fn reasons(recording: &str) -> Vec<(String, bool)> {
    let [player] = &play_each(&[recording]).await[..] else {
        panic!("one was played");
    };
    let failed = removal_failed(&player.signals().await);
    let reason = |(vcpu, reason): (Vcpu, String)| (reason, vcpu.uid.is_some());
    failed.into_iter().map(reason).collect()
}

/// Scripted QEMU (recordings of 7.2, 10.0 and 11.1), dbus-daemon. Held by the player too: an `_OST`
/// of a CPU that came, one in progress, and one that has only a slot, do not refuse anything.
#[tokio::test]
async fn every_status_reaches_clients_in_words() {
    let after_a_request = [
        "the CPU is in use by the guest",
        "the guest is busy with the CPU",
    ];
    let by_itself = [
        "the guest does not support removing this CPU",
        "the guest failed to remove the CPU (_OST status 0x1)",
    ];
    let mut expected: Vec<(String, bool)> = Vec::new();
    expected.extend(after_a_request.map(|reason| (reason.to_owned(), true)));
    expected.extend(by_itself.map(|reason| (reason.to_owned(), false)));
    assert_eq!(reasons("ost-11.1-q35").await, expected);
    // Others refuse by themselves as long as no operating system is there.
    for recording in ["ost-7.2-pc", "ost-7.2-q35", "ost-10.0-q35"] {
        let told = reasons(recording).await;
        let (first, rest) = told.split_first().expect("there are signals");
        assert!(
            first.0.contains("no operating system"),
            "{recording}: {first:?}"
        );
        assert_eq!(rest, expected, "{recording}");
    }
}

/// Scripted QEMU (a recording of 11.1), dbus-daemon.
#[tokio::test]
async fn a_linux_that_is_busy_with_a_cpu_can_be_asked_again_and_again() {
    let busy = ("the guest is busy with the CPU".to_owned(), true);
    assert_eq!(reasons("refusal-11.1-q35").await, vec![busy; 3]);
}

/// Scripted QEMU (a recording of 7.2), dbus-daemon. Held by the player: the call fails with QEMU's
/// words.
#[tokio::test]
async fn a_machine_without_an_operating_system_grows_and_does_not_shrink() {
    let told = reasons("cycle-7.2-q35-kvm").await;
    assert_eq!(told.len(), 3);
    for (reason, asked) in told {
        let text = "acpi: device unplug request for not supported device type: host-x86_64-cpu";
        assert!(reason.contains(text) && asked, "{reason}");
    }
}
