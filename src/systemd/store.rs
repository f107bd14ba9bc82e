//! systemd's store of descriptors (`FDSTORE=1` in `sd_notify(3)`): what is in it outlives the
//! service, be it restarted or killed, until its unit is stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing::{debug, warn};

use crate::fd_store::FdStore;
use crate::process::inherited;

/// systemd passes all names in one variable of the environment, of which Linux takes no more than
/// 128 KiB (`MAX_ARG_STRLEN` in `execve(2)`): with more in it the service could not be started.
const ROOM_FOR_NAMES: usize = (128 << 10) - "LISTEN_FDNAMES=\0".len();

/// The store of this service.
#[derive(Debug)]
pub struct Store {
    /// How many descriptors it has room for, where systemd says so (since version 254).
    room: Option<usize>,
    content: Mutex<Content>,
}

#[derive(Debug)]
struct Content {
    /// What was in it when the service started, and was not taken.
    left: BTreeMap<String, OwnedFd>,
    /// The names of all that is in it, or was given to it.
    kept: BTreeSet<String>,
    /// Whether it was logged that there is no more room.
    is_full: bool,
}

impl Store {
    /// The store, with what a former run of the service left in it. To be called once.
    pub fn open() -> Self {
        let left = match ::systemd::daemon::listen_fds_with_names() {
            Ok(descriptors) => descriptors
                .iter()
                .map(|(fd, name)| (name.to_string_lossy().into_owned(), fd))
                .collect(),
            Err(error) => {
                warn!(%error, "what systemd kept cannot be taken");
                Vec::new()
            }
        };
        let left = inherited(left);
        let kept = left.keys().cloned().collect();
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

    /// Lets go of what was left and nobody took.
    pub fn release_rest(&self) {
        let left = std::mem::take(&mut self.content().left);
        for name in left.into_keys() {
            debug!(name, "a descriptor that nobody needs any more");
            self.release(&name);
        }
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a descriptor is to be given to it as `name`. Not where it has one, as of all that a
    /// former run left (systemd would compare it with all others to find that out), and not where
    /// it has no room, which is logged once.
    fn admits(&self, name: &str) -> bool {
        let mut content = self.content();
        if content.kept.contains(name) {
            return false;
        }
        // With what separates them.
        let names = content
            .kept
            .iter()
            .map(|name| name.len() + 1)
            .sum::<usize>();
        let has_room = self.room.is_none_or(|room| content.kept.len() < room)
            && names + name.len() < ROOM_FOR_NAMES;
        if has_room {
            content.kept.insert(name.to_owned());
        } else if !content.is_full {
            content.is_full = true;
            warn!(
                name,
                kept = content.kept.len(),
                "systemd's store of descriptors is full (FileDescriptorStoreMax=, or 128 KiB of names): a restart of the service connects anew to machines whose connections are not in it, and loses those that were passed to it"
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
        // PID 0 is this process.
        let kept = ::systemd::daemon::pid_notify_with_fds(0, state.iter(), &descriptors);
        if let Err(error) = kept {
            debug!(name, %error, "systemd does not keep a descriptor");
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
