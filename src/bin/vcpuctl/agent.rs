//! polkit's text agent, which asks for passwords on the terminal while a command runs.

use std::io::{self, IsTerminal, PipeReader, pipe, stdin};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, geteuid, getpid, kill_process};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::time::timeout;

/// The time until the agent is registered, or has failed.
const START: Duration = Duration::from_secs(5);

/// A running agent. It ends when this is dropped.
pub(crate) struct Agent(Child);

impl Agent {
    /// Starts the agent, and waits until polkit knows it. Returns `None` if no user can be asked: standard input
    /// is not a terminal, or the agent cannot run. An agent of a desktop takes precedence.
    pub(crate) async fn start() -> Option<Self> {
        // The service does not ask polkit about root.
        if !stdin().is_terminal() || geteuid().is_root() {
            return None;
        }
        let (agent, ready) = Self::spawn().ok()?;
        let mut ready = Receiver::from_owned_fd(ready.into()).ok()?;
        // The agent closes the pipe when it is registered, and when it exits.
        let closed = async { while ready.read(&mut [0]).await.is_ok_and(|read| read > 0) {} };
        timeout(START, closed).await.ok()?;
        Some(agent)
    }

    fn spawn() -> io::Result<(Self, PipeReader)> {
        let (ready, notify) = pipe()?;
        // The agent inherits this end. vcpuctl has one thread and starts no other process here.
        fcntl_setfd(&notify, FdFlags::empty())?;
        let mut command = Command::new("pkttyagent");
        command
            .arg("--fallback")
            .args(["--process", &getpid().as_raw_nonzero().to_string()])
            .args(["--notify-fd", &notify.as_raw_fd().to_string()])
            .stdout(Stdio::null());
        Ok((Self(command.spawn()?), ready))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let pid = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw);
        // At this signal, the agent turns the echo of the terminal on again.
        if let Some(pid) = pid {
            let _ = kill_process(pid, Signal::TERM);
        }
        let _ = self.0.wait();
    }
}
