//! The gate: admission as reader, writer and [`attend`](super::attend) share it.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc};
use zbus::names::UniqueName;

use super::admission::{Admission, Arrival, Reply};
use super::count::Class;
use super::frame::Frame;
use super::limits::{MAX_CALL, MAX_LIST_CALL, REFUSALS, STRANGERS};
use crate::idle::Calls;

/// Members that change something. polkit is asked about each.
const CHANGES: [&str; 10] = [
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
    pub(in crate::bus) fn user_of(&self, sender: &UniqueName<'_>) -> Option<u32> {
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
        let takes_list = TAKE_LISTS.contains(&call.member.as_str());
        if call.bytes.len() > MAX_CALL && !takes_list {
            return self.refuse_size(call.sender, call.serial);
        }
        let has_descriptors = !call.fds.is_empty();
        if has_descriptors && (call.member != TAKES_DESCRIPTOR || call.fds.len() > 1) {
            call.fds.clear();
            let text = format!("{} does not take these file descriptors", call.member);
            return self.refuse(call.sender, call.serial, text);
        }
        let class = match CHANGES.contains(&call.member.as_str()) {
            true => Class::Change,
            false => Class::Read,
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
            Arrival::Refused(text) => self.refuse(sender, serial, text),
        }
        self.unread.notify_one();
    }

    /// Refuses a call that is too long.
    pub(super) fn refuse_size(&self, sender: String, serial: u32) {
        let text = format!(
            "the call is too long: the limit is {} KiB, and {} KiB for calls with lists of vCPUs",
            MAX_CALL >> 10,
            MAX_LIST_CALL >> 10
        );
        self.refuse(sender, serial, text);
    }

    fn refuse(&self, sender: String, serial: u32, text: String) {
        let _ = self.refusals.try_send(Refusal {
            sender,
            serial,
            text,
        });
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
    pub(super) fn identify(&self, sender: &str, uid: Option<u32>) {
        let calls = self.admission().identify(sender, uid);
        for call in calls {
            self.arrive(call);
        }
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
