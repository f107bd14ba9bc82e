//! The affinity masks of threads that move to other cpusets. Before Linux 6.2 the kernel lets a thread run on
//! all host CPUs of its new cpuset, also when systemd enables the `cpuset` controller of version 2. Since then
//! it keeps the masks that were set.

use super::affinity::{affinity, set_affinity};
use crate::ids::Tid;
use crate::placement::CpuList;
use crate::process::Tasks;

/// The affinity mask that a thread had.
#[derive(Debug)]
pub(super) struct Mask {
    thread: Tid,
    cpus: CpuList,
}

/// The affinity masks that the threads of a process had.
#[derive(Debug, Default)]
pub struct Masks(Vec<Mask>);

impl Mask {
    /// Returns the mask that `thread` has. `None`: the thread has ended.
    pub(super) fn of(thread: Tid) -> Option<Self> {
        let cpus = affinity(thread).ok()?;
        Some(Self { thread, cpus })
    }

    /// Sets the mask again if the kernel has extended it, and the thread is a task of `leader`. A mask that
    /// the new cpuset has narrowed stays narrower.
    pub(super) fn restore(&self, leader: &dyn Tasks) {
        let Some(held) = leader.hold(self.thread) else {
            return;
        };
        let Ok(extended) = affinity(self.thread) else {
            return;
        };
        if extended.difference(&self.cpus).is_empty() {
            return;
        }
        // The kernel refuses if the new cpuset has none of these host CPUs.
        if set_affinity(self.thread, &self.cpus).is_ok() && !held.is_alive() {
            let is_written = affinity(self.thread).is_ok_and(|cpus| cpus == self.cpus);
            // Another thread may have got the number.
            if is_written {
                let _ = set_affinity(self.thread, &extended);
            }
        }
    }
}

impl Masks {
    /// Returns the masks of all threads of `leader`. Blocks.
    pub fn read(leader: &dyn Tasks) -> Self {
        let threads = leader.tasks().unwrap_or_default().into_iter();
        Self(threads.filter_map(Mask::of).collect())
    }

    /// Sets the masks again that the kernel has extended. Blocks.
    pub fn restore(&self, leader: &dyn Tasks) {
        for mask in &self.0 {
            mask.restore(leader);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::ids::Pid;

    /// This process. Its threads are foreign if `is_other`.
    struct Own {
        is_other: bool,
    }

    impl Tasks for Own {
        fn pid(&self) -> Pid {
            Pid(std::process::id())
        }

        fn has_task(&self, thread: Tid) -> bool {
            let path = format!("/proc/{}/task/{thread}", self.pid());
            !self.is_other && Path::new(&path).exists()
        }
    }

    fn list(cpu: u32) -> CpuList {
        [cpu].into_iter().collect()
    }

    #[test]
    fn sets_a_mask_again_that_was_extended() {
        let own = rustix::thread::gettid();
        let own = Tid(own.as_raw_nonzero().get().unsigned_abs());
        let all = affinity(own).unwrap();
        let first = all.iter().next().unwrap();
        set_affinity(own, &list(first)).unwrap();
        let masks = Masks::read(&Own { is_other: false });
        set_affinity(own, &all).unwrap();
        masks.restore(&Own { is_other: true });
        assert_eq!(affinity(own).unwrap(), all, "a thread of another process");
        masks.restore(&Own { is_other: false });
        assert_eq!(affinity(own).unwrap(), list(first));

        set_affinity(own, &all).unwrap();
        let wide = Mask::of(own).unwrap();
        set_affinity(own, &list(first)).unwrap();
        wide.restore(&Own { is_other: false });
        assert_eq!(affinity(own).unwrap(), list(first), "it was narrowed");
        set_affinity(own, &all).unwrap();
    }
}
