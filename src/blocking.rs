//! Blocking work, kept off the async runtime: files, `/proc`, and other calls of the kernel that may
//! take time.

use std::panic::resume_unwind;

use tokio::task::{JoinError, spawn_blocking};

/// Runs `work` on the blocking pool. If the call is dropped, work that has begun continues.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    spawn_blocking(work).await.unwrap_or_else(broken)
}

/// Continues a panic of the work in the caller.
#[expect(
    clippy::panic,
    reason = "tokio cancels work of the blocking pool only when the runtime ends, and nothing waits for it then"
)]
fn broken<T>(error: JoinError) -> T {
    match error.try_into_panic() {
        Ok(panic) => resume_unwind(panic),
        Err(error) => panic!("{error}"),
    }
}
