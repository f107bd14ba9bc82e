//! The time limit of all waits in tests.

use std::panic::Location;
use std::time::Duration;

use tokio::time::timeout;

/// Longer than anything that works takes, even on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// Waits for `what`, which is `future`. Panics where it does not come.
#[track_caller]
pub(crate) fn within<F: Future>(
    what: impl Into<String>,
    future: F,
) -> impl Future<Output = F::Output> {
    let (caller, what) = (Location::caller(), what.into());
    async move {
        match timeout(LIMIT, future).await {
            Ok(output) => output,
            Err(_) => panic!("{caller}: waited {} s in vain for {what}", LIMIT.as_secs()),
        }
    }
}
