//! The control groups of one machine: `UNIT/vcpud/vcpuN` for each vCPU and `UNIT/vcpud/emulator` for all
//! other threads, in version 1 or 2 (`cgroups(7)`).
//!
//! vcpud writes no attributes of the unit's own group, except in version 2 the controllers of its
//! delegated part. It does not touch the hierarchy that systemd keeps for itself (`name=systemd`).

mod cpuset;
mod groups;
mod mounts;
mod reader;
mod survey;
mod v1;
mod v2;

use std::path::Path;

use crate::placement::{Bandwidth, Reason, Step, StepError};
use crate::process::Dir;

pub(super) use groups::{CpusetFile, Groups};
pub use mounts::{Membership, Mount, Mounts};
pub(super) use reader::GroupReader;
pub(super) use survey::{is_shared, limits};

/// Creates the groups of the machine whose unit has the control group `unit`, as systemd and
/// `/proc/PID/cgroup` write it, on the host whose devices are below `system`.
///
/// # Errors
///
/// Fails if the host has no control groups, if `unit` is the root, or if the kernel refuses.
pub(super) fn create(
    mounts: &Mounts,
    system: &Path,
    unit: &str,
) -> Result<Box<dyn Groups>, StepError> {
    // The root group has all processes that no program put into another group.
    if unit.trim_matches('/').is_empty() {
        return Err(Step::Group.failed("/", Reason::NoGroups));
    }
    if mounts.are_v1() {
        Ok(Box::new(v1::Tree::create(mounts, system, unit)?))
    } else if let Some(mount) = &mounts.unified {
        Ok(Box::new(v2::Tree::create(mount, unit)?))
    } else {
        Err(Step::Group.failed(unit, Reason::NoGroups))
    }
}

/// Prepares the group `unit`, in which [`create`] created groups, to get processes again. Does nothing in
/// version 1.
///
/// # Errors
///
/// Fails if the kernel refuses.
pub(super) fn release(mounts: &Mounts, unit: &str) -> Result<(), StepError> {
    match &mounts.unified {
        Some(mount) if !mounts.are_v1() => v2::release(mount, unit),
        _ => Ok(()),
    }
}

/// Returns the limit of the control group of `membership` that limits CPU time. `None`: it has none, as the
/// root, or it is not visible.
pub(super) fn bandwidth(mounts: &Mounts, membership: &Membership) -> Option<Bandwidth> {
    if let Some(group) = membership.controllers.get("cpu") {
        return v1::bandwidth(&open(mounts, membership, "cpu", group)?).ok();
    }
    let group = membership.unified.as_ref()?;
    v2::bandwidth(&open(mounts, membership, "cpu", group)?).ok()
}

/// Opens `group`, which is one of `membership` or above it: in the hierarchy of `controller`, or in that of
/// version 2. `None`: it is not visible.
fn open(mounts: &Mounts, membership: &Membership, controller: &str, group: &str) -> Option<Dir> {
    let mount = if membership.controllers.contains_key(controller) {
        mounts.controllers.get(controller)
    } else {
        mounts.unified.as_ref()
    };
    let mount = mount?;
    let root = Dir::open(&mount.point).ok()?;
    root.descend(mount.relative(group)?).ok()
}
