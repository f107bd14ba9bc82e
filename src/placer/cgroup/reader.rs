//! The counters of control groups.

use super::mounts::{Membership, Mounts};
use crate::process::Dir;
use crate::statistics::{Throttling, Usage, group_usage, group_usage_v1, throttling};

/// Reads counters of control groups in either version.
pub(crate) struct GroupReader<'a> {
    mounts: &'a Mounts,
    /// Whether vCPUs have groups of their own. Then the other threads have a group too.
    pub(crate) has_vcpus: bool,
    /// The group that has the last vCPU's, with its path.
    parent: Option<(String, Dir)>,
}

impl<'a> GroupReader<'a> {
    /// Returns the reader for a machine whose main thread has the groups `main`.
    pub(crate) fn new(mounts: &'a Mounts, main: &Membership) -> Self {
        let group = main.of("cpu").unwrap_or_default();
        Self {
            mounts,
            has_vcpus: group.ends_with("/emulator"),
            parent: None,
        }
    }

    /// Returns the throttling of the group of a thread, from the text of its `cgroup` file. `None`: the group is
    /// not that of one vCPU, or has no limits.
    pub(crate) fn throttling(&mut self, cgroup: &str) -> Option<Throttling> {
        let membership = Membership::parse(cgroup);
        let (parent, name) = membership.of("cpu")?.rsplit_once('/')?;
        let number = name.strip_prefix("vcpu")?;
        number.parse::<u32>().ok()?;
        if self.parent.as_ref().is_none_or(|(path, _)| path != parent) {
            let dir = super::open(self.mounts, &membership, "cpu", parent)?;
            self.parent = Some((parent.to_owned(), dir));
        }
        let (_, parent) = self.parent.as_ref()?;
        let group = parent.child(name).ok()?;
        throttling(&group.read("cpu.stat").ok()?)
    }

    /// Returns the CPU times of the groups of a machine, whose main thread has `membership`.
    pub(crate) fn usage(&self, membership: &Membership) -> Usage {
        let usage = || {
            let emulator = membership.of("cpuacct")?;
            let all = emulator.strip_suffix("/emulator")?;
            let usage = |path| {
                let group = super::open(self.mounts, membership, "cpuacct", path)?;
                let v2 = || group_usage(&group.read("cpu.stat").ok()?);
                let v1 = || group_usage_v1(&group.read("cpuacct.usage").ok()?);
                v1().or_else(v2)
            };
            Some(Usage {
                all: usage(all),
                emulator: usage(emulator),
            })
        };
        usage().unwrap_or_default()
    }
}
