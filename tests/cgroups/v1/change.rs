//! What changes while a machine lives: on request, from outside, and of the host itself.

use std::collections::BTreeMap;
use std::fs;

use vcpud::ids::{Tid, VcpuId};
use vcpud::placement::{Bandwidth, CpuList, Reason, Scheduler, Step, Tuning};
use vcpud::placer::{affinity, set_affinity, set_scheduler};

use super::super::parts::{Ran, applied, cpus, not_run, two_cpus};
use super::{World, threads_in};

tests![
    changes_the_bandwidth_below_a_limit,
    repairs_drift_and_reports_it_once,
    follows_host_cpus_that_go_offline_and_online,
];

/// Uses a real QEMU and version 1: all changes between some bandwidths, below a group with the greatest of
/// them.
fn changes_the_bandwidth_below_a_limit() -> Ran {
    let world = World::new()?;
    let vcpus = world.qemu.vcpus();
    let mut placer = world.placer();
    fs::write(world.cpu.join("cpu.cfs_quota_us"), "50000").unwrap();
    for (period, quota) in [
        (100_000, 50_000),
        (10_000, 5_000),
        (1_000_000, 500_000),
        (2_000, 1_000),
        (100_000, 1_000),
        (100_000, -1),
        (20_000, 10_000),
    ] {
        let tuning = Tuning {
            bandwidth: Some(Bandwidth::new(period, quota).unwrap()),
            ..Tuning::default()
        };
        applied(&placer.reconcile(&tuning, &vcpus, &world.qemu));
        let wanted = (period.to_string(), quota.to_string());
        assert_eq!(world.bandwidth(3), wanted);
    }

    // More than the group above has: the kernel refuses, and what was stays.
    let tuning = Tuning {
        bandwidth: Some(Bandwidth::new(30_000, 20_000).unwrap()),
        ..Tuning::default()
    };
    let report = placer.reconcile(&tuning, &vcpus, &world.qemu);
    assert_eq!(report.failures().count(), 4);
    let (_, error) = report.failures().next().unwrap();
    assert_eq!(
        (error.step, error.errno()),
        (Step::Bandwidth, Some(libc::EINVAL))
    );
    let path = world.vcpu(0, "cpu.cfs_quota_us");
    assert_eq!(
        error.to_string(),
        format!(
            "setting the group's period and quota ({}): Invalid argument (os error 22) \
             (a group above has less CPU time)",
            path.display()
        )
    );
    assert_eq!(world.bandwidth(0), ("20000".into(), "10000".into()));

    // A vCPU that comes under such a tuning has no group.
    let three: BTreeMap<VcpuId, Tid> = vcpus.range(..VcpuId(3)).map(|(v, t)| (*v, *t)).collect();
    placer.reconcile(&Tuning::default(), &three, &world.qemu);
    assert!(!world.vcpu(3, "tasks").exists());
    let report = placer.reconcile(&tuning, &vcpus, &world.qemu);
    assert!(report.vcpus[&VcpuId(3)].failed.is_some());
    assert!(!world.vcpu(3, "tasks").exists());
    assert!(threads_in(&world.cpu.join("vcpud/emulator")).contains(&vcpus[&VcpuId(3)]));
    assert!(world.vcpu(2, "tasks").exists());
    Ok(())
}

/// A real QEMU and version 1: a change by another program is reverted, and reported once.
fn repairs_drift_and_reports_it_once() -> Ran {
    let world = World::new()?;
    let vcpus = world.qemu.vcpus();
    let (first, last) = two_cpus(&world.host);
    if first == last {
        return Err(not_run("this host has one CPU"));
    }
    let tuning = Tuning {
        affinity: Some(cpus(&format!("{first},{last}"))),
        bandwidth: Some(Bandwidth::new(50_000, 10_000).unwrap()),
        scheduler: Some(Scheduler::Batch),
        ..Tuning::default()
    };
    let mut placer = world.placer();
    applied(&placer.reconcile(&tuning, &vcpus, &world.qemu));

    fs::write(world.vcpu(0, "cpu.cfs_quota_us"), "-1").unwrap();
    set_affinity(vcpus[&VcpuId(1)], &first).unwrap();
    fs::write(world.vcpu(2, "cpuset.cpus"), last.to_string()).unwrap();
    let emulator = world.cpu.join("vcpud/emulator/tasks");
    fs::write(emulator, vcpus[&VcpuId(3)].to_string()).unwrap();
    set_scheduler(vcpus[&VcpuId(3)], Scheduler::Idle).unwrap();

    // As a host CPU that was off and on leaves a cpuset.
    let cpuset = world.cpuset.join("vcpud/emulator/cpuset.cpus");
    let inherited = fs::read_to_string(&cpuset).unwrap();
    fs::write(&cpuset, last.to_string()).unwrap();

    let report = placer.reconcile(&tuning, &vcpus, &world.qemu);
    assert!(report.is_complete(), "{report:#?}");
    assert_eq!(fs::read_to_string(&cpuset).unwrap(), inherited);
    let drifted = |vcpu: u32| report.vcpus[&VcpuId(vcpu)].drifted.clone();
    assert_eq!(drifted(0), [Step::Bandwidth]);
    assert_eq!(drifted(1), [Step::Affinity]);
    assert!(drifted(2).contains(&Step::Cpus));
    assert_eq!(drifted(3), [Step::Thread, Step::Scheduler]);
    assert!(
        report
            .vcpus
            .values()
            .all(|outcome| outcome.applied.is_empty())
    );
    assert_eq!(world.bandwidth(0).1, "10000");
    assert_eq!(affinity(vcpus[&VcpuId(2)]).unwrap(), first.union(&last));
    assert_eq!(
        threads_in(&world.cpu.join("vcpud/vcpu3")),
        [vcpus[&VcpuId(3)]].into()
    );

    let again = placer.reconcile(&tuning, &vcpus, &world.qemu);
    assert!(applied(&again).iter().all(Vec::is_empty), "{again:#?}");
    Ok(())
}

/// Uses a real QEMU and version 1, and CPU lists of a host in a directory tree, because a test does not take CPUs
/// of this host offline.
fn follows_host_cpus_that_go_offline_and_online() -> Ran {
    let mut world = World::new()?;
    let real = world.host.cpus().unwrap();
    let (first, last) = two_cpus(&world.host);
    let system = tempfile::tempdir().unwrap();
    fs::create_dir(system.path().join("cpu")).unwrap();
    let list = |name: &str, list: &CpuList| {
        fs::write(system.path().join("cpu").join(name), format!("{list}\n")).unwrap();
    };
    world.host.system = system.path().to_owned();
    let vcpus = world.qemu.vcpus();
    let both = first.union(&last);
    let tuning = Tuning {
        pins: [(VcpuId(1), both.clone())].into(),
        ..Tuning::default()
    };
    let mut placer = world.placer();
    for online in [&both, &first, &both] {
        list("online", online);
        applied(&placer.reconcile(&tuning, &vcpus, &world.qemu));
        assert_eq!(&affinity(vcpus[&VcpuId(0)]).unwrap(), online);
        assert_eq!(&affinity(vcpus[&VcpuId(1)]).unwrap(), online);
        assert_eq!(&cpus(&world.read(1, "cpuset.cpus")), online);
    }
    if first != last {
        list("isolated", &first);
        applied(&placer.reconcile(&tuning, &vcpus, &world.qemu));
        assert_eq!(affinity(vcpus[&VcpuId(0)]).unwrap(), last);
        assert_eq!(
            affinity(vcpus[&VcpuId(1)]).unwrap(),
            both,
            "a pin may name isolated CPUs"
        );
    }

    // A pin whose CPUs are all off.
    list("online", &"4095".parse().unwrap());
    let report = placer.reconcile(&tuning, &vcpus, &world.qemu);
    let error = report.vcpus[&VcpuId(1)].failed.as_ref().unwrap();
    assert_eq!(error.reason, Reason::Offline(both.clone()));
    assert!(world.vcpu(1, "tasks").exists(), "it was in force before");

    // The affinity of the process that does the pass does not matter.
    list("online", &real.online);
    list("isolated", &real.isolated);
    let own = affinity(Tid(std::process::id())).unwrap();
    let thread = rustix::thread::gettid();
    let thread = Tid(thread.as_raw_nonzero().get().unsigned_abs());
    set_affinity(thread, &first).unwrap();
    applied(&placer.reconcile(&Tuning::default(), &vcpus, &world.qemu));
    assert_eq!(affinity(vcpus[&VcpuId(1)]).unwrap(), real.default_cpus());
    set_affinity(thread, &own).unwrap();
    Ok(())
}
