//! For targets whose peers close connections.

use tokio::signal::unix::{SignalKind, signal};

/// Installs a handler for SIGPIPE. Other Rust programs ignore the signal from the start, and the `main` of
/// libFuzzer does not.
pub fn handle() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let handled = runtime
        .and_then(|runtime| runtime.block_on(async { signal(SignalKind::pipe()).map(drop) }));
    handled.expect("SIGPIPE can be handled");
}
