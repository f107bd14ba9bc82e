//! The unit of systemd in which a QEMU is started.

use tokio::process::Command;

use super::process::command;

/// A kind of unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The service that the tests run in, which does not delegate.
    Here,
    /// A scope, as `systemd-run --scope` starts one.
    Scope,
    /// A scope in which QEMU is confined to host CPU 0.
    ScopeOnOneCpu,
    /// A scope with limits.
    LimitedScope,
    /// A scope of this name that is delegated.
    ScopeNamed(&'static str),
    /// A scope that is delegated to a container engine, with another process.
    ContainerScope,
    /// This control group, which does not belong to a unit.
    Group(&'static str),
    /// A login session.
    Session,
    /// A scope of the manager of a user.
    UsersScope,
    /// A service of its own that does not delegate.
    Service,
    /// A service of its own with `Delegate=yes`.
    DelegatedService,
}

impl Place {
    /// Returns the command that runs a program there as `lab-NAME`. The program and its arguments follow.
    pub(super) fn command(self, name: &str) -> Command {
        let run = |options: &[&str]| {
            let mut command = command("systemd-run");
            command.args(["--quiet", "--collect"]).args(options);
            command
        };
        let scope = format!("--unit=lab-{name}.scope");
        let service = format!("--unit=lab-{name}.service");
        // The service ends with its QEMU, also if the waiting process is killed.
        let service = [service.as_str(), "--pipe", "--wait"];
        match self {
            Self::Here => command("env"),
            Self::Scope => run(&["--scope", &scope]),
            Self::ScopeOnOneCpu => run(&["--scope", &scope, "taskset", "--cpu-list", "0"]),
            Self::LimitedScope => {
                let limits = ["-p", "CPUQuota=50%", "-p", "MemoryMax=1G"];
                run(&[&["--scope", scope.as_str()][..], &limits].concat())
            }
            Self::ScopeNamed(name) => {
                run(&["--scope", &format!("--unit={name}"), "-p", "Delegate=yes"])
            }
            Self::ContainerScope => {
                let unit = ["--scope", "--unit=docker-0123.scope", "-p", "Delegate=yes"];
                // The subshell ends, so that the process is no child of QEMU.
                let shell = ["sh", "-c", "(sleep infinity &); exec \"$0\" \"$@\""];
                run(&[&unit[..], &shell].concat())
            }
            Self::Group(group) => {
                let enter = "mkdir -p \"$0\" && echo $$ >\"$0\"/cgroup.procs && exec \"$@\"";
                let mut command = command("sh");
                command.args(["-c", enter]);
                command.arg(format!("/sys/fs/cgroup/{group}"));
                command
            }
            Self::Session => session("exec \"$0\" \"$@\""),
            Self::UsersScope => {
                session("exec systemd-run --user --scope --quiet --collect \"$0\" \"$@\"")
            }
            Self::Service => run(&service),
            Self::DelegatedService => run(&[&service[..], &["-p", "Delegate=yes"]].concat()),
        }
    }
}

/// Returns the command for a login session of root in which a shell runs `line`.
fn session(line: &str) -> Command {
    let mut command = command("su");
    command.args(["--login", "--command", line, "root", "--"]);
    // `su` stays a separate process.
    command.args(["setpriv", "--pdeathsig", "KILL"]);
    command
}
