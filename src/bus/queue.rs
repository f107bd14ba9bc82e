//! Whose turn it is to ask polkit, so that nobody's questions keep those of others out.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::ids::Uid;

/// Questions of one user that polkit has at a time; each may be a dialog that nobody answers.
const MAX_OF_USER: usize = 8;
/// Questions of all users. A bus daemon lets a connection wait for 128 replies
/// (`max_replies_per_connection` in `dbus-daemon(1)`).
const MAX_OF_ALL: usize = 96;

/// The questions that polkit has, by user.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    all: Arc<Semaphore>,
    users: Arc<Mutex<HashMap<Uid, Weak<Semaphore>>>>,
}

/// A question that may be asked. The turn ends when this is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    _of_user: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

impl Queue {
    /// A queue that nobody stands in.
    pub(super) fn new() -> Self {
        Self {
            all: Arc::new(Semaphore::new(MAX_OF_ALL)),
            users: Arc::default(),
        }
    }

    /// Waits until it is a question's turn that is asked for the user `uid`. First come, first
    /// served.
    pub(super) async fn turn(&self, uid: Uid) -> Turn {
        const OPEN: &str = "it is never closed";
        let of_user = self.user(uid).acquire_owned().await.expect(OPEN);
        let of_all = self.all.clone().acquire_owned().await.expect(OPEN);
        Turn {
            _of_user: of_user,
            _of_all: of_all,
        }
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
    fn who_asks_much_waits_for_himself_only() {
        let queue = Queue::new();
        let turn = |uid| queue.turn(Uid(uid)).now_or_never();
        let mut first: Vec<Turn> = (0..MAX_OF_USER).map(|_| turn(1).unwrap()).collect();
        assert!(turn(1).is_none());
        assert!(turn(2).is_some());
        first.pop();
        first.push(turn(1).expect("one was answered"));
        // So many users there must be.
        let users = 2..=(MAX_OF_ALL / MAX_OF_USER) as u32;
        let all = users.flat_map(|uid| (0..MAX_OF_USER).map(move |_| turn(uid).unwrap()));
        let all: Vec<Turn> = all.collect();
        assert!(turn(99).is_none());
        drop(all);
        assert!(turn(99).is_some());
        assert!(queue.users.lock().unwrap().len() <= 16);
    }
}
