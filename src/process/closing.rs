//! The closing of file descriptors that a caller passed.
//!
//! `close(2)` of such a descriptor can block as long as its sender wants: for a socket with `SO_LINGER`
//! (`socket(7)`), or for a file of a FUSE file system. Threads that do nothing else close them, because the
//! async runtime must not block.

use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use rustix::net::sockopt::{set_socket_linger, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};

/// Number of closing threads. One that blocks takes no other descriptor.
const THREADS: usize = 4;

/// File descriptors that a caller passed. They are closed in a thread of their own, and sockets do not
/// linger.
#[derive(Debug, Default)]
pub struct PassedFds(Vec<OwnedFd>);

impl PassedFds {
    /// Returns the descriptors, which the caller of this function closes.
    pub fn take(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.0)
    }

    /// Returns the number of descriptors.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether the number of descriptors is 0.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns whether all are Unix stream sockets, which close without blocking.
    pub fn are_unix_streams(&self) -> bool {
        self.0.iter().all(|fd| {
            socket_domain(fd) == Ok(AddressFamily::UNIX)
                && socket_type(fd) == Ok(SocketType::STREAM)
        })
    }
}

impl From<Vec<OwnedFd>> for PassedFds {
    fn from(fds: Vec<OwnedFd>) -> Self {
        for fd in &fds {
            // The bus daemon closes its descriptor of the same socket, and must not block either. Other
            // files have no such option.
            let _ = set_socket_linger(fd, None);
        }
        Self(fds)
    }
}

impl Drop for PassedFds {
    fn drop(&mut self) {
        if self.0.is_empty() {
            return;
        }
        static CLOSER: OnceLock<Sender<Vec<OwnedFd>>> = OnceLock::new();
        let closer = CLOSER.get_or_init(start);
        if let Err(unsent) = closer.send(self.take()) {
            // No thread was started. A leak is better than a service that blocks.
            std::mem::forget(unsent.0);
        }
    }
}

/// Starts the closing threads.
fn start() -> Sender<Vec<OwnedFd>> {
    let (sender, receiver) = channel();
    let receiver = Arc::new(Mutex::new(receiver));
    for _ in 0..THREADS {
        let receiver = receiver.clone();
        let thread = thread::Builder::new().name("closing".to_owned());
        if let Err(error) = thread.spawn(move || close_all(&receiver)) {
            tracing::warn!(%error, "a thread for closing file descriptors was not started");
        }
    }
    sender
}

fn close_all(receiver: &Mutex<Receiver<Vec<OwnedFd>>>) {
    loop {
        let next = receiver
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .recv();
        let Ok(fds) = next else {
            return;
        };
        drop(fds);
    }
}
