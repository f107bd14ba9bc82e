//! The leader: the QEMU process behind a QMP socket, held so that its PID cannot be reused.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::sys::socket::{getsockopt, sockopt};
use rustix::process::{PidfdFlags, pidfd_open};
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

use super::identity::{self, ProcessId, Users};
use super::task::Tasks;
use crate::blocking::blocking;
use crate::ids::{Pid, Tid, Uid};

/// A process held by a pidfd (`pidfd_open(2)`), with the user that it had when it was first held.
#[derive(Debug)]
pub struct Leader {
    id: ProcessId,
    user: Uid,
    pidfd: AsyncFd<OwnedFd>,
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
    #[error("user {then} listened on the QMP socket with a process that is user {now}'s now")]
    OtherUser {
        /// The user that listened.
        then: Uid,
        /// The user of the process.
        now: Uid,
    },
    /// It acts for several users at once, so that it is not known whose it is.
    #[error(
        "process {pid} has the real, effective, saved and file-system users {}; all four must be the same", list(*users)
    )]
    MixedUsers {
        /// Its PID.
        pid: Pid,
        /// Its users.
        users: Users,
    },
    /// It became another user's since it was first held.
    #[error("process {pid} was user {then}'s and is user {now}'s now")]
    Changed {
        /// Its PID.
        pid: Pid,
        /// Its user when it was first held.
        then: Uid,
        /// Its user now.
        now: Uid,
    },
    /// The kernel refused.
    #[error("the process that listens on the QMP socket cannot be held: {0}")]
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
    /// Holds the process that listens on the other side of `stream` (`SO_PEERPIDFD`, Linux 6.5,
    /// else `SO_PEERCRED` in `unix(7)`).
    ///
    /// # Errors
    /// Fails where the process cannot be seen, has several users, or is not the user's that began
    /// to listen.
    pub async fn of_peer(stream: &UnixStream) -> Result<Self, LeaderError> {
        let peer = stream.peer_cred()?;
        let pid = peer.pid().and_then(|pid| u32::try_from(pid).ok());
        // 0 is a process of a PID namespace that is not ours.
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
        let leader = Self::hold(pid, pidfd.map_err(invisible)?).await;
        let leader = leader.map_err(invisible)?;
        // A process that root started may have changed to any user since.
        match (Uid(peer.uid()), leader.user) {
            (then, now) if !then.is_root() && then != now => {
                Err(LeaderError::OtherUser { then, now })
            }
            _ => Ok(leader),
        }
    }

    /// Holds the process that listens on the other side of `stream`, which `pidfd` held before.
    ///
    /// # Errors
    /// Fails like [`Leader::of_peer`], and where the process that was held has exited.
    pub async fn of_peer_held_by(stream: &UnixStream, pidfd: OwnedFd) -> Result<Self, LeaderError> {
        let peer = Self::of_peer(stream).await?;
        let held = Self::hold(peer.pid(), pidfd).await?;
        // If the process that was held has exited, the PID may be another's now.
        match held.has_exited() {
            true => Err(LeaderError::Invisible),
            false => Ok(held),
        }
    }

    /// Holds the process that has the PID `pid` now.
    ///
    /// # Errors
    /// Fails where no process has this PID, and where it has several users.
    pub async fn of_pid(pid: Pid) -> Result<Self, LeaderError> {
        Self::hold(pid, open_pidfd(pid)?).await
    }

    async fn hold(pid: Pid, pidfd: OwnedFd) -> Result<Self, LeaderError> {
        let (looked, pidfd) = blocking(move || (look(pid, &pidfd), pidfd)).await;
        let (start, user) = looked?;
        #[expect(deprecated, reason = "sound here: an OwnedFd owns its one descriptor")]
        let pidfd = AsyncFd::new(pidfd)?;
        let id = ProcessId { pid, start };
        Ok(Self { id, user, pidfd })
    }

    /// Checks that it is the process that was first held, and of the same user.
    ///
    /// # Errors
    /// Fails where it has exited, and where one of its users is another than then: a process that
    /// executes a setuid program, for example.
    pub async fn verify(self: &Arc<Self>) -> Result<(), LeaderError> {
        let ProcessId { pid, start } = self.id;
        let this = self.clone();
        match blocking(move || look(pid, this.pidfd.get_ref())).await? {
            (then, _) if then != start => Err(LeaderError::NoProcess),
            (_, now) if now != self.user => {
                let then = self.user;
                Err(LeaderError::Changed { pid, then, now })
            }
            _ => Ok(()),
        }
    }

    /// Returns the user that it had when it was first held.
    pub fn user(&self) -> Uid {
        self.user
    }

    /// Returns its PID, which no other process has as long as it did not exit.
    pub fn pid(&self) -> Pid {
        self.id.pid
    }

    /// Returns its PID and start time, which name it across restarts of the service.
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// Returns the descriptor that holds it.
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

    /// Returns whether `thread` is a task of this process, now. This blocks.
    pub fn has_task(&self, thread: Tid) -> bool {
        let path = format!("/proc/{}/task/{thread}", self.pid());
        // Alive after the look, so the directory was this process's and not a successor's.
        thread != 0 && fs::metadata(path).is_ok() && !self.has_exited()
    }
}

/// Opens a pidfd of the process that has the PID `pid` now.
fn open_pidfd(pid: Pid) -> Result<OwnedFd, LeaderError> {
    let raw = i32::try_from(pid.get()).ok();
    let raw = raw.and_then(rustix::process::Pid::from_raw);
    let raw = raw.ok_or(LeaderError::NoProcess)?;
    pidfd_open(raw, PidfdFlags::empty()).map_err(|errno| match errno {
        // A thread that leads no process is EINVAL, or ENOENT in newer kernels.
        rustix::io::Errno::SRCH | rustix::io::Errno::INVAL | rustix::io::Errno::NOENT => {
            LeaderError::NoProcess
        }
        other => LeaderError::Kernel(other.into()),
    })
}

/// Reads the start time and the user of the process that `pidfd` holds.
fn look(pid: Pid, pidfd: &OwnedFd) -> Result<(u64, Uid), LeaderError> {
    let identity = identity::read(pid);
    // Alive after both files were read, so they were this process's and not a successor's.
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

    /// A process of another kind of rights. It is killed when this is dropped.
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
    async fn a_process_has_one_user_in_every_role() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let own = Bystander::start(&["--reuid=65534"]);
        assert_eq!(Leader::of_pid(own.pid()).await.unwrap().user(), 65534);
        let acts_for_another = Bystander::start(&["--ruid=65534"]);
        let error = Leader::of_pid(acts_for_another.pid()).await.unwrap_err();
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
