//! How many calls may be under way, so that nobody keeps the others out.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::error::Error;

/// Calls of one user. root's are not counted so: it can do worse.
const MAX_OF_USER: usize = 64;
/// Calls of all users.
const MAX_OF_ALL: usize = 512;

/// The calls under way that change something, by user.
#[derive(Clone, Debug, Default)]
pub struct Callers(Arc<Mutex<HashMap<u32, usize>>>);

/// A caller whose call is under way until this is dropped.
#[derive(Debug)]
pub struct Caller {
    uid: u32,
    callers: Callers,
}

impl Caller {
    /// His user id.
    pub fn uid(&self) -> u32 {
        self.uid
    }
}

impl Callers {
    /// Lets a call of the user `uid` begin.
    pub(super) fn admit(&self, uid: u32) -> Result<Caller, Error> {
        let mut calls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let exceeded = |limit: usize, whose: &str| {
            Err(Error::LimitExceeded(format!(
                "{limit} calls of {whose} are under way, which is the limit; wait for some to end"
            )))
        };
        if calls.values().sum::<usize>() >= MAX_OF_ALL {
            return exceeded(MAX_OF_ALL, "all users");
        }
        let of_user = calls.entry(uid).or_default();
        if uid != 0 && *of_user >= MAX_OF_USER {
            return exceeded(MAX_OF_USER, &format!("user {uid}"));
        }
        *of_user += 1;
        let callers = self.clone();
        Ok(Caller { uid, callers })
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let mut calls = self
            .callers
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(of_user) = calls.get_mut(&self.uid) {
            *of_user -= 1;
            if *of_user == 0 {
                calls.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_so_many_calls_and_leaves_room_for_others() {
        let callers = Callers::default();
        let mut under_way: Vec<Caller> = (0..MAX_OF_USER)
            .map(|_| callers.admit(1000).unwrap())
            .collect();
        let refused = callers.admit(1000).unwrap_err();
        assert!(
            refused.to_string().contains("64 calls of user 1000"),
            "{refused}"
        );
        assert_eq!(callers.admit(1001).unwrap().uid(), 1001);
        under_way.pop();
        under_way.push(callers.admit(1000).unwrap());

        let of_root = MAX_OF_ALL - MAX_OF_USER;
        under_way.extend((0..of_root).map(|_| callers.admit(0).unwrap()));
        let refused = callers.admit(0).unwrap_err();
        assert!(
            refused.to_string().contains("512 calls of all users"),
            "{refused}"
        );
        drop(under_way);
        assert!(callers.0.lock().unwrap().is_empty());
    }
}
