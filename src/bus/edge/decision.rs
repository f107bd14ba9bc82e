//! The decisions of the admission about calls and replies.

/// The decision about a call that arrived.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// It is taken, or waits.
    Accepted,
    /// It waits until the user of its sender is known. The caller of this function asks for it.
    UnknownSender,
    /// It gets an error with this name and text.
    Refused(&'static str, String),
    /// It is dropped without a reply: the caller does not read its replies, or used a serial twice.
    Dropped,
}

/// The decision about a reply.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// It is sent.
    Expected {
        /// Member of the call that it answers.
        member: String,
    },
    /// It is dropped, because its caller expects none.
    Unwanted,
    /// It answers no call that was taken here.
    Unknown,
}
