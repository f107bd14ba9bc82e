//! The gate: admission as reader, writer and [`errands`](super::errands) share it.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc};
use zbus::names::UniqueName;

use super::admission::Admission;
use super::count::Class;
use super::decision::{Arrival, Reply};
use super::frame::{FIXED, Frame};
use super::limits::{MAX_CALL, MAX_LIST_CALL, REFUSALS, STRANGERS};
use crate::idle::Calls;
use crate::ids::Uid;
use crate::names::error_name;
use crate::process::PassedFds;

/// Members that polkit is asked about.
const CHANGES: [&str; 12] = [
    "CanSetVcpus",
    "CanTune",
    "PinVcpus",
    "RegisterMachine",
    "RegisterMachineWithFd",
    "Reload",
    "SetBandwidth",
    "SetCacheAllocation",
    "SetScheduler",
    "SetVcpu",
    "SetVcpus",
    "UnregisterMachine",
];
/// Members that take lists of vCPUs, which may be long.
const TAKE_LISTS: [&str; 4] = ["PinVcpus", "SetCacheAllocation", "SetScheduler", "SetVcpu"];
/// The member that takes a file descriptor.
const TAKES_DESCRIPTOR: &str = "RegisterMachineWithFd";

/// An error that a caller gets in place of an answer.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) sender: String,
    pub(super) serial: u32,
    pub(super) name: &'static str,
    pub(super) text: String,
}

/// Decides for one connection to the bus which calls are handed over.
#[derive(Debug)]
pub(in crate::bus) struct Gate {
    admission: Mutex<Admission>,
    calls: Calls,
    /// Unique name of the connection, whose calls to itself are not those of others.
    own_name: OnceLock<String>,
    /// A call may be handed over that could not before.
    pub(super) changed: Notify,
    pub(super) unread: Notify,
    refusals: mpsc::Sender<Refusal>,
    strangers: mpsc::Sender<String>,
}

/// Requests of the gate that need the connection.
#[derive(Debug)]
pub(in crate::bus) struct Errands {
    pub(super) refusals: mpsc::Receiver<Refusal>,
    pub(super) strangers: mpsc::Receiver<String>,
}

impl Gate {
    /// Returns a gate that notes the time of each call in `calls`.
    pub(in crate::bus) fn new(calls: Calls) -> (Self, Errands) {
        let (refusals, refused) = mpsc::channel(REFUSALS);
        let (strangers, unknown) = mpsc::channel(STRANGERS);
        let gate = Self {
            admission: Mutex::default(),
            calls,
            own_name: OnceLock::new(),
            changed: Notify::new(),
            unread: Notify::new(),
            refusals,
            strangers,
        };
        let errands = Errands {
            refusals: refused,
            strangers: unknown,
        };
        (gate, errands)
    }

    /// Notes the unique name that the bus daemon gave to the connection.
    pub(in crate::bus) fn set_own_name(&self, name: &UniqueName<'_>) {
        let _ = self.own_name.set(name.to_string());
    }

    /// The user of a caller whose call is under way.
    pub(in crate::bus) fn user_of(&self, sender: &UniqueName<'_>) -> Option<Uid> {
        self.admission().user_of(sender.as_str())
    }

    fn admission(&self) -> MutexGuard<'_, Admission> {
        self.admission
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in a call.
    pub(super) fn arrive(&self, mut call: Frame) {
        if self.own_name.get() != Some(&call.sender) {
            self.calls.note();
        }
        if call.refusal.is_none() {
            call.refusal = refusal_of(&call);
        }
        if call.refusal.is_some() {
            // They are not kept while the user of the sender is asked for.
            call.fds = PassedFds::default();
            call.bytes = Vec::new();
        }
        let class = if CHANGES.contains(&call.member.as_str()) {
            Class::Change
        } else {
            Class::Read
        };
        let (sender, serial) = (call.sender.clone(), call.serial);
        let arrival = self.admission().arrive(call, class);
        match arrival {
            Arrival::Accepted | Arrival::Dropped => {}
            Arrival::UnknownSender => {
                if let Err(error) = self.strangers.try_send(sender) {
                    // Its user will not be known, so its calls are not kept.
                    self.identify(&error.into_inner(), None);
                }
            }
            Arrival::Refused(name, text) => {
                let _ = self.refusals.try_send(Refusal {
                    sender,
                    serial,
                    name,
                    text,
                });
            }
        }
        self.unread.notify_one();
    }

    /// Refuses a call of `sender` that begins with `fixed` and is too long.
    pub(super) fn refuse_size(&self, fixed: &[u8; FIXED], sender: String) {
        self.arrive(Frame::refused(fixed, sender, too_long()));
    }

    /// The next call to hand over, if one may be taken now.
    pub(super) fn next(&self) -> Option<Frame> {
        self.admission().next(Instant::now())
    }

    /// How long no call that waits may be handed over, unless something changes.
    pub(super) fn pause(&self) -> Option<Duration> {
        let end = self.admission().end_of_pause()?;
        Some(end.saturating_duration_since(Instant::now()))
    }

    /// Notes that the bus daemon took `time` to read a reply to `sender`.
    pub(super) fn written(&self, sender: &str, time: Duration) {
        self.admission().written(sender, time, Instant::now());
    }

    /// Records the user of `sender`, or that it has left.
    pub(super) fn identify(&self, sender: &str, uid: Option<Uid>) {
        let calls = self.admission().identify(sender, uid);
        for call in calls {
            self.arrive(call);
        }
        self.changed.notify_one();
    }

    /// Notes an error of `bytes` bytes in place of an answer.
    pub(super) fn refused(&self, sender: &str, bytes: usize) {
        self.admission().sent(sender, bytes);
        self.unread.notify_one();
    }

    /// Forgets a sender that has left the bus.
    pub(super) fn gone(&self, sender: &str) {
        self.admission().gone(sender);
        self.changed.notify_one();
    }

    /// Notes a reply of `bytes` bytes.
    pub(super) fn answered(&self, sender: &str, serial: u32, bytes: usize) -> Reply {
        let mut admission = self.admission();
        let reply = admission.answered(sender, serial, bytes);
        if reply == Reply::Unknown {
            admission.sent(sender, bytes);
        }
        drop(admission);
        self.changed.notify_one();
        self.unread.notify_one();
        reply
    }

    /// Chooses the sender to ask the bus daemon about: how much does it still hold for it?
    pub(super) fn ask_about(&self) -> Option<String> {
        self.admission().ask_about()
    }

    /// Records that the bus daemon holds `unread` bytes for `sender`.
    pub(super) fn told(&self, sender: &str, unread: u64) {
        self.admission().told(sender, unread);
        self.changed.notify_one();
    }
}

/// Name and text of the error that `call` gets for its size or its descriptors, if it does.
fn refusal_of(call: &Frame) -> Option<(&'static str, String)> {
    let member = call.member.as_str();
    if call.bytes.len() > MAX_CALL && !TAKE_LISTS.contains(&member) {
        return Some(too_long());
    }
    let count = call.fds.len();
    if count > 0 && (member != TAKES_DESCRIPTOR || count > 1) {
        let member: String = member.chars().take(80).collect();
        let text = format!("{member} does not take {count} file descriptors");
        return Some((error_name::LIMIT_EXCEEDED, text));
    }
    // The methods close it on the async runtime, which must not block.
    if !call.fds.are_unix_streams() {
        let text = "the file descriptor is not a connected Unix stream socket".to_owned();
        return Some((error_name::INVALID_ARGS, text));
    }
    None
}

fn too_long() -> (&'static str, String) {
    let text = format!(
        "the call is too long: the limit is {} KiB, and {} KiB for calls with lists of vCPUs",
        MAX_CALL >> 10,
        MAX_LIST_CALL >> 10
    );
    (error_name::LIMIT_EXCEEDED, text)
}
