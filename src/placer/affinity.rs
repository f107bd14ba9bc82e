//! The host CPUs that a thread may run on (`sched_setaffinity(2)`), on hosts of any size.

use std::io;

use crate::ids::Tid;
use crate::placement::{Cpu, CpuList, Numbered};
use crate::process::sys::{self, Word};

const BITS: usize = Word::BITS as usize;

/// Returns the host CPUs of `thread` that are online.
///
/// # Errors
///
/// Fails if the thread does not exist.
pub fn affinity(thread: Tid) -> io::Result<CpuList> {
    let mut mask = vec![0; Cpu::LIMIT as usize / BITS];
    sys::get_affinity(thread, &mut mask)?;
    // Nearly all words are 0.
    let words = (0u32..)
        .step_by(BITS)
        .zip(mask)
        .filter(|(_, word)| *word != 0);
    let cpus = words.flat_map(|(first, word)| {
        let is_set = move |bit: &u32| word >> bit & 1 == 1;
        (0..Word::BITS).filter(is_set).map(move |bit| first + bit)
    });
    Ok(cpus.collect())
}

/// Lets `thread` run on `cpus`. The kernel ignores those that are offline or outside of the thread's cpuset.
///
/// # Errors
///
/// Fails with `EINVAL` if none of `cpus` is left, and with `ESRCH` if the thread does not exist.
pub fn set_affinity(thread: Tid, cpus: &CpuList) -> io::Result<()> {
    let last = cpus.iter().last().unwrap_or(0) as usize;
    let mut mask: Vec<Word> = vec![0; last / BITS + 1];
    for number in cpus.iter() {
        mask[number as usize / BITS] |= 1 << (number as usize % BITS);
    }
    sys::set_affinity(thread, &mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the thread of the test.
    fn own() -> Tid {
        let own = rustix::thread::gettid();
        Tid(own.as_raw_nonzero().get().unsigned_abs())
    }

    #[test]
    fn a_thread_runs_on_the_cpus_that_were_set() {
        let all = affinity(own()).unwrap();
        for cpu in all.iter() {
            let one: CpuList = [cpu].into_iter().collect();
            set_affinity(own(), &one).unwrap();
            assert_eq!(affinity(own()).unwrap(), one);
            let cpus = rustix::thread::sched_getaffinity(None).unwrap();
            assert!(cpus.is_set(cpu as usize) && cpus.count() == 1);
        }
        // More CPUs than other interfaces take. The kernel ignores those that the host does not have.
        let many: CpuList = (0..Cpu::LIMIT).collect();
        set_affinity(own(), &many).unwrap();
        assert_eq!(affinity(own()).unwrap(), all);
    }

    #[test]
    fn returns_the_error_of_the_kernel() {
        let none = set_affinity(own(), &CpuList::default()).unwrap_err();
        assert_eq!(none.raw_os_error(), Some(libc::EINVAL));
        for invalid in [0, u32::MAX] {
            let error = affinity(Tid(invalid)).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ESRCH));
        }
    }
}
