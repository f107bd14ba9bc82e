//! The users of the host, who call the service with the programs that users have.

use std::process::Stdio;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::machine::{Failure, Machine};
use super::process::{Process, command};
use super::wait::within;

/// One of the users whom the image of the host has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct User(&'static str);

/// How a program on a terminal ended, and all that was on the terminal.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: Option<i32>,
    pub(crate) screen: String,
}

impl User {
    /// Of no group, with no password.
    pub(crate) const ALICE: Self = Self("alice");
    /// In the group `vm-operators`, with no password.
    pub(crate) const OSCAR: Self = Self("oscar");
    /// The password of the administrator, whom polkit asks for.
    pub(crate) const PASSWORD_OF_ADAM: &str = "lab";

    /// A command that runs `program` as this user.
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

    /// Runs a command of the shell: what it prints, or what it complains of.
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

    /// `SetVcpus` of a machine by busctl, which gives what it prints.
    pub(crate) async fn set(self, machine: &Machine, count: u32) -> Result<String, Failure> {
        let mut command = self.command("busctl");
        command
            .args(["--allow-interactive-authorization=no", "call", "org.vcpud1"])
            .args([machine.path(), "org.vcpud1.Machine", "SetVcpus", "ua{sv}"])
            .args([&count.to_string(), "0"])
            // Else it does not show the names of errors.
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

    /// Runs a command on a terminal, with an authentication agent there, and types `password`
    /// when that asks for one.
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
        let mut keyboard = terminal.child.stdin.take().expect("it is piped");
        let mut output = terminal.child.stdout.take().expect("it is piped");
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

/// The error that busctl got, from what it logs.
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
