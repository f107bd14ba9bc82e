//! The lists of cpusets of version 1. The kernel removes a host CPU that goes offline from the lists of all
//! groups, and does not add it again when it comes back.
//!
//! vcpud adds it again, from the root down to a unit, also to groups of other programs. But it must not add CPUs
//! that an administrator removed. When a CPU comes online, the kernel creates a directory for it, with a greater
//! inode number than all others. So vcpud writes the greatest number into an attribute of each group that has
//! all CPUs of the group above it. Later the group gets back the CPUs with greater numbers. If it lacks other
//! CPUs, an administrator has narrowed the group: vcpud removes the attribute, and leaves the group alone until
//! it has all CPUs again. The same holds for memory nodes.

use std::path::Path;

use super::groups::{CpusetFile, read, read_list, write};
use crate::placement::{Cpu, List, Node, Step, StepError};
use crate::process::Dir;

/// The two lists of a cpuset that must not be empty.
const LISTS: [(Step, &str); 2] = [(Cpu::STEP, Cpu::FILE), (Node::STEP, Node::FILE)];

/// The attribute of a group that had all that the group above it had.
const COMPLETE: &str = "user.vcpud.complete";

/// Devices that a cpuset lists.
trait Listed: CpusetFile {
    /// Returns the directory of `number` below `/sys/devices/system`, which the kernel creates when
    /// the CPU or the memory node comes online.
    fn directory(number: u32) -> String;
}

impl Listed for Cpu {
    fn directory(number: u32) -> String {
        format!("cpu/cpu{number}/topology")
    }
}

impl Listed for Node {
    fn directory(number: u32) -> String {
        format!("node/node{number}")
    }
}

/// Copies the empty lists of a cpuset from the one above it.
pub(super) fn fill(above: &Dir, group: &Dir) -> Result<(), StepError> {
    for (step, file) in LISTS {
        if read(step, group, file)?.is_empty() {
            write(step, group, file, &read(step, above, file)?)?;
        }
    }
    Ok(())
}

/// Copies both lists of a cpuset from the one above it.
pub(super) fn copy(above: &Dir, group: &Dir) -> Result<(), StepError> {
    for (step, file) in LISTS {
        let above = read(step, above, file)?;
        if read(step, group, file)? != above {
            write(step, group, file, &above)?;
        }
    }
    Ok(())
}

/// Gives `group` back what came online since it had all that the group above it has. `system` is
/// `/sys/devices/system` of the host.
pub(super) fn follow(above: &Dir, group: &Dir, system: &Path) -> Result<(), StepError> {
    let since = group.attribute(COMPLETE);
    let since = since.and_then(|number| number.parse::<u64>().ok());
    let cpus = give_back::<Cpu>(above, group, system, since)?;
    let nodes = give_back::<Node>(above, group, system, since)?;
    let is_complete = [&cpus, &nodes].iter().all(|given| !given.lacks_more);
    let result = if !is_complete && since.is_some() {
        group.remove_attribute(COMPLETE)
    } else if is_complete && (since.is_none() || cpus.was_given || nodes.was_given) {
        group.set_attribute(COMPLETE, &newest(above, system)?.to_string())
    } else {
        Ok(())
    };
    if let Err(error) = result {
        let group = group.path().display();
        tracing::debug!(%error, "{group}: host CPUs that come back are not given to this cpuset");
    }
    Ok(())
}

/// The change of a list of a group.
struct Given {
    was_given: bool,
    /// Whether the group above still has more.
    lacks_more: bool,
}

fn give_back<K: Listed>(
    above: &Dir,
    group: &Dir,
    system: &Path,
    since: Option<u64>,
) -> Result<Given, StepError> {
    let all: List<K> = read_list(K::STEP, above, K::FILE)?;
    let own: List<K> = read_list(K::STEP, group, K::FILE)?;
    let lacking = all.difference(&own);
    let is_newer = |number: &u32| {
        let inode = Dir::inode(system.join(K::directory(*number)));
        since.is_some_and(|since| inode.is_ok_and(|inode| inode > since))
    };
    let came: List<K> = lacking.iter().filter(is_newer).collect();
    if !came.is_empty() {
        write(K::STEP, group, K::FILE, &own.union(&came).to_string())?;
    }
    Ok(Given {
        was_given: !came.is_empty(),
        lacks_more: came != lacking,
    })
}

/// Returns the greatest inode number of the directories of what `group` lists.
fn newest(group: &Dir, system: &Path) -> Result<u64, StepError> {
    let cpus = inodes::<Cpu>(group, system)?;
    let nodes = inodes::<Node>(group, system)?;
    Ok(cpus.into_iter().chain(nodes).max().unwrap_or(0))
}

fn inodes<K: Listed>(group: &Dir, system: &Path) -> Result<Vec<u64>, StepError> {
    let list: List<K> = read_list(K::STEP, group, K::FILE)?;
    let inode = |number| Dir::inode(system.join(K::directory(number))).ok();
    Ok(list.iter().filter_map(inode).collect())
}
