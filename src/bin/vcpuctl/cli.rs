//! The arguments.

use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

/// Add and remove virtual CPUs of running QEMU virtual machines.
///
/// vcpuctl speaks with the system service vcpud over D-Bus. A machine is any QEMU whose QMP
/// socket is /run/vcpud/qmp/NAME.sock.
#[derive(Debug, Parser)]
#[command(name = "vcpuctl", version, after_help = AFTER_HELP, after_long_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// Print JSON for scripts: one document, or with "monitor" one line for each event.
    #[arg(long, global = true)]
    pub json: bool,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the machines.
    List,
    /// Show the state of a machine.
    Status {
        /// The machine.
        name: String,
    },
    /// Show every vCPU of a machine, present or possible.
    Vcpus {
        /// The machine.
        name: String,
    },
    /// Bring the number of vCPUs of a machine to COUNT.
    Set(Set),
    /// Show what happens to machines and vCPUs, until interrupted.
    Monitor {
        /// Only this machine.
        name: Option<String>,
    },
    /// Print the completions for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Print the manual page vcpuctl(1).
    #[command(hide = true)]
    Man,
}

/// What "set" is asked.
#[derive(Debug, Args)]
#[command(
    after_help = "Removing a vCPU needs the guest's cooperation. When the time runs out the \
request stands: the vCPU may still go later, which \"vcpuctl monitor\" shows."
)]
pub(crate) struct Set {
    /// The machine.
    pub name: String,
    /// The number of vCPUs wanted.
    pub count: u32,
    /// Do not wait for the guest to give up vCPUs.
    #[arg(long = "async", conflicts_with = "timeout")]
    pub no_wait: bool,
    /// How long to wait for the guest to give up vCPUs, such as "500ms" or "1min 30s" [default:
    /// 5s].
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub timeout: Option<Duration>,
}

const AFTER_HELP: &str = "\
Exit status:
  0  done (with --async: QEMU took the request)
  1  failed for another reason, which is told
  2  the arguments are wrong
  3  refused by policy: polkit says no
  4  refused by the guest
  5  pending: the time ran out, the guest may still give up the vCPUs";
