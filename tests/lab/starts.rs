//! The vCPUs that the service reports as started, with different guests. The evidence is the exits that KVM counts.

use std::time::Duration;

use serde_json::{Value, json};
use vcpud::names::error_name;
use zbus::Variant;

use crate::harness::*;

/// Much longer than any of these guests needs.
const LONG: Duration = Duration::from_secs(80);
const MOMENT: Duration = Duration::from_secs(3);

#[tokio::test]
async fn a_guest_that_uses_new_vcpus_starts_them_again_and_again() {
    let host = Host::enter().await;
    let mut guest = Guest::boot("web").await;
    let machine = host.machine("web").await;
    // KVM gives the counters of a removed vCPU to the next one.
    for cycle in 1..=2 {
        let set = machine.set_until_started(4, LONG).await;
        assert_eq!(set, Ok(Outcome::added([1, 2, 3])), "cycle {cycle}");
        assert_eq!(host.signals.all_started().await.len(), 3 * cycle);
        assert_eq!(machine.started_vcpus().await.unwrap(), 4);
        guest.online("0-3").await;
        machine.set_patiently(1).await.unwrap();
        guest.online("0").await;
    }
}

#[tokio::test]
async fn a_guest_that_leaves_new_vcpus_offline_does_not_start_them() {
    let host = Host::enter().await;
    let mut guest = Guest::boot_passive("web").await;
    let machine = host.machine("web").await;
    does_not_start(&machine).await;
    // Linux starts all present vCPUs at its boot.
    guest.monitor.execute("system_reset", json!({})).await;
    machine.wait_for("StartedVcpus", 4u32).await;
    // The signals follow the new value of the property.
    host.signals.started(3).await;
    assert_eq!(ids(&host.signals.all_started().await), [1, 2, 3]);
}

#[tokio::test]
async fn firmware_starts_vcpus_when_it_begins_only() {
    let host = Host::enter().await;
    let mut guest = Guest::firmware("web").await;
    let machine = host.machine("web").await;
    machine.wait_for("StartedVcpus", 1u32).await;
    halts(&machine).await;
    does_not_start(&machine).await;
    guest.monitor.execute("system_reset", json!({})).await;
    machine.wait_for("StartedVcpus", 4u32).await;
}

#[tokio::test]
async fn a_guest_that_panicked_starts_nothing() {
    let host = Host::enter().await;
    let _guest = Guest::panics("web").await;
    let machine = host.machine("web").await;
    does_not_start(&machine).await;
    assert_eq!(host.signals.all_started().await, []);
}

/// Waits until the firmware has halted the first vCPU, for the first time after it has started all vCPUs.
async fn halts(machine: &Machine) {
    let kvm = [("kvm", Variant::Bool(true))];
    let halted = async {
        loop {
            let (_, vcpus) = machine.statistics(&kvm).await.unwrap();
            let exits = vcpus[0].get("halt-exits").and_then(Value::as_u64);
            if exits > Some(0) {
                return;
            }
        }
    };
    within("the firmware to halt", halted).await;
}

/// Adds three vCPUs that the guest does not start.
async fn does_not_start(machine: &Machine) {
    let failure = machine.set_until_started(4, MOMENT).await.unwrap_err();
    let texts = ["did not start vCPUs 1-3", "added: vCPUs 1-3"];
    failure.assert(error_name::GUEST_DID_NOT_START, &texts);
    assert_eq!(machine.vcpus().await.unwrap(), 4);
    assert_eq!(machine.started_vcpus().await.unwrap(), 1);
    let started = machine.started().await;
    assert_eq!(started, [(0, true), (1, false), (2, false), (3, false)]);
}
