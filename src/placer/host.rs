//! The kernel's interfaces of the host that vCPUs are placed with.

use std::io;
use std::path::PathBuf;

use super::cgroup::Mounts;
use super::cpus::host_cpus;
use crate::placement::{HostCpus, Step, StepError};
use crate::process::Dir;

/// The paths of the kernel's interfaces.
#[derive(Clone, Debug)]
pub struct Host {
    /// The directory of its CPUs and memory nodes: `/sys/devices/system`.
    pub system: PathBuf,
    /// The mounts of control groups and resctrl when this was created.
    pub mounts: Mounts,
}

impl Host {
    /// Returns the host that vcpud runs on, with the current mounts. Blocks.
    ///
    /// # Errors
    ///
    /// Fails if the mounts cannot be read.
    pub fn this() -> io::Result<Self> {
        let own = Dir::open(format!("/proc/{}", std::process::id()))?;
        Ok(Self {
            system: "/sys/devices/system".into(),
            mounts: Mounts::parse(&own.read("mountinfo")?),
        })
    }

    /// Returns the current CPUs and memory nodes. Blocks.
    ///
    /// # Errors
    ///
    /// Fails if the kernel's files cannot be read.
    pub fn cpus(&self) -> Result<HostCpus, StepError> {
        host_cpus(&self.system).map_err(|(path, error)| Step::Affinity.refused(path, &error))
    }

    /// Returns the directory where resctrl is mounted, if it is.
    pub(super) fn resctrl(&self) -> Option<PathBuf> {
        self.mounts.resctrl.clone()
    }
}
