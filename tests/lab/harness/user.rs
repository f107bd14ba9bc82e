//! The users of the host, and their calls of the service with common programs.

use std::process::Stdio;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::machine::{Failure, Machine};
use super::process::{Process, command};
use super::wait::within;

/// A user in the image of the host.
#[derive(Clone, Copy, Debug)]
pub(crate) struct User(&'static str);

/// The exit status of a program on a terminal, and the output on the terminal.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: Option<i32>,
    pub(crate) screen: String,
}

impl User {
    /// A user without groups and without a password.
    pub(crate) const ALICE: Self = Self("alice");
    /// A user in the group `vm-operators`, without a password.
    pub(crate) const OSCAR: Self = Self("oscar");
    /// The user of vcpud-autoscale.
    pub(crate) const AUTOSCALER: Self = Self("vcpud-autoscale");
    /// The password of the administrator, for which polkit asks.
    pub(crate) const PASSWORD_OF_ADAM: &str = "lab";

    /// Returns a command that runs `program` as this user.
    fn command(self, program: &str) -> Command {
        let Self(name) = self;
        let mut command = command("setpriv");
        command
            .args(["--reuid", name, "--regid", name, "--init-groups", program])
            .env("HOME", format!("/home/{name}"))
            .env("USER", name)
            .current_dir("/");
        command
    }

    /// Runs a command in a shell. Returns its output, or its error output if it fails.
    pub(crate) async fn run(self, line: &str) -> Result<String, String> {
        let mut command = self.command("sh");
        command
            .args(["-c", line])
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = within(format!("the end of {line}"), command.output()).await;
        let output = output.expect("the host has a shell");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        if output.status.success() {
            Ok(text(output.stdout))
        } else {
            Err(text(output.stderr))
        }
    }

    /// Calls `SetVcpus` of a machine with busctl. Returns the output of busctl.
    pub(crate) async fn set(self, machine: &Machine, count: u32) -> Result<String, Failure> {
        let mut command = self.command("busctl");
        command
            .args(["--allow-interactive-authorization=no", "call", "org.vcpud1"])
            .args([machine.path(), "org.vcpud1.Machine", "SetVcpus", "ua{sv}"])
            .args([&count.to_string(), "0"])
            // Without this, busctl does not print the names of errors.
            .env("SYSTEMD_LOG_LEVEL", "debug")
            .env("SYSTEMD_LOG_TARGET", "console")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = within("busctl", command.output()).await;
        let output = output.expect("the host has setpriv and busctl");
        let text = |bytes| String::from_utf8(bytes).expect("busctl writes UTF-8");
        let (stdout, stderr) = (text(output.stdout), text(output.stderr));
        if output.status.success() {
            Ok(stdout.trim_end().to_owned())
        } else {
            Err(failure(&stderr))
        }
    }

    /// Runs a command on a terminal with an authentication agent, and types `password` when the agent asks for
    /// it.
    pub(crate) async fn authenticate(self, line: &str, password: &str) -> Answer {
        // The agent serves one process: this shell, which becomes the command.
        let script = format!(
            "{{ pkttyagent --notify-fd 3 --process $$ 3>&1 >/dev/tty & }} | cat; exec {line}"
        );
        let mut command = self.command("script");
        command
            .args(["--quiet", "--return", "--command", &script, "/dev/null"])
            .env("SHELL", "/bin/bash")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut terminal = Process::spawn("script", &mut command);
        let mut keyboard = terminal.child.stdin.take().expect("the stream is piped");
        let mut output = terminal.child.stdout.take().expect("the stream is piped");
        let mut screen = Vec::new();
        let mut typed = false;
        let shown = async {
            while output.read_buf(&mut screen).await.expect("a pipe") > 0 {
                if !typed && screen.ends_with(b"Password: ") {
                    let line = format!("{password}\n");
                    let written = keyboard.write_all(line.as_bytes()).await;
                    written.expect("script reads");
                    typed = true;
                }
            }
        };
        within(format!("the end of {line}"), shown).await;
        Answer {
            status: terminal.wait().await.code(),
            screen: String::from_utf8_lossy(&screen).into_owned(),
        }
    }
}

/// Returns the error that busctl received, from its log.
fn failure(log: &str) -> Failure {
    let mut errors = log.lines().filter(|line| line.contains("type=error"));
    let error = errors.next_back();
    let parts = error
        .and_then(|line| line.split_once(" error-name="))
        .and_then(|(_, rest)| rest.split_once(" error-message="));
    let (name, text) = parts.unwrap_or_else(|| panic!("busctl says: {log}"));
    Failure {
        name: name.to_owned(),
        text: text.to_owned(),
    }
}
