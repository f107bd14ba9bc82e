//! What happens to a machine: the inputs of its model.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::error::TuningError;
use super::request::{Command, RequestId};
use super::saved_state::SavedState;
use super::starts::Reading;
use crate::ids::{SlotId, VcpuId};
use crate::inventory::Inventory;
use crate::machine::spec::{ConnectError, MachineConfig, StopReason};
use crate::placement::{Controller, CpuList, Report, Retry, StepError, UnitPlacement};
use crate::process::ProcessId;
use crate::qmp::{AcpiOst, Closed, CommandError, Event, Identity};
use crate::text::Text;

/// One thing that happened.
#[derive(Debug)]
pub enum Input {
    /// A caller made a request.
    Command(RequestId, Command),
    /// The configuration of the machine changed.
    ConfigChanged(MachineConfig),
    /// A connection to this process was made.
    Reached(ProcessId),
    /// The persisted state was read, or could not be.
    Loaded(Result<Option<Box<SavedState>>, String>),
    /// QEMU answered what it is asked at first.
    Opened(Box<Opened>),
    /// An attempt to connect failed.
    ConnectFailed(ConnectError),
    /// The connection ended.
    Disconnected(Closed),
    /// The search for the unit of the machine ended.
    UnitFound(UnitFound),
    /// systemd is there, after it was absent.
    UnitsAppeared,
    /// QEMU sent an event.
    Event(Event),
    /// QEMU answered the commands of a batch and the queries after them.
    Exchanged(Box<Exchanged>),
    /// The state was saved, or could not be.
    Saved(SaveId, Result<(), SaveError>),
    /// All events before this flush were emitted on the bus.
    Flushed(u64),
    /// A placement pass ended.
    Placed(Report),
    /// The host supports a tuning, or not.
    TuningChecked(Result<(), TuningError>),
    /// A tuning is enforced, or the previous one is restored.
    TuningChanged(Result<Report, Vec<(VcpuId, StepError)>>),
    /// Guest CPUs were brought online again, or could not be.
    GuestRestored(Result<(), String>),
    /// The QEMU process exited.
    ProcessExited,
    /// The machine is to be forgotten, for this reason.
    Stop(StopReason),
    /// It is the turn of the machine to be compared with its QEMU and with the kernel: QEMU reports no
    /// vCPU that another QMP client adds, and the kernel no affinity and no scheduler that another
    /// process sets.
    ReviewDue,
    /// The deadline of the model has come.
    Tick,
}

/// The first answers of QEMU on a new connection.
#[derive(Debug)]
pub struct Opened {
    /// What does not change.
    pub identity: Identity,
    /// The first state.
    pub state: QemuState,
    /// The last reports of the guest about each slot, if they were asked for.
    pub ospm: Vec<AcpiOst>,
    /// How many vCPUs QEMU had created when it was another machine of the service; 0 if it was none.
    pub created: u32,
}

/// The answers of QEMU to a batch.
#[derive(Debug)]
pub struct Exchanged {
    /// The commands that QEMU refused.
    pub refused: Vec<(SlotId, CommandError)>,
    /// The last reports of the guest about each slot, before the batch; empty if the batch removes
    /// nothing.
    pub ospm: Vec<AcpiOst>,
    /// The state after the batch.
    pub state: QemuState,
}

/// The state of QEMU that can change.
#[derive(Clone, Debug, Default)]
pub struct QemuState {
    /// The vCPUs.
    pub inventory: Arc<Inventory>,
    /// QEMU's word for the run state.
    pub run_state: Text,
    /// Why there are no hotpluggable CPUs, in QEMU's words.
    pub no_hotplug: Option<Text>,
    /// The evidence about the vCPUs that were looked at.
    pub readings: BTreeMap<VcpuId, Reading>,
    /// How long it took to read QEMU's answers.
    pub cost: Duration,
}

/// The result of a search for the unit of a machine.
#[derive(Clone, Debug, Default)]
pub struct UnitFound {
    /// The unit; `None` if vCPUs cannot be placed at all.
    pub unit: Option<UnitPlacement>,
    /// Why it has no control groups, if that is not as configured.
    pub missing: Option<Missing>,
    /// The controllers that its control groups do not have.
    pub missing_controllers: Vec<Controller>,
    /// When another search may find more.
    pub retry: Retry,
    /// The default CPUs of the host, if they could be read.
    pub default_cpus: Option<CpuList>,
}

/// Why a machine has no control groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The reason.
    pub reason: String,
    /// Whether it is an error, and not the usual result for this unit.
    pub is_error: bool,
}

/// Names a write of the state file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SaveId(pub(crate) u64);

/// Why the state was not saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SaveError {
    /// It is larger than that of any real machine.
    TooLarge,
    /// The file cannot be written. The text says why.
    Io(String),
}
