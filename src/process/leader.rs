//! The leader: the QEMU process behind a QMP socket. A pidfd keeps other processes from getting its PID.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::sys::socket::{getsockopt, sockopt};
use rustix::process::{PidfdFlags, pidfd_open};
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

use super::identity::{self, ProcessId, Users};
use super::namespace;
use super::task::Tasks;
use crate::blocking::blocking;
use crate::ids::{Pid, Tid, Uid};

/// A process with a pidfd (`pidfd_open(2)`), and the user that it had when the pidfd was opened.
#[derive(Debug)]
pub struct Leader {
    id: ProcessId,
    user: Uid,
    pidfd: AsyncFd<OwnedFd>,
}

/// The reason why a process cannot be the leader.
#[derive(Debug, thiserror::Error)]
pub enum LeaderError {
    /// It has exited, or it is in a PID namespace that vcpud cannot see.
    #[error("the process that listens on the QMP socket has exited or is in another PID namespace")]
    Invisible,
    /// No process has this PID.
    #[error("no process has this PID")]
    NoProcess,
    /// It changed its user after it began to listen: it executed a setuid program, for example.
    #[error("the process that listens on the QMP socket had uid {then} and has uid {now} now")]
    OtherUser {
        /// The user when the process began to listen.
        then: Uid,
        /// The user now.
        now: Uid,
    },
    /// It has several users, so its owner is not known.
    #[error(
        "process {pid} has the real, effective, saved and file-system users {}; all four must be the same", list(*users)
    )]
    MixedUsers {
        /// Its PID.
        pid: Pid,
        /// Its users.
        users: Users,
    },
    /// It is not QEMU: QEMU reports other threads.
    #[error(
        "none of its threads is one that QEMU reports; name the PID of QEMU, or name no leader"
    )]
    NoThread {
        /// Its PID.
        pid: Pid,
    },
    /// It changed its user after the pidfd was opened.
    #[error("process {pid} had uid {then} and has uid {now} now")]
    Changed {
        /// Its PID.
        pid: Pid,
        /// Its user when the pidfd was opened.
        then: Uid,
        /// Its user now.
        now: Uid,
    },
    /// The kernel refused.
    #[error("cannot open or read the QEMU process: {0}")]
    Kernel(#[from] io::Error),
}

impl Tasks for Leader {
    fn pid(&self) -> Pid {
        self.pid()
    }

    fn has_task(&self, thread: Tid) -> bool {
        self.has_task(thread)
    }
}

impl Leader {
    /// Opens a pidfd of the process that listens on the other side of `stream`, with `SO_PEERPIDFD` (Linux
    /// 6.5) or else `SO_PEERCRED` (`unix(7)`).
    ///
    /// # Errors
    ///
    /// Fails if the process has exited, is in another PID namespace, has several users, or changed its user
    /// after it began to listen.
    pub async fn of_peer(stream: &UnixStream) -> Result<Self, LeaderError> {
        let peer = stream.peer_cred()?;
        let pid = peer.pid().and_then(|pid| u32::try_from(pid).ok());
        // 0 is a process of a PID namespace that vcpud cannot see.
        let pid = pid.filter(|pid| *pid != 0).map(Pid);
        let pid = pid.ok_or(LeaderError::Invisible)?;
        let pidfd = match getsockopt(stream, sockopt::PeerPidfd) {
            Ok(pidfd) => Ok(pidfd),
            Err(_) => open_pidfd(pid),
        };
        let invisible = |error| match error {
            LeaderError::NoProcess => LeaderError::Invisible,
            other => other,
        };
        let leader = Self::open(pid, pidfd.map_err(invisible)?).await;
        let leader = leader.map_err(invisible)?;
        // A process that root started may have changed to any user since.
        match (Uid(peer.uid()), leader.user) {
            (then, now) if !then.is_root() && then != now => {
                Err(LeaderError::OtherUser { then, now })
            }
            _ => Ok(leader),
        }
    }

    /// Returns the process of `pidfd`, which must be the one that listens on the other side of `stream`.
    ///
    /// # Errors
    ///
    /// Fails as [`Leader::of_peer`] does, and if the process of `pidfd` has exited.
    pub async fn of_peer_held_by(stream: &UnixStream, pidfd: OwnedFd) -> Result<Self, LeaderError> {
        let peer = Self::of_peer(stream).await?;
        let leader = Self::open(peer.pid(), pidfd).await?;
        // If the process of the pidfd has exited, another process may have the PID now.
        if leader.has_exited() {
            return Err(LeaderError::Invisible);
        }
        Ok(leader)
    }

    /// Opens a pidfd of the process that has the PID `pid` now.
    ///
    /// # Errors
    ///
    /// Fails if no process has this PID, or if it has several users.
    pub async fn of_pid(pid: Pid) -> Result<Self, LeaderError> {
        Self::open(pid, open_pidfd(pid)?).await
    }

    async fn open(pid: Pid, pidfd: OwnedFd) -> Result<Self, LeaderError> {
        let (identity, pidfd) = blocking(move || (read(pid, &pidfd), pidfd)).await;
        let (start, user) = identity?;
        #[expect(deprecated, reason = "sound here: an OwnedFd owns its one descriptor")]
        let pidfd = AsyncFd::new(pidfd)?;
        let id = ProcessId { pid, start };
        Ok(Self { id, user, pidfd })
    }

    /// Checks that the process runs and has the same user as when the pidfd was opened.
    ///
    /// # Errors
    ///
    /// Fails if it has exited, or if it changed one of its users: it executed a setuid program, for example.
    pub async fn verify(self: &Arc<Self>) -> Result<(), LeaderError> {
        let this = self.clone();
        blocking(move || this.verify_now()).await
    }

    /// Does the same as [`Self::verify`]. Blocks.
    ///
    /// # Errors
    ///
    /// Fails as [`Self::verify`] does.
    pub fn verify_now(&self) -> Result<(), LeaderError> {
        let ProcessId { pid, start } = self.id;
        match read(pid, self.pidfd.get_ref())? {
            (then, _) if then != start => Err(LeaderError::NoProcess),
            (_, now) if now != self.user => {
                let then = self.user;
                Err(LeaderError::Changed { pid, then, now })
            }
            _ => Ok(()),
        }
    }

    /// Returns the user that it had when the pidfd was opened.
    pub fn user(&self) -> Uid {
        self.user
    }

    /// Returns its PID. No other process has it before this one has exited.
    pub fn pid(&self) -> Pid {
        self.id.pid
    }

    /// Returns its PID and its start time, which identify it across restarts of the service.
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// Returns its pidfd.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.get_ref().as_fd()
    }

    /// Waits until the process has exited.
    pub async fn exited(&self) {
        // A pidfd becomes readable when its process exits, and stays so.
        let _ = self.pidfd.readable().await;
    }

    /// Returns whether the process has exited.
    pub fn has_exited(&self) -> bool {
        has_exited(self.pidfd.get_ref())
    }

    /// Returns whether `thread` is a task of this process now. Blocks.
    pub fn has_task(&self, thread: Tid) -> bool {
        let path = format!("/proc/{}/task/{thread}", self.pid());
        // If the process has not exited after that, the directory was not a later process's with its PID.
        thread != 0 && fs::metadata(path).is_ok() && !self.has_exited()
    }

    /// Returns which tasks of this process have the numbers `own` in its PID namespace. Blocks.
    pub fn tasks_by_own_number(&self, own: &BTreeSet<Tid>) -> BTreeMap<Tid, Tid> {
        namespace::tasks_by_own_number(self, own)
    }
}

/// Opens a pidfd of the process that has the PID `pid` now.
fn open_pidfd(pid: Pid) -> Result<OwnedFd, LeaderError> {
    let raw = i32::try_from(pid.get()).ok();
    let raw = raw.and_then(rustix::process::Pid::from_raw);
    let raw = raw.ok_or(LeaderError::NoProcess)?;
    pidfd_open(raw, PidfdFlags::empty()).map_err(|errno| match errno {
        // A thread that is not the main thread is EINVAL, or ENOENT in newer kernels.
        rustix::io::Errno::SRCH | rustix::io::Errno::INVAL | rustix::io::Errno::NOENT => {
            LeaderError::NoProcess
        }
        other => LeaderError::Kernel(other.into()),
    })
}

/// Reads the start time and the user of the process of `pidfd`.
fn read(pid: Pid, pidfd: &OwnedFd) -> Result<(u64, Uid), LeaderError> {
    let identity = identity::read(pid);
    // If the process has not exited after that, the files were not a later process's with its PID.
    if has_exited(pidfd) {
        return Err(LeaderError::NoProcess);
    }
    let (start, users) = identity?;
    match users.single() {
        Some(user) => Ok((start, user)),
        None => Err(LeaderError::MixedUsers { pid, users }),
    }
}

fn has_exited(pidfd: &OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

fn list(users: Users) -> String {
    users.0.map(|user| user.to_string()).join(", ")
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    /// A process with other users. It is killed when this is dropped.
    struct Bystander(Child);

    impl Bystander {
        fn start(arguments: &[&str]) -> Self {
            let mut command = Command::new("setpriv");
            let child = command.args(arguments).args(["sleep", "600"]).spawn();
            let this = Self(child.expect("setpriv is there"));
            // setpriv becomes sleep.
            let comm = format!("/proc/{}/comm", this.0.id());
            while fs::read_to_string(&comm).unwrap() != "sleep\n" {
                std::thread::yield_now();
            }
            this
        }

        fn pid(&self) -> Pid {
            Pid(self.0.id())
        }
    }

    impl Drop for Bystander {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[tokio::test]
    async fn refuses_a_process_with_several_users() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let own = Bystander::start(&["--reuid=65534"]);
        assert_eq!(Leader::of_pid(own.pid()).await.unwrap().user(), 65534);
        let with_two_users = Bystander::start(&["--ruid=65534"]);
        let error = Leader::of_pid(with_two_users.pid()).await.unwrap_err();
        assert!(matches!(error, LeaderError::MixedUsers { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_process_that_has_exited_is_not_verified() {
        let process = Bystander::start(&[]);
        let leader = Arc::new(Leader::of_pid(process.pid()).await.unwrap());
        leader.verify().await.unwrap();
        drop(process);
        assert!(matches!(leader.verify().await, Err(LeaderError::NoProcess)));
    }
}
