//! The operations of a machine: at most one goes on at a time, and each is a sequence of states.
//!
//! ```text
//! add     Saving ─▶ Exchanging ─▶ Placing ─▶ SavingResult ─▶ Idle
//! remove  Saving ─▶ Exchanging ─▶ Placing ─▶ SavingResult ─▶ Idle      the removals stay pending
//! refresh           Exchanging ─▶ Placing ─▶ SavingResult ─▶ Idle
//! tune    Checking ─▶ SavingTuning ─▶ Switching ────────────▶ Idle
//! ```
//!
//! A state without work is skipped. Nothing is placed if no thread came or went and no pass is due. If
//! there is no event, the state is saved after the report and not before it, unless callers are about to
//! learn that a removal is pending, or the machine is reported for the first time. A state that is saved before
//! the report is saved while threads are placed, and again if the pass changed it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::error::{Error, Report};
use super::event::MachineEvent;
use super::input::SaveId;
use super::request::{Request, RequestId};
use super::snapshot::{Snapshot, Subject};
use super::tuning::TuningChange;
use crate::ids::{SlotId, Uid, VcpuId};
use crate::inventory::{Inventory, Target};
use crate::placement::Tuning;
use crate::qmp::CommandError;
use crate::text::Text;

/// A caller that limits its time gives QEMU at least this time for the commands of its request and of
/// those before it. A removal that the guest has not completed is reported at the caller's limit.
pub(super) const QEMU_TIME: Duration = Duration::from_secs(1);

/// The current operation of a machine.
#[derive(Debug, Default)]
pub(super) enum Operation {
    /// Nothing.
    #[default]
    Idle,
    /// The state is saved before QEMU is asked.
    Saving(SaveId, Ask),
    /// QEMU owes replies.
    Exchanging(Ask),
    /// The placer works on the result of a refresh.
    Placing(Box<Refreshed>),
    /// The state is saved before the result of a refresh is reported.
    SavingResult(SaveId, Box<Refreshed>),
    /// It is checked whether the host supports a change of the tuning, which results in this tuning.
    Checking(Tune, Arc<Tuning>),
    /// The state is saved before the tuning is enforced. The last is the previous tuning.
    SavingTuning(SaveId, Tune, Arc<Tuning>),
    /// The placer switches from the previous tuning, which is the second, to the desired one.
    Switching(Tune, Arc<Tuning>),
}

/// A question to QEMU.
#[derive(Debug)]
pub(super) enum Ask {
    /// Only for its state.
    Refresh,
    /// To add slots.
    Add(Add),
    /// To remove slots.
    Remove(Remove),
}

/// A request that adds vCPUs.
#[derive(Debug)]
pub(super) struct Add {
    /// The request; `None` if the caller has its answer, because its time ran out.
    pub caller: Option<RequestId>,
    pub target: Target,
    pub uid: Uid,
    pub slots: Vec<SlotId>,
    /// The vCPUs of these slots.
    pub vcpus: Vec<VcpuId>,
    /// How long the caller waits; `None` is until QEMU has answered.
    pub patience: Option<Duration>,
    /// The begin of that time.
    pub since: Instant,
}

/// A request that removes vCPUs.
#[derive(Debug)]
pub(super) struct Remove {
    pub id: RequestId,
    pub target: Target,
    pub uid: Uid,
    /// The slots that QEMU is asked to remove.
    pub slots: Vec<RemoveSlot>,
    /// The slots that the request waits for.
    pub wanted: BTreeSet<SlotId>,
    /// The vCPUs of these slots.
    pub wanted_vcpus: Vec<VcpuId>,
    /// How long it waits; `None` is not at all.
    pub patience: Option<Duration>,
    /// The begin of that time.
    pub since: Instant,
    /// Whether the caller has its answer, because its time ran out.
    pub is_answered: bool,
}

/// A slot that QEMU is asked to remove.
#[derive(Debug)]
pub(super) struct RemoveSlot {
    pub slot: SlotId,
    pub qom_path: Text,
    /// Whether QEMU has an earlier request for it.
    pub is_repeated: bool,
}

/// A change of the tuning.
#[derive(Debug)]
pub(super) struct Tune {
    pub id: RequestId,
    pub change: TuningChange,
}

/// The result of a refresh, on its way to clients.
#[derive(Debug)]
pub(super) struct Refreshed {
    /// The vCPUs that were reported last.
    pub before: Arc<Inventory>,
    /// What to publish.
    pub snapshot: Snapshot,
    /// What to emit.
    pub events: Vec<MachineEvent>,
    /// When QEMU had answered.
    pub since: Instant,
    /// How long it took to read the answers.
    pub cost: Duration,
    /// The write of the state that went on beside the placement pass.
    pub save: Option<SaveId>,
    /// The last step.
    pub then: Then,
}

impl Refreshed {
    /// Returns whether the state is saved before clients learn of the result: an event that is emitted twice
    /// is better than one that is lost. The same holds for the vCPUs that are reported first, and for a
    /// removal that a caller knows to be pending.
    pub(super) fn is_saved_first(&self) -> bool {
        !self.events.is_empty() || matches!(self.then, Then::Start | Then::Asked)
    }
}

/// The last step of a refresh.
#[derive(Debug)]
pub(super) enum Then {
    /// Nothing else.
    Nothing,
    /// A machine is reported for the first time.
    Start,
    /// Callers get what QEMU agreed to remove.
    Asked,
    /// The caller gets what was added. These are QEMU's refusals.
    Added(Add, Vec<(SlotId, CommandError)>),
    /// The caller is answered.
    Reply(RequestId),
}

/// A request that waits for the end of the operation before it.
#[derive(Debug)]
pub(super) struct Queued {
    pub id: RequestId,
    pub command: QueuedCommand,
    /// When the request came, and when it has to be answered if the caller limits its time.
    pub since: Instant,
    pub deadline: Option<Instant>,
    /// Whether the state was queried since it came to its turn.
    pub is_fresh: bool,
}

/// The commands that are executed one after the other.
#[derive(Debug)]
pub(super) enum QueuedCommand {
    SetVcpus(Request),
    Tune(TuningChange, Subject),
    ApplyConfig,
    Refresh,
}

impl Operation {
    /// Returns the request that the operation is about and that is not answered, to be answered with
    /// an error because it cannot end. A tuning that is being enforced is not taken back then.
    pub(super) fn into_caller(self) -> Option<RequestId> {
        match self {
            Self::Saving(_, ask) | Self::Exchanging(ask) => ask.caller(),
            Self::Placing(refreshed) | Self::SavingResult(_, refreshed) => match refreshed.then {
                Then::Added(add, _) => add.caller,
                Then::Reply(id) => Some(id),
                Then::Nothing | Then::Start | Then::Asked => None,
            },
            Self::Checking(tune, _) | Self::SavingTuning(_, tune, _) | Self::Switching(tune, _) => {
                Some(tune.id)
            }
            Self::Idle => None,
        }
    }

    /// Returns whether nothing goes on.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self, Self::Idle)
    }

    /// Returns when the caller of the request that goes on has to be answered.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let (since, patience) = match self {
            Self::Saving(_, Ask::Remove(remove)) | Self::Exchanging(Ask::Remove(remove))
                if !remove.is_answered =>
            {
                (remove.since, remove.patience?)
            }
            _ => {
                let add = self.addition().filter(|add| add.caller.is_some())?;
                (add.since, add.patience?)
            }
        };
        since.checked_add(patience.max(QEMU_TIME))
    }

    /// Returns the addition that goes on.
    fn addition(&self) -> Option<&Add> {
        match self {
            Self::Saving(_, Ask::Add(add)) | Self::Exchanging(Ask::Add(add)) => Some(add),
            Self::Placing(refreshed) | Self::SavingResult(_, refreshed) => match &refreshed.then {
                Then::Added(add, _) => Some(add),
                _ => None,
            },
            _ => None,
        }
    }

    fn addition_mut(&mut self) -> Option<&mut Add> {
        match self {
            Self::Saving(_, Ask::Add(add)) | Self::Exchanging(Ask::Add(add)) => Some(add),
            Self::Placing(refreshed) | Self::SavingResult(_, refreshed) => {
                match &mut refreshed.then {
                    Then::Added(add, _) => Some(add),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// Answers the caller of the request that goes on, if its time has run out: with the error for a
    /// request that QEMU has, or has not.
    pub(super) fn take_late(&mut self, now: Instant) -> Option<(RequestId, Uid, Error)> {
        if self.deadline().is_none_or(|deadline| deadline > now) {
            return None;
        }
        let has_begun = !matches!(self, Self::Saving(..));
        if let Some(add) = self.addition_mut() {
            let waited = add.patience?;
            let error = if has_begun {
                add.still_under_way(waited)
            } else {
                Error::NotStarted { waited }
            };
            return Some((add.caller.take()?, add.uid, error));
        }
        let (Self::Saving(_, Ask::Remove(remove)) | Self::Exchanging(Ask::Remove(remove))) = self
        else {
            return None;
        };
        remove.is_answered = true;
        let waited = remove.patience?;
        let error = if has_begun {
            remove.still_pending(waited)
        } else {
            Error::NotStarted { waited }
        };
        Some((remove.id, remove.uid, error))
    }
}

impl Ask {
    /// Returns the request that asks, if it is not answered.
    pub(super) fn caller(&self) -> Option<RequestId> {
        match self {
            Self::Refresh => None,
            Self::Add(add) => add.caller,
            Self::Remove(remove) => (!remove.is_answered).then_some(remove.id),
        }
    }
}

impl Add {
    /// Returns the error for a caller whose time ran out after QEMU was asked.
    fn still_under_way(&self, waited: Duration) -> Error {
        Error::AdditionPending {
            asked: self.target.clone(),
            vcpus: self.vcpus.clone(),
            waited,
        }
    }
}

impl Remove {
    /// Returns the error for a caller whose time ran out while QEMU owed the replies.
    fn still_pending(&self, waited: Duration) -> Error {
        Error::RemovalPending {
            report: Box::new(Report {
                asked: self.target.clone(),
                added: Vec::new(),
                removed: Vec::new(),
                pending: self.wanted_vcpus.clone(),
                refused: Vec::new(),
            }),
            waited,
            stopped: None,
        }
    }
}
