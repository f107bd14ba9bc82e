//! The kernel's audit log. The kernel may take up to a minute for a record while its own queue is
//! full, so one thread owns the netlink socket, and callers only add to a bounded queue.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, sendto, socket,
};
use tracing::{debug, warn};

use super::record::{AuditRecord, CallRecord};

/// `AUDIT_VIRT_CONTROL` in `linux/audit.h`.
const AUDIT_VIRT_CONTROL: u16 = 2500;
/// `AUDIT_VIRT_RESOURCE` in `linux/audit.h`.
const AUDIT_VIRT_RESOURCE: u16 = 2501;
/// `NLM_F_REQUEST`: no acknowledgement is requested, because the service could not react to it.
const NLM_F_REQUEST: u16 = 1;
/// The length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// The maximum number of records that wait for the kernel.
const QUEUE: usize = 1024;
/// The maximum time in which the service, when it ends, waits for the records in the queue.
const LAST_RECORDS: Duration = Duration::from_secs(1);

/// The audit log of this host, if it has one. The records keep their order.
#[derive(Debug, Default)]
pub struct Audit(Option<Log>);

/// The queue of the thread that writes the records.
#[derive(Debug)]
struct Log {
    /// `None` while the service waits for the last records.
    queue: Option<SyncSender<Record>>,
    dropped: Arc<AtomicU64>,
    /// Disconnected when the thread ends. The mutex only makes it `Sync`.
    ended: Mutex<Receiver<()>>,
}

/// A record: its type and its text.
type Record = (u16, String);

impl Audit {
    /// Opens the audit log of this host, if it has one.
    pub fn open() -> Self {
        let log = Log::start(QUEUE, || {
            let socket = open_socket();
            let socket = socket.inspect_err(|error| debug!(%error, "this host has no audit log"));
            let socket = socket.ok()?;
            Some(move |(kind, text): Record| {
                if let Err(error) = send(&socket, kind, &text) {
                    debug!(%error, "no audit record");
                }
            })
        });
        match log {
            Ok(log) => Self(Some(log)),
            Err(error) => {
                warn!(%error, "cannot start the thread for the audit log: no audit records");
                Self::none()
            }
        }
    }

    /// Returns an audit log that discards its records.
    pub fn none() -> Self {
        Self::default()
    }

    /// Queues `record`, of a change.
    pub fn write(&self, record: &AuditRecord<'_>) {
        self.queue(AUDIT_VIRT_RESOURCE, record);
    }

    /// Queues `record`, of an authorized call.
    pub fn write_call(&self, record: &CallRecord<'_>) {
        self.queue(AUDIT_VIRT_CONTROL, record);
    }

    fn queue(&self, kind: u16, record: &impl fmt::Display) {
        if let Some(log) = &self.0 {
            log.queue((kind, record.to_string()));
        }
    }
}

impl Log {
    /// Starts the thread, which opens the log with `open` and writes with what that returns.
    fn start<W: FnMut(Record)>(
        room: usize,
        open: impl FnOnce() -> Option<W> + Send + 'static,
    ) -> io::Result<Self> {
        let (queue, records) = sync_channel(room);
        let (end, ended) = channel::<()>();
        let dropped = Arc::<AtomicU64>::default();
        let counter = dropped.clone();
        thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || {
                // Dropped in reverse order: the queue is closed when the end is reported.
                let _end = end;
                let records = records;
                if let Some(write) = open() {
                    write_all(&records, &counter, write);
                }
            })?;
        Ok(Self {
            queue: Some(queue),
            dropped,
            ended: Mutex::new(ended),
        })
    }

    /// Adds `record` to the queue. A full queue drops it, and counts it.
    fn queue(&self, record: Record) {
        let sent = self.queue.as_ref().map(|queue| queue.try_send(record));
        // Without an audit log the thread has ended.
        if let Some(Err(TrySendError::Full(_))) = sent
            && self.dropped.fetch_add(1, Ordering::Relaxed) == 0
        {
            warn!(
                "the queue for the audit log is full: audit records are dropped until it is empty"
            );
        }
    }
}

impl Drop for Log {
    /// Waits until the records in the queue are written, but not for long.
    fn drop(&mut self) {
        self.queue = None;
        let ended = self.ended.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = ended.recv_timeout(LAST_RECORDS);
    }
}

/// Writes `records` until the queue is closed. Logs the number of `dropped` records each time that
/// the queue is empty.
fn write_all(records: &Receiver<Record>, dropped: &AtomicU64, mut write: impl FnMut(Record)) {
    loop {
        let record = match records.try_recv() {
            Err(TryRecvError::Empty) => {
                report(dropped);
                records.recv().ok()
            }
            record => record.ok(),
        };
        match record {
            Some(record) => write(record),
            None => return report(dropped),
        }
    }
}

/// Logs the number of `dropped` records, if there is one.
fn report(dropped: &AtomicU64) {
    let dropped = dropped.swap(0, Ordering::Relaxed);
    if dropped > 0 {
        warn!(
            dropped,
            "dropped {dropped} audit records, because the kernel takes them too slowly"
        );
    }
}

fn open_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let (family, kind) = (AddressFamily::Netlink, SockType::Raw);
    Ok(socket(family, kind, flags, SockProtocol::NetlinkAudit)?)
}

fn send(socket: &OwnedFd, kind: u16, text: &str) -> io::Result<()> {
    let message = message(kind, text);
    let kernel = NetlinkAddr::new(0, 0);
    sendto(socket.as_raw_fd(), &message, &kernel, MsgFlags::empty())?;
    Ok(())
}

/// Returns a message of type `kind` with `text` (netlink(7)).
fn message(kind: u16, text: &str) -> Vec<u8> {
    let length = HEADER + text.len() + 1;
    let mut message = Vec::with_capacity(length);
    message.extend((length as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(NLM_F_REQUEST.to_ne_bytes());
    message.extend([0; 8]); // no sequence number, from this process
    message.extend(text.as_bytes());
    message.push(0);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scripted, because the real kernel takes records at once.
    #[test]
    fn a_slow_kernel_delays_no_caller_and_costs_records_that_are_counted() {
        let (go_on, waits) = channel::<()>();
        let (begin, begun) = channel();
        let (sender, written) = channel();
        let log = Log::start(2, || {
            Some(move |(_, text): Record| {
                let _ = begin.send(());
                let _ = waits.recv();
                sender.send(text).unwrap();
            })
        });
        let log = log.unwrap();
        let queue = |text: &str| log.queue((AUDIT_VIRT_RESOURCE, text.to_owned()));
        queue("first");
        begun.recv().unwrap();
        for text in ["second", "third", "fourth", "fifth"] {
            queue(text);
        }
        assert_eq!(log.dropped.load(Ordering::Relaxed), 2);
        drop(go_on);
        let dropped = log.dropped.clone();
        drop(log);
        // Ends with the thread.
        let written: Vec<String> = written.iter().collect();
        assert_eq!(written, ["first", "second", "third"]);
        assert_eq!(dropped.load(Ordering::Relaxed), 0, "reported");
    }

    #[test]
    fn a_host_without_an_audit_log_drops_nothing() {
        let log = Log::start(1, || None::<fn(Record)>).unwrap();
        assert!(log.ended.lock().unwrap().recv().is_err());
        for _ in 0..3 {
            log.queue((AUDIT_VIRT_RESOURCE, String::new()));
        }
        assert_eq!(log.dropped.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_kernel_gets_a_netlink_message() {
        let message = message(AUDIT_VIRT_CONTROL, "virt");
        assert_eq!(message.len(), 21);
        assert_eq!(message[4..6], AUDIT_VIRT_CONTROL.to_ne_bytes());
        assert_eq!(message[..4], 21u32.to_ne_bytes());
        assert_eq!(&message[16..], b"virt\0");
    }
}
