//! Version 2: one hierarchy, with threaded groups (the kernel's `cgroup-v2.rst`, "Threads").
//!
//! A group whose children have controllers must have no processes, unless it is the root of threaded groups.
//! The unit's group cannot be such a root, because systemd keeps it a domain. So vcpud moves all processes one
//! level down, to `vcpud`, before it enables controllers for the unit's children. The threaded groups are two
//! levels down.
//!
//! A new cpuset is empty and has all that the one above has. A cpuset with a list and threads cannot become
//! empty again (`ENOSPC`), so it gets the list of the one above.

use std::collections::BTreeSet;

use super::groups::{
    EMULATOR, Groups, OURS, Threads, child, directories_in, is_gone, make, name, numbers, read,
    remove, tasks, unexpected, vcpus_in, with_burst_for, write,
};
use super::mounts::Mount;
use crate::ids::{Pid, Tid, VcpuId};
use crate::placement::{Bandwidth, Controller, Reason, Step, StepError};
use crate::process::{Dir, Tasks};

/// The groups of one machine.
#[derive(Debug)]
pub(super) struct Tree {
    unit: Dir,
    ours: Dir,
    emulator: Dir,
    there: Vec<Controller>,
    missing: Vec<Controller>,
}

impl Tree {
    /// Creates the groups in the group of `unit`, moves its processes there and enables the controllers.
    pub(super) fn create(mount: &Mount, unit: &str) -> Result<Self, StepError> {
        let unit = open(mount, unit)?;
        let there = read(Step::Group, &unit, "cgroup.controllers")?;
        let is_there = |controller: &Controller| there.split(' ').any(|c| c == controller.as_str());
        let (there, missing): (Vec<_>, Vec<_>) = [Controller::Cpu, Controller::Cpuset]
            .into_iter()
            .partition(is_there);

        let (ours, emulator) = own_groups(&unit, &there)?;
        Ok(Self {
            unit,
            ours,
            emulator,
            there,
            missing,
        })
    }
}

/// Opens the group of `unit`.
fn open(mount: &Mount, unit: &str) -> Result<Dir, StepError> {
    let Some(relative) = mount.relative(unit) else {
        return Err(Step::Group.failed(unit, Reason::NoGroups));
    };
    let opened = Dir::open(&mount.point).and_then(|root| root.descend(relative));
    opened.map_err(|error| Step::Group.refused(unit, &error))
}

/// Disables the controllers below the group of `unit`, because a group with controllers for its children
/// accepts no process.
pub(super) fn release(mount: &Mount, unit: &str) -> Result<(), StepError> {
    let unit = open(mount, unit)?;
    // A controller must be disabled in the groups below first.
    if unit.has(OURS) {
        disable(&child(Step::Group, &unit, OURS)?)?;
    }
    disable(&unit)
}

/// Creates the group `vcpud` in that of the unit, moves the unit's processes there, and creates the
/// emulator's group in it. Returns both.
fn own_groups(unit: &Dir, controllers: &[Controller]) -> Result<(Dir, Dir), StepError> {
    let (ours, _) = make(unit, OURS)?;
    move_processes(unit, &ours)?;
    enable(unit, controllers)?;
    let (emulator, _) = threaded(&ours, EMULATOR)?;
    enable(&ours, controllers)?;
    Ok((ours, emulator))
}

/// Moves all processes, and those that they start in the meantime.
fn move_processes(from: &Dir, to: &Dir) -> Result<(), StepError> {
    let mut seen = BTreeSet::from([Pid(0)]);
    loop {
        let there = numbers(Step::Group, from, "cgroup.procs")?;
        let new: Vec<Pid> = there.into_iter().filter(|pid| seen.insert(*pid)).collect();
        if new.is_empty() {
            return Ok(());
        }
        for process in new {
            match write(Step::Group, to, "cgroup.procs", &process.to_string()) {
                Err(error) if !is_gone(&error) => return Err(error),
                _ => {}
            }
        }
    }
}

/// Enables the `controllers` for the children of `dir` that are not enabled.
fn enable(dir: &Dir, controllers: &[Controller]) -> Result<(), StepError> {
    let file = "cgroup.subtree_control";
    let enabled = read(Step::Group, dir, file)?;
    let lacks = |c: &&Controller| !enabled.split(' ').any(|enabled| enabled == c.as_str());
    let lacking = controllers.iter().filter(lacks);
    let change: Vec<String> = lacking.map(|c| format!("+{c}")).collect();
    if change.is_empty() {
        return Ok(());
    }
    let hint = "the unit has other processes or groups";
    write(Step::Group, dir, file, &change.join(" "))
        .map_err(|e| e.hint(libc::EBUSY, hint).hint(libc::EOPNOTSUPP, hint))
}

/// Disables all controllers for the children of `dir`.
fn disable(dir: &Dir) -> Result<(), StepError> {
    let file = "cgroup.subtree_control";
    let enabled = read(Step::Group, dir, file)?;
    let change: Vec<String> = enabled.split(' ').map(|c| format!("-{c}")).collect();
    if enabled.is_empty() {
        return Ok(());
    }
    write(Step::Group, dir, file, &change.join(" "))
}

/// Returns the CPU time of `group`.
pub(super) fn bandwidth(group: &Dir) -> Result<Bandwidth, StepError> {
    let text = read(Step::Bandwidth, group, "cpu.max")?;
    let bandwidth = || {
        let (quota, period) = text.split_once(' ')?;
        let quota = match quota {
            "max" => -1,
            quota => quota.parse().ok()?,
        };
        Bandwidth::new(period.parse().ok()?, quota).ok()
    };
    bandwidth().ok_or_else(|| unexpected(Step::Bandwidth, group, "cpu.max"))
}

/// Creates a group for threads.
fn threaded(ours: &Dir, name: &str) -> Result<(Dir, bool), StepError> {
    let (group, made) = make(ours, name)?;
    let typed = match read(Step::Group, &group, "cgroup.type") {
        Ok(kind) if kind == "threaded" => Ok(()),
        Ok(_) => write(Step::Group, &group, "cgroup.type", "threaded"),
        Err(error) => Err(error),
    };
    if typed.is_err() && made {
        let _ = remove(ours, name);
    }
    typed.map(|()| (group, made))
}

impl Groups for Tree {
    fn missing(&self) -> &[Controller] {
        &self.missing
    }

    fn follow(&mut self) -> Result<(), StepError> {
        // systemd moves QEMU into the unit's own group when it starts the unit again.
        let inside = numbers(Step::Group, &self.unit, "cgroup.procs")?;
        let is_moved = inside.iter().any(|pid: &Pid| *pid != 0);
        if is_moved || !self.emulator.has("cgroup.threads") {
            (self.ours, self.emulator) = own_groups(&self.unit, &self.there)?;
            return Ok(());
        }
        enable(&self.unit, &self.there)?;
        enable(&self.ours, &self.there)
    }

    fn sweep(&self, leader: &dyn Tasks, vcpus: &BTreeSet<Tid>) -> Result<(), StepError> {
        let in_unit = numbers(Step::Thread, &self.ours, "cgroup.threads")?;
        let in_emulator = numbers(Step::Thread, &self.emulator, "cgroup.threads")?;
        let threads = Threads {
            leader,
            tasks: &tasks(leader)?,
            in_unit: &in_unit,
            in_emulator: &in_emulator,
            vcpus,
        };
        threads.sweep(|thread| self.leave(thread))
    }

    fn directories(&self, vcpu: Option<VcpuId>) -> Vec<Dir> {
        directories_in(&self.unit, vcpu)
    }

    fn vcpus(&self) -> Result<Vec<VcpuId>, StepError> {
        vcpus_in(&self.ours)
    }

    fn make(&self, vcpu: VcpuId) -> Result<bool, StepError> {
        threaded(&self.ours, &name(vcpu)).map(|(_, made)| made)
    }

    fn holds(&self, vcpu: VcpuId, thread: Tid) -> Result<bool, StepError> {
        let group = child(Step::Thread, &self.ours, &name(vcpu))?;
        Ok(numbers(Step::Thread, &group, "cgroup.threads")?.contains(&thread))
    }

    fn enter(&self, vcpu: VcpuId, thread: Tid) -> Result<(), StepError> {
        let group = child(Step::Thread, &self.ours, &name(vcpu))?;
        write(Step::Thread, &group, "cgroup.threads", &thread.to_string())
    }

    fn leave(&self, thread: Tid) -> Result<(), StepError> {
        let thread = thread.to_string();
        write(Step::Thread, &self.emulator, "cgroup.threads", &thread)
    }

    fn group(&self, controller: Controller, step: Step, vcpu: VcpuId) -> Result<Dir, StepError> {
        if self.missing.contains(&controller) {
            return Err(step.failed(self.unit.path(), Reason::NoController(controller)));
        }
        child(step, &self.ours, &name(vcpu))
    }

    fn inherited(&self, _: Step, file: &str) -> Result<(&Dir, String), StepError> {
        Ok((&self.ours, format!("{file}.effective")))
    }

    fn bandwidth(&self, vcpu: VcpuId) -> Result<Bandwidth, StepError> {
        bandwidth(&self.group(Controller::Cpu, Step::Bandwidth, vcpu)?)
    }

    fn set_bandwidth(&self, vcpu: VcpuId, bandwidth: Bandwidth) -> Result<(), StepError> {
        let group = self.group(Controller::Cpu, Step::Bandwidth, vcpu)?;
        with_burst_for(bandwidth, &group, "cpu.max.burst", || {
            write(Step::Bandwidth, &group, "cpu.max", &bandwidth.to_string())
        })
    }

    fn remove(&self, vcpu: VcpuId) -> Result<(), StepError> {
        remove(&self.ours, &name(vcpu))
    }

    fn dismantle(&self) -> Result<(), StepError> {
        remove(&self.ours, EMULATOR)?;
        remove(&self.unit, OURS)
    }
}

/// Uses directory trees with files as cgroup v2 has them. A tree shows the writes. The tests in the lab show
/// that a kernel accepts them in this order.
#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::super::{Mounts, create, release};
    use super::*;
    use crate::placement::{Cpu, CpuList, NodeList};

    struct Unit(tempfile::TempDir);

    impl Unit {
        /// Returns a hierarchy with the group of a unit that has two processes and `controllers`. Its groups have
        /// their files already, because no kernel creates them.
        fn new(controllers: &str) -> Self {
            let unit = Self(tempfile::tempdir().unwrap());
            for group in [
                "",
                "vcpud/",
                "vcpud/emulator/",
                "vcpud/vcpu0/",
                "vcpud/vcpu1/",
            ] {
                fs::create_dir_all(unit.path(group)).unwrap();
                for (file, text) in [
                    ("cgroup.controllers", controllers),
                    ("cgroup.procs", ""),
                    ("cgroup.threads", ""),
                    ("cgroup.subtree_control", ""),
                    ("cgroup.type", "domain\n"),
                    ("cpu.max", "max 100000\n"),
                    ("cpuset.cpus", "\n"),
                    ("cpuset.cpus.effective", "0-15\n"),
                    ("cpuset.mems", "\n"),
                    ("cpuset.mems.effective", "0-1\n"),
                ] {
                    unit.put(&format!("{group}{file}"), text);
                }
            }
            unit.put("cgroup.procs", "1042\n1077\n0\n");
            unit
        }

        fn path(&self, file: &str) -> std::path::PathBuf {
            self.0.path().join("machine.slice/x.scope").join(file)
        }

        fn put(&self, file: &str, text: &str) {
            fs::write(self.path(file), text).unwrap();
        }

        fn get(&self, file: &str) -> String {
            fs::read_to_string(self.path(file)).unwrap()
        }

        fn groups(&self) -> Result<Box<dyn Groups>, StepError> {
            let root = self.0.path().display();
            let mounts = format!("29 25 0:26 / {root} rw - cgroup2 cgroup2 rw\n");
            let mounts = Mounts::parse(&mounts);
            create(&mounts, self.0.path(), "/machine.slice/x.scope")
        }
    }

    #[test]
    fn moves_processes_down_and_creates_threaded_groups_below() {
        let unit = Unit::new("cpuset cpu io memory pids");
        unit.put("cgroup.subtree_control", "memory pids");
        let mut groups = unit.groups().unwrap();
        assert_eq!(groups.missing(), []);
        assert_eq!(
            unit.get("vcpud/cgroup.procs"),
            "1077",
            "the last one, never 0"
        );
        for enabled in ["cgroup.subtree_control", "vcpud/cgroup.subtree_control"] {
            assert_eq!(unit.get(enabled), "+cpu +cpuset");
        }
        assert_eq!(unit.get("vcpud/emulator/cgroup.type"), "threaded");
        assert!(!groups.make(VcpuId(1)).unwrap());
        assert_eq!(unit.get("vcpud/vcpu1/cgroup.type"), "threaded");
        // The attributes of systemd stay the same.
        for (file, text) in [
            ("cgroup.type", "domain\n"),
            ("cpu.max", "max 100000\n"),
            ("cpuset.cpus", "\n"),
            ("vcpud/cgroup.type", "domain\n"),
        ] {
            assert_eq!(unit.get(file), text, "{file}");
        }
        // The tree creates no files in a new group.
        assert_eq!(groups.make(VcpuId(9)).unwrap_err().step, Step::Group);
        assert!(!unit.path("vcpud/vcpu9").exists());
        // A controller that another program disabled is enabled again.
        unit.put("cgroup.subtree_control", "cpu");
        groups.follow().unwrap();
        assert_eq!(unit.get("cgroup.subtree_control"), "+cpuset");
        unit.put("cgroup.subtree_control", "cpuset cpu memory");
        unit.groups().unwrap();
        assert_eq!(unit.get("cgroup.subtree_control"), "cpuset cpu memory");
    }

    #[test]
    fn a_unit_that_was_released_gets_processes_and_its_groups_again() {
        let unit = Unit::new("cpuset cpu");
        let mut groups = unit.groups().unwrap();
        let enabled = ["cgroup.subtree_control", "vcpud/cgroup.subtree_control"];
        for file in enabled {
            unit.put(file, "cpuset cpu\n");
        }
        let root = unit.0.path().display();
        let mounts = format!("29 25 0:26 / {root} rw - cgroup2 cgroup2 rw\n");
        release(&Mounts::parse(&mounts), "/machine.slice/x.scope").unwrap();
        for file in enabled {
            assert_eq!(unit.get(file), "-cpuset -cpu", "{file}");
            unit.put(file, "\n");
        }
        unit.put("cgroup.procs", "1042\n");
        unit.put("vcpud/cgroup.procs", "");
        groups.follow().unwrap();
        assert_eq!(unit.get("vcpud/cgroup.procs"), "1042");
        for file in enabled {
            assert_eq!(unit.get(file), "+cpu +cpuset", "{file}");
        }
    }

    #[test]
    fn writes_limits_in_the_syntax_of_version_2() {
        let unit = Unit::new("cpuset cpu");
        let groups = unit.groups().unwrap();
        assert_eq!(groups.bandwidth(VcpuId(0)).unwrap(), Bandwidth::UNLIMITED);
        let limited = Bandwidth::new(50_000, 10_000).unwrap();
        groups.set_bandwidth(VcpuId(0), limited).unwrap();
        assert_eq!(unit.get("vcpud/vcpu0/cpu.max"), "10000 50000");
        assert_eq!(groups.bandwidth(VcpuId(0)).unwrap(), limited);
        groups
            .set_bandwidth(VcpuId(0), Bandwidth::UNLIMITED)
            .unwrap();
        assert_eq!(unit.get("vcpud/vcpu0/cpu.max"), "max 100000");

        let cpus: CpuList = "0-3,8".parse().unwrap();
        groups.set_cpuset(VcpuId(0), &cpus).unwrap();
        assert_eq!(unit.get("vcpud/vcpu0/cpuset.cpus"), "0-3,8");
        assert_eq!(groups.cpuset(VcpuId(0)).unwrap(), cpus);
        let nodes: NodeList = "0".parse().unwrap();
        groups.set_cpuset(VcpuId(0), &nodes).unwrap();
        assert_eq!(unit.get("vcpud/vcpu0/cpuset.mems"), "0");
        assert_eq!(groups.cpuset(VcpuId(0)).unwrap(), nodes);
        assert!(groups.cpuset::<Cpu>(VcpuId(1)).unwrap().is_empty());
        let cpus: CpuList = groups.inherited_cpuset().unwrap();
        assert_eq!(cpus.to_string(), "0-15");
        let nodes: NodeList = groups.inherited_cpuset().unwrap();
        assert_eq!(nodes.to_string(), "0-1");
        unit.put("vcpud/vcpu0/cpu.max", "nonsense");
        assert_eq!(
            groups.bandwidth(VcpuId(0)).unwrap_err().step,
            Step::Bandwidth
        );
    }

    #[test]
    fn lowers_a_burst_above_the_quota() {
        let unit = Unit::new("cpuset cpu");
        let groups = unit.groups().unwrap();
        let set = |quota| {
            let limited = Bandwidth::new(100_000, quota).unwrap();
            groups.set_bandwidth(VcpuId(0), limited).unwrap();
            unit.get("vcpud/vcpu0/cpu.max.burst")
        };
        unit.put("vcpud/vcpu0/cpu.max.burst", "40000\n");
        assert_eq!(set(50_000), "40000\n");
        assert_eq!(set(-1), "40000\n");
        assert_eq!(set(20_000), "20000");
        assert_eq!(unit.get("vcpud/vcpu0/cpu.max"), "20000 100000");

        // A limit that cannot be written leaves the burst.
        fs::remove_file(unit.path("vcpud/vcpu1/cpu.max")).unwrap();
        unit.put("vcpud/vcpu1/cpu.max.burst", "40000");
        let limited = Bandwidth::new(100_000, 1_000).unwrap();
        assert!(groups.set_bandwidth(VcpuId(1), limited).is_err());
        assert_eq!(unit.get("vcpud/vcpu1/cpu.max.burst"), "40000");
    }

    /// This process, with a scripted thread 1050 and a thread 1051 that has ended.
    struct Own;

    impl Tasks for Own {
        fn pid(&self) -> Pid {
            Pid(std::process::id())
        }

        fn has_task(&self, thread: Tid) -> bool {
            thread == self.pid().main_thread()
        }

        fn tasks(&self) -> std::io::Result<Vec<Tid>> {
            Ok(vec![self.pid().main_thread(), Tid(1050), Tid(1051)])
        }
    }

    #[test]
    fn moves_threads_one_by_one() {
        let unit = Unit::new("cpuset cpu");
        let groups = unit.groups().unwrap();
        groups.enter(VcpuId(0), Tid(1050)).unwrap();
        assert_eq!(unit.get("vcpud/vcpu0/cgroup.threads"), "1050");
        assert!(groups.holds(VcpuId(0), Tid(1050)).unwrap());
        assert!(!groups.holds(VcpuId(1), Tid(1050)).unwrap());
        let there = format!("{}\n", Own.pid());
        unit.put("vcpud/emulator/cgroup.threads", &there);
        groups.sweep(&Own, &[Tid(1050)].into()).unwrap();
        assert_eq!(unit.get("vcpud/emulator/cgroup.threads"), there);
        unit.put("vcpud/cgroup.threads", &format!("{there}1060\n1050\n0\n"));
        groups.sweep(&Own, &[Tid(1050)].into()).unwrap();
        assert_eq!(unit.get("vcpud/emulator/cgroup.threads"), "1060");
        unit.put("vcpud/emulator/cgroup.threads", "");
        unit.put("vcpud/cgroup.threads", "");
        groups.sweep(&Own, &[Tid(1050)].into()).unwrap();
        let moved = Own.pid().to_string();
        assert_eq!(unit.get("vcpud/emulator/cgroup.threads"), moved);
        let mut vcpus = groups.vcpus().unwrap();
        vcpus.sort_unstable();
        assert_eq!(vcpus, [0, 1]);
    }

    #[test]
    fn reports_missing_controllers() {
        let unit = Unit::new("io memory pids");
        let groups = unit.groups().unwrap();
        assert_eq!(groups.missing(), [Controller::Cpu, Controller::Cpuset]);
        assert_eq!(unit.get("cgroup.subtree_control"), "");
        let error = groups.bandwidth(VcpuId(0)).unwrap_err();
        assert_eq!(error.reason, Reason::NoController(Controller::Cpu));
        assert!(error.is_unsupported());
        let unit = Unit::new("cpuset");
        assert_eq!(unit.groups().unwrap().missing(), [Controller::Cpu]);
        assert_eq!(unit.get("cgroup.subtree_control"), "+cpuset");
    }

    #[test]
    fn refuses_a_missing_unit_and_the_root() {
        let unit = Unit::new("cpu cpuset");
        fs::remove_dir_all(unit.path("")).unwrap();
        let error = unit.groups().unwrap_err();
        assert_eq!(
            (error.step, error.errno()),
            (Step::Group, Some(libc::ENOENT))
        );
        assert_eq!(error.path, Path::new("/machine.slice/x.scope"));
        for root in ["/", "", "//"] {
            let error = create(&Mounts::default(), Path::new("/"), root).unwrap_err();
            assert_eq!(error.reason, Reason::NoGroups);
        }
    }
}
