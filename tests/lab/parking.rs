//! KVM cannot destroy a vCPU. QEMU parks the descriptor of an unplugged vCPU, and uses it again for the next
//! vCPU with the same number. vCPUs can be added in any order.

use crate::harness::*;

#[tokio::test]
async fn a_vcpu_that_is_added_again_has_the_parked_descriptor() {
    let host = Host::enter().await;
    let mut guest = Guest::boot("web").await;
    let machine = host.machine("web").await;
    machine.set(3).await.unwrap();
    guest.online("0-2").await;
    let before = guest.vcpu_descriptors();
    assert_eq!(before.len(), 3);

    machine.set_patiently(1).await.unwrap();
    guest.has_threads(&[0]).await;
    assert_eq!(guest.vcpu_descriptors(), before);

    // Not in the order of the removal: the last one first.
    let only = machine.set_these(&[2], true).await;
    assert_eq!(only, Ok(Outcome::added([2])));
    assert_eq!(guest.vcpu_threads(), [0, 2]);
    assert_eq!(guest.vcpu_descriptors(), before);
    guest.online("0,2").await;

    machine.set(3).await.unwrap();
    assert_eq!(guest.vcpu_threads(), [0, 1, 2]);
    assert_eq!(guest.vcpu_descriptors(), before);
    guest.online("0-2").await;
}

#[tokio::test]
async fn vcpus_can_be_added_in_any_order_and_by_any_client() {
    let host = Host::enter().await;
    let mut guest = Guest::boot("web").await;
    let machine = host.machine("web").await;

    let mark = host.signals.mark().await;
    guest.monitor.plug(5, "mine").await;
    guest.online("0,5").await;
    machine.wait_for("Vcpus", 2u32).await;
    let is_told = |all: &[Signal]| !added(all).is_empty();
    host.signals.wait("VcpuAdded", mark, is_told).await;
    let told = host.signals.since(mark).await;
    assert_eq!(added(&told), [Vcpu::by_cause("web", 5, "mine", "external")]);
    assert_eq!(guest.vcpu_threads(), [0, 5]);

    let next = machine.set_these(&[4], true).await;
    assert_eq!(next, Ok(Outcome::added([4])));
    assert_eq!(machine.present().await, [0, 4, 5]);
    assert_eq!(guest.vcpu_threads(), [0, 4, 5]);
    guest.online("0,4-5").await;

    let shrunk = machine.set_patiently(1).await;
    assert_eq!(shrunk, Ok(Outcome::removed([4, 5])));
    let parked = guest.vcpu_descriptors();
    let numbers: Vec<u32> = parked.iter().map(|(vcpu, _)| *vcpu).collect();
    assert_eq!(numbers, [0, 4, 5]);
    guest.online("0").await;
}
