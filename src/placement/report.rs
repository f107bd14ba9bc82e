//! What came of bringing vCPUs to where they are wanted.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::CpuList;
use crate::ids::VcpuId;

/// The steps for one vCPU, in the order in which they are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// Its control group is made.
    Group,
    /// Its thread is moved there.
    Thread,
    /// The host CPUs of the group.
    Cpus,
    /// The memory nodes of the group.
    Nodes,
    /// The period and quota of the group.
    Bandwidth,
    /// The affinity of the thread.
    Affinity,
    /// The scheduler of the thread.
    Scheduler,
    /// The share of caches of the thread.
    Cache,
}

/// A controller of control groups that vCPUs need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Controller {
    /// CPU time.
    Cpu,
    /// Host CPUs and memory nodes.
    Cpuset,
}

/// A step that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{step} ({}): {reason}", path.display())]
pub struct StepError {
    /// Which.
    pub step: Step,
    /// The file, directory or thread.
    pub path: PathBuf,
    /// Why.
    pub reason: Reason,
}

/// Why a step failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The kernel refused.
    #[error("{text}{}", hint.map(|hint| format!(" ({hint})")).unwrap_or_default())]
    Kernel {
        /// The kernel's answer (`errno(3)`), where it gave one.
        errno: Option<i32>,
        /// The same in words.
        text: String,
        /// What it most likely means here.
        hint: Option<&'static str>,
    },
    /// The hierarchy has no such controller here, so this cannot be had.
    #[error("the {0} controller is not available here")]
    NoController(Controller),
    /// The machine has no control groups of its own, so this cannot be had.
    #[error("the machine has no control groups of its own")]
    NoGroups,
    /// resctrl is not mounted, so no share of caches can be had.
    #[error(
        "resctrl is not mounted on this host; run \"mount -t resctrl resctrl /sys/fs/resctrl\" and try again"
    )]
    NoResctrl,
    /// The thread is not one of the machine's QEMU.
    #[error("it is not a thread of the machine's QEMU")]
    Foreign,
    /// The thread ended while it was placed, so that its number may have been another thread's.
    #[error(
        "the thread ended while it was placed; if another thread has its number, that was placed and put back as far as possible"
    )]
    Ended,
    /// None of the host CPUs runs.
    #[error("none of the host CPUs {0} is online")]
    Offline(CpuList),
}

/// What came of one vCPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What was changed.
    pub applied: Vec<Step>,
    /// What had been in force, was changed from outside, and is in force again.
    pub drifted: Vec<Step>,
    /// The step that failed; those after it were not taken.
    pub failed: Option<StepError>,
}

/// What came of one pass over a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The vCPUs with a thread.
    pub vcpus: BTreeMap<VcpuId, Outcome>,
    /// Why the threads that are no vCPUs are not all in their group.
    pub emulator: Option<StepError>,
    /// The vCPUs that are gone while their group would not go yet.
    pub lingering: Vec<VcpuId>,
}

impl Step {
    /// The error of a kernel that refused this step at `path`.
    pub fn refused(self, path: impl AsRef<Path>, error: &io::Error) -> StepError {
        let errno = error.raw_os_error();
        self.failed(
            path,
            Reason::Kernel {
                errno,
                text: error.to_string(),
                hint: None,
            },
        )
    }

    /// The error of this step at `path`.
    pub fn failed(self, path: impl AsRef<Path>, reason: Reason) -> StepError {
        StepError {
            step: self,
            path: path.as_ref().to_owned(),
            reason,
        }
    }
}

impl StepError {
    /// Whether this can never be had here, whatever is tried.
    pub fn is_unsupported(&self) -> bool {
        matches!(
            self.reason,
            Reason::NoController(_) | Reason::NoGroups | Reason::NoResctrl
        )
    }

    /// The kernel's answer, where it was the kernel.
    pub fn errno(&self) -> Option<i32> {
        match self.reason {
            Reason::Kernel { errno, .. } => errno,
            _ => None,
        }
    }

    /// The same with what the kernel's answer most likely means, where it answered `errno`.
    pub fn hint(mut self, when: i32, meaning: &'static str) -> Self {
        if let Reason::Kernel { errno, hint, .. } = &mut self.reason
            && *errno == Some(when)
        {
            *hint = Some(meaning);
        }
        self
    }
}

impl Report {
    /// The vCPUs that are not where they are wanted, with the step that failed.
    pub fn failures(&self) -> impl Iterator<Item = (VcpuId, &StepError)> {
        self.vcpus
            .iter()
            .filter_map(|(vcpu, outcome)| Some((*vcpu, outcome.failed.as_ref()?)))
    }

    /// Whether every vCPU is where it is wanted.
    pub fn is_complete(&self) -> bool {
        self.failures().next().is_none()
    }
}

impl Controller {
    /// Its name in the kernel.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cpuset => "cpuset",
        }
    }
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Group => "making the control group",
            Self::Thread => "moving the thread into the control group",
            Self::Cpus => "setting the group's host CPUs",
            Self::Nodes => "setting the group's memory nodes",
            Self::Bandwidth => "setting the group's period and quota",
            Self::Affinity => "setting the thread's affinity",
            Self::Scheduler => "setting the thread's scheduler",
            Self::Cache => "setting the thread's share of caches",
        })
    }
}
