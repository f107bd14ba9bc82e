//! Notices that CPUs and memory nodes of the host go offline and come back, by the kernel's messages about
//! devices (`NETLINK_KOBJECT_UEVENT` in `netlink(7)`).
//!
//! sysfs has no other way to wait for this: `inotify(7)` does not report its changes.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, RecvFlags, SocketAddrAny, SocketFlags, SocketType, bind, recvfrom, socket_with,
};
use tokio::io::unix::AsyncFd;

/// The multicast group of the messages of the kernel. Programs use other groups.
const KERNEL: u32 = 1;
/// The size of the buffer for a message, in bytes. The kernel writes at most 2 KiB and a device path
/// (`UEVENT_BUFFER_SIZE` in `include/linux/kobject.h`); of a longer one, the end is lost.
const BUFFER: usize = 4096;
/// The devices whose messages matter.
const DEVICES: [&[u8]; 2] = [b"/devices/system/cpu/", b"/devices/system/node/"];

/// The messages of the kernel about devices.
#[derive(Debug)]
pub struct CpuEvents(AsyncFd<OwnedFd>);

impl CpuEvents {
    /// Begins to receive messages.
    ///
    /// # Errors
    ///
    /// Fails if the kernel refuses a socket.
    pub fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let protocol = Some(KOBJECT_UEVENT);
        let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, protocol)?;
        bind(&socket, &SocketAddrNetlink::new(0, KERNEL))?;
        #[expect(deprecated, reason = "sound here: an OwnedFd owns its one descriptor")]
        let socket = AsyncFd::new(socket)?;
        Ok(Self(socket))
    }

    /// Waits until a CPU or a memory node of the host changed. No change is lost if the call is cancelled.
    ///
    /// # Errors
    ///
    /// Fails if the socket cannot be read any more.
    pub async fn changed(&self) -> io::Result<()> {
        loop {
            self.0.readable().await?.clear_ready();
            if self.read_all()? {
                return Ok(());
            }
        }
    }

    /// Reads all messages that came. Returns whether one is about a CPU or a memory node.
    fn read_all(&self) -> io::Result<bool> {
        let mut buffer = [0; BUFFER];
        let mut is_changed = false;
        loop {
            match recvfrom(&self.0, &mut buffer, RecvFlags::empty()) {
                Ok((_, length, sender)) => {
                    let message = &buffer[..length.min(BUFFER)];
                    is_changed |= is_of_kernel(sender) && concerns_cpus(message);
                }
                Err(Errno::AGAIN) => return Ok(is_changed),
                // Messages were lost.
                Err(Errno::NOBUFS) => is_changed = true,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Returns whether the kernel sent the message, not a program: the port id of the kernel is 0.
fn is_of_kernel(sender: Option<SocketAddrAny>) -> bool {
    let sender = sender.map(SocketAddrNetlink::try_from);
    sender.is_some_and(|sender| sender.is_ok_and(|sender| sender.pid() == 0))
}

/// Returns whether `message` is about a CPU or a memory node. It begins with `ACTION@DEVPATH` and a NUL byte
/// (`kobject_uevent_env` in `lib/kobject_uevent.c`).
fn concerns_cpus(message: &[u8]) -> bool {
    let mut parts = message.splitn(2, |byte| *byte == b'@');
    let path = parts.nth(1);
    path.is_some_and(|path| DEVICES.iter().any(|device| path.starts_with(device)))
}

/// Lets the kernel send a message about a device, which does not change. Returns `false` if that is not allowed: the
/// test is not root, or sysfs is read-only, as in many containers.
#[cfg(test)]
pub(crate) fn request_event(device: &str) -> bool {
    match std::fs::write(format!("/sys/devices/{device}/uevent"), "change") {
        Ok(()) => true,
        Err(error) => {
            let not_allowed = [
                io::ErrorKind::PermissionDenied,
                io::ErrorKind::ReadOnlyFilesystem,
            ];
            assert!(not_allowed.contains(&error.kind()), "{error}");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use tokio::time::timeout;

    use super::*;

    #[test]
    fn knows_what_a_message_is_about() {
        let concerned: [&[u8]; 3] = [
            b"online@/devices/system/cpu/cpu1\0ACTION=online\0",
            b"offline@/devices/system/cpu/cpu12\0ACTION=offline\0",
            b"add@/devices/system/node/node1\0ACTION=add\0",
        ];
        assert!(concerned.into_iter().all(concerns_cpus));
        let others: [&[u8]; 4] = [
            b"add@/devices/virtual/net/veth0\0ACTION=add\0",
            b"add@/devices/virtual/a@/devices/system/cpu/\0",
            b"libudev\0\xfe\xed\xca\xfe",
            b"",
        ];
        assert!(!others.into_iter().any(concerns_cpus));
    }

    /// Uses the real kernel, which repeats a message about a CPU without a change ("uevent" in
    /// `sysfs-uevent`).
    #[tokio::test]
    async fn the_kernel_reports_changes_of_cpus() {
        let events = CpuEvents::open().expect("the kernel has device messages");
        assert!(events.changed().now_or_never().is_none());
        if !request_event("virtual/mem/null") || !request_event("system/cpu/cpu0") {
            return;
        }
        let changed = timeout(Duration::from_secs(60), events.changed());
        assert!(matches!(changed.await, Ok(Ok(()))));
        assert!(events.changed().now_or_never().is_none(), "it is read");
    }

    proptest! {
        #[test]
        fn no_message_panics(message in vec(any::<u8>(), 0..64)) {
            concerns_cpus(&message);
        }
    }
}
