//! The system calls that no safe wrapper covers: the only unsafe code of the crate.
//!
//! nix and rustix end affinity masks at 1024 CPUs and have no `sched_setscheduler(2)`, and nobody
//! can know but the service itself that the descriptors it was started with are its own. Each
//! function here checks its arguments, hands the kernel memory that it owns for the time of the
//! call, and returns the kernel's answer.

#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// Words of the kernel's CPU masks, lowest CPUs first.
pub(crate) type Word = libc::c_ulong;

/// The mask of `thread` into `mask`, whose length is what the caller is ready for; less than the
/// kernel needs is `EINVAL` (`sched_getaffinity(2)`).
pub(crate) fn get_affinity(thread: libc::pid_t, mask: &mut [Word]) -> io::Result<()> {
    mask.fill(0);
    // SAFETY: the pointer and the length are those of `mask`, which is borrowed exclusively and
    // made of the unsigned longs that a `cpu_set_t` is made of. No bit pattern is invalid.
    let result =
        unsafe { libc::sched_getaffinity(thread, size_of_val(mask), mask.as_mut_ptr().cast()) };
    check(result)
}

/// Makes `mask` the mask of `thread` (`sched_setaffinity(2)`).
pub(crate) fn set_affinity(thread: libc::pid_t, mask: &[Word]) -> io::Result<()> {
    // SAFETY: the pointer and the length are those of `mask`, which the kernel only reads.
    let result =
        unsafe { libc::sched_setaffinity(thread, size_of_val(mask), mask.as_ptr().cast()) };
    check(result)
}

/// The policy and the priority of `thread` (`sched_getscheduler(2)`, `sched_getparam(2)`).
pub(crate) fn get_scheduler(thread: libc::pid_t) -> io::Result<(i32, i32)> {
    let mut parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: takes a number only.
    let policy = unsafe { libc::sched_getscheduler(thread) };
    if policy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `parameters` is a whole `sched_param` of our own, written before the call returns.
    let result = unsafe { libc::sched_getparam(thread, &mut parameters) };
    check(result)?;
    Ok((policy, parameters.sched_priority))
}

/// Gives `thread` a policy and a priority (`sched_setscheduler(2)`).
pub(crate) fn set_scheduler(thread: libc::pid_t, policy: i32, priority: i32) -> io::Result<()> {
    let parameters = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: `parameters` is a whole `sched_param` of our own, which the kernel only reads.
    let result = unsafe { libc::sched_setscheduler(thread, policy, &parameters) };
    check(result)
}

/// Takes the ownership of the descriptors that the service was started with, by name; of several
/// with one name the last. Later calls find none.
pub fn inherited(descriptors: Vec<(String, RawFd)>) -> BTreeMap<String, OwnedFd> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return BTreeMap::new();
    }
    let mut owned: BTreeMap<RawFd, (String, OwnedFd)> = BTreeMap::new();
    for (name, fd) in descriptors {
        // SAFETY: systemd opened it for this process before it began (sd_listen_fds(3) has
        // checked that it is meant), numbers from 3 on that nothing in the process knows of; each
        // is taken once, as a map has each number once and this is run through once.
        if fd >= FIRST_INHERITED && !owned.contains_key(&fd) && is_open(fd) {
            owned.insert(fd, (name, unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    owned.into_values().collect()
}

/// `SD_LISTEN_FDS_START`.
const FIRST_INHERITED: RawFd = 3;

fn is_open(fd: RawFd) -> bool {
    // SAFETY: takes numbers only, and changes nothing.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
