//! The control groups of one machine: `UNIT/vcpud/emulator` for everything that is no vCPU, and
//! `UNIT/vcpud/vcpuN` for each vCPU, in version 1 or 2 (`cgroups(7)`).
//!
//! Nothing is written to the unit's own attributes but, in version 2, which controllers its
//! delegated part has. The hierarchy that systemd keeps for itself (`name=systemd`) is not
//! touched.

mod mounts;
mod v1;
mod v2;

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::io;
use std::str::FromStr;

use crate::ids::{Tid, VcpuId};
use crate::placement::{
    Bandwidth, Controller, CpuList, List, NodeList, Numbered, Reason, Step, StepError,
};
use crate::process::{Dir, Tasks};
pub use mounts::{Membership, Mount, Mounts};

/// The group that is ours, in the unit's.
const OURS: &str = "vcpud";
/// The group of everything that is no vCPU, in ours.
const EMULATOR: &str = "emulator";

/// The control groups of one machine, in either version.
pub(super) trait Groups: Debug + Send + Sync {
    /// The controllers that are not there.
    fn missing(&self) -> &[Controller];

    /// Sees that the groups above those of vCPUs have what the unit has now.
    fn follow(&self) -> Result<(), StepError>;

    /// Moves all tasks of `leader`, and the other threads of the unit, into the emulator's group,
    /// except `vcpus`.
    fn sweep(&self, leader: &dyn Tasks, vcpus: &BTreeSet<Tid>) -> Result<(), StepError>;

    /// The vCPUs that have a group.
    fn vcpus(&self) -> Result<Vec<VcpuId>, StepError>;

    /// Makes the group of `vcpu`, where there is none. Tells whether it was made. Where it
    /// cannot be made whole, nothing of it stays.
    fn make(&self, vcpu: VcpuId) -> Result<bool, StepError>;

    /// Whether `thread` is in the group of `vcpu`.
    fn holds(&self, vcpu: VcpuId, thread: Tid) -> Result<bool, StepError>;

    /// Moves `thread` into the group of `vcpu`.
    fn enter(&self, vcpu: VcpuId, thread: Tid) -> Result<(), StepError>;

    /// Moves `thread` into the group of the emulator.
    fn leave(&self, thread: Tid) -> Result<(), StepError>;

    /// The host CPUs of a group that may use all that the groups above it may.
    fn inherited_cpus(&self) -> Result<CpuList, StepError>;

    /// The same of memory nodes.
    fn inherited_nodes(&self) -> Result<NodeList, StepError>;

    /// The host CPUs of the group of `vcpu`; none in version 2 means all that the groups above
    /// have.
    fn cpus(&self, vcpu: VcpuId) -> Result<CpuList, StepError>;

    /// Gives the group of `vcpu` host CPUs.
    fn set_cpus(&self, vcpu: VcpuId, cpus: &CpuList) -> Result<(), StepError>;

    /// The memory nodes of the group of `vcpu`; none in version 2 means all that the groups
    /// above have.
    fn nodes(&self, vcpu: VcpuId) -> Result<NodeList, StepError>;

    /// Gives the group of `vcpu` memory nodes.
    fn set_nodes(&self, vcpu: VcpuId, nodes: &NodeList) -> Result<(), StepError>;

    /// The CPU time of the group of `vcpu`.
    fn bandwidth(&self, vcpu: VcpuId) -> Result<Bandwidth, StepError>;

    /// Gives the group of `vcpu` CPU time. If it is refused, it has what it had.
    fn set_bandwidth(&self, vcpu: VcpuId, bandwidth: Bandwidth) -> Result<(), StepError>;

    /// Removes the group of `vcpu`, which must be empty.
    fn remove(&self, vcpu: VcpuId) -> Result<(), StepError>;

    /// Removes the groups of the machine that has ended, as far as they are empty.
    fn dismantle(&self) -> Result<(), StepError>;
}

/// Makes the groups for the machine whose unit's control group is `unit`, as systemd and
/// `/proc/PID/cgroup` write it.
pub(super) fn establish(mounts: &Mounts, unit: &str) -> Result<Box<dyn Groups>, StepError> {
    // At the root would be everything that nobody put anywhere.
    if unit.trim_matches('/').is_empty() {
        return Err(Step::Group.failed("/", Reason::NoGroups));
    }
    if mounts.are_v1() {
        Ok(Box::new(v1::Tree::establish(mounts, unit)?))
    } else if let Some(mount) = &mounts.unified {
        Ok(Box::new(v2::Tree::establish(mount, unit)?))
    } else {
        Err(Step::Group.failed(unit, Reason::NoGroups))
    }
}

/// The name of a vCPU's group.
fn name(vcpu: VcpuId) -> String {
    format!("vcpu{vcpu}")
}

/// The vCPUs that have a group in `ours`; none where systemd removed the unit and all in it.
fn vcpus_in(ours: &Dir) -> Result<Vec<VcpuId>, StepError> {
    let number = |group: &String| -> Option<VcpuId> {
        let number = group.strip_prefix("vcpu")?.parse().ok()?;
        // Not `vcpu+1` or `vcpu01`, which are not ours.
        (name(number) == *group).then_some(number)
    };
    match ours.children() {
        Ok(groups) => Ok(groups.iter().filter_map(number).collect()),
        Err(error) => Err(Step::Group.refused(ours.path(), &error)),
    }
}

fn child(step: Step, dir: &Dir, name: &str) -> Result<Dir, StepError> {
    dir.child(name)
        .map_err(|error| step.refused(dir.at(name), &error))
}

fn make(dir: &Dir, name: &str) -> Result<(Dir, bool), StepError> {
    dir.make(name)
        .map_err(|error| Step::Group.refused(dir.at(name), &error))
}

fn read(step: Step, dir: &Dir, file: &str) -> Result<String, StepError> {
    dir.read(file)
        .map_err(|error| step.refused(dir.at(file), &error))
}

fn write(step: Step, dir: &Dir, file: &str, text: &str) -> Result<(), StepError> {
    dir.write(file, text)
        .map_err(|error| step.refused(dir.at(file), &error))
}

fn numbers<T: FromStr>(step: Step, dir: &Dir, file: &str) -> Result<Vec<T>, StepError> {
    dir.numbers(file)
        .map_err(|error| step.refused(dir.at(file), &error))
}

fn remove(dir: &Dir, name: &str) -> Result<(), StepError> {
    dir.remove(name).map_err(|error| {
        let refused = Step::Group.refused(dir.at(name), &error);
        refused.hint(libc::EBUSY, "something is still in it")
    })
}

fn read_list<K: Numbered>(step: Step, dir: &Dir, file: &str) -> Result<List<K>, StepError> {
    let text = read(step, dir, file)?;
    text.parse().map_err(|_| unexpected(step, dir, file))
}

fn write_list<K: Numbered>(
    step: Step,
    dir: &Dir,
    file: &str,
    list: &List<K>,
) -> Result<(), StepError> {
    let hint = "the unit, or a group above it, does not have all of them";
    write(step, dir, file, &list.to_string())
        .map_err(|error| error.hint(libc::EACCES, hint).hint(libc::EINVAL, hint))
}

/// The kernel wrote what it does not write.
fn unexpected(step: Step, dir: &Dir, file: &str) -> StepError {
    let error = io::Error::new(
        io::ErrorKind::InvalidData,
        "the kernel's text is not understood",
    );
    step.refused(dir.at(file), &error)
}

/// Whether `error` says that a thread or process is gone, which is none while everything that is
/// there is moved.
fn is_gone(error: &StepError) -> bool {
    error.errno() == Some(libc::ESRCH)
}

fn tasks(leader: &dyn Tasks) -> Result<Vec<Tid>, StepError> {
    let path = || format!("/proc/{}/task", leader.pid());
    let tasks = leader.tasks();
    tasks.map_err(|error| Step::Thread.refused(path(), &error))
}

/// Moves threads into the emulator's group: the `tasks` of `leader` and the `others` in the unit.
/// Each task is checked before and after. The kernel's own threads may refuse to be moved.
fn sweep(
    leader: &dyn Tasks,
    tasks: &[Tid],
    others: &[Tid],
    vcpus: &BTreeSet<Tid>,
    there: &[Tid],
    enter: impl Fn(Tid) -> Result<(), StepError>,
) -> Result<(), StepError> {
    let there: BTreeSet<Tid> = there.iter().copied().collect();
    // 0 is a thread of another PID namespace; written, it would be the service itself.
    let moves = |thread: &&Tid| **thread != 0 && !vcpus.contains(thread) && !there.contains(thread);
    for other in others
        .iter()
        .filter(moves)
        .filter(|other| !tasks.contains(other))
    {
        if let Err(error) = enter(*other) {
            tracing::debug!(thread = other.get(), %error, "not moved");
        }
    }
    let mut ended = Ok(());
    for task in tasks.iter().filter(moves) {
        let Some(held) = leader.hold(*task) else {
            continue;
        };
        match enter(*task) {
            Err(error) if !is_gone(&error) => return Err(error),
            // The group that another thread with its number was in is not known.
            Ok(()) if !held.is_alive() => {
                let path = format!("/proc/{}/task/{task}", leader.pid());
                ended = Err(Step::Thread.failed(path, Reason::Ended));
            }
            _ => {}
        }
    }
    ended
}
