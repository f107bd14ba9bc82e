//! The effects of the model: instructions for the task of a machine.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::event::MachineEvent;
use super::input::{Missing, SaveId};
use super::request::{Answer, RequestId};
use super::saved_state::SavedState;
use super::snapshot::Snapshot;
use super::tuning::TuningChange;
use crate::ids::{SlotId, Tid, Uid, VcpuId};
use crate::inventory::{HotplugSlot, Inventory};
use crate::machine::spec::{ConnectError, PlacementConfig};
use crate::placement::{ChangedThreads, Tuning};
use crate::qmp::Version;
use crate::text::Text;

/// The threads of the vCPUs.
pub type Threads = BTreeMap<VcpuId, Tid>;

/// One thing to do. The task does them in their order.
#[derive(Debug)]
pub enum Effect {
    /// Connect to QEMU. Leads to `Reached` or `ConnectFailed`.
    Connect,
    /// Read the state file. Leads to `Loaded`.
    Load,
    /// Query QEMU for the first time. Leads to `Opened` or `ConnectFailed`.
    Open {
        /// The time limit of the whole; `None` if only each reply has one.
        limit: Option<Duration>,
        /// Whether to query the reports of the guest about each slot too.
        with_ospm: bool,
    },
    /// Let the connection outlive the service.
    KeepConnection,
    /// Drop the connection, and all exchanges over it.
    Close,
    /// Search the unit of the machine, or start a scope. Leads to `UnitFound`.
    FindUnit(PlacementConfig),
    /// Wait until systemd is there, which is absent. Leads to `UnitsAppeared`.
    AwaitUnits,
    /// Send a batch of commands, and query the state. Leads to `Exchanged` or `Disconnected`.
    Exchange(Batch),
    /// Save the state. Leads to `Saved`.
    Save(SaveId, Box<SavedState>),
    /// Create the control groups of vCPUs that are about to be added.
    Prepare(Vec<VcpuId>),
    /// Enforce the tuning for these threads. The last lists those that were changed before. Leads to
    /// `Placed`.
    Place(Arc<Tuning>, Threads, ChangedThreads),
    /// Check whether the host supports a change. Leads to `TuningChecked`.
    CheckTuning(TuningChange),
    /// Enforce another tuning. Leads to `TuningChanged`.
    ChangeTuning(Box<TuningSwitch>),
    /// Bring CPUs of the guest online again. Leads to `GuestRestored`.
    RestoreGuest(Vec<u32>),
    /// Let readers see this snapshot.
    Publish(Arc<Snapshot>),
    /// Emit an event.
    Emit(MachineEvent),
    /// Report when all events so far were emitted on the bus. Leads to `Flushed`.
    Flush(u64),
    /// Answer a request, after all events so far.
    Reply(RequestId, Answer),
    /// Log something.
    Log(LogEntry),
    /// Report once whether there is a machine.
    Ready(Result<(), ConnectError>),
    /// The machine does not exist from now on: its name is free.
    End,
    /// Forget the QEMU process: its groups if it has exited, and its state file.
    Forget,
}

/// Commands that QEMU gets at once.
#[derive(Debug)]
pub enum Batch {
    /// No command. The state includes the evidence about these vCPUs.
    Refresh(BTreeSet<VcpuId>),
    /// The same, but QEMU is not asked for the slots unless those in use differ from the inventory.
    Look(Arc<Inventory>, BTreeSet<VcpuId>),
    /// Add these slots of the inventory.
    Add(Arc<Inventory>, Vec<HotplugSlot>),
    /// Remove the devices of these slots of the inventory, by their QOM paths.
    Remove(Arc<Inventory>, Vec<(SlotId, Text)>),
}

/// A change from one tuning to another.
#[derive(Debug)]
pub struct TuningSwitch {
    /// The enforced tuning.
    pub old: Arc<Tuning>,
    /// The tuning to enforce.
    pub new: Arc<Tuning>,
    /// The threads of the vCPUs.
    pub threads: Threads,
    /// Those that were changed before.
    pub changed: ChangedThreads,
    /// The difference.
    pub change: TuningChange,
}

/// Something to log, beside the events.
#[derive(Debug)]
pub enum LogEntry {
    /// The state of a previous instance was restored, with this number of removals.
    Restored(usize),
    /// The state file cannot be read.
    NotRestored(String),
    /// QEMU answered: its version, the number of vCPUs, and the maximum.
    Connected(Version, u32, u32),
    /// The connection was lost.
    Disconnected(String),
    /// QEMU cannot be connected to. The flag says that nothing listens on the socket.
    NotConnected(String, bool),
    /// QEMU does not answer.
    Unresponsive(&'static str),
    /// The machine is gone, for this reason.
    Gone(String),
    /// The state cannot be saved.
    NotSaved(String),
    /// The state is saved again.
    SavedAgain,
    /// A machine was seen for the first time, with this number of vCPUs.
    Started(u32),
    /// The number of vCPUs changed, or was to.
    Count {
        /// The number before.
        old: u32,
        /// The number after, or the one that was requested.
        new: u32,
        /// The user who asked for it, if one did.
        uid: Option<Uid>,
        /// Whether it changed.
        success: bool,
    },
    /// Removals are pending at the end of a caller's time.
    StillPending {
        /// The caller's user.
        uid: Uid,
        /// The vCPUs.
        vcpus: Vec<VcpuId>,
    },
    /// The machine has no control groups, for this reason.
    NoGroups(Missing),
    /// CPUs of the guest cannot be brought online again.
    GuestNotRestored(Vec<u32>, String),
}

/// Where the model puts its effects, and what was published last.
#[derive(Debug, Default)]
pub(super) struct Output {
    effects: VecDeque<Effect>,
    snapshot: Arc<Snapshot>,
    is_visible: bool,
    is_ready: bool,
}

impl Output {
    pub(super) fn next(&mut self) -> Option<Effect> {
        let next = self.effects.pop_front();
        if self.effects.is_empty() {
            // An idle machine keeps no memory for them.
            self.effects.shrink_to_fit();
        }
        next
    }

    pub(super) fn push(&mut self, effect: Effect) {
        self.effects.push_back(effect);
    }

    pub(super) fn emit(&mut self, event: MachineEvent) {
        self.push(Effect::Emit(event));
    }

    pub(super) fn reply(&mut self, id: RequestId, answer: Answer) {
        self.push(Effect::Reply(id, answer));
    }

    pub(super) fn log(&mut self, entry: LogEntry) {
        self.push(Effect::Log(entry));
    }

    /// Returns what was published last.
    pub(super) fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// Returns whether clients can see the machine.
    pub(super) fn is_visible(&self) -> bool {
        self.is_visible
    }

    /// Publishes `snapshot`, if it differs from the last one.
    pub(super) fn publish(&mut self, snapshot: Snapshot) {
        if *self.snapshot == snapshot {
            return;
        }
        self.snapshot = Arc::new(snapshot);
        self.push(Effect::Publish(self.snapshot.clone()));
        if self.is_visible {
            self.emit(MachineEvent::Changed);
        }
    }

    /// Lets clients see the machine, unless they do. With `is_known`, those of a previous instance did.
    pub(super) fn appear(&mut self, is_known: bool) {
        if !self.is_visible {
            self.is_visible = true;
            self.emit(MachineEvent::Appeared { is_known });
            self.report_ready(Ok(()));
        }
    }

    /// Returns whether the result of the first attempt was reported.
    pub(super) fn is_ready(&self) -> bool {
        self.is_ready
    }

    /// Reports once whether there is a machine.
    pub(super) fn report_ready(&mut self, result: Result<(), ConnectError>) {
        if !self.is_ready {
            self.is_ready = true;
            self.push(Effect::Ready(result));
        }
    }

    /// Lets clients see the machine no longer. `reason` is for the log.
    pub(super) fn vanish(&mut self, reason: &str) {
        if self.is_visible {
            self.is_visible = false;
            self.log(LogEntry::Gone(reason.to_owned()));
            self.emit(MachineEvent::Vanished);
        }
        self.snapshot = Arc::default();
        self.push(Effect::Publish(self.snapshot.clone()));
    }
}
