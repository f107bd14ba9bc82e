//! Waiting with the time limit of the lab.

use std::fmt::Debug;
use std::panic::Location;
use std::time::Duration;

use tokio::time::{Instant, interval, timeout};

use super::lost::end_tests_if_host_hangs;

/// The time limit. It is much longer than any successful step, also in a host with emulated CPUs on a busy
/// machine.
pub(super) const LIMIT: Duration = Duration::from_secs(90);

/// Waits for `future`. Panics with `what` after the time limit.
#[track_caller]
pub(crate) fn within<F: Future>(
    what: impl Into<String>,
    future: F,
) -> impl Future<Output = F::Output> {
    let (caller, what) = (Location::caller(), what.into());
    async move {
        match timeout(LIMIT, future).await {
            Ok(output) => output,
            Err(_) => time_out(caller, &what),
        }
    }
}

/// Waits until `read` returns `wanted`, for files of the kernel and other states without events. Panics with the
/// last value after the time limit.
#[track_caller]
pub(crate) fn until<T: PartialEq + Debug>(
    what: impl Into<String>,
    wanted: T,
    mut read: impl FnMut() -> T,
) -> impl Future<Output = ()> {
    let (caller, what, end) = (Location::caller(), what.into(), Instant::now() + LIMIT);
    async move {
        let mut looks = interval(Duration::from_millis(20));
        loop {
            let found = read();
            if found == wanted {
                return;
            }
            if Instant::now() >= end {
                time_out(caller, &format!("{what} to be {wanted:?}: {found:?}"));
            }
            looks.tick().await;
        }
    }
}

/// Panics after the time limit, or ends all tests if the host hangs.
fn time_out(caller: &Location<'_>, what: &str) -> ! {
    end_tests_if_host_hangs(what);
    panic!(
        "{caller}: timed out after {} s waiting for {what}",
        LIMIT.as_secs()
    )
}
