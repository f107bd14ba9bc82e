//! Machines without control groups of their own.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use vcpud::ids::{Tid, VcpuId};
use vcpud::placement::{
    Bandwidth, ChangedThreads, Controller, Kind, Report, Scheduler, Step, StepError, Tuning,
    UnitPlacement,
};
use vcpud::placer::{Host, Placer, affinity, scheduling, set_affinity, set_scheduler};

use super::parts::{Qemu, Ran, applied, two_cpus};

tests![
    sets_affinity_and_schedulers_without_groups,
    a_failed_step_does_not_prevent_the_others,
    leaves_the_default_affinity_to_another_manager,
    undoes_what_a_previous_placer_changed,
    allocates_caches_once_resctrl_is_mounted,
    does_not_keep_resctrl_mounted,
];

/// Uses a real QEMU without control groups of its own. vcpud sets affinity and schedulers only.
fn sets_affinity_and_schedulers_without_groups() -> Ran {
    let qemu = Qemu::start();
    let vcpus = qemu.vcpus();
    let host = Host::this().unwrap();
    let (first, last) = two_cpus(&host);
    let home = UnitPlacement {
        kind: Kind::None,
        unit: "x.service".into(),
        control_group: "/system.slice/x.service".into(),
    };
    let mut placer = Placer::new(host, "test", home).unwrap();
    let tuning = Tuning {
        pins: [(VcpuId(2), first.clone())].into(),
        schedulers: [
            (VcpuId(1), Scheduler::Fifo(1)),
            (VcpuId(3), Scheduler::Rr(99)),
        ]
        .into(),
        ..Tuning::default()
    };
    for step in [Step::Cpus, Step::Affinity, Step::Scheduler] {
        assert_eq!(placer.supports(step), Ok(()));
    }
    let report = placer.reconcile(&tuning, &vcpus, &qemu);
    assert_eq!(applied(&report)[1], [Step::Scheduler]);
    assert_eq!(affinity(vcpus[&VcpuId(2)]).unwrap(), first);
    let seen = |vcpu: u32| {
        let is = scheduling(vcpus[&VcpuId(vcpu)]).unwrap();
        (is.name(), is.priority)
    };
    assert_eq!(
        (seen(0), seen(1), seen(3)),
        (("other", 0), ("fifo", 1), ("rr", 99))
    );

    assert_eq!(placer.missing(), [Controller::Cpu, Controller::Cpuset]);
    for (step, unsupported) in [
        (
            Step::Bandwidth,
            Tuning {
                bandwidth: Some(Bandwidth::new(100_000, 50_000).unwrap()),
                ..tuning.clone()
            },
        ),
        (
            Step::Nodes,
            Tuning {
                memory_nodes: Some("0".parse().unwrap()),
                ..tuning.clone()
            },
        ),
    ] {
        let error = placer.supports(step).unwrap_err();
        assert!(error.is_unsupported(), "{error}");
        set_affinity(vcpus[&VcpuId(2)], &last).unwrap();
        set_scheduler(vcpus[&VcpuId(1)], Scheduler::Other).unwrap();
        let report = placer.reconcile(&unsupported, &vcpus, &qemu);
        assert_eq!(report.failures().count(), 4);
        for (_, error) in report.failures() {
            assert_eq!((error.step, error.is_unsupported()), (step, true));
        }
        // The rest is in force, and no limit is.
        assert_eq!(affinity(vcpus[&VcpuId(2)]).unwrap(), first);
        assert_eq!(seen(1), ("fifo", 1));
        assert_eq!(report.bandwidth(), Bandwidth::UNLIMITED);
        assert_eq!(report.affinity(|vcpu| vcpu == VcpuId(2)), first);
    }
    Ok(())
}

/// A real QEMU with a pin on a host CPU that is offline. The vCPU gets all other settings, and a change succeeds
/// only if the kernel has it.
fn a_failed_step_does_not_prevent_the_others() -> Ran {
    let qemu = Qemu::start();
    let vcpus = qemu.vcpus();
    let host = Host::this().unwrap();
    let home = UnitPlacement::without_groups(String::new());
    let mut placer = Placer::new(host, "test", home).unwrap();
    let old = Tuning {
        pins: [(VcpuId(2), "8191".parse().unwrap())].into(),
        ..Tuning::default()
    };
    let report = placer.reconcile(&old, &vcpus, &qemu);
    let failures: Vec<_> = report.failures().collect();
    assert!(matches!(failures[..], [(VcpuId(2), error)] if error.step == Step::Cpus));
    let new = Tuning {
        scheduler: Some(Scheduler::Batch),
        ..old.clone()
    };
    let is_batch = |vcpu: u32| scheduling(vcpus[&VcpuId(vcpu)]).unwrap().name() == "batch";
    let change = placer.change(&old, &new, &vcpus, &qemu, |_, _| true);
    assert_eq!(change.unwrap_err().len(), 1);
    assert!((0..4).all(|vcpu| !is_batch(vcpu)));
    let is_of_scheduler = |_, error: &StepError| error.step == Step::Scheduler;
    let change = placer.change(&old, &new, &vcpus, &qemu, is_of_scheduler);
    assert_eq!(change.unwrap().failures().count(), 1);
    assert!((0..4).all(is_batch));
    Ok(())
}

/// Uses a real QEMU that another manager places.
fn leaves_the_default_affinity_to_another_manager() -> Ran {
    let qemu = Qemu::start();
    let vcpus = qemu.vcpus();
    let host = Host::this().unwrap();
    let (first, second) = two_cpus(&host);
    let default = host.cpus().unwrap().default_cpus();
    set_affinity(vcpus[&VcpuId(0)], &first).unwrap();
    set_affinity(vcpus[&VcpuId(1)], &first).unwrap();
    let home = UnitPlacement::without_groups(r"machine-qemu\x2d1\x2dweb.scope".into());
    let placer = Placer::new(host, "test", home).unwrap();
    let mut placer = placer.managed_elsewhere();
    let report = placer.reconcile(&Tuning::default(), &vcpus, &qemu);
    assert!(applied(&report).iter().all(Vec::is_empty));
    assert_eq!(affinity(vcpus[&VcpuId(0)]).unwrap(), first);

    // A pin is in force until it is removed. Then the other manager decides again.
    let tuning = Tuning {
        pins: [(VcpuId(1), second.clone())].into(),
        ..Tuning::default()
    };
    placer.reconcile(&tuning, &vcpus, &qemu);
    assert_eq!(affinity(vcpus[&VcpuId(0)]).unwrap(), first);
    assert_eq!(affinity(vcpus[&VcpuId(1)]).unwrap(), second);
    placer.reconcile(&Tuning::default(), &vcpus, &qemu);
    assert_eq!(affinity(vcpus[&VcpuId(1)]).unwrap(), default);
    set_affinity(vcpus[&VcpuId(1)], &first).unwrap();
    placer.reconcile(&Tuning::default(), &vcpus, &qemu);
    assert_eq!(affinity(vcpus[&VcpuId(1)]).unwrap(), first);
    Ok(())
}

/// Uses a real QEMU and two placers, as before and after a restart of the service.
fn undoes_what_a_previous_placer_changed() -> Ran {
    let qemu = Qemu::start();
    let vcpus = qemu.vcpus();
    let host = Host::this().unwrap();
    let (first, _) = two_cpus(&host);
    let default = host.cpus().unwrap().default_cpus();
    set_scheduler(vcpus[&VcpuId(2)], Scheduler::Batch).unwrap();
    set_affinity(vcpus[&VcpuId(3)], &first).unwrap();
    let placer = || {
        let home = UnitPlacement::without_groups(String::new());
        let placer = Placer::new(host.clone(), "test", home).unwrap();
        placer.managed_elsewhere()
    };
    let tuning = Tuning {
        pins: [(VcpuId(0), first.clone())].into(),
        scheduler: Some(Scheduler::Fifo(5)),
        ..Tuning::default()
    };
    let report = placer().reconcile(&tuning, &vcpus, &qemu);
    let changed = |report: &Report| -> ChangedThreads {
        let outcomes = report.vcpus.iter();
        let changed = outcomes.filter_map(|(vcpu, of)| Some((*vcpu, of.changed.clone()?)));
        changed.collect()
    };
    let mut before = changed(&report);
    assert_eq!(before.len(), 4);
    // A vCPU that was replaced in the meantime has nothing to undo.
    before.get_mut(&VcpuId(1)).unwrap().thread = Tid(1);

    let mut next = placer();
    next.restore(&before);
    let report = next.reconcile(&Tuning::default(), &vcpus, &qemu);
    assert_eq!(changed(&report), ChangedThreads::new());
    let name = |vcpu: u32| scheduling(vcpus[&VcpuId(vcpu)]).unwrap().name();
    let names: Vec<_> = (0..4).map(name).collect();
    assert_eq!(names, ["other", "fifo", "batch", "other"]);
    assert_eq!(affinity(vcpus[&VcpuId(0)]).unwrap(), default);
    assert_eq!(affinity(vcpus[&VcpuId(3)]).unwrap(), first);
    Ok(())
}

/// Uses a real QEMU, and a directory tree with files as resctrl has them, because few hosts have it. The
/// tree is mounted after the placer was made.
fn allocates_caches_once_resctrl_is_mounted() -> Ran {
    let qemu = Qemu::start();
    let vcpus = qemu.vcpus();
    let home = UnitPlacement::without_groups(String::new());
    let tuning = Tuning {
        cache: [(VcpuId(1), "L3:0=f".parse().unwrap())].into(),
        ..Tuning::default()
    };
    let mut host = Host::this().unwrap();
    let process = tempfile::tempdir().unwrap();
    let mountinfo = |text: &str| fs::write(process.path().join("mountinfo"), text).unwrap();
    mountinfo("");
    Arc::make_mut(&mut host.mounts).resctrl = None;
    host.process = process.path().to_owned();
    let mut placer = Placer::new(host, "web", home).unwrap();
    let unsupported = placer.supports(Step::Cache).unwrap_err();
    assert!(unsupported.is_unsupported());
    let report = placer.reconcile(&tuning, &vcpus, &qemu);
    let failures: Vec<_> = report.failures().collect();
    assert!(matches!(failures[..], [(VcpuId(1), error)] if error.is_unsupported()));

    let tree = tempfile::tempdir().unwrap();
    fs::write(tree.path().join("tasks"), "").unwrap();
    let point = tree.path().display();
    mountinfo(&format!("30 25 0:27 / {point} rw - resctrl resctrl rw\n"));
    assert_eq!(placer.supports(Step::Cache), Ok(()));
    // The tree makes no files in the new group. The error says where they are to be.
    let report = placer.reconcile(&tuning, &vcpus, &qemu);
    let (_, error) = report.failures().next().unwrap();
    assert_eq!(error.step, Step::Cache);
    let group = error.path.parent().unwrap().to_owned();
    let name = group.file_name().unwrap().to_str().unwrap();
    assert!(name.starts_with("vcpud-web-"), "{name}");
    fs::create_dir(&group).unwrap();
    fs::write(group.join("schemata"), "    L3:0=fffff;1=fffff\n").unwrap();
    fs::write(group.join("tasks"), "").unwrap();

    let report = placer.reconcile(&tuning, &vcpus, &qemu);
    assert_eq!(applied(&report)[1], [Step::Cache]);
    let read = |file| fs::read_to_string(file).unwrap();
    assert_eq!(read(group.join("schemata")), "L3:0=f\n");
    assert_eq!(read(group.join("tasks")), vcpus[&VcpuId(1)].to_string());
    let report = placer.reconcile(&tuning, &vcpus, &qemu);
    assert!(applied(&report).iter().all(Vec::is_empty));

    fs::write(group.join("schemata"), "    L3:0=fffff\n").unwrap();
    let report = placer.reconcile(&tuning, &vcpus, &qemu);
    assert_eq!(report.vcpus[&VcpuId(1)].drifted, [Step::Cache]);

    let report = placer.reconcile(&Tuning::default(), &vcpus, &qemu);
    assert_eq!(applied(&report)[1], [Step::Cache]);
    assert_eq!(
        read(tree.path().join("tasks")),
        vcpus[&VcpuId(1)].to_string()
    );
    Ok(())
}

/// Uses a real QEMU, and a tmpfs in place of resctrl, because few hosts have it.
fn does_not_keep_resctrl_mounted() -> Ran {
    let qemu = Qemu::start();
    let vcpus = qemu.vcpus();
    let home = UnitPlacement::without_groups(String::new());
    let tree = tempfile::tempdir().unwrap();
    let point = tree.path().display();
    let mut host = Host::this().unwrap();
    let process = tempfile::tempdir().unwrap();
    let mounts = format!("30 25 0:27 / {point} rw - resctrl resctrl rw\n");
    fs::write(process.path().join("mountinfo"), mounts).unwrap();
    Arc::make_mut(&mut host.mounts).resctrl = Some(tree.path().to_owned());
    host.process = process.path().to_owned();

    let mount = Mount::tmpfs(tree.path());
    let mut placer = Placer::new(host, "web", home).unwrap();
    placer.reconcile(&Tuning::default(), &vcpus, &qemu);
    mount.unmount();

    let mount = Mount::tmpfs(tree.path());
    fs::write(tree.path().join("tasks"), "").unwrap();
    let cache = Tuning {
        cache: [(VcpuId(1), "L3:0=f".parse().unwrap())].into(),
        ..Tuning::default()
    };
    placer.reconcile(&cache, &vcpus, &qemu);
    assert_eq!(placer.supports(Step::Cache), Ok(()));
    mount.unmount();
    fs::write(process.path().join("mountinfo"), "").unwrap();
    assert!(placer.supports(Step::Cache).unwrap_err().is_unsupported());
    Ok(())
}

/// A mount of a tmpfs. It is detached when this is dropped.
struct Mount<'a>(&'a Path);

impl<'a> Mount<'a> {
    fn tmpfs(point: &'a Path) -> Self {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "tmpfs"]).arg(point);
        assert!(mount.status().unwrap().success());
        Self(point)
    }

    /// Fails if it is in use.
    fn unmount(self) {
        let unmounted = Command::new("umount").arg(self.0).status();
        assert!(unmounted.unwrap().success(), "it is in use");
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let detach = Command::new("umount").arg("-lq").arg(self.0).status();
        let _ = detach;
    }
}
