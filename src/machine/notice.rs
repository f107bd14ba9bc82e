//! What a machine tells the outside, in the order in which it happened.

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

use super::handle::Handle;
use crate::ids::{Uid, VcpuId};
use crate::names::MachineName;

/// How many notices may wait to be passed on before machines wait.
const OUTBOX: usize = 256;

/// One thing to pass on.
#[derive(Debug)]
pub enum BusMessage {
    /// MachineEvent of a machine.
    MachineEvent {
        /// The machine.
        machine: MachineName,
        /// What is new.
        news: MachineEvent,
    },
    /// What is wrong now in the configuration; all of it.
    Problems(Vec<String>),
    /// To be answered when everything before it is passed on.
    Barrier(oneshot::Sender<()>),
}

/// What can be new of a machine.
#[derive(Debug)]
pub enum MachineEvent {
    /// It is there. Always the first.
    Appeared(Handle),
    /// Its snapshot changed.
    Changed,
    /// A vCPU came.
    VcpuAdded(Vcpu),
    /// A vCPU is gone.
    VcpuRemoved(Vcpu),
    /// The guest or QEMU refused to remove a vCPU.
    VcpuRemovalFailed {
        /// Which one.
        vcpu: Vcpu,
        /// Why, in words.
        reason: String,
    },
    /// It is there no more. Always the last.
    Vanished,
}

/// The vCPU that a notice is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vcpu {
    /// Its number.
    pub id: VcpuId,
    /// The id that it was plugged with; empty where it has none.
    pub alias: String,
    /// What made it happen.
    pub cause: Cause,
    /// The user who asked for it, where one did.
    pub uid: Option<Uid>,
}

/// What made a vCPU come, go or stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// A call to this service.
    Request,
    /// The guest by itself.
    Guest,
    /// A reset of the guest.
    Reset,
    /// Another client of QEMU.
    External,
    /// It was found so after the connection to QEMU was lost.
    Reconnect,
}

impl Cause {
    /// The word for it on D-Bus.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Guest => "guest",
            Self::Reset => "reset",
            Self::External => "external",
            Self::Reconnect => "reconnect",
        }
    }
}

impl MachineEvent {
    /// Whether it is an event, told once, and not a state, which can be read.
    fn is_event(&self) -> bool {
        match self {
            Self::VcpuAdded(_) | Self::VcpuRemoved(_) | Self::VcpuRemovalFailed { .. } => true,
            Self::Appeared(_) | Self::Changed | Self::Vanished => false,
        }
    }
}

/// Where notices go.
#[derive(Clone, Debug)]
pub struct EventSender {
    notices: mpsc::Sender<BusMessage>,
    /// Whether somebody may listen to events.
    audience: watch::Sender<bool>,
}

impl EventSender {
    /// An outbox and the end that must be drained.
    pub fn new() -> (Self, mpsc::Receiver<BusMessage>) {
        let (sender, receiver) = mpsc::channel(OUTBOX);
        let outbox = Self {
            notices: sender,
            audience: watch::Sender::new(false),
        };
        (outbox, receiver)
    }

    /// Lets events pass. Before, who has one to tell waits, for nobody would hear it.
    pub fn open(&self) {
        self.audience.send_replace(true);
    }

    /// Tells news of `machine`.
    pub(super) async fn tell(&self, machine: &MachineName, news: MachineEvent) {
        if news.is_event() {
            let _ = self.audience.subscribe().wait_for(|open| *open).await;
        }
        let machine = machine.clone();
        // Nobody listens any more only when the service stops.
        let _ = self
            .notices
            .send(BusMessage::MachineEvent { machine, news })
            .await;
    }

    /// Tells all that is wrong now in the configuration.
    pub async fn tell_problems(&self, problems: Vec<String>) {
        let _ = self.notices.send(BusMessage::Problems(problems)).await;
    }

    /// Waits until everything told so far is passed on.
    pub async fn barrier(&self) {
        let (sender, passed) = oneshot::channel();
        if self.notices.send(BusMessage::Barrier(sender)).await.is_ok() {
            let _ = passed.await;
        }
    }
}
