//! The one time limit of the lab: whatever is waited for has to come within it.

use std::fmt::Debug;
use std::panic::Location;
use std::time::Duration;

use tokio::time::{Instant, interval, timeout};

/// Much longer than anything takes that works, even in a host whose CPUs are emulated by a busy
/// machine.
const LIMIT: Duration = Duration::from_secs(90);

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

/// Waits until `read` gives what is `wanted`: for files of the kernel, and other things that tell
/// nobody when they change. Panics with what there is instead.
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
            assert!(
                Instant::now() < end,
                "{caller}: waited {} s in vain for {what} to be {wanted:?}: {found:?}",
                LIMIT.as_secs()
            );
            looks.tick().await;
        }
    }
}
