//! The time limit of all waits in tests.

use std::panic::Location;
use std::time::Duration;

use tokio::time::{interval, timeout};

/// Longer than anything takes that works, also on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
/// The interval between two checks of a condition.
const INTERVAL: Duration = Duration::from_millis(5);

/// Waits for `what`, which is `future`. Panics if it takes too long.
#[track_caller]
pub fn within<F: Future>(what: impl Into<String>, future: F) -> impl Future<Output = F::Output> {
    let (caller, what) = (Location::caller(), what.into());
    async move {
        match timeout(LIMIT, future).await {
            Ok(output) => output,
            Err(_) => panic!(
                "{caller}: timed out after {} s waiting for {what}",
                LIMIT.as_secs()
            ),
        }
    }
}

/// Waits for `what`, which is `condition`. Only for files of the kernel, which emit no event when they
/// change. Panics if it takes too long.
#[track_caller]
pub fn until(
    what: impl Into<String>,
    mut condition: impl FnMut() -> bool,
) -> impl Future<Output = ()> {
    within(what, async move {
        let mut checks = interval(INTERVAL);
        while !condition() {
            checks.tick().await;
        }
    })
}
