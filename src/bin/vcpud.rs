//! The system service. systemd starts it for the first call on the bus.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::format::debug_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
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
    start_logging();
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

/// Logs to the journal if systemd started the service, else to standard error.
fn start_logging() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let by_systemd = std::env::var_os("JOURNAL_STREAM").is_some();
    let journal = if by_systemd {
        let layer = tracing_journald::layer();
        // The fields have the names VM_NAME, VCPU and MESSAGE_ID, without a prefix.
        layer.ok().map(|layer| layer.with_field_prefix(None))
    } else {
        None
    };
    // Message ids are for journalctl.
    let fields = debug_fn(|writer, field, value| match field.name() {
        "message_id" => Ok(()),
        "message" => write!(writer, "{value:?}"),
        name => write!(writer, "{name}={value:?}"),
    })
    .delimited(" ");
    let stderr = journal.is_none().then(|| {
        tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .fmt_fields(fields)
    });
    tracing_subscriber::registry()
        .with(filter)
        .with(journal)
        .with(stderr)
        .init();
}
