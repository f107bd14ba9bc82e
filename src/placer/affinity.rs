//! On which host CPUs a thread may run (`sched_setaffinity(2)`), for hosts of any size.

use std::io;

use super::thread_id;
use crate::ids::Tid;
use crate::placement::{Cpu, CpuList, Numbered};
use crate::process::sys::{self, Word};

const BITS: usize = Word::BITS as usize;

/// The host CPUs of `thread`, as the kernel has them: those that are online only.
pub fn affinity(thread: Tid) -> io::Result<CpuList> {
    let mut mask = vec![0; Cpu::LIMIT as usize / BITS];
    sys::get_affinity(thread_id(thread)?, &mut mask)?;
    let set = |number: &u32| mask[*number as usize / BITS] >> (*number as usize % BITS) & 1 == 1;
    Ok((0..Cpu::LIMIT).filter(set).collect())
}

/// Lets `thread` run on `cpus`. The kernel leaves out those that are offline or outside of the
/// thread's cpuset; if none is left, it refuses with `EINVAL`.
pub fn set_affinity(thread: Tid, cpus: &CpuList) -> io::Result<()> {
    let last = cpus.iter().last().unwrap_or(0) as usize;
    let mut mask: Vec<Word> = vec![0; last / BITS + 1];
    for number in cpus.iter() {
        mask[number as usize / BITS] |= 1 << (number as usize % BITS);
    }
    sys::set_affinity(thread_id(thread)?, &mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On this thread alone: the kernel's own.
    fn own() -> Tid {
        let own = rustix::thread::gettid();
        Tid(own.as_raw_nonzero().get().unsigned_abs())
    }

    #[test]
    fn a_thread_runs_where_it_is_told() {
        let all = affinity(own()).unwrap();
        for cpu in all.iter() {
            let one: CpuList = [cpu].into_iter().collect();
            set_affinity(own(), &one).unwrap();
            assert_eq!(affinity(own()).unwrap(), one);
            let cpus = rustix::thread::sched_getaffinity(None).unwrap();
            assert!(cpus.is_set(cpu as usize) && cpus.count() == 1);
        }
        // More CPUs than any other interface takes; the kernel leaves out what there is not.
        let many: CpuList = (0..Cpu::LIMIT).collect();
        set_affinity(own(), &many).unwrap();
        assert_eq!(affinity(own()).unwrap(), all);
    }

    #[test]
    fn the_kernels_answer_is_told() {
        let none = set_affinity(own(), &CpuList::default()).unwrap_err();
        assert_eq!(none.raw_os_error(), Some(libc::EINVAL));
        for nobody in [0, u32::MAX] {
            let error = affinity(Tid(nobody)).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ESRCH));
        }
    }
}
