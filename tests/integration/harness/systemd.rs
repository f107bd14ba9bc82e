//! What systemd does for a service that it started: hears what it says of itself (`sd_notify(3)`),
//! and keeps its descriptors across restarts.

use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use command_fds::{CommandFdExt, FdMapping};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::process::Command;
use tokio::sync::watch;

use super::bus::Bus;
use super::process::command;
use super::wait::within;

/// A scripted systemd. It hears until its socket's directory goes.
pub(crate) struct Systemd {
    socket: PathBuf,
    state: watch::Receiver<State>,
}

/// The messages and descriptors of a service.
#[derive(Clone, Debug, Default)]
struct State {
    said: Vec<String>,
    kept: BTreeMap<String, Arc<OwnedFd>>,
}

impl Systemd {
    /// One with its socket in the directory of `bus`.
    pub(crate) fn start(bus: &Bus) -> Self {
        let socket = bus.directory().join("notify");
        let listener = UnixDatagram::bind(&socket).expect("the directory is writable");
        let (sender, state) = watch::channel(State::default());
        thread::spawn(move || {
            while !sender.is_closed() {
                hear(&listener, &sender);
            }
        });
        Self { socket, state }
    }

    /// A command that runs `program` as its service, with the descriptors that it keeps.
    pub(crate) fn command(&self, program: &str) -> Command {
        let kept = self.state.borrow().kept.clone();
        let names: Vec<&str> = kept.keys().map(String::as_str).collect();
        let mut command = command("sh");
        command
            .args(["-c", "LISTEN_PID=$$ WATCHDOG_PID=$$ exec \"$0\"", program])
            .env("WATCHDOG_USEC", "1000000")
            .env("NOTIFY_SOCKET", &self.socket);
        if !kept.is_empty() {
            command
                .env("LISTEN_FDS", kept.len().to_string())
                .env("LISTEN_FDNAMES", names.join(":"));
        }
        let mapping = |(fd, descriptor): (usize, &Arc<OwnedFd>)| FdMapping {
            parent_fd: descriptor.try_clone().expect("a descriptor is left"),
            child_fd: 3 + fd as i32,
        };
        let mappings = kept.values().enumerate().map(mapping).collect();
        command.fd_mappings(mappings).expect("each has its number");
        command
    }

    /// The names of what it keeps.
    pub(crate) fn kept(&self) -> Vec<String> {
        self.state.borrow().kept.keys().cloned().collect()
    }

    /// Waits until it keeps just these.
    pub(crate) async fn keeps(&mut self, names: &[&str]) {
        let is_kept = |state: &State| state.kept.keys().eq(names);
        let what = format!("{names:?} to be kept");
        within(what, self.state.wait_for(is_kept))
            .await
            .expect("it hears");
    }

    /// Returns how often the service has said `line`.
    pub(crate) fn count(&self, line: &str) -> usize {
        let state = self.state.borrow();
        state.said.iter().filter(|said| *said == line).count()
    }

    /// Waits until the service has said `line`.
    pub(crate) async fn is_told(&mut self, line: &str) {
        let is_said = |state: &State| state.said.iter().any(|said| said == line);
        let what = format!("{line:?} to be said");
        within(what, self.state.wait_for(is_said))
            .await
            .expect("it hears");
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        // The thread hears this as its last.
        if let Ok(socket) = UnixDatagram::unbound() {
            let _ = socket.send_to(b"END", &self.socket);
        }
    }
}

/// Takes one message.
fn hear(listener: &UnixDatagram, state: &watch::Sender<State>) {
    let mut bytes = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8), ScmCredentials(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(listener, &mut parts, &mut ancillary, flags).expect("a message");
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    let text = String::from_utf8_lossy(&bytes[..received.bytes]).into_owned();
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let name = lines.iter().find_map(|line| line.strip_prefix("FDNAME="));
    let name = name.unwrap_or("stored").to_owned();
    state.send_modify(|state| {
        if lines.iter().any(|line| line == "FDSTOREREMOVE=1") {
            state.kept.remove(&name);
        }
        for descriptor in descriptors {
            state.kept.insert(name.clone(), Arc::new(descriptor));
        }
        state.said.extend(lines);
    });
}
