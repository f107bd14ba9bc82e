//! Blocking work, kept off the async runtime: files, `/proc`, and other calls of the kernel that may
//! take time.

use std::future::pending;
use std::panic::resume_unwind;

use tokio::task::spawn_blocking;

/// Runs `work` on the blocking pool. If the call is dropped, work that has begun continues. If the runtime
/// ends before the work begins, the call never returns.
///
/// # Panics
///
/// If `work` panics.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            // The runtime ends: tokio drops the caller.
            Err(_) => pending().await,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use futures_util::FutureExt;
    use tokio::runtime::Builder;
    use tokio::task::unconstrained;

    use super::*;

    #[test]
    fn work_that_the_end_of_the_runtime_cancels_does_not_panic() {
        let runtime = Builder::new_multi_thread().build().expect("threads");
        let (begin, begun) = mpsc::channel();
        let (sender, result) = mpsc::channel();
        runtime.spawn(unconstrained(async move {
            let _ = begin.send(());
            // One poll of the task, in which the runtime ends.
            while !matches!(spawn_blocking(|| ()).now_or_never(), Some(Err(_))) {
                thread::yield_now();
            }
            let _ = sender.send(blocking(|| ()).now_or_never());
        }));
        assert_eq!(begun.recv(), Ok(()));
        drop(runtime);
        assert_eq!(result.recv(), Ok(None));
    }
}
