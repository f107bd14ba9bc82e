//! How others reach a machine: commands in, snapshots out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::error::Error;
use super::guest::Agent;
use super::notice::EventSender;
use super::snapshot::{Snapshot, Subject};
use super::source::MachineConfig;
use super::tuning::TuningChange;
use super::worker::on_host;
use crate::ids::{Uid, VcpuId};
use crate::inventory::Target;
use crate::names::MachineName;
use crate::placer::{Observed, observe};
use crate::process::Leader;

/// A machine that is there, or was when the handle was given out.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(super) name: MachineName,
    pub(super) registrant: Option<Uid>,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) snapshots: watch::Receiver<Arc<Snapshot>>,
    /// The process of the machine, while it is known.
    pub(super) leaders: watch::Receiver<Option<Arc<Leader>>>,
    pub(super) outbox: EventSender,
    pub(super) agent: Agent,
    pub(super) treatment: watch::Receiver<MachineConfig>,
}

/// What a machine's actor can be asked.
#[derive(Debug)]
pub(super) enum Command {
    SetVcpus(Request, Answer),
    Tune(TuningChange, Subject, TuningAnswer),
    /// To take up how the machine is treated now.
    TakeUp(oneshot::Sender<()>),
}

impl Command {
    /// Answers with `error`, except where the command needs no connection.
    pub(super) fn refuse(self, error: Error) {
        // A caller that left needs no answer.
        let _ = match self {
            Self::SetVcpus(_, answer) => answer.send(Err(error)).is_ok(),
            Self::Tune(_, _, answer) => answer.send(Err(error)).is_ok(),
            // It is taken up with the next connection.
            Self::TakeUp(answer) => answer.send(()).is_ok(),
        };
    }
}

/// A change of the vCPUs that a caller is authorized to make.
#[derive(Clone, Debug)]
pub struct Request {
    /// The wanted vCPUs.
    pub target: Target,
    /// The QEMU that it was authorized for.
    pub subject: Subject,
    /// The resulting number of vCPUs that it was authorized for.
    pub count: u32,
    /// Whether to wait for removals.
    pub wait: Wait,
    /// Whether the guest agent is to help.
    pub guest_online: bool,
    /// The user who asks.
    pub uid: Uid,
}

/// Where the result of a request goes.
pub(super) type Answer = oneshot::Sender<Result<Outcome, Error>>;

/// Where the result of a change of the tuning goes.
pub(super) type TuningAnswer = oneshot::Sender<Result<(), Error>>;

/// Whether a call waits for removals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Only until QEMU took the requests.
    No,
    /// At most this long, or as long as the configuration says.
    UpTo(Option<Duration>),
}

/// What a successful request did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// vCPUs that came.
    pub added: Vec<VcpuId>,
    /// vCPUs that went.
    pub removed: Vec<VcpuId>,
    /// vCPUs that QEMU was asked to remove and the guest still holds.
    pub pending: Vec<VcpuId>,
}

impl Handle {
    /// The machine's name.
    pub fn name(&self) -> &MachineName {
        &self.name
    }

    /// Returns the user of the QEMU process, if the process is known and has not exited.
    pub fn owner(&self) -> Option<Uid> {
        let leader = self.leaders.borrow().clone()?;
        (!leader.has_exited()).then(|| leader.user())
    }

    /// Returns the user who registered the machine; `None` for a machine with a socket or a file.
    pub fn registrant(&self) -> Option<Uid> {
        self.registrant
    }

    /// What is known of the machine now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshots.borrow().clone()
    }

    /// Changes the vCPUs. Returns after all that it caused was passed on to those who listen.
    pub async fn set_vcpus(&self, request: Request) -> Result<Outcome, Error> {
        match request.guest_online {
            true => self.set_with_guest(request).await,
            false => self.ask_actor(request).await,
        }
    }

    /// Changes where and how the vCPUs run on the host. Returns after that was passed on to those
    /// who listen.
    ///
    /// # Errors
    /// Fails where the change is not possible, and where the machine has another QEMU than
    /// `subject`, which the caller was authorized for.
    pub async fn tune(&self, change: TuningChange, subject: Subject) -> Result<(), Error> {
        let (answer, result) = oneshot::channel();
        let command = Command::Tune(change, subject, answer);
        self.commands.send(command).await.map_err(|_| Error::Gone)?;
        let result = result.await.unwrap_or(Err(Error::Gone));
        self.outbox.barrier().await;
        result
    }

    /// Returns when the machine is treated as was last said, where it is connected, and that was
    /// passed on to those who listen.
    pub async fn treated(&self) {
        let (answer, taken) = oneshot::channel();
        if self.commands.send(Command::TakeUp(answer)).await.is_ok() {
            let _ = taken.await;
        }
        self.outbox.barrier().await;
    }

    /// How long a call waits for the guest, unless it says otherwise.
    pub(super) fn removal_timeout(&self) -> Duration {
        self.treatment.borrow().limits.removal_timeout
    }

    /// Returns where the vCPUs run that have threads of their own, as the kernel has it now.
    pub async fn observe(&self) -> BTreeMap<VcpuId, Observed> {
        let Some(leader) = self.leaders.borrow().clone() else {
            return BTreeMap::new();
        };
        let inventory = self.snapshot().inventory.clone();
        on_host(move || {
            let threads = inventory.vcpus();
            let threads = threads.filter_map(|vcpu| Some((vcpu.id, vcpu.thread?)));
            let observed = threads.filter_map(|(vcpu, thread)| {
                // A thread that ends just now is nowhere.
                Some((vcpu, observe(thread, leader.as_ref()).ok()?))
            });
            observed.collect()
        })
        .await
    }

    pub(super) async fn ask_actor(&self, request: Request) -> Result<Outcome, Error> {
        let (answer, result) = oneshot::channel();
        let command = Command::SetVcpus(request, answer);
        self.commands.send(command).await.map_err(|_| Error::Gone)?;
        let result = result.await.unwrap_or(Err(Error::Gone));
        self.outbox.barrier().await;
        result
    }
}
