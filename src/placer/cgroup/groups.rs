//! The interface of both versions, and the access to files of groups that both use.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::io;
use std::str::FromStr;

use super::super::mask::Mask;
use crate::ids::{Tid, VcpuId};
use crate::placement::{Bandwidth, Controller, Cpu, List, Node, Numbered, Reason, Step, StepError};
use crate::process::{Dir, Tasks};

/// The group of vcpud, in the group of the unit.
pub(super) const OURS: &str = "vcpud";
/// The group of all threads that are not vCPUs, in the group of vcpud.
pub(super) const EMULATOR: &str = "emulator";

/// The control groups of one machine, in either version.
pub(crate) trait Groups: Debug + Send + Sync {
    /// Returns the controllers that the groups do not have.
    fn missing(&self) -> &[Controller];

    /// Gives the groups above those of vCPUs the resources that the unit has now. Creates them again if
    /// another program removed them.
    fn follow(&mut self) -> Result<(), StepError>;

    /// Moves all tasks of `leader`, and the other threads of the unit, into the emulator's group, except
    /// `vcpus`.
    fn sweep(&self, leader: &dyn Tasks, vcpus: &BTreeSet<Tid>) -> Result<(), StepError>;

    /// Opens the group of `vcpu`, or those of vcpud and the emulator, in each hierarchy where they exist.
    fn directories(&self, vcpu: Option<VcpuId>) -> Vec<Dir>;

    /// Returns the vCPUs that have a group.
    fn vcpus(&self) -> Result<Vec<VcpuId>, StepError>;

    /// Creates the group of `vcpu`, if it has none. Returns whether it is new. If it cannot be created in
    /// all hierarchies, it is removed from the others.
    fn make(&self, vcpu: VcpuId) -> Result<bool, StepError>;

    /// Returns whether `thread` is in the group of `vcpu`.
    fn holds(&self, vcpu: VcpuId, thread: Tid) -> Result<bool, StepError>;

    /// Moves `thread` into the group of `vcpu`.
    fn enter(&self, vcpu: VcpuId, thread: Tid) -> Result<(), StepError>;

    /// Moves `thread` into the group of the emulator.
    fn leave(&self, thread: Tid) -> Result<(), StepError>;

    /// Opens the group of `vcpu` that has `controller`.
    fn group(&self, controller: Controller, step: Step, vcpu: VcpuId) -> Result<Dir, StepError>;

    /// Returns the group and the file with the list that `file` of a group inherits.
    fn inherited(&self, step: Step, file: &str) -> Result<(&Dir, String), StepError>;

    /// Returns the CPU time of the group of `vcpu`.
    fn bandwidth(&self, vcpu: VcpuId) -> Result<Bandwidth, StepError>;

    /// Sets the CPU time of the group of `vcpu`. If the kernel refuses, the group keeps its CPU time.
    fn set_bandwidth(&self, vcpu: VcpuId, bandwidth: Bandwidth) -> Result<(), StepError>;

    /// Removes the group of `vcpu`, which must be empty.
    fn remove(&self, vcpu: VcpuId) -> Result<(), StepError>;

    /// Removes the groups of a machine whose QEMU has exited, if they are empty.
    fn dismantle(&self) -> Result<(), StepError>;
}

/// The lists of a cpuset, by what they number.
pub(crate) trait CpusetFile: Numbered {
    /// The step that writes the list.
    const STEP: Step;
    /// The name of its file.
    const FILE: &str;
}

impl CpusetFile for Cpu {
    const STEP: Step = Step::Cpus;
    const FILE: &str = "cpuset.cpus";
}

impl CpusetFile for Node {
    const STEP: Step = Step::Nodes;
    const FILE: &str = "cpuset.mems";
}

impl dyn Groups + '_ {
    /// Returns a list of the group of `vcpu`. In version 2 an empty one is that of the groups above.
    pub(crate) fn cpuset<K: CpusetFile>(&self, vcpu: VcpuId) -> Result<List<K>, StepError> {
        let group = self.group(Controller::Cpuset, K::STEP, vcpu)?;
        read_list(K::STEP, &group, K::FILE)
    }

    /// Returns the list of a group that has all that the groups above it have.
    pub(crate) fn inherited_cpuset<K: CpusetFile>(&self) -> Result<List<K>, StepError> {
        let (group, file) = self.inherited(K::STEP, K::FILE)?;
        read_list(K::STEP, group, &file)
    }

    /// Sets a list of the group of `vcpu`.
    pub(crate) fn set_cpuset<K: CpusetFile>(
        &self,
        vcpu: VcpuId,
        list: &List<K>,
    ) -> Result<(), StepError> {
        let group = self.group(Controller::Cpuset, K::STEP, vcpu)?;
        let hint = "the unit, or a group above it, does not have all of them";
        write(K::STEP, &group, K::FILE, &list.to_string())
            .map_err(|error| error.hint(libc::EACCES, hint).hint(libc::EINVAL, hint))
    }
}

/// Calls `write`, which writes the limit `bandwidth` of `group`. The kernel accepts no quota below the burst in
/// `file` (`sched-bwc.rst`), which an administrator may have set, so this lowers the burst to the quota. If
/// `write` fails, the burst stays. Kernels before 5.14 have no burst.
pub(super) fn with_burst_for(
    bandwidth: Bandwidth,
    group: &Dir,
    file: &str,
    write_limit: impl FnOnce() -> Result<(), StepError>,
) -> Result<(), StepError> {
    let burst = group.read(file).ok();
    let burst = burst.and_then(|text| text.parse::<u64>().ok());
    let excess = burst.zip(bandwidth.quota()).filter(|(b, quota)| b > quota);
    let Some((burst, quota)) = excess else {
        return write_limit();
    };
    write(Step::Bandwidth, group, file, &quota.to_string())?;
    write_limit().inspect_err(|_| {
        let _ = write(Step::Bandwidth, group, file, &burst.to_string());
    })
}

/// Returns the name of the group of `vcpu`.
pub(super) fn name(vcpu: VcpuId) -> String {
    format!("vcpu{vcpu}")
}

/// Returns the vCPUs that have a group in `ours`; none if systemd removed the unit with its groups.
pub(super) fn vcpus_in(ours: &Dir) -> Result<Vec<VcpuId>, StepError> {
    let number = |group: &String| -> Option<VcpuId> {
        let number = group.strip_prefix("vcpu")?.parse().ok()?;
        // `vcpu+1` and `vcpu01` are not groups of vcpud.
        (name(number) == *group).then_some(number)
    };
    match ours.children() {
        Ok(groups) => Ok(groups.iter().filter_map(number).collect()),
        Err(error) => Err(Step::Group.refused(ours.path(), &error)),
    }
}

/// Opens the group of `vcpu`, or those of vcpud and the emulator, in the group of the unit.
pub(super) fn directories_in(unit: &Dir, vcpu: Option<VcpuId>) -> Vec<Dir> {
    let Ok(ours) = unit.child(OURS) else {
        return Vec::new();
    };
    match vcpu {
        Some(vcpu) => ours.child(&name(vcpu)).into_iter().collect(),
        None => {
            let emulator = ours.child(EMULATOR);
            std::iter::once(ours).chain(emulator).collect()
        }
    }
}

pub(super) fn child(step: Step, dir: &Dir, name: &str) -> Result<Dir, StepError> {
    dir.child(name)
        .map_err(|error| step.refused(dir.at(name), &error))
}

pub(super) fn make(dir: &Dir, name: &str) -> Result<(Dir, bool), StepError> {
    dir.make(name)
        .map_err(|error| Step::Group.refused(dir.at(name), &error))
}

pub(super) fn read(step: Step, dir: &Dir, file: &str) -> Result<String, StepError> {
    dir.read(file)
        .map_err(|error| step.refused(dir.at(file), &error))
}

pub(super) fn write(step: Step, dir: &Dir, file: &str, text: &str) -> Result<(), StepError> {
    dir.write(file, text)
        .map_err(|error| step.refused(dir.at(file), &error))
}

pub(super) fn numbers<T: FromStr>(step: Step, dir: &Dir, file: &str) -> Result<Vec<T>, StepError> {
    dir.numbers(file)
        .map_err(|error| step.refused(dir.at(file), &error))
}

pub(super) fn remove(dir: &Dir, name: &str) -> Result<(), StepError> {
    dir.remove(name).map_err(|error| {
        let refused = Step::Group.refused(dir.at(name), &error);
        refused.hint(libc::EBUSY, "the group is not empty")
    })
}

pub(super) fn read_list<K: Numbered>(
    step: Step,
    dir: &Dir,
    file: &str,
) -> Result<List<K>, StepError> {
    let text = read(step, dir, file)?;
    text.parse().map_err(|_| unexpected(step, dir, file))
}

/// Returns the error of a file whose text is not the kernel's.
pub(super) fn unexpected(step: Step, dir: &Dir, file: &str) -> StepError {
    let text = "the text of the file is not understood";
    let error = io::Error::new(io::ErrorKind::InvalidData, text);
    step.refused(dir.at(file), &error)
}

/// Returns whether `error` says that a thread or process has ended. That is not an error while all of
/// them are moved.
pub(super) fn is_gone(error: &StepError) -> bool {
    error.errno() == Some(libc::ESRCH)
}

pub(super) fn tasks(leader: &dyn Tasks) -> Result<Vec<Tid>, StepError> {
    let path = || format!("/proc/{}/task", leader.pid());
    let tasks = leader.tasks();
    tasks.map_err(|error| Step::Thread.refused(path(), &error))
}

/// The threads of a machine in one hierarchy.
pub(super) struct Threads<'a> {
    pub(super) leader: &'a dyn Tasks,
    /// All tasks of the leader.
    pub(super) tasks: &'a [Tid],
    /// The threads in the unit, of any process.
    pub(super) in_unit: &'a [Tid],
    /// The threads that are in the emulator's group already.
    pub(super) in_emulator: &'a [Tid],
    /// The threads that are in groups of vCPUs.
    pub(super) vcpus: &'a BTreeSet<Tid>,
}

impl Threads<'_> {
    /// Moves all threads except vCPUs into the emulator's group with `enter`. Each task of the leader is
    /// checked before and after. The kernel's own threads may refuse.
    pub(super) fn sweep(
        &self,
        enter: impl Fn(Tid) -> Result<(), StepError>,
    ) -> Result<(), StepError> {
        let stays: BTreeSet<&Tid> = self.in_emulator.iter().chain(self.vcpus).collect();
        // 0 is a thread of another PID namespace; if it were written, vcpud itself would move.
        let moves = |thread: &&Tid| **thread != 0 && !stays.contains(thread);
        let others = self.in_unit.iter().filter(moves);
        for other in others.filter(|other| !self.tasks.contains(other)) {
            if let Err(error) = enter(*other) {
                tracing::debug!(thread = other.get(), %error, "cannot move a thread of the unit");
            }
        }
        let mut result = Ok(());
        for task in self.tasks.iter().filter(moves) {
            let Some(held) = self.leader.hold(*task) else {
                continue;
            };
            let mask = Mask::of(*task);
            let entered = enter(*task);
            if let Some(mask) = mask {
                mask.restore(self.leader);
            }
            let moved = match entered {
                Err(error) if is_gone(&error) => Ok(()),
                // If another thread has its number now, the group of that thread is not known.
                Ok(()) if !held.is_alive() => {
                    let path = format!("/proc/{}/task/{task}", self.leader.pid());
                    Err(Step::Thread.failed(path, Reason::Ended))
                }
                entered => entered,
            };
            result = result.and(moved);
        }
        result
    }
}
