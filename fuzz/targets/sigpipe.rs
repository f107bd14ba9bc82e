//! For targets whose peers hang up.

use tokio::signal::unix::{SignalKind, signal};

/// Rust programs ignore SIGPIPE from their start, but these start as libFuzzer's. A handler, once
/// there, stays.
pub fn handle() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let handled = runtime
        .and_then(|runtime| runtime.block_on(async { signal(SignalKind::pipe()).map(drop) }));
    handled.expect("SIGPIPE can be handled");
}
