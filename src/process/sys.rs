//! The system calls that no safe wrapper covers: the only unsafe code of the crate.
//!
//! The affinity masks of nix and rustix end at 1024 CPUs, neither has `sched_setscheduler(2)`, and only
//! vcpud itself knows that it owns the descriptors that it was started with. Each function checks its
//! arguments, passes memory to the kernel that lives as long as the call, and returns the kernel's
//! answer.

#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::ids::Tid;

/// A word of the kernel's CPU masks, which start with the lowest CPUs.
pub(crate) type Word = libc::c_ulong;

/// Reads the affinity mask of `thread` into `mask` (`sched_getaffinity(2)`).
///
/// # Errors
///
/// Fails with `EINVAL` if `mask` is shorter than the kernel's masks, and with `ESRCH` if the thread does
/// not exist.
pub(crate) fn get_affinity(thread: Tid, mask: &mut [Word]) -> io::Result<()> {
    let thread = raw(thread)?;
    mask.fill(0);
    // SAFETY: the pointer and the length are those of `mask`, which is borrowed exclusively and
    // made of the unsigned longs that a `cpu_set_t` is made of. No bit pattern is invalid.
    let result =
        unsafe { libc::sched_getaffinity(thread, size_of_val(mask), mask.as_mut_ptr().cast()) };
    check(result)
}

/// Sets the affinity mask of `thread` (`sched_setaffinity(2)`).
///
/// # Errors
///
/// Fails with `EINVAL` if the thread may run on none of the CPUs, and with `ESRCH` if it does not exist.
pub(crate) fn set_affinity(thread: Tid, mask: &[Word]) -> io::Result<()> {
    let thread = raw(thread)?;
    // SAFETY: the pointer and the length are those of `mask`, which the kernel only reads.
    let result =
        unsafe { libc::sched_setaffinity(thread, size_of_val(mask), mask.as_ptr().cast()) };
    check(result)
}

/// Returns the policy and the priority of `thread` (`sched_getscheduler(2)`, `sched_getparam(2)`).
///
/// # Errors
///
/// Fails with `ESRCH` if the thread does not exist.
pub(crate) fn get_scheduler(thread: Tid) -> io::Result<(i32, i32)> {
    let thread = raw(thread)?;
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

/// Sets the policy and the priority of `thread` (`sched_setscheduler(2)`).
///
/// # Errors
///
/// Fails if the kernel refuses, and with `ESRCH` if the thread does not exist.
pub(crate) fn set_scheduler(thread: Tid, policy: i32, priority: i32) -> io::Result<()> {
    let thread = raw(thread)?;
    let parameters = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: `parameters` is a whole `sched_param` of our own, which the kernel only reads.
    let result = unsafe { libc::sched_setscheduler(thread, policy, &parameters) };
    check(result)
}

/// Takes the descriptors that the program was started with, with their names. A second call returns none.
pub fn inherited(descriptors: Vec<(String, RawFd)>) -> Vec<(String, OwnedFd)> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Vec::new();
    }
    let mut owned: BTreeMap<RawFd, (String, OwnedFd)> = BTreeMap::new();
    for (name, fd) in descriptors {
        if fd >= FIRST_INHERITED && !owned.contains_key(&fd) && is_open(fd) {
            // SAFETY: systemd opened it for this process before the process began (sd_listen_fds(3)
            // has checked that), with a number from 3 on that nothing else in the process uses. `TAKEN`
            // and the keys of the map let each number be taken once.
            let owner = unsafe { OwnedFd::from_raw_fd(fd) };
            owned.insert(fd, (name, owner));
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

/// Returns `thread` as the kernel takes it. 0 would be the calling thread, so it is refused.
fn raw(thread: Tid) -> io::Result<libc::pid_t> {
    match libc::pid_t::try_from(thread.get()) {
        Ok(thread) if thread > 0 => Ok(thread),
        _ => Err(io::Error::from_raw_os_error(libc::ESRCH)),
    }
}
