//! Control groups of version 2: on this host's own hierarchy, below a group that the test makes
//! for itself and removes, where both controllers are there; and on a directory tree.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use vcpud::ids::{Tid, VcpuId};
use vcpud::placement::{Bandwidth, Kind, Scheduler, Step, Tuning, UnitPlacement};
use vcpud::placer::{Host, Mounts, Placer, affinity, observe, set_affinity};
use vcpud::process::Tasks;

use super::parts::{
    Bystander, NotRun, Qemu, Ran, applied, has_version_1, has_version_2, remove_groups, threads_in,
    two_cpus,
};

tests![places_a_machine_in_version_2, writes_differences_only,];

/// A group like that of a delegated unit, with a QEMU in it. Each test has one of its own.
struct World {
    qemu: Qemu,
    host: Host,
    unit: PathBuf,
}

impl World {
    /// Fails on a host without both controllers in version 2.
    fn new() -> Result<Self, NotRun> {
        let host = Host::this().unwrap();
        if !has_version_2(&host) {
            return Err(NotRun {
                reason: "the root of this host has no controllers cpu and cpuset of version 2",
                is_expected: has_version_1(&host),
            });
        }
        let root = host
            .mounts
            .unified
            .as_ref()
            .map(|mount| &mount.point)
            .unwrap();
        let unit = root.join(format!("vcpud-test-{}", std::process::id()));
        fs::create_dir(&unit).expect("control groups can be made; these tests run as root");
        let world = Self {
            qemu: Qemu::start(),
            host,
            unit,
        };
        world.enter(world.qemu.pid().main_thread());
        Ok(world)
    }

    fn enter(&self, process: Tid) {
        fs::write(self.unit.join("cgroup.procs"), process.to_string()).unwrap();
    }

    fn placer(&self) -> Placer {
        let name = self.unit.file_name().unwrap().to_str().unwrap();
        let home = UnitPlacement {
            kind: Kind::Scope,
            unit: name.to_owned(),
            control_group: format!("/{name}"),
        };
        Placer::new(self.host.clone(), "test", home).unwrap()
    }

    fn read(&self, file: &str) -> String {
        let text = fs::read_to_string(self.unit.join("vcpud").join(file)).unwrap();
        text.trim().to_owned()
    }

    fn threads(&self, group: &str) -> BTreeSet<Tid> {
        threads_in(&self.unit.join("vcpud").join(group).join("cgroup.threads"))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.qemu.child.kill();
        let _ = self.qemu.child.wait();
        remove_groups(&self.unit);
    }
}

/// Uses a real QEMU and version 2: the groups, the limits, drift, a refusal, and the end.
fn places_a_machine_in_version_2() -> Ran {
    let mut world = World::new()?;
    let mut vcpus = world.qemu.vcpus();
    let (first, last) = two_cpus(&world.host);
    let other = Bystander::start();
    world.enter(other.thread());
    let tuning = Tuning {
        pins: [(VcpuId(1), first.clone())].into(),
        affinity: Some(last.clone()),
        memory_nodes: Some("0".parse().unwrap()),
        bandwidth: Some(Bandwidth::new(50_000, 10_000).unwrap()),
        schedulers: [(VcpuId(2), Scheduler::Batch)].into(),
        ..Tuning::default()
    };
    let mut placer = world.placer();
    assert_eq!(placer.missing(), []);
    placer.prepare(&[VcpuId(3)]).unwrap();
    applied(&placer.reconcile(&tuning, &vcpus, &world.qemu));

    assert_eq!(world.read("cgroup.type"), "domain threaded");
    assert_eq!(
        fs::read_to_string(world.unit.join("cgroup.type")).unwrap(),
        "domain\n"
    );
    assert_eq!(
        fs::read_to_string(world.unit.join("cgroup.procs")).unwrap(),
        ""
    );
    assert_eq!(world.threads(""), BTreeSet::new());
    let mut others: BTreeSet<Tid> = world.qemu.tasks().unwrap().into_iter().collect();
    others.retain(|task| !vcpus.values().any(|thread| thread == task));
    others.insert(other.thread());
    assert_eq!(world.threads("emulator"), others);
    for (vcpu, thread) in &vcpus {
        let pinned = if *vcpu == 1 { &first } else { &last };
        assert_eq!(world.threads(&format!("vcpu{vcpu}")), [*thread].into());
        assert_eq!(world.read(&format!("vcpu{vcpu}/cgroup.type")), "threaded");
        assert_eq!(
            world.read(&format!("vcpu{vcpu}/cpuset.cpus")),
            pinned.to_string()
        );
        assert_eq!(world.read(&format!("vcpu{vcpu}/cpuset.mems")), "0");
        assert_eq!(world.read(&format!("vcpu{vcpu}/cpu.max")), "10000 50000");
        let seen = observe(*thread, &world.qemu, &world.host.mounts).unwrap();
        assert_eq!(seen.bandwidth, tuning.bandwidth);
        assert_eq!(&seen.affinity, pinned);
        assert_eq!(seen.scheduler, if *vcpu == 2 { "batch" } else { "other" });
        let group = seen.control_group.unwrap();
        assert!(group.ends_with(&format!("/vcpud/vcpu{vcpu}")), "{group}");
    }
    for placer in [&mut placer, &mut world.placer()] {
        let again = placer.reconcile(&tuning, &vcpus, &world.qemu);
        assert!(applied(&again).iter().all(Vec::is_empty), "{again:#?}");
    }

    // Drift.
    fs::write(world.unit.join("vcpud/vcpu0/cpu.max"), "max 100000").unwrap();
    let emulator = world.unit.join("vcpud/emulator/cgroup.threads");
    fs::write(emulator, vcpus[&VcpuId(3)].to_string()).unwrap();
    let report = placer.reconcile(&tuning, &vcpus, &world.qemu);
    assert!(report.is_complete(), "{report:#?}");
    assert_eq!(report.vcpus[&VcpuId(0)].drifted, [Step::Bandwidth]);
    assert!(report.vcpus[&VcpuId(3)].drifted.contains(&Step::Thread));
    if first != last {
        fs::write(
            world.unit.join("vcpud/vcpu2/cpuset.cpus"),
            first.to_string(),
        )
        .unwrap();
        let report = placer.reconcile(&tuning, &vcpus, &world.qemu);
        assert!(
            report.vcpus[&VcpuId(2)].drifted.contains(&Step::Cpus),
            "{report:#?}"
        );
        assert_eq!(affinity(vcpus[&VcpuId(2)]).unwrap(), last);
        // Less than is wanted.
        let both = Tuning {
            affinity: Some(first.union(&last)),
            ..Tuning::default()
        };
        applied(&placer.reconcile(&both, &vcpus, &world.qemu));
        set_affinity(vcpus[&VcpuId(0)], &first).unwrap();
        let report = placer.reconcile(&both, &vcpus, &world.qemu);
        assert_eq!(report.vcpus[&VcpuId(0)].drifted, [Step::Affinity]);
    }

    // Nodes that do not exist.
    let refused = Tuning {
        memory_nodes: Some("1023".parse().unwrap()),
        ..tuning.clone()
    };
    let change = placer.change(&tuning, &refused, &vcpus, &world.qemu, |_, _| true);
    let failures = change.unwrap_err();
    assert!(failures.iter().all(|(_, error)| error.step == Step::Nodes));
    assert_eq!(failures.len(), 4);
    assert_eq!(world.read("vcpu3/cpuset.mems"), "0");

    // No limits, and the unit's CPUs and nodes.
    applied(&placer.reconcile(&Tuning::default(), &vcpus, &world.qemu));
    let effective = |file: &str| world.read(&format!("{file}.effective"));
    assert_eq!(world.read("vcpu1/cpuset.cpus"), effective("cpuset.cpus"));
    assert_eq!(world.read("vcpu1/cpuset.mems"), effective("cpuset.mems"));
    assert_eq!(world.read("vcpu1/cpu.max"), "max 100000");
    let default = world.host.cpus().unwrap().default_cpus();
    assert_eq!(affinity(vcpus[&VcpuId(1)]).unwrap(), default);

    // A vCPU that is gone, and the end.
    let gone = vcpus.remove(&VcpuId(3)).unwrap();
    let report = placer.reconcile(&Tuning::default(), &vcpus, &world.qemu);
    assert!(report.lingering.is_empty());
    assert!(!world.unit.join("vcpud/vcpu3").exists());
    assert!(world.threads("emulator").contains(&gone));
    assert_eq!(placer.dismantle().unwrap_err().errno(), Some(libc::EBUSY));
    drop(other);
    world.qemu.child.kill().unwrap();
    world.qemu.child.wait().unwrap();
    placer.dismantle().unwrap();
    assert!(!world.unit.join("vcpud").exists());
    fs::remove_dir(&world.unit).unwrap();
    placer.dismantle().unwrap();
    Ok(())
}

/// Uses a real QEMU and a directory tree with files as cgroup v2 has them. The first pass writes the values, and
/// the next one nothing, although the kernel writes them differently.
fn writes_differences_only() -> Ran {
    let qemu = Qemu::start();
    let vcpus = qemu.vcpus();
    let tree = tempfile::tempdir().unwrap();
    let path = |file: &str| tree.path().join("x.scope").join(file);
    let mut groups = vec![String::new(), "vcpud/".into(), "vcpud/emulator/".into()];
    groups.extend(vcpus.keys().map(|vcpu| format!("vcpud/vcpu{vcpu}/")));
    for group in groups {
        fs::create_dir_all(path(&group)).unwrap();
        for (file, text) in [
            ("cgroup.controllers", "cpuset cpu\n"),
            ("cgroup.procs", ""),
            ("cgroup.threads", ""),
            ("cgroup.subtree_control", "cpuset cpu\n"),
            ("cgroup.type", "threaded\n"),
            ("cpu.max", "max 100000\n"),
            ("cpuset.cpus", "\n"),
            ("cpuset.cpus.effective", "\n"),
            ("cpuset.mems", "\n"),
            ("cpuset.mems.effective", "\n"),
        ] {
            fs::write(path(&format!("{group}{file}")), text).unwrap();
        }
    }
    let root = tree.path().display();
    let mounts = format!("29 25 0:26 / {root} rw - cgroup2 cgroup2 rw\n");
    let host = Host {
        mounts: Mounts::parse(&mounts).into(),
        ..Host::this().unwrap()
    };
    let all = host.cpus().unwrap().online;
    let home = UnitPlacement {
        kind: Kind::Scope,
        unit: "x.scope".into(),
        control_group: "/x.scope".into(),
    };
    let mut placer = Placer::new(host, "test", home).unwrap();
    let tuning = Tuning {
        affinity: Some(all.clone()),
        bandwidth: Some(Bandwidth::new(50_000, 10_000).unwrap()),
        ..Tuning::default()
    };
    let report = placer.reconcile(&tuning, &vcpus, &qemu);
    assert_eq!(
        applied(&report)[0],
        [Step::Thread, Step::Cpus, Step::Bandwidth]
    );
    let read = |file: &str| fs::read_to_string(path(file)).unwrap();
    assert_eq!(
        read("vcpud/vcpu3/cgroup.threads"),
        vcpus[&VcpuId(3)].to_string()
    );
    assert_eq!(read("vcpud/vcpu3/cpuset.cpus"), all.to_string());
    assert_eq!(read("vcpud/vcpu3/cpu.max"), "10000 50000");

    // The same in another spelling, which is overwritten if it is written at all.
    let spelt: Vec<String> = all.iter().map(|cpu| format!(" {cpu}")).collect();
    fs::write(path("vcpud/vcpu3/cpuset.cpus"), spelt.join(",")).unwrap();
    fs::write(path("vcpud/vcpu3/cpu.max"), "10000 50000\n").unwrap();
    applied(&placer.reconcile(&tuning, &vcpus, &qemu));
    assert_eq!(read("vcpud/vcpu3/cpuset.cpus"), spelt.join(","));
    assert_eq!(read("vcpud/vcpu3/cpu.max"), "10000 50000\n");
    Ok(())
}
