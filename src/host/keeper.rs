//! Who keeps descriptors over a restart of the service, where somebody does.

use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};

/// Keeps descriptors for the next run of the service, each by a name.
pub trait Keeper: fmt::Debug + Send + Sync {
    /// Keeps `descriptor` as `name`, unless one is kept so already: that is released first where
    /// it is to be another.
    fn keep(&self, name: &str, descriptor: BorrowedFd<'_>);

    /// Keeps nothing as `name` any more.
    fn release(&self, name: &str);

    /// What the former run of the service left as `name`. It stays kept.
    fn take(&self, name: &str) -> Option<OwnedFd>;
}
