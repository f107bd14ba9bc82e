//! The arguments.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueHint};
use clap_complete::Shell;
use vcpud::placement::{ListError, VcpuList};

/// Add and remove virtual CPUs of running QEMU virtual machines.
///
/// vcpuctl speaks with the system service vcpud over D-Bus. A machine is any QEMU whose QMP
/// socket is /run/vcpud/qmp/NAME.sock, that has a file in /etc/vcpud/machines.d, or that was
/// registered.
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
    /// Show the state of a machine, or of the service.
    Status {
        /// The machine; without it, the service: its version, and what is wrong with its
        /// configuration.
        name: Option<String>,
    },
    /// Show every vCPU of a machine, present or possible.
    Vcpus {
        /// The machine.
        name: String,
    },
    /// Bring the number of vCPUs of a machine to COUNT.
    Set(Set),
    /// Plug exactly these vCPUs.
    Plug(These),
    /// Unplug exactly these vCPUs.
    Unplug(These),
    /// Choose the host CPUs that vCPUs may run on.
    Pin {
        /// The machine.
        name: String,
        /// The vCPUs, such as "2" or "2,4-7", present or not; "all" for the default of all that have no
        /// pin of their own.
        #[arg(value_parser = parse_vcpus)]
        vcpus: VcpuList,
        /// The host CPUs, such as "0-3,8"; "default" for what all others have.
        cpus: String,
    },
    /// Limit the CPU time of every vCPU.
    Bandwidth {
        /// The machine.
        name: String,
        /// How long each vCPU may run in every period, such as "20ms"; "unlimited" for no limit.
        #[arg(value_parser = parse_quota)]
        quota: Quota,
        /// The period.
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "100ms")]
        period: Duration,
    },
    /// Choose the scheduling policy of vCPUs.
    Scheduler {
        /// The machine.
        name: String,
        /// The vCPUs, such as "2" or "2,4-7", present or not; "all" for the default of all.
        #[arg(value_parser = parse_vcpus)]
        vcpus: VcpuList,
        /// The policy.
        #[arg(value_parser = ["other", "batch", "idle", "fifo", "rr"])]
        policy: String,
        /// 1 to 99 for "fifo" and "rr".
        #[arg(default_value_t = 0)]
        priority: i32,
    },
    /// Choose the share of the host's caches of vCPUs.
    Cache {
        /// The machine.
        name: String,
        /// The vCPUs, such as "2" or "2,4-7", present or not; "all" for all of the machine.
        #[arg(value_parser = parse_vcpus)]
        vcpus: VcpuList,
        /// The share as resctrl writes it, such as "L3:0=f"; "default" for the host's default.
        schemata: String,
    },
    /// Make a running QEMU a machine.
    Register(Register),
    /// Forget a machine; the VM runs on as it is.
    Unregister {
        /// The machine.
        name: String,
    },
    /// Have the service read its configuration again, and show what is wrong with it.
    Reload,
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
#[command(after_help = REMOVAL_HELP)]
pub(crate) struct Set {
    /// The machine.
    pub name: String,
    /// The number of vCPUs wanted.
    pub count: u32,
    /// Only show what would be done.
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub wait: Wait,
}

/// What "register" is asked.
#[derive(Debug, Args)]
pub(crate) struct Register {
    /// What it is to be called.
    pub name: String,
    /// Its QMP socket.
    #[arg(value_hint = ValueHint::FilePath)]
    pub socket: PathBuf,
    /// Where its control groups are: in its own unit of systemd where that is delegated, in a scope
    /// of its own, in the unit that it is in, or nowhere.
    #[arg(long, value_parser = ["auto", "scope", "unit", "none"])]
    pub placement: Option<String>,
    /// The slice of systemd in which it gets a scope.
    #[arg(long)]
    pub slice: Option<String>,
    /// The UUID that it must have, if it has any.
    #[arg(long)]
    pub uuid: Option<String>,
    /// The socket of its guest agent.
    #[arg(long, value_name = "SOCKET", value_hint = ValueHint::FilePath)]
    pub guest_agent: Option<PathBuf>,
    /// The PID of QEMU, if that is not who serves the QMP socket.
    #[arg(long, value_name = "PID")]
    pub leader: Option<u32>,
    /// Another key of a machine's file with its value, such as "affinity=0-3".
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = parse_setting)]
    pub settings: Vec<(String, String)>,
}

/// What "plug" and "unplug" are asked.
#[derive(Debug, Args)]
#[command(after_help = REMOVAL_HELP)]
pub(crate) struct These {
    /// The machine.
    pub name: String,
    /// The vCPUs, such as "2" or "2,4-7".
    #[arg(value_parser = parse_list)]
    pub vcpus: VcpuList,
    #[command(flatten)]
    pub wait: Wait,
}

/// How long to wait for the guest, and whether its agent helps.
#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// Do not wait for the guest to give up vCPUs.
    #[arg(long = "async", conflicts_with = "timeout")]
    pub no_wait: bool,
    /// How long to wait for QEMU and the guest, such as "500ms" or "1min 30s" [default: the
    /// removal-timeout of the machine, 5s].
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub timeout: Option<Duration>,
    /// Let the guest agent bring new vCPUs online in the guest, and take leaving ones offline
    /// before they are unplugged.
    #[arg(long)]
    pub guest_online: bool,
}

/// An amount of CPU time; `None` is without limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quota(pub Option<Duration>);

fn parse_quota(text: &str) -> Result<Quota, String> {
    match text {
        "unlimited" => Ok(Quota(None)),
        text => {
            let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
            Ok(Quota(Some(time)))
        }
    }
}

fn parse_setting(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("it is not KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// A list, or "all", which is the empty list.
fn parse_vcpus(text: &str) -> Result<VcpuList, String> {
    match text {
        "all" => Ok(VcpuList::default()),
        list => parse_list(list),
    }
}

fn parse_list(text: &str) -> Result<VcpuList, String> {
    let list: VcpuList = text.parse().map_err(|error: ListError| error.to_string())?;
    if list.is_empty() {
        return Err("the list is empty".to_owned());
    }
    Ok(list)
}

const REMOVAL_HELP: &str = "\
Removing a vCPU needs the guest's cooperation. When the time runs out the request stands: the vCPU \
may still go later, which \"vcpuctl monitor\" shows.";

const AFTER_HELP: &str = "\
Exit status:
  0  done (with --async: QEMU took the request)
  1  failed for another reason, which is told
  2  the arguments are wrong
  3  refused by policy: polkit says no
  4  refused by the guest
  5  pending: the time ran out, the guest may still give up the vCPUs";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_vcpus() {
        assert_eq!(parse_list("2"), Ok(VcpuList::from_iter([2])));
        assert_eq!(parse_list("2,4-6"), Ok(VcpuList::from_iter([2, 4, 5, 6])));
        for bad in ["", "a", "1,", "3-1", "-1", "1-", "0-4000000000"] {
            assert!(parse_list(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn all_vcpus_and_no_limit_have_words() {
        assert_eq!(parse_vcpus("all"), Ok(VcpuList::default()));
        assert_eq!(parse_vcpus("1"), Ok(VcpuList::from_iter([1])));
        assert_eq!(parse_quota("unlimited"), Ok(Quota(None)));
        let quota = Quota(Some(Duration::from_millis(20)));
        assert_eq!(parse_quota("20ms"), Ok(quota));
        assert!(parse_quota("20").is_err());
    }

    #[test]
    fn the_arguments_are_consistent() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }
}
