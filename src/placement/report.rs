//! The results of placement passes.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::bandwidth::Bandwidth;
use super::list::CpuList;
use super::scheduler::Scheduler;
use super::unit::Retry;
use crate::ids::{Tid, VcpuId};

/// The steps for one vCPU, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// Creates its control group.
    Group,
    /// Moves its thread into the group.
    Thread,
    /// Sets the host CPUs of the group.
    Cpus,
    /// Sets the memory nodes of the group.
    Nodes,
    /// Sets the period and the quota of the group.
    Bandwidth,
    /// Sets the affinity of the thread.
    Affinity,
    /// Sets the scheduler of the thread.
    Scheduler,
    /// Sets the cache allocation of the thread.
    Cache,
}

/// A controller of control groups that placement uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Controller {
    /// CPU time.
    Cpu,
    /// Host CPUs and memory nodes.
    Cpuset,
}

/// A step that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{step}{}: {reason}", in_parentheses(path))]
pub struct StepError {
    /// The step.
    pub step: Step,
    /// The path of the file, directory or thread.
    pub path: PathBuf,
    /// The reason.
    pub reason: Reason,
}

/// The reason why a step failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The kernel refused.
    #[error("{text}{}", hint.map(|hint| format!(" ({hint})")).unwrap_or_default())]
    Kernel {
        /// The error number (`errno(3)`), if there is one.
        errno: Option<i32>,
        /// The text of the error.
        text: String,
        /// The most likely cause.
        hint: Option<&'static str>,
    },
    /// The hierarchy does not have the controller.
    #[error("the {0} controller is not available in this control group")]
    NoController(Controller),
    /// The machine has no control groups of its own.
    #[error(
        "the machine has no control groups of its own; Placement and PlacementErrors show the reason"
    )]
    NoGroups,
    /// resctrl is not mounted, so caches cannot be allocated.
    #[error(
        "resctrl is not mounted on this host; run \"mount -t resctrl resctrl /sys/fs/resctrl\" and try again"
    )]
    NoResctrl,
    /// The thread does not belong to the machine's QEMU.
    #[error("it is not a thread of the QEMU process of the machine")]
    Foreign,
    /// The thread ended during the step, so another thread may have had its number.
    #[error(
        "the thread ended during the step; if another thread got its number, the change of that thread was undone as far as possible"
    )]
    Ended,
    /// The kernel lets the thread run on a part of the host CPUs only.
    #[error(
        "a cpuset of the unit or of another manager confines the thread to the host CPUs {allowed} of {wanted}; extend the cpuset, or choose other host CPUs"
    )]
    Confined {
        /// The wanted host CPUs that are online.
        wanted: CpuList,
        /// The host CPUs that the thread has.
        allowed: CpuList,
    },
    /// None of the host CPUs is online.
    #[error("the host CPU list {0} has no CPU that is online")]
    Offline(CpuList),
}

/// The result of a pass for one vCPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The steps that changed a value.
    pub applied: Vec<Step>,
    /// The steps that restored a value that another program had changed.
    pub drifted: Vec<Step>,
    /// The steps that failed. The other steps were taken, unless the thread had ended.
    pub failed: Vec<StepError>,
    /// The host CPUs that the kernel lets the thread run on after the pass.
    pub affinity: Option<CpuList>,
    /// The CPU time of the vCPU's group after the pass, as the kernel has it. `None`: the thread is in no
    /// group of its own.
    pub bandwidth: Option<Bandwidth>,
    /// The values to restore later, if there are any.
    pub changed: Option<ChangedThread>,
}

/// The values of a thread that are to be restored when nothing else is wanted. They are persisted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ChangedThread {
    /// The thread.
    pub thread: Tid,
    /// The scheduler that it had before the first one was written, if one was.
    pub scheduler: Option<Scheduler>,
    /// Whether its affinity is one that was written, in place of the one of another manager.
    pub affinity: bool,
}

/// The changed threads of a machine.
pub type ChangedThreads = BTreeMap<VcpuId, ChangedThread>;

/// The result of a pass for one machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The vCPUs with a thread. In boxes, because the map has room for eleven at least.
    pub vcpus: BTreeMap<VcpuId, Box<Outcome>>,
    /// The reason why not all other threads are in the emulator's group.
    pub emulator: Option<StepError>,
    /// The absent vCPUs whose group could not be removed yet.
    pub lingering: Vec<VcpuId>,
    /// Whether another program moved the machine out of its unit. Then no control groups were used.
    pub is_elsewhere: bool,
    /// The default CPUs of the host, if they could be read.
    pub default_cpus: Option<CpuList>,
}

fn in_parentheses(path: &Path) -> String {
    if path.as_os_str().is_empty() {
        String::new()
    } else {
        format!(" ({})", path.display())
    }
}

impl Step {
    /// Returns the error of the kernel that refused this step at `path`.
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

    /// Returns the error of this step at `path`.
    pub fn failed(self, path: impl AsRef<Path>, reason: Reason) -> StepError {
        StepError {
            step: self,
            path: path.as_ref().to_owned(),
            reason,
        }
    }
}

impl StepError {
    /// Returns whether the host or the unit does not support the step.
    pub fn is_unsupported(&self) -> bool {
        matches!(
            self.reason,
            Reason::NoController(_) | Reason::NoGroups | Reason::NoResctrl
        )
    }

    /// Returns whether the thread was not, or no longer, a thread of the machine.
    pub fn is_of_thread(&self) -> bool {
        matches!(self.reason, Reason::Foreign | Reason::Ended)
    }

    /// Returns when the same step may succeed without a change by the administrator. A lack of memory, of
    /// descriptors or of control groups may be temporary, and a group may be busy or about to be replaced.
    pub fn retry(&self) -> Retry {
        match self.errno() {
            None | Some(libc::EACCES | libc::EPERM | libc::EROFS) => Retry::Never,
            Some(_) => Retry::Later,
        }
    }

    /// Returns the error number of the kernel, if the kernel refused.
    pub fn errno(&self) -> Option<i32> {
        match self.reason {
            Reason::Kernel { errno, .. } => errno,
            _ => None,
        }
    }

    /// Returns the error with `meaning` as the most likely cause, if its error number is `when`.
    pub fn hint(mut self, when: i32, meaning: &'static str) -> Self {
        if let Reason::Kernel { errno, hint, .. } = &mut self.reason
            && *errno == Some(when)
        {
            *hint = Some(meaning);
        }
        self
    }
}

impl Outcome {
    /// Returns whether the vCPU had a thread of the machine.
    pub fn has_thread(&self) -> bool {
        !self.failed.iter().any(StepError::is_of_thread)
    }

    /// Notes that `step` changed a value. If the new value was in force before, another program had changed
    /// it.
    pub fn note(&mut self, step: Step, was_in_force: bool) {
        let steps = if was_in_force {
            &mut self.drifted
        } else {
            &mut self.applied
        };
        steps.push(step);
    }
}

impl Report {
    /// Returns whether `vcpu` has a thread.
    pub fn has_thread(&self, vcpu: VcpuId) -> bool {
        let outcome = self.vcpus.get(&vcpu);
        outcome.is_some_and(|outcome| outcome.has_thread())
    }

    /// Returns the vCPUs that do not have all desired values, with each step that failed.
    pub fn failures(&self) -> impl Iterator<Item = (VcpuId, &StepError)> {
        self.vcpus
            .iter()
            .flat_map(|(vcpu, outcome)| outcome.failed.iter().map(|error| (*vcpu, error)))
    }

    /// Returns the host CPUs that those of `vcpus` with a thread may run on, as the kernel has them.
    pub fn affinity(&self, vcpus: impl Fn(VcpuId) -> bool) -> CpuList {
        let of = self.vcpus.iter().filter(|(vcpu, _)| vcpus(**vcpu));
        let lists = of.filter_map(|(_, outcome)| outcome.affinity.as_ref());
        lists.fold(CpuList::default(), |all, list| all.union(list))
    }

    /// Returns the limit of CPU time that no vCPU with a thread exceeds, as the kernel has it. It is
    /// unlimited if one vCPU is.
    pub fn bandwidth(&self) -> Bandwidth {
        let limits = self.vcpus.values().map(|outcome| outcome.bandwidth);
        let looser = |a: Option<Bandwidth>, b: Option<Bandwidth>| {
            let (a, b) = (a?, b?);
            Some(if b.is_looser_than(a) { b } else { a })
        };
        limits
            .reduce(looser)
            .flatten()
            .unwrap_or(Bandwidth::UNLIMITED)
    }

    /// Returns whether all vCPUs have the desired values.
    pub fn is_complete(&self) -> bool {
        self.failures().next().is_none()
    }

    /// Returns whether another pass may succeed where this one failed, without a change of the wanted
    /// values.
    pub fn may_improve(&self) -> bool {
        let is_final = |error: &StepError| error.is_unsupported() || error.is_of_thread();
        let has_failed = self.failures().any(|(_, error)| !is_final(error));
        has_failed || self.emulator.is_some() || !self.lingering.is_empty()
    }
}

impl Controller {
    /// Returns its name in the kernel.
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
            Self::Group => "creating the control group",
            Self::Thread => "moving the thread into the control group",
            Self::Cpus => "setting the group's host CPUs",
            Self::Nodes => "setting the group's memory nodes",
            Self::Bandwidth => "setting the group's period and quota",
            Self::Affinity => "setting the thread's affinity",
            Self::Scheduler => "setting the thread's scheduler",
            Self::Cache => "setting the thread's cache allocation",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(quota: Option<(u64, i64)>, cpus: &str) -> Outcome {
        Outcome {
            bandwidth: quota.map(|(period, quota)| Bandwidth::new(period, quota).unwrap()),
            affinity: Some(cpus.parse().unwrap()),
            ..Outcome::default()
        }
    }

    fn report(outcomes: &[Outcome]) -> Report {
        let vcpus = (0..).map(VcpuId);
        Report {
            vcpus: vcpus.zip(outcomes.iter().cloned().map(Box::new)).collect(),
            ..Report::default()
        }
    }

    #[test]
    fn a_limit_is_in_force_only_if_each_vcpu_has_one() {
        let of = |quotas: &[Option<(u64, i64)>]| {
            let outcomes: Vec<_> = quotas.iter().map(|quota| outcome(*quota, "0")).collect();
            let limit = report(&outcomes).bandwidth();
            (limit.period(), limit.signed_quota())
        };
        let tenth = Some((100_000, 10_000));
        assert_eq!(of(&[]), (100_000, -1));
        assert_eq!(of(&[tenth, tenth]), (100_000, 10_000));
        assert_eq!(of(&[tenth, None]), (100_000, -1), "a vCPU without a group");
        assert_eq!(of(&[Some((50_000, -1)), tenth]).1, -1);
        let fifth = Some((10_000, 2_000));
        assert_eq!(of(&[fifth, tenth]), (10_000, 2_000), "the greater share");
        assert_eq!(of(&[tenth, fifth]), (10_000, 2_000));
    }

    #[test]
    fn only_missing_rights_are_a_final_refusal_of_the_kernel() {
        let refused = |errno| {
            let error = io::Error::from_raw_os_error(errno);
            Step::Group.refused("/x", &error).retry()
        };
        for errno in [libc::EAGAIN, libc::EBUSY, libc::ENOMEM, libc::ENOENT] {
            assert_eq!(refused(errno), Retry::Later, "{errno}");
        }
        for errno in [libc::EACCES, libc::EPERM, libc::EROFS] {
            assert_eq!(refused(errno), Retry::Never, "{errno}");
        }
        let none = Step::Group.failed("/x", Reason::NoGroups);
        assert_eq!(none.retry(), Retry::Never);
    }

    #[test]
    fn the_affinity_in_force_is_that_of_the_selected_vcpus() {
        let report = report(&[outcome(None, "0"), outcome(None, "2-3"), outcome(None, "9")]);
        let affinity = report.affinity(|vcpu| vcpu != VcpuId(2));
        assert_eq!(affinity.to_string(), "0,2-3");
        assert!(report.affinity(|_| false).is_empty());
    }
}
