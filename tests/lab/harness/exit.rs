//! The exit of a process.

use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Returns whether the process `pid` has exited with all its threads, after at most `limit`. Blocks until then.
pub(super) fn has_exited(pid: u32, limit: Duration) -> bool {
    let pid = Pid::from_raw(pid as i32);
    let Some(Ok(process)) = pid.map(|pid| pidfd_open(pid, PidfdFlags::empty())) else {
        return true;
    };
    let limit = Timespec::try_from(limit).expect("it is short");
    let mut polled = [PollFd::new(&process, PollFlags::IN)];
    poll(&mut polled, Some(&limit)).is_ok_and(|ready| ready > 0)
}
