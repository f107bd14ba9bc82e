//! The system calls that no safe wrapper covers: the only unsafe code of the crate.
//!
//! nix and rustix end affinity masks at 1024 CPUs and have no `sched_setscheduler(2)`. Each
//! function here checks its arguments, hands the kernel memory that it owns for the time of the
//! call, and returns the kernel's answer.

#![allow(unsafe_code)]

use std::io;

/// Words of the kernel's CPU masks, lowest CPUs first.
pub(super) type Word = libc::c_ulong;

/// The mask of `thread` into `mask`, whose length is what the caller is ready for; less than the
/// kernel needs is `EINVAL` (`sched_getaffinity(2)`).
pub(super) fn get_affinity(thread: libc::pid_t, mask: &mut [Word]) -> io::Result<()> {
    mask.fill(0);
    // SAFETY: the pointer and the length are those of `mask`, which is borrowed exclusively and
    // made of the unsigned longs that a `cpu_set_t` is made of. No bit pattern is invalid.
    let result =
        unsafe { libc::sched_getaffinity(thread, size_of_val(mask), mask.as_mut_ptr().cast()) };
    check(result)
}

/// Makes `mask` the mask of `thread` (`sched_setaffinity(2)`).
pub(super) fn set_affinity(thread: libc::pid_t, mask: &[Word]) -> io::Result<()> {
    // SAFETY: the pointer and the length are those of `mask`, which the kernel only reads.
    let result =
        unsafe { libc::sched_setaffinity(thread, size_of_val(mask), mask.as_ptr().cast()) };
    check(result)
}

/// The policy and the priority of `thread` (`sched_getscheduler(2)`, `sched_getparam(2)`).
pub(super) fn get_scheduler(thread: libc::pid_t) -> io::Result<(i32, i32)> {
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
pub(super) fn set_scheduler(thread: libc::pid_t, policy: i32, priority: i32) -> io::Result<()> {
    let parameters = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: `parameters` is a whole `sched_param` of our own, which the kernel only reads.
    let result = unsafe { libc::sched_setscheduler(thread, policy, &parameters) };
    check(result)
}

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
