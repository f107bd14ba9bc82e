//! Child processes that do not outlive their test.

use std::ffi::OsStr;
use std::process::ExitStatus;

use fake_qemu::until;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use super::wait::within;

/// A command that runs `program`, and is killed where the test cannot do so any more.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command
}

/// A command that runs `program` as the user nobody.
pub(crate) fn command_of_nobody(program: impl AsRef<OsStr>) -> Command {
    let mut command = command("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(program);
    command
}

/// Starts a process that sleeps, as `command` says: a QEMU of its own, where the scripted ones are
/// all the test's process.
pub(crate) async fn sleeper(mut command: Command) -> Process {
    let process = Process::spawn("sleep", command.arg("600"));
    // setpriv has changed the user when it becomes sleep.
    let comm = format!("/proc/{}/comm", process.pid());
    let sleeps = || std::fs::read_to_string(&comm).expect("it runs") == "sleep\n";
    until("a process to sleep", sleeps).await;
    process
}

/// A running program. It is killed when this is dropped.
pub(crate) struct Process {
    name: String,
    pid: u32,
    pub(crate) child: Child,
}

impl Process {
    /// Starts what [`command`] gave, called `name` where something goes wrong.
    pub(crate) fn spawn(name: &str, command: &mut Command) -> Self {
        let child = command.kill_on_drop(true).spawn();
        let child = child.unwrap_or_else(|error| {
            panic!("cannot run {name} ({error}); run tests/setup to install what is missing")
        });
        let pid = child.id().expect("nobody waited for it yet");
        let name = name.to_owned();
        Self { name, pid, child }
    }

    /// Its PID.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends it `SIGTERM`.
    pub(crate) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = self.child.id().and_then(|pid| Pid::from_raw(pid as i32));
        kill_process(pid.expect("it is running"), signal).expect("it can be signalled");
    }

    /// Kills it and waits until it is gone.
    pub(crate) async fn kill(&mut self) {
        let killed = self.child.kill();
        within(format!("the end of {}", self.name), killed)
            .await
            .expect("it can be killed");
    }

    /// Waits until it ends.
    pub(crate) async fn wait(&mut self) -> ExitStatus {
        let ended = self.child.wait();
        within(format!("{} to end", self.name), ended)
            .await
            .expect("it can be waited for")
    }
}
