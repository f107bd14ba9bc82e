//! Version 1: one hierarchy for each controller (the kernel's `cgroup-v1/`). vcpud creates the same groups in
//! those of `cpu`, `cpuacct` and `cpuset`.
//!
//! A new cpuset is empty and accepts no thread, so each gets the lists of the one above it, from the top.
//! systemd does not use the `cpuset` controller of version 1, so vcpud creates and removes the unit's group in
//! this hierarchy.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::cpuset;
use super::groups::{
    EMULATOR, Groups, OURS, Threads, child, directories_in, make, name, numbers, read, remove,
    tasks, unexpected, vcpus_in, with_burst_for, write,
};
use super::mounts::Mounts;
use crate::ids::{Tid, VcpuId};
use crate::placement::{Bandwidth, Change, Controller, Reason, Step, StepError};
use crate::process::{Dir, Tasks};

/// The groups of one machine.
#[derive(Debug)]
pub(super) struct Tree {
    hierarchies: Vec<Hierarchy>,
    missing: Vec<Controller>,
    /// `/sys/devices/system`.
    system: PathBuf,
}

/// The groups of one machine in one hierarchy.
#[derive(Debug)]
struct Hierarchy {
    controllers: BTreeSet<&'static str>,
    /// The groups from the root of the hierarchy down to the unit's.
    chain: Vec<Dir>,
    /// The group `vcpud`.
    ours: Dir,
    emulator: Dir,
}

impl Tree {
    /// Creates the groups in the groups of `unit`, on the host whose devices are below `system`.
    pub(super) fn create(mounts: &Mounts, system: &Path, unit: &str) -> Result<Self, StepError> {
        let mut points: Vec<(PathBuf, BTreeSet<&'static str>)> = Vec::new();
        let mut hierarchies = Vec::new();
        let mut missing = Vec::new();
        for controller in ["cpu", "cpuacct", "cpuset"] {
            let Some(mount) = mounts.controllers.get(controller) else {
                match controller {
                    "cpu" => missing.push(Controller::Cpu),
                    "cpuset" => missing.push(Controller::Cpuset),
                    _ => {}
                }
                continue;
            };
            match points.iter_mut().find(|(point, _)| mount.is_at(point)) {
                Some((_, controllers)) => {
                    controllers.insert(controller);
                }
                None => points.push((mount.point.clone(), [controller].into())),
            }
        }
        for (point, controllers) in points {
            let any = controllers.first().copied().unwrap_or_default();
            let relative = mounts.controllers[any].relative(unit);
            let relative = relative
                .filter(|path| !path.is_empty())
                .ok_or_else(|| Step::Group.failed(unit, Reason::NoGroups))?;
            hierarchies.push(Hierarchy::create(point, controllers, relative, system)?);
        }
        Ok(Self {
            hierarchies,
            missing,
            system: system.to_owned(),
        })
    }

    /// Returns the hierarchy of `controller`.
    fn of(&self, controller: Controller, step: Step) -> Result<&Hierarchy, StepError> {
        let has = |h: &&Hierarchy| h.controllers.contains(controller.as_str());
        let hierarchy = self.hierarchies.iter().find(has);
        hierarchy.ok_or_else(|| step.failed("/", Reason::NoController(controller)))
    }
}

impl Hierarchy {
    fn create(
        point: PathBuf,
        controllers: BTreeSet<&'static str>,
        unit: &str,
        system: &Path,
    ) -> Result<Self, StepError> {
        let has_cpuset = controllers.contains("cpuset");
        let root = Dir::open(&point).map_err(|error| Step::Group.refused(&point, &error))?;
        let mut chain = vec![root];
        for (at, name) in unit.split('/').enumerate() {
            let (group, _) = make(&chain[at], name)?;
            if has_cpuset {
                cpuset::fill(&chain[at], &group)?;
                // The first pass tries it again, and reports an error.
                let _ = cpuset::follow(&chain[at], &group, system);
            }
            chain.push(group);
        }
        let (ours, emulator) = own_groups(&chain[chain.len() - 1], has_cpuset)?;
        Ok(Self {
            controllers,
            chain,
            ours,
            emulator,
        })
    }

    fn has_cpuset(&self) -> bool {
        self.controllers.contains("cpuset")
    }

    /// Returns the group of the unit.
    fn unit(&self) -> &Dir {
        &self.chain[self.chain.len() - 1]
    }

    /// See [`Groups::follow`].
    fn follow(&mut self, system: &Path) -> Result<(), StepError> {
        if !self.emulator.has("tasks") {
            (self.ours, self.emulator) = own_groups(self.unit(), self.has_cpuset())?;
        }
        if !self.has_cpuset() {
            return Ok(());
        }
        let mut result = Ok(());
        for pair in self.chain.windows(2) {
            result = result.and(cpuset::follow(&pair[0], &pair[1], system));
        }
        let copied = cpuset::copy(self.unit(), &self.ours);
        result
            .and(copied)
            .and(cpuset::copy(&self.ours, &self.emulator))
    }

    fn dismantle(&self) -> Result<(), StepError> {
        remove(&self.ours, EMULATOR)?;
        remove(self.unit(), OURS)?;
        if let Some(name) = self
            .unit()
            .path()
            .file_name()
            .and_then(|name| name.to_str())
            && self
                .controllers
                .iter()
                .all(|controller| *controller == "cpuset")
        {
            // systemd does not remove this one. It stays if another program uses it.
            let _ = remove(&self.chain[self.chain.len() - 2], name);
        }
        Ok(())
    }

    /// Moves a thread to a group of vcpud.
    fn enter(&self, group: &Dir, thread: Tid) -> Result<(), StepError> {
        let hint = if self.has_cpuset() {
            "the group's cpuset has no CPU or no memory node that is online"
        } else {
            "a thread of real-time policy needs cpu.rt_runtime_us in its group"
        };
        write(Step::Thread, group, "tasks", &thread.to_string())
            .map_err(|error| error.hint(libc::ENOSPC, hint).hint(libc::EINVAL, hint))
    }
}

impl Groups for Tree {
    fn missing(&self) -> &[Controller] {
        &self.missing
    }

    fn follow(&mut self) -> Result<(), StepError> {
        let mut result = Ok(());
        for hierarchy in &mut self.hierarchies {
            result = result.and(hierarchy.follow(&self.system));
        }
        result
    }

    fn sweep(&self, leader: &dyn Tasks, vcpus: &BTreeSet<Tid>) -> Result<(), StepError> {
        let tasks = tasks(leader)?;
        let sweep = |hierarchy: &Hierarchy| {
            let in_unit = numbers(Step::Thread, hierarchy.unit(), "tasks")?;
            let in_emulator = numbers(Step::Thread, &hierarchy.emulator, "tasks")?;
            let threads = Threads {
                leader,
                tasks: &tasks,
                in_unit: &in_unit,
                in_emulator: &in_emulator,
                vcpus,
            };
            threads.sweep(|thread| hierarchy.enter(&hierarchy.emulator, thread))
        };
        // A thread that one hierarchy refuses, such as one of io_uring in that of cpusets, enters the others.
        let results = self.hierarchies.iter().map(sweep);
        results.fold(Ok(()), Result::and)
    }

    fn directories(&self, vcpu: Option<VcpuId>) -> Vec<Dir> {
        let units = self.hierarchies.iter().filter_map(|h| h.chain.last());
        units.flat_map(|unit| directories_in(unit, vcpu)).collect()
    }

    fn vcpus(&self) -> Result<Vec<VcpuId>, StepError> {
        let mut all = BTreeSet::new();
        for hierarchy in &self.hierarchies {
            all.extend(vcpus_in(&hierarchy.ours)?);
        }
        Ok(all.into_iter().collect())
    }

    fn make(&self, vcpu: VcpuId) -> Result<bool, StepError> {
        let mut any = false;
        for hierarchy in &self.hierarchies {
            let filled = make(&hierarchy.ours, &name(vcpu)).and_then(|(group, made)| {
                any |= made;
                if hierarchy.has_cpuset() {
                    cpuset::fill(&hierarchy.ours, &group)?;
                }
                Ok(())
            });
            if let Err(error) = filled {
                if any {
                    let _ = self.remove(vcpu);
                }
                return Err(error);
            }
        }
        Ok(any)
    }

    fn holds(&self, vcpu: VcpuId, thread: Tid) -> Result<bool, StepError> {
        for hierarchy in &self.hierarchies {
            let group = child(Step::Thread, &hierarchy.ours, &name(vcpu))?;
            if !numbers(Step::Thread, &group, "tasks")?.contains(&thread) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn enter(&self, vcpu: VcpuId, thread: Tid) -> Result<(), StepError> {
        for hierarchy in &self.hierarchies {
            let group = child(Step::Thread, &hierarchy.ours, &name(vcpu))?;
            hierarchy.enter(&group, thread)?;
        }
        Ok(())
    }

    fn leave(&self, thread: Tid) -> Result<(), StepError> {
        for hierarchy in &self.hierarchies {
            hierarchy.enter(&hierarchy.emulator, thread)?;
        }
        Ok(())
    }

    fn group(&self, controller: Controller, step: Step, vcpu: VcpuId) -> Result<Dir, StepError> {
        child(step, &self.of(controller, step)?.ours, &name(vcpu))
    }

    fn inherited(&self, step: Step, file: &str) -> Result<(&Dir, String), StepError> {
        let cpuset = self.of(Controller::Cpuset, step)?;
        Ok((&cpuset.ours, file.to_owned()))
    }

    fn bandwidth(&self, vcpu: VcpuId) -> Result<Bandwidth, StepError> {
        bandwidth(&self.group(Controller::Cpu, Step::Bandwidth, vcpu)?)
    }

    fn set_bandwidth(&self, vcpu: VcpuId, bandwidth: Bandwidth) -> Result<(), StepError> {
        let group = self.group(Controller::Cpu, Step::Bandwidth, vcpu)?;
        let old = self.bandwidth(vcpu)?;
        let hint = "a group above has less CPU time";
        let write = |change, to: Bandwidth| {
            let text = match change {
                Change::Period => to.period().to_string(),
                Change::Quota => to.signed_quota().to_string(),
            };
            write(Step::Bandwidth, &group, file(change), &text)
                .map_err(|error| error.hint(libc::EINVAL, hint))
        };
        let [first, second] = old.order_to(bandwidth);
        with_burst_for(bandwidth, &group, "cpu.cfs_burst_us", || {
            write(first, bandwidth)?;
            write(second, bandwidth).inspect_err(|_| {
                // The kernel does not refuse the value that it had a moment ago.
                let _ = write(first, old);
            })
        })
    }

    fn remove(&self, vcpu: VcpuId) -> Result<(), StepError> {
        let remove = |hierarchy: &Hierarchy| remove(&hierarchy.ours, &name(vcpu));
        self.hierarchies
            .iter()
            .map(remove)
            .fold(Ok(()), Result::and)
    }

    fn dismantle(&self) -> Result<(), StepError> {
        let mut result = Ok(());
        for hierarchy in &self.hierarchies {
            result = result.and(hierarchy.dismantle());
        }
        result
    }
}

/// Creates the group `vcpud` in that of the unit, and the emulator's in it. Returns both.
fn own_groups(unit: &Dir, has_cpuset: bool) -> Result<(Dir, Dir), StepError> {
    let (ours, _) = make(unit, OURS)?;
    if has_cpuset {
        cpuset::fill(unit, &ours)?;
    }
    let (emulator, _) = make(&ours, EMULATOR)?;
    if has_cpuset {
        cpuset::fill(&ours, &emulator)?;
    }
    Ok((ours, emulator))
}

/// Returns the CPU time of `group`.
pub(super) fn bandwidth(group: &Dir) -> Result<Bandwidth, StepError> {
    let number = |change| -> Result<i64, StepError> {
        let text = read(Step::Bandwidth, group, file(change))?;
        let number = text.parse();
        number.map_err(|_| unexpected(Step::Bandwidth, group, file(change)))
    };
    let period = number(Change::Period)?.unsigned_abs();
    Bandwidth::new(period, number(Change::Quota)?)
        .map_err(|_| unexpected(Step::Bandwidth, group, file(Change::Quota)))
}

/// Returns the file of a number.
fn file(change: Change) -> &'static str {
    match change {
        Change::Period => "cpu.cfs_period_us",
        Change::Quota => "cpu.cfs_quota_us",
    }
}

/// Uses a directory tree with files as cgroup v1 has them, for failures that a kernel does not produce on
/// demand. `tests/cgroups` uses a real one.
#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn removes_a_group_that_cannot_be_created_in_all_hierarchies() {
        let root = tempfile::tempdir().unwrap();
        let path = |group: &str| root.path().join(group);
        for group in ["", "x.scope", "x.scope/vcpud", "x.scope/vcpud/emulator"] {
            fs::create_dir_all(path("cpu").join(group)).unwrap();
            let cpuset = path("cpuset").join(group);
            fs::create_dir_all(&cpuset).unwrap();
            fs::write(cpuset.join("cpuset.cpus"), "0-1\n").unwrap();
            fs::write(cpuset.join("cpuset.mems"), "0\n").unwrap();
        }
        let mount = |controller| {
            let point = path(controller);
            format!(
                "1 2 0:3 / {} rw - cgroup cgroup rw,{controller}\n",
                point.display()
            )
        };
        let mounts = Mounts::parse(&(mount("cpu") + &mount("cpuset")));
        let tree = Tree::create(&mounts, root.path(), "/x.scope").unwrap();
        assert_eq!(tree.missing(), []);
        // The tree creates no files in the new group of the cpuset hierarchy.
        let error = tree.make(VcpuId(7)).unwrap_err();
        assert_eq!(
            (error.step, error.errno()),
            (Step::Cpus, Some(libc::ENOENT))
        );
        for hierarchy in ["cpu", "cpuset"] {
            assert!(!path(hierarchy).join("x.scope/vcpud/vcpu7").exists());
        }

        let one = Mounts::parse(&mount("cpuset"));
        let tree = Tree::create(&one, root.path(), "/x.scope").unwrap();
        assert_eq!(tree.missing(), [Controller::Cpu]);
        let error = tree.bandwidth(VcpuId(0)).unwrap_err();
        assert_eq!(error.reason, Reason::NoController(Controller::Cpu));
    }
}
