//! vCPUs are added and removed repeatedly, without leaks.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::harness::*;

const CYCLES: usize = 10;

#[tokio::test]
async fn a_guest_grows_and_shrinks_ten_times_and_nothing_leaks() {
    let host = Host::enter().await;
    let mut guest = Guest::boot("web").await;
    let machine = host.machine("web").await;
    let mark = host.signals.mark().await;

    let mut after_first = None;
    for cycle in 1..=CYCLES {
        let grown = machine.set(4).await;
        assert_eq!(grown, Ok(Outcome::added([1, 2, 3])), "cycle {cycle}");
        assert_eq!(guest.vcpu_threads(), [0, 1, 2, 3]);
        guest.online("0-3").await;

        let shrunk = machine.set_patiently(1).await;
        assert_eq!(shrunk, Ok(Outcome::removed([1, 2, 3])), "cycle {cycle}");
        guest.has_threads(&[0]).await;
        guest.online("0").await;

        // KVM cannot destroy a vCPU: QEMU keeps its descriptor for the next vCPU with this number.
        let parked = guest.vcpu_descriptors();
        let numbers: Vec<u32> = parked.iter().map(|(vcpu, _)| *vcpu).collect();
        assert_eq!(numbers, [0, 1, 2, 3], "cycle {cycle}");
        let open = (parked, guest.other_descriptors());
        assert_eq!(
            *after_first.get_or_insert(open.clone()),
            open,
            "cycle {cycle}"
        );
    }

    let told = host.signals.since(mark).await;
    assert_eq!(added(&told).len(), 3 * CYCLES);
    assert_eq!(removed(&told).len(), 3 * CYCLES);
    assert_eq!(ids(&removed(&told[told.len() / 2..])).last(), Some(&3));
}

#[tokio::test]
async fn qemu_reports_each_removed_vcpu_twice_and_the_service_once() {
    let host = Host::enter().await;
    let mut guest = Guest::boot("web").await;
    let machine = host.machine("web").await;
    machine.set(2).await.unwrap();
    guest.online("0-1").await;

    let mark = host.signals.mark().await;
    machine.set_patiently(1).await.unwrap();

    let mut deleted = BTreeSet::new();
    for _ in 0..2 {
        let data = guest.monitor.event("DEVICE_DELETED").await;
        let text = |key: &str| data.get(key).and_then(Value::as_str).map(str::to_owned);
        deleted.insert((text("path").unwrap(), text("device")));
    }
    let vcpu = "/machine/peripheral/vcpu1".to_owned();
    let lapic = format!("{vcpu}/lapic");
    let expected = [(vcpu, Some("vcpu1".to_owned())), (lapic, None)];
    assert_eq!(deleted, BTreeSet::from(expected));

    let told = host.signals.since(mark).await;
    assert_eq!(removed(&told), [Vcpu::by_request("web", 1, "vcpu1")]);
}
