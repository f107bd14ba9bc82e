//! Where a thread is, as the kernel has it and not as it is remembered.

use std::io;

use super::{Membership, affinity, scheduling};
use crate::ids::Tid;
use crate::placement::CpuList;
use crate::process::{Dir, Tasks};

/// Where a thread is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// The host CPUs that it may run on, of those that are online.
    pub affinity: CpuList,
    /// Its policy.
    pub scheduler: &'static str,
    /// 1 to 99 where the policy has priorities, else 0.
    pub priority: i32,
    /// The control group that decides over its CPU time, where there are any.
    pub control_group: Option<String>,
}

/// Where `thread`, a task of `leader`, is now.
pub fn observe(thread: Tid, leader: &dyn Tasks) -> io::Result<Observed> {
    let scheduling = scheduling(thread)?;
    let affinity = affinity(thread)?;
    let task = format!("/proc/{}/task/{thread}", leader.pid());
    let cgroup = Dir::open(task)?.read("cgroup").unwrap_or_default();
    // Looked at by its number alone, so it must have been the same until here.
    if !leader.has_task(thread) {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    Ok(Observed {
        affinity,
        scheduler: scheduling.name(),
        priority: scheduling.priority,
        control_group: Membership::parse(&cgroup).of_cpu().map(str::to_owned),
    })
}

/// The control groups that the process of `leader` is in.
pub fn memberships(leader: &dyn Tasks) -> io::Result<Membership> {
    let text = Dir::open(format!("/proc/{}", leader.pid()))?.read("cgroup")?;
    match leader.has_task(leader.pid().main_thread()) {
        true => Ok(Membership::parse(&text)),
        false => Err(io::Error::from_raw_os_error(libc::ESRCH)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Pid;

    /// This process, which may be said to be gone.
    struct Own {
        is_there: bool,
    }

    impl Tasks for Own {
        fn pid(&self) -> Pid {
            Pid(std::process::id())
        }

        fn has_task(&self, _: Tid) -> bool {
            self.is_there
        }
    }

    #[test]
    fn what_was_seen_of_a_thread_that_is_gone_is_not_told() {
        let there = Own { is_there: true };
        let seen = observe(there.pid().main_thread(), &there).unwrap();
        assert_eq!((seen.scheduler, seen.priority), ("other", 0));
        assert!(memberships(&there).is_ok());
        assert!(there.tasks().unwrap().contains(&there.pid().main_thread()));

        let gone = Own { is_there: false };
        assert!(observe(gone.pid().main_thread(), &gone).is_err());
        assert!(memberships(&gone).is_err());
        assert!(gone.tasks().is_err());
    }
}
