//! The system service. systemd starts it for the first call on the bus.

use std::process::ExitCode;

use clap::Parser;
use vcpud::config::{Configuration, Directories};
use vcpud::daemon;

/// The maximum number of threads that run async tasks.
const MAX_WORKERS: usize = 8;
/// The maximum number of threads for blocking calls.
const MAX_BLOCKING: usize = 32;

/// Add and remove virtual CPUs of running QEMU virtual machines over D-Bus.
///
/// systemd starts the service for the first call to org.vcpud1 on the system bus. The service needs no
/// arguments. vcpuctl(1) is its client.
#[derive(Parser)]
#[command(
    version,
    after_help = "Environment:\n  \
    CONFIGURATION_DIRECTORY  the directory of the configuration [default: /etc/vcpud]\n  \
    RUNTIME_DIRECTORY        the directory that contains qmp/ [default: /run/vcpud]\n  \
    DBUS_SYSTEM_BUS_ADDRESS  the address of the bus [default: the system bus]\n  \
    RUST_LOG                 the log level, such as debug or vcpud=trace [default: info]"
)]
struct Arguments {
    /// Read the configuration, print its errors, and exit with status 1 if there are any.
    #[arg(long)]
    check_config: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let directories = Directories::from_environment();
    if arguments.check_config {
        return check(&directories);
    }
    vcpud::log::start();
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(daemon::run(directories)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Starts a runtime whose threads fit into `TasksMax=` of the unit, whatever the number of host CPUs.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cpus.min(MAX_WORKERS))
        .max_blocking_threads(MAX_BLOCKING)
        .enable_all()
        .build()
}

#[expect(clippy::print_stdout, reason = "the option asks for it")]
fn check(directories: &Directories) -> ExitCode {
    let errors = Configuration::read(&directories.configuration).errors;
    for error in &errors {
        println!("{error}");
    }
    if errors.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
