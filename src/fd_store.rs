//! The file descriptor store: descriptors that outlive an instance of the service. See
//! `FileDescriptorStoreMax=` in `systemd.service(5)`.

use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};

/// A store that keeps descriptors for the next instance of the service, each by a name.
pub trait FdStore: fmt::Debug + Send + Sync {
    /// Stores `descriptor` as `name`, unless the same one is stored. Another one with this name is
    /// released first.
    fn keep(&self, name: &str, descriptor: BorrowedFd<'_>);

    /// Removes the descriptor with this name from the store.
    fn release(&self, name: &str);

    /// Returns what the previous instance stored as `name`. It stays in the store.
    fn take(&self, name: &str) -> Option<OwnedFd>;
}
