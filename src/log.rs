//! The log of the small services: to standard error, which systemd passes to the journal. The service itself has
//! fields and message ids, and a log of its own.

/// Begins the log of this process.
pub fn start() {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        // The journal has the time.
        .without_time()
        .init();
}
