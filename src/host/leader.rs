//! The leader: the QEMU process behind a QMP socket, held so that its PID cannot be reused.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{getsockopt, sockopt};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

use super::Dir;

/// A process held by a pidfd (`pidfd_open(2)`).
#[derive(Debug)]
pub struct Leader {
    pid: Pid,
    pidfd: AsyncFd<OwnedFd>,
}

/// What names one process of all that ever were since the host's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its PID.
    pub pid: u32,
    /// When it started, in clock ticks after the host (`starttime` in `proc_pid_stat(5)`).
    pub start: u64,
}

/// The process behind a socket cannot be held.
#[derive(Debug, thiserror::Error)]
pub enum LeaderError {
    /// It ended already, or lives in a PID namespace that is not ours.
    #[error("the process that listens on the QMP socket cannot be seen from here")]
    Invisible,
    /// There is no process of this PID.
    #[error("there is no such process")]
    NoProcess,
    /// It is not what it was: a program that gives its users more rights than they have, say.
    #[error("user {then} listened on the QMP socket with a process that is user {now}'s by now")]
    OtherUser {
        /// Who listened.
        then: u32,
        /// Whose process it is.
        now: u32,
    },
    /// The kernel refused.
    #[error("the process that listens on the QMP socket cannot be held: {0}")]
    Kernel(#[from] io::Error),
}

/// The threads of one process, which is held so that no other can take its PID.
pub trait Tasks {
    /// The PID of the process.
    fn pid(&self) -> u32;

    /// Whether `thread` is a task of the process, now.
    fn has_task(&self, thread: u32) -> bool;

    /// All tasks of the process, now.
    fn tasks(&self) -> io::Result<Vec<u32>> {
        let tasks = Dir::open(format!("/proc/{}/task", self.pid()))?.children()?;
        // Read before the look, so that they were this process's and not a successor's.
        match self.has_task(self.pid()) {
            true => Ok(tasks.iter().filter_map(|task| task.parse().ok()).collect()),
            false => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        }
    }
}

impl Tasks for Leader {
    fn pid(&self) -> u32 {
        self.pid()
    }

    fn has_task(&self, thread: u32) -> bool {
        self.has_task(thread)
    }
}

impl Leader {
    /// The process that listens on the other side of `stream` (`SO_PEERPIDFD`, Linux 6.5, else
    /// `SO_PEERCRED` in `unix(7)`).
    pub fn of_peer(stream: &UnixStream) -> Result<Self, LeaderError> {
        let peer = stream.peer_cred()?;
        let pid = peer.pid().and_then(Pid::from_raw);
        let pid = pid.ok_or(LeaderError::Invisible)?;
        let pidfd = match getsockopt(stream, sockopt::PeerPidfd) {
            Ok(pidfd) => pidfd,
            Err(_) => pidfd_open(pid, PidfdFlags::empty()).map_err(|errno| match errno {
                rustix::io::Errno::SRCH => LeaderError::Invisible,
                other => LeaderError::Kernel(other.into()),
            })?,
        };
        let leader = Self::hold(pid, pidfd)?;
        // What root started may run as anybody since.
        match (peer.uid(), leader.user()?) {
            (then, now) if then != 0 && then != now => Err(LeaderError::OtherUser { then, now }),
            _ => Ok(leader),
        }
    }

    /// The process that listens on the other side of `stream`, which was held by `pidfd` before.
    pub fn of_peer_held_by(stream: &UnixStream, pidfd: OwnedFd) -> Result<Self, LeaderError> {
        let peer = Self::of_peer(stream)?;
        let held = Self::hold(peer.pid, pidfd)?;
        // The PID may be another's by now, if the one that was held has exited.
        match held.has_exited() {
            true => Err(LeaderError::Invisible),
            false => Ok(held),
        }
    }

    /// The process `pid`, whoever that is now.
    pub fn of_pid(pid: u32) -> Result<Self, LeaderError> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or(LeaderError::NoProcess)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|errno| match errno {
            // A thread that leads no process is EINVAL, or ENOENT in newer kernels.
            rustix::io::Errno::SRCH | rustix::io::Errno::INVAL | rustix::io::Errno::NOENT => {
                LeaderError::NoProcess
            }
            other => LeaderError::Kernel(other.into()),
        })?;
        Self::hold(pid, pidfd)
    }

    fn hold(pid: Pid, pidfd: OwnedFd) -> Result<Self, LeaderError> {
        #[expect(deprecated, reason = "sound here: an OwnedFd owns its one descriptor")]
        let pidfd = AsyncFd::new(pidfd)?;
        Ok(Self { pid, pidfd })
    }

    /// The user that it runs as, now (the effective one).
    pub fn user(&self) -> io::Result<u32> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let user = effective_user(&status).ok_or(io::ErrorKind::InvalidData)?;
        match self.has_exited() {
            true => Err(io::ErrorKind::NotFound.into()),
            false => Ok(user),
        }
    }

    /// Its PID. It is this process's and no other's as long as it did not exit.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_pid().unsigned_abs()
    }

    /// What names it, also to another run of the service.
    pub fn id(&self) -> io::Result<ProcessId> {
        let pid = self.pid();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let start = start_time(&stat).ok_or(io::ErrorKind::InvalidData)?;
        match self.has_exited() {
            true => Err(io::ErrorKind::NotFound.into()),
            false => Ok(ProcessId { pid, start }),
        }
    }

    /// The descriptor that holds it.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.get_ref().as_fd()
    }

    /// Waits until the process has exited.
    pub async fn exited(&self) {
        // A pidfd becomes readable when its process exits, and stays so.
        let _ = self.pidfd.readable().await;
    }

    /// Whether the process has exited.
    pub fn has_exited(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut fds = [PollFd::new(self.pidfd.get_ref(), PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    /// Whether `thread` is a task of this process, now.
    pub fn has_task(&self, thread: u32) -> bool {
        let path = format!("/proc/{}/task/{thread}", self.pid());
        // Alive after the look, so the directory was this process's and not a successor's.
        thread != 0 && fs::metadata(path).is_ok() && !self.has_exited()
    }
}

/// The 22nd field of `/proc/PID/stat`. The second, in parentheses, may have anything in it.
fn start_time(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// The second number of `Uid` in `/proc/PID/status`.
fn effective_user(status: &str) -> Option<u32> {
    let users = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    users.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{effective_user, start_time};

    #[test]
    fn a_process_acts_as_its_effective_user() {
        // A newline in a name is escaped there.
        let status =
            "Name:\tqemu\\nUid:\t0 0\nUmask:\t0022\nUid:\t1000\t0\t0\t0\nGid:\t5\t6\t7\t8\n";
        assert_eq!(effective_user(status), Some(0));
        assert_eq!(effective_user("Name:\tqemu\n"), None);
    }

    #[test]
    fn a_process_cannot_hide_its_start_by_its_name() {
        let rest = "S 1 2 3 0 -1 4194560 5 6 7 8 9 10 11 12 20 0 1 0 4711 1000 200 1844";
        for name in ["qemu", "a) S 1 2 3 4 5 6 7", "(x))"] {
            assert_eq!(start_time(&format!("8 ({name}) {rest}")), Some(4711));
        }
        assert_eq!(start_time("8 (qemu) S 1"), None);
    }
}
