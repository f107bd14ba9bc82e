//! The control groups of one machine: `UNIT/vcpud/vcpuN` for each vCPU and `UNIT/vcpud/emulator` for all
//! other threads, in version 1 or 2 (`cgroups(7)`).
//!
//! vcpud writes no attributes of the unit's own group, except in version 2 the controllers of its
//! delegated part. It does not touch the hierarchy that systemd keeps for itself (`name=systemd`).

mod groups;
mod mounts;
mod v1;
mod v2;

use crate::placement::{Reason, Step, StepError};

pub(super) use groups::{CpusetFile, Groups};
pub use mounts::{Membership, Mount, Mounts};

/// Creates the groups of the machine whose unit has the control group `unit`, as systemd and
/// `/proc/PID/cgroup` write it.
///
/// # Errors
///
/// Fails if the host has no control groups, if `unit` is the root, or if the kernel refuses.
pub(super) fn create(mounts: &Mounts, unit: &str) -> Result<Box<dyn Groups>, StepError> {
    // The root group has all processes that no program put into another group.
    if unit.trim_matches('/').is_empty() {
        return Err(Step::Group.failed("/", Reason::NoGroups));
    }
    if mounts.are_v1() {
        Ok(Box::new(v1::Tree::create(mounts, unit)?))
    } else if let Some(mount) = &mounts.unified {
        Ok(Box::new(v2::Tree::create(mount, unit)?))
    } else {
        Err(Step::Group.failed(unit, Reason::NoGroups))
    }
}
