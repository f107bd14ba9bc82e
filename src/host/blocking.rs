//! Work that blocks, kept off the async runtime: files, `/proc`, and what else the kernel may take its
//! time for.

use std::panic::resume_unwind;

use tokio::task::{JoinError, spawn_blocking};

/// Does `work` on the blocking pool. Work that has begun goes on where the call is given up.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    spawn_blocking(work).await.unwrap_or_else(broken)
}

/// Continues a panic of the work in the caller. Work is never cancelled.
pub fn broken<T>(error: JoinError) -> T {
    match error.try_into_panic() {
        Ok(panic) => resume_unwind(panic),
        Err(error) => panic!("{error}"),
    }
}
