//! What changes while a machine lives: on request, from outside, and of the host itself.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use vcpud::ids::{Tid, VcpuId};
use vcpud::placement::{Bandwidth, CpuList, Kind, Reason, Scheduler, Step, Tuning, UnitPlacement};
use vcpud::placer::{Placer, affinity, scheduling, set_affinity, set_scheduler};
use vcpud::process::Tasks;

use super::super::parts::{Ran, applied, cpus, not_run, remove_groups, two_cpus};
use super::{World, threads_in};

tests![
    changes_the_bandwidth_below_a_limit,
    lowers_the_bandwidth_below_a_burst,
    repairs_drift_and_reports_it_once,
    follows_host_cpus_that_go_offline_and_online,
    creates_groups_again_that_were_removed,
    leaves_a_machine_alone_that_left_its_unit,
    gives_back_host_cpus_that_return_and_no_others,
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

    // A vCPU that comes under such a tuning has a group without a limit.
    let three: BTreeMap<VcpuId, Tid> = vcpus.range(..VcpuId(3)).map(|(v, t)| (*v, *t)).collect();
    placer.reconcile(&Tuning::default(), &three, &world.qemu);
    assert!(!world.vcpu(3, "tasks").exists());
    let report = placer.reconcile(&tuning, &vcpus, &world.qemu);
    assert_eq!(report.vcpus[&VcpuId(3)].failed[0].step, Step::Bandwidth);
    let group = threads_in(&world.cpu.join("vcpud/vcpu3"));
    assert_eq!(group, [vcpus[&VcpuId(3)]].into());
    assert_eq!(world.bandwidth(3), ("100000".into(), "-1".into()));
    assert_eq!(report.bandwidth(), Bandwidth::UNLIMITED);
    Ok(())
}

/// Uses a real QEMU and version 1: a quota below the burst that an administrator set.
fn lowers_the_bandwidth_below_a_burst() -> Ran {
    let world = World::new()?;
    if !world.cpu.join("cpu.cfs_burst_us").exists() {
        return Err(not_run("the kernel of this host has no burst"));
    }
    let vcpus = world.qemu.vcpus();
    let mut placer = world.placer();
    let limit = |period, quota| Tuning {
        bandwidth: Some(Bandwidth::new(period, quota).unwrap()),
        ..Tuning::default()
    };
    applied(&placer.reconcile(&limit(100_000, 50_000), &vcpus, &world.qemu));
    fs::write(world.vcpu(0, "cpu.cfs_burst_us"), "40000").unwrap();
    fs::write(world.vcpu(1, "cpu.cfs_burst_us"), "10000").unwrap();
    applied(&placer.reconcile(&limit(50_000, 20_000), &vcpus, &world.qemu));
    assert_eq!(world.bandwidth(0), ("50000".into(), "20000".into()));
    assert_eq!(world.read(0, "cpu.cfs_burst_us"), "20000");
    assert_eq!(world.read(1, "cpu.cfs_burst_us"), "10000");

    // More than the group above has: the kernel refuses, and the burst stays.
    fs::write(world.cpu.join("cpu.cfs_quota_us"), "50000").unwrap();
    let report = placer.reconcile(&limit(10_000, 15_000), &vcpus, &world.qemu);
    assert_eq!(report.failures().count(), 4);
    assert_eq!(world.read(0, "cpu.cfs_burst_us"), "20000");
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
    let failed = &report.vcpus[&VcpuId(1)].failed;
    let [error] = &failed[..] else {
        panic!("{failed:?}");
    };
    assert_eq!(error.reason, Reason::Offline(both.clone()));
    // Such a vCPU gets a limit nevertheless.
    let limited = Tuning {
        bandwidth: Some(Bandwidth::new(50_000, 10_000).unwrap()),
        ..tuning.clone()
    };
    // The kernel moves the threads of a cpuset without CPUs to the group above it.
    let thread = vcpus[&VcpuId(1)];
    fs::write(world.cpuset.join("vcpud/tasks"), thread.to_string()).unwrap();
    fs::write(world.vcpu(1, "cpuset.cpus"), "\n").unwrap();
    let report = placer.reconcile(&limited, &vcpus, &world.qemu);
    assert_eq!(report.failures().count(), 1, "{report:#?}");
    assert_eq!(world.bandwidth(1), ("50000".into(), "10000".into()));
    for hierarchy in [&world.cpu, &world.cpuset] {
        let group = threads_in(&hierarchy.join("vcpud/vcpu1"));
        assert_eq!(group, [thread].into());
    }

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

/// Uses a real QEMU and version 1. systemd removes groups of a controller that it takes for unused.
fn creates_groups_again_that_were_removed() -> Ran {
    let world = World::new()?;
    let vcpus = world.qemu.vcpus();
    let tuning = Tuning {
        bandwidth: Some(Bandwidth::new(50_000, 10_000).unwrap()),
        ..Tuning::default()
    };
    let mut placer = world.placer();
    applied(&placer.reconcile(&tuning, &vcpus, &world.qemu));
    for hierarchy in [&world.cpu, &world.cpuset] {
        for thread in world.qemu.tasks().unwrap() {
            let above = hierarchy.with_file_name("tasks");
            fs::write(above, thread.to_string()).unwrap();
        }
        remove_groups(&hierarchy.join("vcpud"));
        assert!(!hierarchy.join("vcpud").exists());
    }
    let report = placer.reconcile(&tuning, &vcpus, &world.qemu);
    assert!(report.is_complete(), "{report:#?}");
    assert_eq!(report.emulator, None);
    for hierarchy in [&world.cpu, &world.cpuset] {
        let group = threads_in(&hierarchy.join("vcpud/vcpu3"));
        assert_eq!(group, [vcpus[&VcpuId(3)]].into());
        let main = world.qemu.pid().main_thread();
        assert!(threads_in(&hierarchy.join("vcpud/emulator")).contains(&main));
    }
    assert_eq!(world.bandwidth(3), ("50000".into(), "10000".into()));
    Ok(())
}

/// Uses a real QEMU and version 1, with the hierarchy of systemd. Another program moves QEMU to another unit, and
/// then the machine gets a unit of the same name again.
fn leaves_a_machine_alone_that_left_its_unit() -> Ran {
    let world = World::new()?;
    let vcpus = world.qemu.vcpus();
    let unit = world.systemd();
    if !unit.with_file_name("cgroup.procs").exists() {
        return Err(not_run("this host has no hierarchy of systemd"));
    }
    fs::create_dir_all(&unit).unwrap();
    let enter = |hierarchy: &Path| {
        let pid = world.qemu.pid().to_string();
        fs::write(hierarchy.join("cgroup.procs"), pid).unwrap();
    };
    enter(&unit);
    let tuning = Tuning {
        bandwidth: Some(Bandwidth::new(50_000, 10_000).unwrap()),
        schedulers: [(VcpuId(2), Scheduler::Batch)].into(),
        ..Tuning::default()
    };
    let mut placer = world.placer();
    let report = placer.reconcile(&tuning, &vcpus, &world.qemu);
    applied(&report);
    assert!(!report.is_elsewhere);

    let others = [&world.cpu, &world.cpuset, &unit].map(|group| group.parent().unwrap().to_owned());
    others.iter().for_each(|group| enter(group));
    for _ in 0..2 {
        let report = placer.reconcile(&tuning, &vcpus, &world.qemu);
        assert!(report.is_elsewhere);
        assert_eq!((report.emulator, &report.lingering[..]), (None, &[][..]));
        let mut errors = report.vcpus.values().flat_map(|vcpu| &vcpu.failed);
        assert!(errors.all(|error| error.is_unsupported()));
        for group in ["vcpud/vcpu0", "vcpud/emulator"] {
            assert!(threads_in(&world.cpu.join(group)).is_empty(), "{group}");
        }
    }
    assert!(placer.supports(Step::Bandwidth).is_err());
    placer.prepare(&[VcpuId(7)]).unwrap();
    assert!(!world.cpu.join("vcpud/vcpu7").exists());

    enter(&unit);
    let home = placer.placement().clone();
    let created = Placer::create(&world.host, "test", home.clone(), Some(placer));
    assert!(created.is_new && created.refused.is_none());
    let mut placer = created.placer.unwrap();
    let report = placer.reconcile(&tuning, &vcpus, &world.qemu);
    assert!(report.is_complete() && !report.is_elsewhere, "{report:#?}");
    assert_eq!(world.bandwidth(3), ("50000".into(), "10000".into()));
    // It knows the scheduler that the thread had at first.
    applied(&placer.reconcile(&Tuning::default(), &vcpus, &world.qemu));
    assert_eq!(scheduling(vcpus[&VcpuId(2)]).unwrap().name(), "other");
    let created = Placer::create(&world.host, "test", home, Some(placer));
    assert!(!created.is_new, "it is the same one");
    Ok(())
}

/// Uses a real QEMU and version 1, in a unit in a slice. The test takes a host CPU from all cpusets as the kernel does
/// when the CPU goes offline, and creates its directory again as the kernel does when it comes online.
fn gives_back_host_cpus_that_return_and_no_others() -> Ran {
    let mut world = World::new()?;
    let (first, last) = two_cpus(&world.host);
    if first == last {
        return Err(not_run("this host has one CPU"));
    }
    let Ok(system) = tempfile::tempdir_in("/dev/shm") else {
        return Err(not_run("this host has no /dev/shm"));
    };
    let cpu = last.iter().next().unwrap();
    fs::create_dir(system.path().join("cpu")).unwrap();
    for name in ["online", "possible", "isolated"] {
        let list = Path::new("/sys/devices/system/cpu").join(name);
        fs::copy(list, system.path().join("cpu").join(name)).unwrap();
    }
    let mut generation = 0;
    let mut comes_online = |cpu: u32| {
        let directory = system.path().join(format!("cpu/cpu{cpu}"));
        // The old directory stays, so that its number is not used again.
        generation += 1;
        let _ = fs::rename(&directory, system.path().join(generation.to_string()));
        fs::create_dir_all(directory.join("topology")).unwrap();
    };
    let all = cpus(&fs::read_to_string(world.cpuset.with_file_name("cpuset.cpus")).unwrap());
    all.iter().for_each(&mut comes_online);
    world.host.system = system.path().to_owned();
    let vcpus = world.qemu.vcpus();
    let tuning = Tuning {
        pins: [(VcpuId(1), last.clone())].into(),
        ..Tuning::default()
    };
    let list_of = |group: &str| {
        cpus(&fs::read_to_string(world.cpuset.join(group).join("cpuset.cpus")).unwrap())
    };
    let chain = ["", "x.scope", "x.scope/vcpud", "x.scope/vcpud/emulator"];
    let goes_offline = || {
        let rest = all.difference(&last).to_string();
        let vcpus = (0..4).map(|vcpu| format!("x.scope/vcpud/vcpu{vcpu}"));
        let groups = vcpus.chain(chain.iter().rev().map(|group| (*group).to_owned()));
        for group in groups {
            fs::write(world.cpuset.join(group).join("cpuset.cpus"), &rest).unwrap();
        }
    };
    let unit = UnitPlacement {
        kind: Kind::Scope,
        unit: "x.scope".into(),
        control_group: format!("/{}/x.scope", world.name),
    };
    let start = || Placer::new(world.host.clone(), "test", unit.clone()).unwrap();

    let mut placer = start();
    applied(&placer.reconcile(&tuning, &vcpus, &world.qemu));
    for is_restarted in [false, true] {
        goes_offline();
        comes_online(cpu);
        if is_restarted {
            placer = start();
        }
        let report = placer.reconcile(&tuning, &vcpus, &world.qemu);
        assert!(report.is_complete(), "{report:#?}");
        for group in chain {
            assert_eq!(list_of(group), all, "{group:?}");
        }
        assert_eq!(affinity(vcpus[&VcpuId(1)]).unwrap(), last);
    }

    // An administrator takes the same host CPU. It stays away, also if it goes offline and comes back later.
    goes_offline();
    for _ in 0..2 {
        let report = placer.reconcile(&tuning, &vcpus, &world.qemu);
        assert!(!report.is_complete());
        assert_eq!(list_of(""), all.difference(&last));
        comes_online(cpu);
        placer = start();
    }
    // A group that has everything again is followed again. The unit had all of the slice.
    fs::write(world.cpuset.join("cpuset.cpus"), all.to_string()).unwrap();
    let report = placer.reconcile(&tuning, &vcpus, &world.qemu);
    assert!(report.is_complete(), "{report:#?}");
    goes_offline();
    comes_online(cpu);
    let report = placer.reconcile(&tuning, &vcpus, &world.qemu);
    assert!(report.is_complete(), "{report:#?}");
    Ok(())
}
