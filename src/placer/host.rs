//! The kernel's interfaces of the host that vCPUs are placed with.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::cgroup::Mounts;
use super::cpus::host_cpus;
use crate::placement::{CpuList, HostCpus, Step, StepError};
use crate::process::Dir;

/// The paths of the kernel's interfaces.
#[derive(Clone, Debug)]
pub struct Host {
    /// The directory of its CPUs and memory nodes: `/sys/devices/system`.
    pub system: PathBuf,
    /// The mounts of control groups and resctrl when this was created.
    pub mounts: Arc<Mounts>,
    /// The directory with the current `mountinfo`: `/proc/PID` of vcpud.
    pub process: PathBuf,
}

impl Host {
    /// Returns the host that vcpud runs on, with the current mounts. Blocks.
    ///
    /// # Errors
    ///
    /// Fails if the mounts cannot be read.
    pub fn this() -> io::Result<Self> {
        let process = PathBuf::from(format!("/proc/{}", std::process::id()));
        Ok(Self {
            system: "/sys/devices/system".into(),
            mounts: read_mounts(&process)?.into(),
            process,
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

    /// Returns the host CPUs of vCPUs that have no others of their own; `None` if they cannot be read.
    /// Blocks.
    pub fn read_default_cpus(&self) -> Option<CpuList> {
        self.cpus().ok().as_ref().map(HostCpus::default_cpus)
    }

    /// Returns whether resctrl is mounted. Blocks.
    pub fn has_resctrl(&self) -> bool {
        self.resctrl().is_some()
    }

    /// Returns the directory where resctrl is mounted, if it is. Administrators may mount and unmount it at
    /// any time, so the mounts are read again. Blocks.
    pub(super) fn resctrl(&self) -> Option<PathBuf> {
        match read_mounts(&self.process) {
            Ok(mounts) => mounts.resctrl,
            Err(_) => self.mounts.resctrl.clone(),
        }
    }
}

fn read_mounts(process: &PathBuf) -> io::Result<Mounts> {
    Ok(Mounts::parse(&Dir::open(process)?.read("mountinfo")?))
}
