//! The limits of calls in progress. It must not decide what a caller is authorized to do.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;
use zbus::message::Header;
use zbus::{Connection, fdo};

use crate::error::Error;

/// The maximum number of calls of a user at a time, except root.
const MAX_OF_USER: usize = 8;
/// The maximum number of calls of all these users. A bus daemon lets a connection wait for 128 replies, and each call
/// can wait for one of polkit or vcpud.
const MAX_OF_USERS: usize = 32;
/// The maximum number of calls whose user is not known yet.
const MAX_UNKNOWN: usize = 32;

/// Counts calls.
#[derive(Debug)]
pub(crate) struct Admission {
    /// The calls of each user except root.
    calls: Mutex<HashMap<u32, usize>>,
    unknown: Semaphore,
}

/// A call in progress. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    admission: &'a Admission,
    /// The user of the caller.
    pub(crate) uid: u32,
}

impl Admission {
    pub(crate) fn new() -> Self {
        Self {
            calls: Mutex::default(),
            unknown: Semaphore::new(MAX_UNKNOWN),
        }
    }

    /// Begins the call with `header`.
    ///
    /// # Errors
    /// Too many calls are in progress, or the caller has left the bus.
    pub(crate) async fn admit(
        &self,
        bus: &Connection,
        header: &Header<'_>,
    ) -> Result<Turn<'_>, Error> {
        let _known = self.unknown.try_acquire().map_err(|_| {
            Error::limit_exceeded(format!("{MAX_UNKNOWN} calls arrive at a time; try again"))
        })?;
        let uid = user(bus, header)
            .await
            .map_err(|error| Error::access_denied(format!("the caller has no user: {error}")))?;
        self.begin(uid)
    }

    fn begin(&self, uid: u32) -> Result<Turn<'_>, Error> {
        if uid != 0 {
            let mut calls = self.calls();
            let exceeded = |count, whose: &str| {
                let text = format!("{count} calls of {whose} are in progress; try again");
                Err(Error::limit_exceeded(text))
            };
            if calls.values().sum::<usize>() >= MAX_OF_USERS {
                return exceeded(MAX_OF_USERS, "all users");
            }
            let own = calls.entry(uid).or_default();
            if *own >= MAX_OF_USER {
                return exceeded(MAX_OF_USER, &format!("user {uid}"));
            }
            *own += 1;
        }
        Ok(Turn {
            admission: self,
            uid,
        })
    }

    fn calls(&self) -> MutexGuard<'_, HashMap<u32, usize>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut calls = self.admission.calls();
        if let Some(own) = calls.get_mut(&self.uid) {
            *own -= 1;
            if *own == 0 {
                calls.remove(&self.uid);
            }
        }
    }
}

/// Returns the user of the sender of a call.
async fn user(bus: &Connection, header: &Header<'_>) -> Result<u32, fdo::Error> {
    let sender = header
        .sender()
        .ok_or_else(|| fdo::Error::Failed("the call has no sender".to_owned()))?;
    let daemon = fdo::DBusProxy::new(bus).await?;
    daemon
        .get_connection_unix_user(sender.to_owned().into())
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_user_and_all_users_have_a_limit_and_root_has_none() {
        let admission = Admission::new();
        let full = |turns: &mut Vec<_>, uid| {
            loop {
                match admission.begin(uid) {
                    Ok(turn) => turns.push(turn),
                    Err(error) => return error.to_string(),
                }
            }
        };
        let mut turns = Vec::new();
        let text = full(&mut turns, 1000);
        assert_eq!(text, "8 calls of user 1000 are in progress; try again");
        assert_eq!(turns.len(), 8);
        (1001..1004).for_each(|uid| drop(full(&mut turns, uid)));
        assert_eq!(turns.len(), MAX_OF_USERS);
        let text = full(&mut turns, 1004);
        assert_eq!(text, "32 calls of all users are in progress; try again");
        let root: Vec<_> = (0..100).map(|_| admission.begin(0).unwrap()).collect();
        drop((turns, root));
        assert!(admission.calls().is_empty());
    }
}
