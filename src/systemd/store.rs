//! The file descriptor store of systemd (`FDSTORE=1` in `sd_notify(3)`). Its descriptors survive a restart
//! or a crash of the service, until the unit is stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing::{debug, warn};

use super::passed;
use crate::fd_store::FdStore;

/// The maximum length of all names, in bytes. systemd passes them in one environment variable, and Linux
/// does not start a program with a variable above 128 KiB (`MAX_ARG_STRLEN` in `execve(2)`).
const ROOM_FOR_NAMES: usize = (128 << 10) - "LISTEN_FDNAMES=\0".len();

/// The store of the service.
#[derive(Debug)]
pub struct Store {
    /// The maximum number of descriptors, if systemd reports it (since version 254).
    room: Option<usize>,
    content: Mutex<Content>,
}

#[derive(Debug)]
struct Content {
    /// The descriptors of the previous instance that were not taken yet.
    left: BTreeMap<String, OwnedFd>,
    kept: Kept,
    /// Whether the service has logged that the store is full.
    is_full: bool,
}

/// The names of all descriptors in the store.
#[derive(Debug, Default)]
struct Kept {
    names: BTreeSet<String>,
    /// The length of all names in bytes, with a separator after each.
    length: usize,
}

impl Kept {
    fn insert(&mut self, name: String) {
        let length = name.len() + 1;
        if self.names.insert(name) {
            self.length += length;
        }
    }

    /// Returns whether the store had the name.
    fn remove(&mut self, name: &str) -> bool {
        let is_removed = self.names.remove(name);
        if is_removed {
            self.length -= name.len() + 1;
        }
        is_removed
    }
}

impl Store {
    /// Returns the store, with the descriptors of the previous instance. Must be called once.
    pub fn open() -> Self {
        let left = passed().unwrap_or_else(|error| {
            warn!(%error, "cannot take the descriptors of the previous instance: {error}");
            Vec::new()
        });
        let left: BTreeMap<String, OwnedFd> = left.into_iter().collect();
        let mut kept = Kept::default();
        left.keys().for_each(|name| kept.insert(name.clone()));
        let is_full = false;
        let room = env::var("FDSTORE").ok().and_then(|max| max.parse().ok());
        Self {
            room,
            content: Mutex::new(Content {
                left,
                kept,
                is_full,
            }),
        }
    }

    /// Releases the descriptors of the previous instance that were not taken.
    pub fn release_rest(&self) {
        let left = std::mem::take(&mut self.content().left);
        for name in left.into_keys() {
            debug!(name, "releasing the unused descriptor {name}");
            self.release(&name);
        }
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether to store a descriptor as `name`: not if the store has one with this name, because
    /// systemd would compare it with all others, and not if the store is full, which is logged once.
    fn admits(&self, name: &str) -> bool {
        let mut content = self.content();
        let kept = &content.kept;
        if kept.names.contains(name) {
            return false;
        }
        let has_room = self.room.is_none_or(|room| kept.names.len() < room)
            && kept.length + name.len() < ROOM_FOR_NAMES;
        if has_room {
            content.kept.insert(name.to_owned());
        } else if !content.is_full {
            content.is_full = true;
            warn!(
                name,
                kept = content.kept.names.len(),
                "the file descriptor store of systemd is full (FileDescriptorStoreMax=, or 128 KiB of names): a restart of the service connects again to machines whose connections are not in the store, and loses connections that callers passed"
            );
        }
        has_room
    }
}

impl FdStore for Store {
    fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) {
        if !self.admits(name) {
            return;
        }
        let state = [("FDSTORE", "1"), ("FDNAME", name)];
        let descriptors = [descriptor.as_raw_fd()];
        // PID 0 means this process.
        let kept = ::systemd::daemon::pid_notify_with_fds(0, state.iter(), &descriptors);
        if let Err(error) = kept {
            debug!(name, %error, "systemd does not store the descriptor {name}: {error}");
        }
    }

    fn release(&self, name: &str) {
        if !self.content().kept.remove(name) {
            return;
        }
        super::notify(&[("FDSTOREREMOVE", "1"), ("FDNAME", name)]);
    }

    fn take(&self, name: &str) -> Option<OwnedFd> {
        self.content().left.remove(name)
    }
}
