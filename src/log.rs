//! The log of the services: to the journal, with fields, if systemd started the program and the journal can be
//! reached, else to standard error. It must not decide what is logged.

use std::io::IsTerminal;

use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::format::debug_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

/// Begins the log of this process. `RUST_LOG` has its level; the default is info.
pub fn start() {
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
        let layer = tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .fmt_fields(fields);
        if by_systemd {
            // The journal has the time.
            layer.without_time().boxed()
        } else {
            layer.boxed()
        }
    });
    tracing_subscriber::registry()
        .with(filter)
        .with(journal)
        .with(stderr)
        .init();
}
