//! The scheduling policy and the priority of a thread (`sched_setscheduler(2)`).

use std::io;

use crate::ids::Tid;
use crate::placement::Scheduler;
use crate::process::sys;

/// A policy and a priority as the kernel has them. vCPUs never get some of the policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheduling {
    policy: i32,
    /// 1 to 99 where the policy has priorities, else 0.
    pub priority: i32,
}

impl Scheduling {
    /// Returns the name of the policy.
    pub fn name(self) -> &'static str {
        match self.policy {
            libc::SCHED_OTHER => "other",
            libc::SCHED_BATCH => "batch",
            libc::SCHED_IDLE => "idle",
            libc::SCHED_FIFO => "fifo",
            libc::SCHED_RR => "rr",
            libc::SCHED_DEADLINE => "deadline",
            SCHED_EXT => "ext",
            _ => "unknown",
        }
    }

    /// Returns the scheduler, if vCPUs can get one of this policy.
    pub fn scheduler(self) -> Option<Scheduler> {
        Scheduler::new(self.name(), self.priority).ok()
    }
}

impl From<Scheduler> for Scheduling {
    fn from(scheduler: Scheduler) -> Self {
        let policy = match scheduler {
            Scheduler::Other => libc::SCHED_OTHER,
            Scheduler::Batch => libc::SCHED_BATCH,
            Scheduler::Idle => libc::SCHED_IDLE,
            Scheduler::Fifo(_) => libc::SCHED_FIFO,
            Scheduler::Rr(_) => libc::SCHED_RR,
        };
        let priority = scheduler.priority();
        Self { policy, priority }
    }
}

/// `SCHED_EXT` of Linux 6.12.
const SCHED_EXT: i32 = 7;

/// Returns the policy and the priority of `thread`.
///
/// # Errors
///
/// Fails if the thread does not exist.
pub fn scheduling(thread: Tid) -> io::Result<Scheduling> {
    let (policy, priority) = sys::get_scheduler(thread)?;
    Ok(Scheduling {
        policy: policy & !libc::SCHED_RESET_ON_FORK,
        priority,
    })
}

/// Sets the scheduler of `thread`.
///
/// # Errors
///
/// Fails if the kernel refuses or the thread does not exist.
pub fn set_scheduler(thread: Tid, scheduler: Scheduler) -> io::Result<()> {
    let Scheduling { policy, priority } = scheduler.into();
    sys::set_scheduler(thread, policy, priority)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_has_the_scheduler_that_was_set() {
        let own = rustix::thread::gettid();
        let own = Tid(own.as_raw_nonzero().get().unsigned_abs());
        for scheduler in [
            Scheduler::Batch,
            Scheduler::Idle,
            Scheduler::Rr(3),
            Scheduler::Fifo(99),
            Scheduler::Other,
        ] {
            set_scheduler(own, scheduler).unwrap();
            let is = scheduling(own).unwrap();
            assert_eq!(is.scheduler(), Some(scheduler));
            assert_eq!(
                (is.name(), is.priority),
                (scheduler.policy(), scheduler.priority())
            );
        }
        assert_eq!(
            scheduling(Tid(0)).unwrap_err().raw_os_error(),
            Some(libc::ESRCH)
        );
    }
}
