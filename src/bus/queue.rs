//! The order of the questions to polkit, so that the questions of one user do not delay those of others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

use crate::ids::Uid;

/// The number of questions of one user that polkit has at a time. Each may be a dialog without an answer.
const MAX_OF_USER: usize = 8;
/// The number of questions of all users that polkit has at a time. A bus daemon lets a connection wait for 128 replies
/// (`max_replies_per_connection` in `dbus-daemon(1)`).
const MAX_OF_ALL: usize = 96;

/// The questions that polkit has, by user.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    all: Arc<Semaphore>,
    users: Arc<Mutex<HashMap<Uid, Weak<Semaphore>>>>,
}

/// The turn of a question. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    _of_user: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

impl Queue {
    /// Returns an empty queue.
    pub(super) fn new() -> Self {
        Self {
            all: Arc::new(Semaphore::new(MAX_OF_ALL)),
            users: Arc::default(),
        }
    }

    /// Waits for the turn of a question for the user `uid`. The turns of a user are in the order of the
    /// calls.
    ///
    /// # Errors
    ///
    /// Fails if a semaphore is closed, which nothing here does.
    pub(super) async fn turn(&self, uid: Uid) -> Result<Turn, AcquireError> {
        Ok(Turn {
            _of_user: self.user(uid).acquire_owned().await?,
            _of_all: self.all.clone().acquire_owned().await?,
        })
    }

    fn user(&self, uid: Uid) -> Arc<Semaphore> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(user) = users.get(&uid).and_then(Weak::upgrade) {
            return user;
        }
        users.retain(|_, user| user.strong_count() > 0);
        let user = Arc::new(Semaphore::new(MAX_OF_USER));
        users.insert(uid, Arc::downgrade(&user));
        user
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_user_with_many_questions_delays_only_itself() {
        let queue = Queue::new();
        let turn = |uid| {
            let turn = queue.turn(Uid(uid)).now_or_never();
            turn.map(Result::unwrap)
        };
        let mut first: Vec<Turn> = (0..MAX_OF_USER).map(|_| turn(1).unwrap()).collect();
        assert!(turn(1).is_none());
        assert!(turn(2).is_some());
        first.pop();
        first.push(turn(1).expect("one was answered"));
        let users = 2..=(MAX_OF_ALL / MAX_OF_USER) as u32;
        let all = users.flat_map(|uid| (0..MAX_OF_USER).map(move |_| turn(uid).unwrap()));
        let all: Vec<Turn> = all.collect();
        assert!(turn(99).is_none());
        drop(all);
        assert!(turn(99).is_some());
        assert!(queue.users.lock().unwrap().len() <= 16);
    }
}
