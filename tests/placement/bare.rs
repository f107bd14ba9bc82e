//! Machines without control groups of their own.

use vcpud::host::{Host, Placer, affinity, scheduling};
use vcpud::placement::{Bandwidth, Controller, Home, Kind, Scheduler, Step, Tuning};

use super::parts::{Qemu, applied, two_cpus};

/// A real QEMU without control groups of its own: affinity and schedulers, and nothing else.
#[test]
fn without_groups_there_are_affinity_and_schedulers() {
    let qemu = Qemu::start();
    let vcpus = qemu.vcpus();
    let host = Host::this().unwrap();
    let (first, _) = two_cpus(&host);
    let home = Home {
        kind: Kind::None,
        unit: "x.service".into(),
        control_group: "/system.slice/x.service".into(),
    };
    let mut placer = Placer::new(host, "test", home).unwrap();
    let tuning = Tuning {
        pins: [(2, first.clone())].into(),
        schedulers: [(1, Scheduler::Fifo(1)), (3, Scheduler::Rr(99))].into(),
        ..Tuning::default()
    };
    assert_eq!(placer.supports(&tuning), Ok(()));
    let report = placer.reconcile(&tuning, &vcpus, &qemu);
    assert_eq!(applied(&report)[1], [Step::Scheduler]);
    assert_eq!(affinity(vcpus[&2]).unwrap(), first);
    let seen = |vcpu: u32| {
        let is = scheduling(vcpus[&vcpu]).unwrap();
        (is.name(), is.priority)
    };
    assert_eq!(
        (seen(0), seen(1), seen(3)),
        (("other", 0), ("fifo", 1), ("rr", 99))
    );

    assert_eq!(placer.missing(), [Controller::Cpu, Controller::Cpuset]);
    for tuning in [
        Tuning {
            bandwidth: Some(Bandwidth::new(100_000, 50_000).unwrap()),
            ..Tuning::default()
        },
        Tuning {
            memory_nodes: Some("0".parse().unwrap()),
            ..Tuning::default()
        },
    ] {
        let error = placer.supports(&tuning).unwrap_err();
        assert!(error.is_unsupported(), "{error}");
        let report = placer.reconcile(&tuning, &vcpus, &qemu);
        assert_eq!(report.failures().count(), 4);
        assert!(report.failures().all(|(_, error)| error.is_unsupported()));
    }
}
