//! The line on a terminal while the guest is waited for, and the signals that end the wait.

use std::io;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};

use crate::render::name_vcpus;

const TICK: Duration = Duration::from_millis(100);

/// The line about the pending removals of a machine. It is cleared when this is dropped.
pub(crate) struct Progress {
    name: String,
    is_shown: bool,
    line: Option<ProgressBar>,
}

impl Progress {
    /// The line about the machine `name` on standard error, if that is a terminal and `is_shown`.
    pub(crate) fn new(name: &str, is_shown: bool) -> Self {
        let name = name.to_owned();
        Self {
            name,
            is_shown,
            line: None,
        }
    }

    /// Shows that the guest must release the vCPUs `pending`.
    pub(crate) fn show(&mut self, pending: &[u32]) {
        if pending.is_empty() || !self.is_shown {
            self.line = None;
            return;
        }
        let vcpus = name_vcpus(&pending.iter().copied().collect());
        let text = format!("{}: waiting for the guest to release {vcpus}", self.name);
        let line = self.line.get_or_insert_with(|| {
            let line = ProgressBar::new_spinner();
            let style = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed:>4}");
            line.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            line.enable_steady_tick(TICK);
            line
        });
        line.set_message(text);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(line) = self.line.take() {
            line.finish_and_clear();
        }
    }
}

/// Waits until a signal asks this program to end, such as Ctrl-C.
///
/// # Errors
/// The signals cannot be received.
pub(crate) async fn interrupted() -> io::Result<()> {
    let mut signals = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ]
    .into_iter()
    .map(signal)
    .collect::<io::Result<Vec<_>>>()?;
    let received = signals.iter_mut().map(|signal| Box::pin(signal.recv()));
    futures_util::future::select_all(received).await;
    Ok(())
}
