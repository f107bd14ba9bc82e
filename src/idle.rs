//! The time of the last call, which decides when an unused service ends.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

/// The time for calls that were sent before the name was released. They arrive within milliseconds, and
/// each of them starts this time again.
const LAST_CALLS: Duration = Duration::from_millis(500);

/// The time of the last call.
#[derive(Clone, Debug)]
pub struct Calls {
    last: Arc<watch::Sender<Instant>>,
}

impl Default for Calls {
    fn default() -> Self {
        let last = Arc::new(watch::Sender::new(Instant::now()));
        Self { last }
    }
}

impl Calls {
    /// Records a call.
    pub(crate) fn note(&self) {
        self.last.send_replace(Instant::now());
    }

    /// Waits until no call arrived for `limit`.
    pub(crate) async fn silence(&self, limit: Duration) {
        loop {
            let end = *self.last.borrow() + limit;
            if end <= Instant::now() {
                return;
            }
            sleep_until(end).await;
        }
    }

    /// Waits until the calls that were sent before are answered.
    pub(crate) async fn last_calls(&self) {
        sleep(LAST_CALLS).await;
        self.silence(LAST_CALLS).await;
    }
}
