//! Control groups of version 1, on this host's own hierarchies of `cpu` and `cpuset`: below a
//! group that each test makes for itself and removes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use vcpud::host::{
    Host, Placer, Tasks, affinity, observe, scheduling, set_affinity, set_scheduler,
};
use vcpud::placement::{Bandwidth, CpuList, Home, Kind, Reason, Scheduler, Step, Tuning};

use super::parts::{Bystander, Qemu, applied, cpus, not_run, remove_groups, two_cpus};

/// Groups of a test's own in the hierarchies of version 1, with a QEMU in them.
struct World {
    qemu: Qemu,
    host: Host,
    name: String,
    cpu: PathBuf,
    cpuset: PathBuf,
}

impl World {
    /// `None` on a host without version 1.
    fn new() -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mut host = Host::this().unwrap();
        let controllers = &mut host.mounts.controllers;
        controllers.retain(|name, _| name == "cpu" || name == "cpuset");
        let (Some(cpu), Some(cpuset)) = (controllers.get("cpu"), controllers.get("cpuset")) else {
            not_run("this host has no cpu and cpuset hierarchies of version 1");
            return None;
        };
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vcpud-test-{}-{next}", std::process::id());
        let (cpu, cpuset) = (cpu.point.join(&name), cpuset.point.join(&name));
        // As systemd leaves a unit: a group for CPU time, none of the cpuset hierarchy.
        fs::create_dir(&cpu).expect("control groups can be made; these tests run as root");
        let world = Self {
            qemu: Qemu::start(),
            host,
            name,
            cpu,
            cpuset,
        };
        fs::write(world.cpu.join("cgroup.procs"), world.qemu.pid().to_string()).unwrap();
        Some(world)
    }

    fn placer(&self) -> Placer {
        let home = Home {
            kind: Kind::Unit,
            unit: self.name.clone(),
            control_group: format!("/{}", self.name),
        };
        Placer::new(self.host.clone(), "test", home).unwrap()
    }

    /// A file of a vCPU's group.
    fn vcpu(&self, vcpu: u32, file: &str) -> PathBuf {
        let hierarchy = match file.starts_with("cpuset") {
            true => &self.cpuset,
            false => &self.cpu,
        };
        hierarchy.join(format!("vcpud/vcpu{vcpu}/{file}"))
    }

    fn read(&self, vcpu: u32, file: &str) -> String {
        let text = fs::read_to_string(self.vcpu(vcpu, file)).unwrap();
        text.trim().to_owned()
    }

    /// Period and quota of a vCPU's group.
    fn bandwidth(&self, vcpu: u32) -> (String, String) {
        let read = |file| self.read(vcpu, file);
        (read("cpu.cfs_period_us"), read("cpu.cfs_quota_us"))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.qemu.child.kill();
        let _ = self.qemu.child.wait();
        for group in [&self.cpu, &self.cpuset] {
            remove_groups(group);
        }
    }
}

/// The threads in a group.
fn threads_in(group: &Path) -> BTreeSet<u32> {
    super::parts::threads_in(&group.join("tasks"))
}

/// A real QEMU and version 1: the tree, the limits, and a second pass that writes nothing.
#[test]
fn every_thread_is_where_it_belongs() {
    let Some(world) = World::new() else { return };
    let vcpus = world.qemu.vcpus();
    let (first, last) = two_cpus(&world.host);
    let tuning = Tuning {
        pins: [(1, first.clone()), (7, last.clone())].into(),
        affinity: Some(last.clone()),
        bandwidth: Some(Bandwidth::new(50_000, 10_000).unwrap()),
        schedulers: [(2, Scheduler::Batch)].into(),
        ..Tuning::default()
    };
    let other = Bystander::start();
    let procs = world.cpu.join("cgroup.procs");
    fs::write(procs, other.id().to_string()).unwrap();
    let mut placer = world.placer();
    assert_eq!(placer.missing(), []);
    let report = placer.reconcile(&tuning, &vcpus, &world.qemu);
    for steps in applied(&report) {
        assert!(steps.starts_with(&[Step::Group, Step::Thread]), "{steps:?}");
        assert!(steps.contains(&Step::Bandwidth), "{steps:?}");
    }

    // What else is in the unit, such as the kernel's workers for it.
    assert!(threads_in(&world.cpu.join("vcpud/emulator")).contains(&other.id()));
    drop(other);
    for hierarchy in [&world.cpu, &world.cpuset] {
        for (vcpu, thread) in &vcpus {
            let group = hierarchy.join(format!("vcpud/vcpu{vcpu}"));
            assert_eq!(threads_in(&group), BTreeSet::from([*thread]));
        }
        let all: BTreeSet<u32> = world.qemu.tasks().unwrap().into_iter().collect();
        let others: BTreeSet<u32> = vcpus.values().copied().collect();
        let others: BTreeSet<u32> = all.difference(&others).copied().collect();
        assert!(others.contains(&world.qemu.pid()));
        assert_eq!(threads_in(&hierarchy.join("vcpud/emulator")), others);
        assert!(threads_in(hierarchy).is_empty());
    }
    for (vcpu, thread) in &vcpus {
        let pinned = if *vcpu == 1 { &first } else { &last };
        assert_eq!(&cpus(&world.read(*vcpu, "cpuset.cpus")), pinned);
        assert_eq!(world.bandwidth(*vcpu), ("50000".into(), "10000".into()));
        let seen = observe(*thread, &world.qemu).unwrap();
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
        assert_eq!(world.bandwidth(*vcpu), ("100000".into(), "-1".into()));
    }
}

/// A real QEMU and version 1: any way from one bandwidth to another under a group above that
/// has no more than the greatest of them.
#[test]
fn bandwidth_goes_up_and_down_under_a_limit() {
    let Some(world) = World::new() else { return };
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
    let three: BTreeMap<u32, u32> = vcpus.range(..3).map(|(v, t)| (*v, *t)).collect();
    placer.reconcile(&Tuning::default(), &three, &world.qemu);
    assert!(!world.vcpu(3, "tasks").exists());
    let report = placer.reconcile(&tuning, &vcpus, &world.qemu);
    assert!(report.vcpus[&3].failed.is_some());
    assert!(!world.vcpu(3, "tasks").exists());
    assert!(threads_in(&world.cpu.join("vcpud/emulator")).contains(&vcpus[&3]));
    assert!(world.vcpu(2, "tasks").exists());
}

/// A real QEMU and version 1: what is changed from outside is set again and told once.
#[test]
fn drift_is_repaired_and_told_once() {
    let Some(world) = World::new() else { return };
    let vcpus = world.qemu.vcpus();
    let (first, last) = two_cpus(&world.host);
    if first == last {
        not_run("this host has one CPU");
        return;
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
    set_affinity(vcpus[&1], &first).unwrap();
    fs::write(world.vcpu(2, "cpuset.cpus"), last.to_string()).unwrap();
    let emulator = world.cpu.join("vcpud/emulator/tasks");
    fs::write(emulator, vcpus[&3].to_string()).unwrap();
    set_scheduler(vcpus[&3], Scheduler::Idle).unwrap();

    let report = placer.reconcile(&tuning, &vcpus, &world.qemu);
    assert!(report.is_complete(), "{report:#?}");
    let drifted = |vcpu: u32| report.vcpus[&vcpu].drifted.clone();
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
    assert_eq!(affinity(vcpus[&2]).unwrap(), first.union(&last));
    assert_eq!(
        threads_in(&world.cpu.join("vcpud/vcpu3")),
        [vcpus[&3]].into()
    );

    let again = placer.reconcile(&tuning, &vcpus, &world.qemu);
    assert!(applied(&again).iter().all(Vec::is_empty), "{again:#?}");
}

/// A real QEMU and version 1: a group made before its vCPU, one of a vCPU that never came, one
/// that something is still in, and the end.
#[test]
fn groups_come_before_and_go_after_their_vcpus() {
    let Some(mut world) = World::new() else {
        return;
    };
    let mut vcpus = world.qemu.vcpus();
    let third = vcpus.remove(&3).unwrap();
    let mut placer = world.placer();
    placer.prepare(&[3, 4]).unwrap();
    assert!(world.vcpu(3, "cpuset.cpus").exists());
    vcpus.insert(3, third);
    let report = placer.reconcile(&Tuning::default(), &vcpus, &world.qemu);
    assert!(!applied(&report)[3].contains(&Step::Group));
    assert!(!world.vcpu(4, "tasks").exists());

    // Another process is in the way.
    let other = Bystander::start();
    fs::write(world.vcpu(3, "tasks"), other.id().to_string()).unwrap();
    vcpus.remove(&3);
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
}

/// A real QEMU and version 1, where systemd removes the unit of the QEMU that has ended.
#[test]
fn a_unit_that_is_gone_leaves_nothing() {
    let Some(mut world) = World::new() else {
        return;
    };
    let vcpus = world.qemu.vcpus();
    let mut placer = world.placer();
    applied(&placer.reconcile(&Tuning::default(), &vcpus, &world.qemu));
    world.qemu.child.kill().unwrap();
    world.qemu.child.wait().unwrap();
    remove_groups(&world.cpu);
    placer.dismantle().unwrap();
    assert!(!world.cpuset.exists());
    placer.dismantle().unwrap();
}

/// A real QEMU and version 1, and CPU lists of a host in a directory tree, because no CPU of
/// this one is switched off for a test.
#[test]
fn host_cpus_that_come_and_go_are_followed() {
    let Some(mut world) = World::new() else {
        return;
    };
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
        pins: [(1, both.clone())].into(),
        ..Tuning::default()
    };
    let mut placer = world.placer();
    for online in [&both, &first, &both] {
        list("online", online);
        applied(&placer.reconcile(&tuning, &vcpus, &world.qemu));
        assert_eq!(&affinity(vcpus[&0]).unwrap(), online);
        assert_eq!(&affinity(vcpus[&1]).unwrap(), online);
        assert_eq!(&cpus(&world.read(1, "cpuset.cpus")), online);
    }
    if first != last {
        list("isolated", &first);
        applied(&placer.reconcile(&tuning, &vcpus, &world.qemu));
        assert_eq!(affinity(vcpus[&0]).unwrap(), last);
        assert_eq!(
            affinity(vcpus[&1]).unwrap(),
            both,
            "a pin may name isolated CPUs"
        );
    }

    // A pin whose CPUs are all off.
    list("online", &"4095".parse().unwrap());
    let report = placer.reconcile(&tuning, &vcpus, &world.qemu);
    let error = report.vcpus[&1].failed.as_ref().unwrap();
    assert_eq!(error.reason, Reason::Offline(both.clone()));
    assert!(world.vcpu(1, "tasks").exists(), "it was in force before");

    // The mask of who does it does not matter.
    list("online", &real.online);
    list("isolated", &real.isolated);
    let own = affinity(std::process::id()).unwrap();
    let thread = rustix::thread::gettid()
        .as_raw_nonzero()
        .get()
        .unsigned_abs();
    set_affinity(thread, &first).unwrap();
    applied(&placer.reconcile(&Tuning::default(), &vcpus, &world.qemu));
    assert_eq!(affinity(vcpus[&1]).unwrap(), real.default_cpus());
    set_affinity(thread, &own).unwrap();
}

/// A real QEMU and version 1, and memory nodes that this host has not.
#[test]
fn a_refused_change_leaves_what_was() {
    let Some(world) = World::new() else { return };
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
    let report = placer.change(&old, &new, &vcpus, &world.qemu);
    assert_eq!(report.failures().count(), 4);
    assert!(
        report
            .failures()
            .all(|(_, error)| error.step == Step::Nodes)
    );
    for vcpu in vcpus.keys() {
        assert_eq!(cpus(&world.read(*vcpu, "cpuset.cpus")), first);
        assert_eq!(world.bandwidth(*vcpu), ("50000".into(), "10000".into()));
    }
    assert_eq!(affinity(vcpus[&0]).unwrap(), first);
    let again = placer.reconcile(&old, &vcpus, &world.qemu);
    assert!(applied(&again).iter().all(Vec::is_empty), "{again:#?}");
}

/// A real QEMU, version 1, and a thread of another process: it is refused and not touched.
#[test]
fn a_thread_of_another_process_is_not_touched() {
    let Some(world) = World::new() else { return };
    let other = Bystander::start();
    let before = fs::read_to_string(format!("/proc/{}/cgroup", other.id())).unwrap();
    let mask = affinity(other.id()).unwrap();
    let (first, _) = two_cpus(&world.host);
    let tuning = Tuning {
        affinity: Some(first),
        scheduler: Some(Scheduler::Idle),
        ..Tuning::default()
    };
    let vcpus = BTreeMap::from([(0, other.id()), (1, 0), (2, u32::MAX)]);
    let mut placer = world.placer();
    placer.prepare(&[0]).unwrap();
    let report = placer.reconcile(&tuning, &vcpus, &world.qemu);
    assert_eq!(report.failures().count(), 3);
    for (vcpu, error) in report.failures() {
        assert_eq!(
            (error.step, &error.reason),
            (Step::Thread, &Reason::Foreign)
        );
        assert!(!world.vcpu(vcpu, "tasks").exists());
    }
    let after = fs::read_to_string(format!("/proc/{}/cgroup", other.id())).unwrap();
    assert_eq!(after, before);
    assert_eq!(affinity(other.id()).unwrap(), mask);
    assert_eq!(scheduling(other.id()).unwrap().name(), "other");
    assert!(observe(other.id(), &world.qemu).is_err());
}

/// A real QEMU and version 1, in whose groups no thread has real-time runtime.
#[test]
fn a_refused_scheduler_undoes_a_new_group() {
    let Some(world) = World::new() else { return };
    if !world.cpu.join("cpu.rt_runtime_us").exists() {
        not_run("this kernel does not group real-time threads");
        return;
    }
    let vcpus = world.qemu.vcpus();
    let tuning = Tuning {
        schedulers: [(1, Scheduler::Fifo(1))].into(),
        ..Tuning::default()
    };
    let mut placer = world.placer();
    let report = placer.reconcile(&tuning, &vcpus, &world.qemu);
    let failures: Vec<_> = report.failures().collect();
    let [(1, error)] = failures[..] else {
        panic!("{report:#?}");
    };
    assert_eq!(
        (error.step, error.errno()),
        (Step::Scheduler, Some(libc::EPERM))
    );
    assert!(!world.vcpu(1, "tasks").exists());
    assert!(world.vcpu(0, "tasks").exists());
    assert!(threads_in(&world.cpuset.join("vcpud/emulator")).contains(&vcpus[&1]));
}
