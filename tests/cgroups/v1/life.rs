//! The groups of a machine, from its first pass to its end.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use rustix::fs::Mode;
use rustix::process::umask;
use vcpud::ids::{Tid, VcpuId};
use vcpud::placement::{Bandwidth, Scheduler, Step, Tuning};
use vcpud::placer::{affinity, observe, scheduling};
use vcpud::process::Tasks;

use super::super::parts::{Bystander, Ran, applied, cpus, remove_groups, two_cpus};
use super::{World, threads_in};

tests![
    moves_every_thread_to_its_group,
    creates_groups_before_and_removes_them_after_their_vcpus,
    removes_the_rest_of_a_unit_that_systemd_removed,
    all_users_can_read_the_statistics_whatever_the_umask,
];

/// Uses a real QEMU and version 1: the groups, the limits, and a second pass that writes nothing.
fn moves_every_thread_to_its_group() -> Ran {
    let world = World::new()?;
    let vcpus = world.qemu.vcpus();
    let (first, last) = two_cpus(&world.host);
    let tuning = Tuning {
        pins: [(VcpuId(1), first.clone()), (VcpuId(7), last.clone())].into(),
        affinity: Some(last.clone()),
        bandwidth: Some(Bandwidth::new(50_000, 10_000).unwrap()),
        schedulers: [(VcpuId(2), Scheduler::Batch)].into(),
        ..Tuning::default()
    };
    let other = Bystander::start();
    let procs = world.cpu.join("cgroup.procs");
    fs::write(procs, other.thread().to_string()).unwrap();
    let mut placer = world.placer();
    assert_eq!(placer.missing(), []);
    let report = placer.reconcile(&tuning, &vcpus, &world.qemu);
    for steps in applied(&report) {
        assert!(steps.starts_with(&[Step::Group, Step::Thread]), "{steps:?}");
        assert!(steps.contains(&Step::Bandwidth), "{steps:?}");
    }

    // What else is in the unit, such as the kernel's workers for it.
    assert!(threads_in(&world.cpu.join("vcpud/emulator")).contains(&other.thread()));
    drop(other);
    for hierarchy in [&world.cpu, &world.cpuset] {
        for (vcpu, thread) in &vcpus {
            let group = hierarchy.join(format!("vcpud/vcpu{vcpu}"));
            assert_eq!(threads_in(&group), BTreeSet::from([*thread]));
        }
        let all: BTreeSet<Tid> = world.qemu.tasks().unwrap().into_iter().collect();
        let others: BTreeSet<Tid> = vcpus.values().copied().collect();
        let others: BTreeSet<Tid> = all.difference(&others).copied().collect();
        assert!(others.contains(&world.qemu.pid().main_thread()));
        assert_eq!(threads_in(&hierarchy.join("vcpud/emulator")), others);
        assert!(threads_in(hierarchy).is_empty());
    }
    for (vcpu, thread) in &vcpus {
        let pinned = if *vcpu == 1 { &first } else { &last };
        assert_eq!(&cpus(&world.read(vcpu.get(), "cpuset.cpus")), pinned);
        assert_eq!(
            world.bandwidth(vcpu.get()),
            ("50000".into(), "10000".into())
        );
        let seen = observe(*thread, &world.qemu, &world.host.mounts).unwrap();
        assert_eq!(seen.bandwidth, tuning.bandwidth);
        assert_eq!(&seen.affinity, pinned);
        let scheduler = if *vcpu == 2 { "batch" } else { "other" };
        assert_eq!((seen.scheduler, seen.priority), (scheduler, 0));
        let group = format!("/{}/vcpud/vcpu{vcpu}", world.name);
        assert_eq!(seen.control_group, Some(group));
    }
    let nodes = fs::read_to_string(world.cpuset.join("cpuset.mems")).unwrap();
    assert_eq!(world.read(0, "cpuset.mems"), nodes.trim());

    let again = placer.reconcile(&tuning, &vcpus, &world.qemu);
    assert!(applied(&again).iter().all(Vec::is_empty), "{again:#?}");
    // A service that was restarted finds everything in place.
    let again = world.placer().reconcile(&tuning, &vcpus, &world.qemu);
    assert!(applied(&again).iter().all(Vec::is_empty), "{again:#?}");

    // Back to how it was found.
    applied(&placer.reconcile(&Tuning::default(), &vcpus, &world.qemu));
    let default = world.host.cpus().unwrap().default_cpus();
    for (vcpu, thread) in &vcpus {
        assert_eq!(affinity(*thread).unwrap(), default);
        assert_eq!(scheduling(*thread).unwrap().name(), "other");
        assert_eq!(world.bandwidth(vcpu.get()), ("100000".into(), "-1".into()));
    }
    Ok(())
}

/// Uses a real QEMU and version 1: a group that was created before its vCPU, one of a vCPU that was not added, one
/// that is not empty, and the end.
fn creates_groups_before_and_removes_them_after_their_vcpus() -> Ran {
    let mut world = World::new()?;
    let mut vcpus = world.qemu.vcpus();
    let third = vcpus.remove(&VcpuId(3)).unwrap();
    let mut placer = world.placer();
    placer.prepare(&[VcpuId(3), VcpuId(4)]).unwrap();
    assert!(world.vcpu(3, "cpuset.cpus").exists());
    vcpus.insert(VcpuId(3), third);
    let report = placer.reconcile(&Tuning::default(), &vcpus, &world.qemu);
    assert!(!applied(&report)[3].contains(&Step::Group));
    assert!(!world.vcpu(4, "tasks").exists());

    // Another process is in the way.
    let other = Bystander::start();
    fs::write(world.vcpu(3, "tasks"), other.thread().to_string()).unwrap();
    vcpus.remove(&VcpuId(3));
    for _ in 0..2 {
        let report = placer.reconcile(&Tuning::default(), &vcpus, &world.qemu);
        assert_eq!(report.lingering, [3]);
    }
    assert!(threads_in(&world.cpu.join("vcpud/emulator")).contains(&third));
    drop(other);
    let report = placer.reconcile(&Tuning::default(), &vcpus, &world.qemu);
    assert!(report.lingering.is_empty());
    assert!(!world.vcpu(3, "tasks").exists());

    let error = placer.dismantle().unwrap_err();
    assert_eq!(error.errno(), Some(libc::EBUSY));
    world.qemu.child.kill().unwrap();
    world.qemu.child.wait().unwrap();
    placer.dismantle().unwrap();
    assert!(!world.cpu.join("vcpud").exists());
    assert!(world.cpu.exists(), "the unit's group is systemd's");
    assert!(!world.cpuset.exists());
    Ok(())
}

/// Uses a real QEMU and version 1. systemd removes the unit of a QEMU that has exited.
fn removes_the_rest_of_a_unit_that_systemd_removed() -> Ran {
    let mut world = World::new()?;
    let vcpus = world.qemu.vcpus();
    let mut placer = world.placer();
    applied(&placer.reconcile(&Tuning::default(), &vcpus, &world.qemu));
    world.qemu.child.kill().unwrap();
    world.qemu.child.wait().unwrap();
    remove_groups(&world.cpu);
    placer.dismantle().unwrap();
    assert!(!world.cpuset.exists());
    placer.dismantle().unwrap();
    Ok(())
}

/// Uses a real QEMU and version 1. The reader is the user `nobody`; the service has `UMask=0077`.
fn all_users_can_read_the_statistics_whatever_the_umask() -> Ran {
    let world = World::new()?;
    let vcpus = world.qemu.vcpus();
    let former = umask(Mode::from_raw_mode(0o077));
    let report = world
        .placer()
        .reconcile(&Tuning::default(), &vcpus, &world.qemu);
    umask(former);
    applied(&report);
    for vcpu in vcpus.keys() {
        let output = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", "cat"])
            .arg(world.vcpu(vcpu.get(), "cpu.stat"))
            .output()
            .expect("setpriv can be started");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}");
        assert!(output.stdout.starts_with(b"nr_periods "));
    }
    Ok(())
}
