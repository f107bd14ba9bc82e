//! When the service has nothing to do, and may end until somebody needs it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

/// After the name is released, calls that were on their way are answered. It takes
/// milliseconds; each call that arrives starts this time again.
const LAST_CALLS: Duration = Duration::from_millis(500);

/// When others last called.
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
    /// Notes a call.
    pub(crate) fn note(&self) {
        self.last.send_replace(Instant::now());
    }

    /// Waits until no call came for `limit`.
    pub(crate) async fn silence(&self, limit: Duration) {
        loop {
            let end = *self.last.borrow() + limit;
            if end <= Instant::now() {
                return;
            }
            sleep_until(end).await;
        }
    }

    /// Waits until the calls that came before are answered, where that takes no time.
    pub(crate) async fn last_calls(&self) {
        sleep(LAST_CALLS).await;
        self.silence(LAST_CALLS).await;
    }
}
