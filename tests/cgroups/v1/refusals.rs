//! Refusals of the kernel, and the reaction of the placer.

use std::collections::BTreeMap;
use std::fs;

use vcpud::ids::{Tid, VcpuId};
use vcpud::placement::{Bandwidth, Reason, Scheduler, Step, Tuning};
use vcpud::placer::{affinity, observe, scheduling};

use super::super::parts::{Bystander, Ran, applied, cpus, not_run, two_cpus};
use super::{World, threads_in};

tests![
    a_refused_change_keeps_the_old_values,
    does_not_change_a_thread_of_another_process,
    removes_a_new_group_if_the_scheduler_is_refused,
];

/// Uses a real QEMU and version 1, and memory nodes that this host does not have.
fn a_refused_change_keeps_the_old_values() -> Ran {
    let world = World::new()?;
    let vcpus = world.qemu.vcpus();
    let (first, _) = two_cpus(&world.host);
    let old = Tuning {
        affinity: Some(first.clone()),
        bandwidth: Some(Bandwidth::new(50_000, 10_000).unwrap()),
        ..Tuning::default()
    };
    let mut placer = world.placer();
    placer.reconcile(&old, &vcpus, &world.qemu);
    let new = Tuning {
        affinity: None,
        memory_nodes: Some("1023".parse().unwrap()),
        bandwidth: None,
        ..Tuning::default()
    };
    assert!(new.check(&world.host.cpus().unwrap()).is_err());
    let none = BTreeMap::new();
    let change = placer.change(&old, &new, &vcpus, &world.qemu, &none);
    let failures = change.unwrap_err();
    assert_eq!(failures.len(), 4);
    assert!(failures.iter().all(|(_, error)| error.step == Step::Nodes));
    for vcpu in vcpus.keys() {
        assert_eq!(cpus(&world.read(vcpu.get(), "cpuset.cpus")), first);
        assert_eq!(
            world.bandwidth(vcpu.get()),
            ("50000".into(), "10000".into())
        );
    }
    assert_eq!(affinity(vcpus[&VcpuId(0)]).unwrap(), first);
    let again = placer.reconcile(&old, &vcpus, &world.qemu);
    assert!(applied(&again).iter().all(Vec::is_empty), "{again:#?}");
    Ok(())
}

/// Uses a real QEMU, version 1, and a thread of another process.
fn does_not_change_a_thread_of_another_process() -> Ran {
    let world = World::new()?;
    let other = Bystander::start();
    let before = fs::read_to_string(format!("/proc/{}/cgroup", other.thread())).unwrap();
    let mask = affinity(other.thread()).unwrap();
    let (first, _) = two_cpus(&world.host);
    let tuning = Tuning {
        affinity: Some(first),
        scheduler: Some(Scheduler::Idle),
        ..Tuning::default()
    };
    let vcpus = [other.thread(), Tid(0), Tid(u32::MAX)];
    let vcpus: BTreeMap<VcpuId, Tid> = (0..).map(VcpuId).zip(vcpus).collect();
    let mut placer = world.placer();
    placer.prepare(&[VcpuId(0)]).unwrap();
    let report = placer.reconcile(&tuning, &vcpus, &world.qemu);
    assert_eq!(report.failures().count(), 3);
    for (vcpu, error) in report.failures() {
        assert_eq!(
            (error.step, &error.reason),
            (Step::Thread, &Reason::Foreign)
        );
        assert!(!world.vcpu(vcpu.get(), "tasks").exists());
    }
    let after = fs::read_to_string(format!("/proc/{}/cgroup", other.thread())).unwrap();
    assert_eq!(after, before);
    assert_eq!(affinity(other.thread()).unwrap(), mask);
    assert_eq!(scheduling(other.thread()).unwrap().name(), "other");
    assert!(observe(other.thread(), &world.qemu).is_err());
    Ok(())
}

/// Uses a real QEMU and version 1. Its groups have no real-time runtime.
fn removes_a_new_group_if_the_scheduler_is_refused() -> Ran {
    let world = World::new()?;
    if !world.cpu.join("cpu.rt_runtime_us").exists() {
        return Err(not_run("this kernel does not group real-time threads"));
    }
    let vcpus = world.qemu.vcpus();
    let tuning = Tuning {
        schedulers: [(VcpuId(1), Scheduler::Fifo(1))].into(),
        ..Tuning::default()
    };
    let mut placer = world.placer();
    let report = placer.reconcile(&tuning, &vcpus, &world.qemu);
    let failures: Vec<_> = report.failures().collect();
    let [(VcpuId(1), error)] = failures[..] else {
        panic!("{report:#?}");
    };
    assert_eq!(
        (error.step, error.errno()),
        (Step::Scheduler, Some(libc::EPERM))
    );
    assert!(!world.vcpu(1, "tasks").exists());
    assert!(world.vcpu(0, "tasks").exists());
    assert!(threads_in(&world.cpuset.join("vcpud/emulator")).contains(&vcpus[&VcpuId(1)]));
    Ok(())
}
