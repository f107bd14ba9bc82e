//! The placement of a thread as the kernel has it.

use std::io;

use super::affinity::affinity;
use super::cgroup::{self, Membership, Mounts};
use super::scheduler::scheduling;
use crate::ids::Tid;
use crate::placement::{Bandwidth, CpuList};
use crate::process::{Dir, Tasks};

/// The placement of a thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// The online host CPUs that it may run on.
    pub affinity: CpuList,
    /// The name of its policy.
    pub scheduler: &'static str,
    /// 1 to 99 if the policy has priorities, else 0.
    pub priority: i32,
    /// The control group that limits its CPU time. `None`: the host has no control groups.
    pub control_group: Option<String>,
    /// The limit of this control group. `None`: it has none, as the root, or it is not visible.
    pub bandwidth: Option<Bandwidth>,
}

/// Returns the placement of `thread`, a task of `leader`, on a host with these `mounts`.
///
/// # Errors
///
/// Fails if the thread has ended.
pub fn observe(thread: Tid, leader: &dyn Tasks, mounts: &Mounts) -> io::Result<Observed> {
    let scheduling = scheduling(thread)?;
    let affinity = affinity(thread)?;
    let task = format!("/proc/{}/task/{thread}", leader.pid());
    let cgroup = Dir::open(task)?.read("cgroup").unwrap_or_default();
    // The calls above name it by its number, so it must have been the same thread until here.
    if !leader.has_task(thread) {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    let membership = Membership::parse(&cgroup);
    Ok(Observed {
        affinity,
        scheduler: scheduling.name(),
        priority: scheduling.priority,
        control_group: membership.of_cpu().map(str::to_owned),
        bandwidth: cgroup::bandwidth(mounts, &membership),
    })
}

/// Returns the control groups of the process of `leader`.
///
/// # Errors
///
/// Fails if the process has exited.
pub fn memberships(leader: &dyn Tasks) -> io::Result<Membership> {
    let text = Dir::open(format!("/proc/{}", leader.pid()))?.read("cgroup")?;
    if !leader.has_task(leader.pid().main_thread()) {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    Ok(Membership::parse(&text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Pid;

    /// This process, which the test may report as exited.
    struct Own {
        is_alive: bool,
    }

    impl Tasks for Own {
        fn pid(&self) -> Pid {
            Pid(std::process::id())
        }

        fn has_task(&self, _: Tid) -> bool {
            self.is_alive
        }
    }

    #[test]
    fn does_not_report_a_thread_that_has_ended() {
        let alive = Own { is_alive: true };
        let mounts = Mounts::default();
        let seen = observe(alive.pid().main_thread(), &alive, &mounts).unwrap();
        assert_eq!((seen.scheduler, seen.priority), ("other", 0));
        assert!(memberships(&alive).is_ok());
        assert!(alive.tasks().unwrap().contains(&alive.pid().main_thread()));

        let exited = Own { is_alive: false };
        assert!(observe(exited.pid().main_thread(), &exited, &mounts).is_err());
        assert!(memberships(&exited).is_err());
        assert!(exited.tasks().is_err());
    }
}
