//! The tasks of machines.

use std::collections::HashSet;

use tokio::task::{Id, JoinError, JoinSet};

/// A set of tasks. The end of each is reported exactly once.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    running: JoinSet<()>,
    /// Tasks that ended while [`Tasks::join`] waited for another one.
    ended: HashSet<Id>,
}

impl Tasks {
    /// Starts a task, and returns its id.
    pub(super) fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) -> Id {
        self.running.spawn(task).id()
    }

    /// Waits for the end of the task `id`, which was not reported before. [`Tasks::next`] reports the end of
    /// other tasks later.
    ///
    /// # Errors
    /// Fails if any task panicked.
    pub(super) async fn join(&mut self, id: Id) -> Result<(), JoinError> {
        while !self.ended.remove(&id) {
            match self.running.join_next_with_id().await {
                Some(ended) => self.ended.insert(ended?.0),
                None => return Ok(()),
            };
        }
        Ok(())
    }

    /// Waits for the end of any task, and returns its id. Waits forever if there is no task. No end is lost
    /// if the call is cancelled.
    ///
    /// # Errors
    /// Fails if the task panicked.
    pub(super) async fn next(&mut self) -> Result<Id, JoinError> {
        if let Some(id) = self.ended.iter().next().copied() {
            self.ended.remove(&id);
            return Ok(id);
        }
        match self.running.join_next_with_id().await {
            Some(ended) => Ok(ended?.0),
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn reports_a_task_that_ended_while_another_was_joined() {
        let mut tasks = Tasks::default();
        let (end, ended) = oneshot::channel::<()>();
        let first = tasks.spawn(async {});
        let second = tasks.spawn(async move {
            let _ = ended.await;
        });
        assert!(tasks.join(second).now_or_never().is_none());
        drop(end);
        tasks.join(second).await.unwrap();
        assert_eq!(tasks.next().await.unwrap(), first);
        assert!(tasks.next().now_or_never().is_none());
    }

    #[tokio::test]
    async fn joins_a_task_whose_end_is_known() {
        let mut tasks = Tasks::default();
        let [first, second] = [(); 2].map(|()| tasks.spawn(async {}));
        tasks.join(second).await.unwrap();
        tasks.join(first).await.unwrap();
    }

    #[tokio::test]
    async fn a_panic_is_an_error_for_all_that_wait() {
        let mut tasks = Tasks::default();
        tasks.spawn(async { panic!("expected") });
        assert!(tasks.next().await.unwrap_err().is_panic());
        let (_end, ended) = oneshot::channel::<()>();
        let waiting = tasks.spawn(async move {
            let _ = ended.await;
        });
        tasks.spawn(async { panic!("expected") });
        assert!(tasks.join(waiting).await.unwrap_err().is_panic());
    }
}
