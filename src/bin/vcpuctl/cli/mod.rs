//! The command line.

mod autoscale;
mod subject;
mod values;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueHint};
use clap_complete::Shell;
use vcpud::arguments::parse_time;
use vcpud::placement::VcpuList;

use crate::completion::{all_vcpus, free_vcpus, machines, present_vcpus};

pub(crate) use autoscale::Autoscale;
pub(crate) use subject::Subject;
pub(crate) use values::{Count, Quota, Sort};
use values::{parse_cpus, parse_delay, parse_list, parse_quota, parse_setting, parse_vcpus};

/// Add and remove virtual CPUs of running QEMU virtual machines.
///
/// vcpuctl is the client of the system service vcpud. A machine is a QEMU process whose QMP socket is
/// /run/vcpud/qmp/NAME.sock, that has a file in /etc/vcpud/machines.d, or that was registered.
#[derive(Debug, Parser)]
#[command(name = "vcpuctl", version, after_help = AFTER_HELP, after_long_help = AFTER_HELP)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub global: Global,

    #[command(subcommand)]
    pub command: Option<Command>,
}

/// The options for all commands.
#[derive(Clone, Debug, Args)]
pub(crate) struct Global {
    /// Print JSON: one document, or with "monitor" and "top" one line for each event or sample.
    #[arg(long, global = true)]
    pub json: bool,
    /// Do not ask for a password, but fail if polkit requires one.
    #[arg(long, global = true)]
    pub no_ask_password: bool,
    /// Do not print results and warnings.
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// Print tables without headings and without the number of rows.
    #[arg(long, global = true)]
    pub no_legend: bool,
    /// Accepted as by other programs, and ignored: the output never goes through a pager.
    #[arg(long = "no-pager", global = true, hide = true)]
    pub _no_pager: bool,
    /// Call the service of another host over ssh(1).
    #[arg(long, short = 'H', global = true, value_name = "[USER@]HOST")]
    pub host: Option<String>,
    /// Call the service in a local container of systemd.
    #[arg(
        long,
        short = 'M',
        global = true,
        value_name = "CONTAINER",
        conflicts_with = "host"
    )]
    pub machine: Option<String>,
}

impl Global {
    /// Whether the commands are about this host.
    pub(crate) fn is_local(&self) -> bool {
        self.host.is_none() && self.machine.is_none()
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the machines. This is the default command.
    List,
    /// Show the status of machines, or of the service.
    Status {
        /// The machines. Without a name: the version of the service, the number of machines, and the
        /// errors of the configuration.
        #[arg(add = machines())]
        names: Vec<String>,
    },
    /// Print the properties of machines, or of the service, for programs.
    Show {
        /// The machines. Without a name: the service.
        #[arg(add = machines())]
        names: Vec<String>,
        /// Print only these properties, such as "Vcpus" or "Vcpus,MaxVcpus". The option can be repeated.
        #[arg(long, short, value_name = "NAME", value_delimiter = ',')]
        property: Vec<String>,
        /// Print only the values.
        #[arg(long)]
        value: bool,
    },
    /// List the vCPUs of a machine.
    Vcpus {
        /// The machine.
        #[arg(add = machines())]
        name: String,
        /// Show each free vCPU too.
        #[arg(long, short)]
        all: bool,
    },
    /// Show the CPU time, the steal time and the throttling of vCPUs, since their threads were created.
    Stats {
        /// The machine. Without a name: all machines, with the sums of their vCPUs.
        #[arg(add = machines())]
        name: Option<String>,
        /// Query QEMU for the counters of KVM too. QEMU interrupts every vCPU to read them.
        #[arg(long)]
        kvm: bool,
    },
    /// Show the desired values of the placement: affinity, bandwidth, scheduler and cache.
    Tuning {
        /// The machine.
        name: String,
    },
    /// Show the load of machines and their vCPUs, live or as text.
    Top(Top),
    /// Set the number of vCPUs of a machine.
    Set(Set),
    /// Add the given vCPUs.
    #[command(mut_arg("vcpus", |vcpus| vcpus.add(free_vcpus())))]
    Plug(These),
    /// Remove the given vCPUs.
    #[command(mut_arg("vcpus", |vcpus| vcpus.add(present_vcpus())))]
    Unplug(These),
    /// Wait until no removal of vCPUs is pending.
    Wait {
        /// The machines.
        #[arg(required = true, add = machines())]
        names: Vec<String>,
        /// The maximum time to wait, in seconds or such as "1min 30s" [default: no limit].
        #[arg(long, value_name = "TIME", value_parser = parse_time)]
        timeout: Option<Duration>,
    },
    #[command(flatten)]
    Tune(Tune),
    #[command(flatten)]
    Manage(Manage),
    /// Set the number of vCPUs of a machine by its load, automatically.
    Autoscale(Autoscale),
    /// Explain what automatic scaling decides about a machine.
    Explain {
        /// The machine.
        #[arg(add = machines())]
        name: String,
    },
    /// Print changes of machines and vCPUs until interrupted.
    Monitor {
        /// The machine; without a name, all machines.
        #[arg(add = machines())]
        name: Option<String>,
    },
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
}

/// The commands that change where and how vCPUs run on the host.
#[derive(Debug, Subcommand)]
pub(crate) enum Tune {
    /// Set the host CPUs that vCPUs can run on.
    Pin {
        /// The machine.
        #[arg(add = machines())]
        name: String,
        /// The vCPUs, such as "2" or "2,4-7", present or free; "all" sets the default for vCPUs
        /// without a pin of their own.
        #[arg(value_parser = parse_vcpus, add = all_vcpus())]
        vcpus: VcpuList,
        /// The host CPUs, such as "0-3,8"; "default" removes the pin.
        #[arg(value_parser = parse_cpus)]
        cpus: String,
    },
    /// Limit the CPU time of each vCPU.
    Bandwidth {
        /// The machine.
        #[arg(add = machines())]
        name: String,
        /// The maximum CPU time of each vCPU in a period, in seconds or such as "20ms"; "unlimited" removes the
        /// limit.
        #[arg(value_parser = parse_quota)]
        quota: Quota,
        /// The length of a period, in seconds or such as "50ms", from 1ms to 1s.
        #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = "100ms")]
        period: Duration,
    },
    /// Set the scheduling policy of vCPUs.
    Scheduler {
        /// The machine.
        #[arg(add = machines())]
        name: String,
        /// The vCPUs, such as "2" or "2,4-7", present or free; "all" sets the default for vCPUs
        /// without a policy of their own.
        #[arg(value_parser = parse_vcpus, add = all_vcpus())]
        vcpus: VcpuList,
        /// The policy; "default" removes the policy that was set.
        #[arg(value_parser = ["other", "batch", "idle", "fifo", "rr", "default"])]
        policy: String,
        /// The priority: 1 to 99 for "fifo" and "rr", 0 for the other policies.
        #[arg(default_value_t = 0)]
        priority: i32,
    },
    /// Limit the host cache that vCPUs can use.
    Cache {
        /// The machine.
        #[arg(add = machines())]
        name: String,
        /// The vCPUs, such as "2" or "2,4-7", present or free; "all" means all vCPUs of the machine.
        #[arg(value_parser = parse_vcpus, add = all_vcpus())]
        vcpus: VcpuList,
        /// The share in the syntax of resctrl, such as "L3:0=f"; "default" means the default of the host.
        schemata: String,
    },
}

/// The commands that register and unregister machines, and reload the configuration.
#[derive(Debug, Subcommand)]
pub(crate) enum Manage {
    /// Register a running QEMU process as a machine.
    Register(Register),
    /// Unregister machines. The VMs continue to run.
    Unregister {
        /// The machines.
        #[arg(required = true, add = machines())]
        names: Vec<String>,
    },
    /// Reload the configuration, and print its errors.
    Reload,
}

/// The arguments of "top".
#[derive(Debug, Args)]
pub(crate) struct Top {
    /// Print tables as text instead of the live screen. --json implies this option.
    #[arg(long, short)]
    pub batch: bool,
    /// Exit after this number of samples [default: no limit].
    #[arg(long, short = 'n', value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub samples: Option<u64>,
    /// The time between samples, in seconds or such as "500ms"; at least 100ms.
    #[arg(long, short, value_name = "TIME", value_parser = parse_delay, default_value = "2")]
    pub delay: Duration,
    /// The order of machines, and of the vCPUs of each machine.
    #[arg(long, value_name = "KEY", value_enum, default_value_t)]
    pub sort: Sort,
    /// Reverse the order.
    #[arg(long, short)]
    pub reverse: bool,
    /// Show only machines with this text in their names.
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    pub filter: String,
    /// Show the vCPUs of all machines.
    #[arg(long, short)]
    pub expand: bool,
}

/// The arguments of "set".
#[derive(Debug, Args)]
#[command(after_help = REMOVAL_HELP)]
pub(crate) struct Set {
    /// The machine.
    #[arg(add = machines())]
    pub name: String,
    /// The desired number of vCPUs, such as "4", or the change of the number, such as "+1" or "-2".
    #[arg(allow_negative_numbers = true)]
    pub count: Count,
    /// Print the changes that the command would make, or the error, and change nothing.
    #[arg(long, conflicts_with_all = ["no_wait", "timeout", "until", "guest_online"])]
    pub dry_run: bool,
    #[command(flatten)]
    pub wait: Wait,
}

/// The arguments of "register".
#[derive(Debug, Args)]
pub(crate) struct Register {
    /// The name of the new machine.
    pub name: String,
    /// The QMP socket of QEMU.
    #[arg(value_hint = ValueHint::FilePath)]
    pub socket: PathBuf,
    /// The systemd unit of the vCPU threads: "scope" for a new scope, "unit" for the unit of QEMU if it is
    /// delegated, "none" for no control groups [default: "auto"; "none" for users other than root].
    #[arg(long, value_parser = ["auto", "scope", "unit", "none"])]
    pub placement: Option<String>,
    /// The systemd slice of the scope [default: machine.slice; the slice of the user for users other
    /// than root].
    #[arg(long)]
    pub slice: Option<String>,
    /// Fail if QEMU reports another UUID.
    #[arg(long)]
    pub uuid: Option<String>,
    /// The socket of the guest agent [default: /run/vcpud/guest-agent/NAME.sock].
    #[arg(long, value_name = "SOCKET", value_hint = ValueHint::FilePath)]
    pub guest_agent: Option<PathBuf>,
    /// The PID of QEMU, if another process serves the QMP socket.
    #[arg(long, value_name = "PID")]
    pub leader: Option<u32>,
    /// A key of a machine's file (vcpud.toml(5)) and its value, such as "affinity=0-3". The option can be
    /// repeated, also with the key "cache", whose value is VCPUS:SCHEMATA, such as "cache=0-3:L3:0=f".
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = parse_setting)]
    pub settings: Vec<(String, String)>,
}

/// The arguments of "plug" and "unplug".
#[derive(Debug, Args)]
#[command(after_help = REMOVAL_HELP)]
pub(crate) struct These {
    /// The machine.
    #[arg(add = machines())]
    pub name: String,
    /// The vCPUs, such as "2" or "2,4-7".
    #[arg(value_parser = parse_list)]
    pub vcpus: VcpuList,
    #[command(flatten)]
    pub wait: Wait,
}

/// The time limit, and the use of the guest agent.
#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// Return when QEMU has accepted the requests, and print the pending removals.
    #[arg(long = "async", conflicts_with = "timeout")]
    pub no_wait: bool,
    /// The maximum time to wait for QEMU and the guest, in seconds or such as "500ms" or "1min 30s"
    /// [default: for removals and with "--until started" the removal-timeout of the machine, which is 5s if not
    /// configured; for other additions until QEMU has replied].
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub timeout: Option<Duration>,
    /// The end of an addition: "present" when QEMU has added the vCPUs, "started" when the guest has also
    /// started them [default: "present", and a warning if the guest does not start them soon].
    #[arg(long, value_name = "STATE", value_parser = ["present", "started"], conflicts_with = "no_wait")]
    pub until: Option<String>,
    /// Use the guest agent to bring vCPUs online in the guest after adding them, and to take vCPUs offline
    /// before removing them.
    #[arg(long)]
    pub guest_online: bool,
}

const REMOVAL_HELP: &str = "\
The removal of a vCPU needs the cooperation of the guest. After a time-out the request stays pending: \
the guest can still release the vCPU later, which \"vcpuctl monitor\" shows.";

const AFTER_HELP: &str = "\
Exit status:
   0  success (with --async: QEMU accepted the request)
   1  another error
   2  invalid command line
   3  not authorized by polkit
   4  the guest refused, or the guest agent failed
   5  time-out: the removal is still pending
   6  no such machine
   7  not possible, such as a number out of range
   8  time-out: the vCPUs are added, and the guest has not started them
  75  not possible now: try again (vcpud or QEMU does not answer, or another request is faster)
 130  interrupted, and no removal is pending";

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
    }
}
