//! Calls and bytes that count against limits, and the limit that a call would exceed.

use super::limits::{
    BYTES_OF_GROUP, BYTES_OF_USER, CHANGES_OF_GROUP, CHANGES_OF_USER, WAITING_OF_GROUP,
    WAITING_OF_USER,
};

use crate::ids::Uid;

/// The kind of a call, which determines its limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Reads, and is free to all users.
    Read,
    /// Changes something, and is authorized.
    Change,
}

/// Numbers that have limits, of a user or of a group of users.
#[derive(Debug, Default)]
pub(super) struct Count {
    pub(super) changes: usize,
    pub(super) reads: usize,
    pub(super) waiting: usize,
    pub(super) bytes: usize,
    pub(super) unread: u64,
}

/// Returns the limit, in words, that one more call of `class` and `bytes` would exceed, of the user
/// `uid` with the count `user`, in a group with the count `group`.
pub(super) fn exceeded(
    uid: Uid,
    user: &Count,
    group: &Count,
    class: Class,
    bytes: usize,
) -> Option<String> {
    let of_user = format!("user {uid}");
    let of_group = if uid.is_root() { "root" } else { "all users" };
    let refuse = |is_exceeded: bool, limit: usize, whose: &str| {
        let text = || {
            format!(
                "{limit} calls of {whose} are in progress, which is the limit; wait for some to end"
            )
        };
        is_exceeded.then(text)
    };
    // root has the limits of its group only.
    let (of_all, all_limit, of_one, one_limit) = match class {
        Class::Change => (
            group.changes >= CHANGES_OF_GROUP,
            CHANGES_OF_GROUP,
            user.changes >= CHANGES_OF_USER,
            CHANGES_OF_USER,
        ),
        Class::Read => (
            group.waiting >= WAITING_OF_GROUP || group.bytes + bytes > BYTES_OF_GROUP,
            WAITING_OF_GROUP,
            user.waiting >= WAITING_OF_USER || user.bytes + bytes > BYTES_OF_USER,
            WAITING_OF_USER,
        ),
    };
    refuse(of_all, all_limit, of_group)
        .or_else(|| refuse(!uid.is_root() && of_one, one_limit, &of_user))
}
