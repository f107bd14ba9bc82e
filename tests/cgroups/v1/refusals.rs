//! Refusals of the kernel, and the reaction of the placer.

use std::collections::BTreeMap;
use std::fs;

use vcpud::ids::{Tid, VcpuId};
use vcpud::placement::{
    Bandwidth, CpuList, Reason, Scheduler, Step, StepError, Tuning, UnitPlacement,
};
use vcpud::placer::{Placer, affinity, observe, scheduling, set_scheduler};
use vcpud::process::Tasks;

use super::super::parts::{Bystander, Ran, applied, cpus, not_run, two_cpus};
use super::{World, threads_in};

tests![
    a_refused_change_keeps_the_old_values,
    does_not_change_a_thread_of_another_process,
    a_pin_that_a_cpuset_narrows_is_not_in_force,
    a_group_can_get_real_time_runtime_later,
    a_thread_that_cannot_enter_its_group_has_no_limit,
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
    let change = placer.change(&old, &new, &vcpus, &world.qemu, |_, _| true);
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
    assert!(observe(other.thread(), &world.qemu, &world.host.mounts).is_err());
    Ok(())
}

/// Uses a real QEMU without groups of its own, in a cpuset of version 1 that the test made.
fn a_pin_that_a_cpuset_narrows_is_not_in_force() -> Ran {
    let world = World::new()?;
    let vcpus = world.qemu.vcpus();
    let (first, last) = two_cpus(&world.host);
    if first == last {
        return Err(not_run("this host has one CPU"));
    }
    let nodes = world.cpuset.with_file_name("cpuset.mems");
    fs::create_dir(&world.cpuset).unwrap();
    fs::copy(nodes, world.cpuset.join("cpuset.mems")).unwrap();
    fs::write(world.cpuset.join("cpuset.cpus"), first.to_string()).unwrap();
    let procs = world.cpuset.join("cgroup.procs");
    fs::write(procs, world.qemu.pid().to_string()).unwrap();
    let home = UnitPlacement::without_groups(String::new());
    let mut placer = Placer::new(world.host.clone(), "test", home).unwrap();
    let pinned = |list: &CpuList| Tuning {
        pins: [(VcpuId(1), list.clone())].into(),
        ..Tuning::default()
    };
    let both = first.union(&last);
    let (old, new) = (pinned(&first), pinned(&both));
    applied(&placer.reconcile(&old, &vcpus, &world.qemu));
    let change = placer.change(&old, &new, &vcpus, &world.qemu, |_, _| true);
    let failures = change.unwrap_err();
    let [(VcpuId(1), error)] = &failures[..] else {
        panic!("{failures:?}");
    };
    let (wanted, allowed) = (both, first.clone());
    let reason = Reason::Confined { wanted, allowed };
    assert_eq!((error.step, &error.reason), (Step::Affinity, &reason));
    assert_eq!(affinity(vcpus[&VcpuId(1)]).unwrap(), first);
    Ok(())
}

/// Uses a real QEMU and version 1. Its groups have no real-time runtime at first.
fn a_group_can_get_real_time_runtime_later() -> Ran {
    let world = World::new()?;
    if !world.cpu.join("cpu.rt_runtime_us").exists() {
        return Err(not_run("this kernel does not group real-time threads"));
    }
    let vcpus = world.qemu.vcpus();
    let tuning = Tuning {
        schedulers: [(VcpuId(1), Scheduler::Fifo(1))].into(),
        bandwidth: Some(Bandwidth::new(50_000, 10_000).unwrap()),
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
    assert_eq!(
        threads_in(&world.cpu.join("vcpud/vcpu1")),
        [vcpus[&VcpuId(1)]].into()
    );
    assert_eq!(world.bandwidth(1), ("50000".into(), "10000".into()));

    for group in ["", "vcpud", "vcpud/vcpu1"] {
        let runtime = world.cpu.join(group).join("cpu.rt_runtime_us");
        fs::write(runtime, "1000").unwrap();
    }
    let report = placer.reconcile(&tuning, &vcpus, &world.qemu);
    assert_eq!(applied(&report)[1], [Step::Scheduler]);
    assert_eq!(scheduling(vcpus[&VcpuId(1)]).unwrap().name(), "fifo");
    Ok(())
}

/// Uses a real QEMU with real-time threads and version 1. Its groups have no real-time runtime.
fn a_thread_that_cannot_enter_its_group_has_no_limit() -> Ran {
    let world = World::new()?;
    if !world.cpu.join("cpu.rt_runtime_us").exists() {
        return Err(not_run("this kernel does not group real-time threads"));
    }
    let vcpus = world.qemu.vcpus();
    let (first, _) = two_cpus(&world.host);
    let unit = world.cpu.join("cpu.rt_runtime_us");
    fs::write(unit, "1000").unwrap();
    for thread in world.qemu.tasks().unwrap() {
        set_scheduler(thread, Scheduler::Fifo(1)).unwrap();
    }
    let mut placer = world.placer();
    let (old, new) = (
        Tuning::default(),
        Tuning {
            bandwidth: Some(Bandwidth::new(50_000, 10_000).unwrap()),
            affinity: Some(first.clone()),
            ..Tuning::default()
        },
    );
    let is_of_limit = |_, error: &StepError| [Step::Thread, Step::Bandwidth].contains(&error.step);
    let change = placer.change(&old, &new, &vcpus, &world.qemu, is_of_limit);
    let failures = change.unwrap_err();
    assert_eq!(failures.len(), 4, "{failures:?}");
    assert!(failures.iter().all(|(_, error)| error.step == Step::Thread));

    let report = placer.reconcile(&new, &vcpus, &world.qemu);
    assert_eq!(report.failures().count(), 4, "{report:#?}");
    assert_eq!(report.bandwidth(), Bandwidth::UNLIMITED);
    assert_eq!(report.affinity(|_| true), first, "it needs no group");
    assert_eq!(affinity(vcpus[&VcpuId(3)]).unwrap(), first);
    // Once the threads may enter, the limit is in force.
    for thread in world.qemu.tasks().unwrap() {
        set_scheduler(thread, Scheduler::Other).unwrap();
    }
    let report = placer.reconcile(&new, &vcpus, &world.qemu);
    assert!(report.is_complete(), "{report:#?}");
    assert_eq!(report.bandwidth(), new.bandwidth.unwrap());
    let seen = observe(vcpus[&VcpuId(3)], &world.qemu, &world.host.mounts).unwrap();
    assert_eq!(seen.bandwidth, new.bandwidth);
    Ok(())
}
