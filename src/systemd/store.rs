//! systemd's store of descriptors (`FDSTORE=1` in `sd_notify(3)`): what is in it outlives the
//! service, be it restarted or killed, until its unit is stopped.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use tracing::{debug, warn};

use crate::host::{Keeper, inherited};

/// The store of this service.
#[derive(Debug)]
pub struct FdStore {
    /// What was in it when the service started, and was not taken.
    left: Mutex<BTreeMap<String, OwnedFd>>,
}

impl FdStore {
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
        Self {
            left: Mutex::new(inherited(left)),
        }
    }

    /// Lets go of what was left and nobody took.
    pub fn release_rest(&self) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        for name in std::mem::take(&mut *left).into_keys() {
            debug!(name, "a descriptor that nobody needs any more");
            self.release(&name);
        }
    }
}

impl Keeper for FdStore {
    fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) {
        let state = [("FDSTORE", "1"), ("FDNAME", name)];
        let descriptors = [descriptor.as_raw_fd()];
        // PID 0 is this process.
        let kept = ::systemd::daemon::pid_notify_with_fds(0, state.iter(), &descriptors);
        if let Err(error) = kept {
            debug!(name, %error, "systemd does not keep a descriptor");
        }
    }

    fn release(&self, name: &str) {
        super::notify(&[("FDSTOREREMOVE", "1"), ("FDNAME", name)]);
    }

    fn take(&self, name: &str) -> Option<OwnedFd> {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.remove(name)
    }
}
