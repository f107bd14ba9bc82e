//! How other modules reach a machine: requests in, snapshots out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::time::timeout;

use super::agent::Agent;
use super::model::error::Error;
use super::model::request::{Answer, AwaitStart, Command, OfflineCpu, Outcome, Request};
use super::model::snapshot::{Snapshot, Subject};
use super::model::tuning::{TuningChange, TuningKind};
use super::placement::on_host;
use super::spec::{MachineConfig, MachineSpec, Origin};
use super::statistics::Meter;
use super::tally::Tally;
use crate::ids::{Uid, VcpuId};
use crate::inventory::Inventory;
use crate::names::MachineName;
use crate::placer::{Host, Observed, observe};
use crate::process::Leader;
use crate::statistics::{Statistics, VcpuKvm};

/// A request, and where its answer goes. It is boxed in the channel, because that has room for 32 of them at
/// least.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) command: Command,
    pub(super) answer: oneshot::Sender<Answer>,
}

/// A machine that exists, or existed when the handle was made.
#[derive(Clone, Debug)]
pub struct Handle {
    name: MachineName,
    origin: Origin,
    commands: mpsc::Sender<Box<Call>>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    /// The QEMU process, while it is known.
    leaders: watch::Receiver<Option<Arc<Leader>>>,
    agent: Agent,
    configs: watch::Receiver<MachineConfig>,
    readers: Arc<Readers>,
}

/// The state that callers share when they only read.
#[derive(Debug)]
struct Readers {
    /// Locked by the reader for which QEMU is queried.
    refresh: Mutex<()>,
    host: Host,
    meter: Meter,
}

/// How long a reader waits for the current state.
const READER_PATIENCE: Duration = Duration::from_secs(1);

impl Handle {
    /// Returns the handle of the machine that `spec` defines.
    pub(super) fn new(
        spec: &MachineSpec,
        commands: mpsc::Sender<Box<Call>>,
        snapshots: watch::Receiver<Arc<Snapshot>>,
        leaders: watch::Receiver<Option<Arc<Leader>>>,
        meter: Meter,
        configs: watch::Receiver<MachineConfig>,
        host: Host,
    ) -> Self {
        Self {
            name: spec.name.clone(),
            origin: spec.origin,
            commands,
            snapshots,
            leaders,
            agent: Agent::new(spec.agent.clone()),
            configs,
            readers: Arc::new(Readers {
                refresh: Mutex::default(),
                host,
                meter,
            }),
        }
    }

    /// Returns the name of the machine.
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
        self.origin.registrant()
    }

    /// Returns why the service knows the machine.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// Returns the current state of the machine.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshots.borrow().clone()
    }

    /// Changes the vCPUs without the guest agent. Returns after all events that the request led to were
    /// emitted.
    ///
    /// # Errors
    /// [`Error`] says what was done nevertheless.
    pub(super) async fn set_vcpus(&self, request: Request) -> Answer {
        self.ask(Command::SetVcpus(request)).await
    }

    /// Changes where and how the vCPUs run on the host. Returns after the change was emitted.
    ///
    /// # Errors
    /// Fails if the change is not possible, and if the machine has another QEMU than `subject`, which
    /// the caller was authorized for.
    pub async fn tune(&self, change: TuningChange, subject: Subject) -> Result<(), Error> {
        self.ask(Command::Tune(change, subject)).await.map(drop)
    }

    /// Returns whether the machine and the host can have a change of `kind` now, as far as that is known without the
    /// change.
    pub async fn can_tune(&self, kind: TuningKind) -> bool {
        if !self.snapshot().can_tune(kind) {
            return false;
        }
        if kind != TuningKind::Cache {
            return true;
        }
        let host = self.readers.host.clone();
        on_host(move || host.has_resctrl()).await
    }

    /// Waits until the last configuration is applied and the changes are emitted. A machine that is not
    /// connected applies it with the next connection.
    pub async fn config_applied(&self) {
        // It only fails if the machine is gone.
        let _ = self.ask(Command::ApplyConfig).await;
    }

    /// Queries QEMU, unless it was queried a moment ago or does not answer soon: its snapshot then has the
    /// vCPUs that another client of QEMU added or removed.
    pub async fn refresh(&self) {
        // Many readers are one request. A stalled QEMU does not stall readers.
        let refresh = async {
            let _turn = self.readers.refresh.lock().await;
            let _ = self.ask(Command::Refresh).await;
        };
        let _ = timeout(READER_PATIENCE, refresh).await;
    }

    /// Waits until the guest has started vCPUs.
    ///
    /// # Errors
    /// [`Error::DidNotStart`] if it does not do so in time.
    pub(super) async fn await_start(&self, request: AwaitStart) -> Result<(), Error> {
        self.ask(Command::AwaitStart(request)).await.map(drop)
    }

    /// Notes vCPUs of `inventory` that the guest agent reports as online.
    pub(super) async fn note_online(&self, inventory: Arc<Inventory>, vcpus: Vec<VcpuId>) {
        // If the machine is gone, so is its guest.
        let _ = self.ask(Command::GuestOnline(inventory, vcpus)).await;
    }

    /// Saves which guest CPUs are about to be taken offline.
    ///
    /// # Errors
    /// Fails if the state cannot be saved; then they must not be taken offline.
    pub(super) async fn note_offline(&self, cpus: Vec<OfflineCpu>) -> Result<(), Error> {
        self.ask(Command::GuestOffline(cpus)).await.map(drop)
    }

    /// Ends the responsibility of the caller for guest CPUs that it had taken offline.
    pub(super) async fn release_offline(&self, cpus: Vec<u32>, restored: bool) {
        // If the machine is gone, so is its guest.
        let _ = self.ask(Command::GuestReleased { cpus, restored }).await;
    }

    /// Returns how long a call waits for the guest if it has no limit of its own.
    pub(super) fn removal_timeout(&self) -> Duration {
        self.configs.borrow().limits.removal_timeout
    }

    /// Returns how long QEMU may take for a reply.
    pub(super) fn qmp_timeout(&self) -> Duration {
        self.configs.borrow().limits.qmp_timeout
    }

    /// Returns the guest agent.
    pub(super) fn agent(&self) -> &Agent {
        &self.agent
    }

    /// Returns where the vCPUs run that have threads of their own, as the kernel reports it now.
    pub async fn observe(&self) -> BTreeMap<VcpuId, Observed> {
        let Some(leader) = self.leaders.borrow().clone() else {
            return BTreeMap::new();
        };
        let inventory = self.snapshot().inventory.clone();
        let mounts = self.readers.host.mounts.clone();
        on_host(move || {
            let threads = inventory.vcpus();
            let threads = threads.filter_map(|vcpu| Some((vcpu.id, vcpu.thread?)));
            let observed = threads.filter_map(|(vcpu, thread)| {
                // A thread that ends in the meantime is nowhere.
                Some((vcpu, observe(thread, leader.as_ref(), &mounts).ok()?))
            });
            observed.collect()
        })
        .await
    }

    /// Queries KVM's counters of the vCPUs, unless that was done a moment ago. They are empty if QEMU does not
    /// have them, or does not answer soon.
    pub async fn kvm(&self) -> Arc<[VcpuKvm]> {
        self.readers.meter.kvm().await
    }

    /// Returns the counters of the machine and its vCPUs, with those of `kvm`.
    pub async fn statistics(&self, kvm: &[VcpuKvm]) -> Statistics {
        let leader = self.leaders.borrow().clone();
        let (snapshot, mounts) = (self.snapshot(), &self.readers.host.mounts);
        self.readers
            .meter
            .statistics(&snapshot, leader, mounts, kvm)
            .await
    }

    /// Returns the counters of what the service does.
    pub(super) fn tally(&self) -> &Tally {
        self.readers.meter.tally()
    }

    async fn ask(&self, command: Command) -> Result<Outcome, Error> {
        let (answer, result) = oneshot::channel();
        let call = Box::new(Call { command, answer });
        let sent = self.commands.send(call).await;
        sent.map_err(|_| Error::Gone)?;
        result.await.unwrap_or(Err(Error::Gone))
    }
}
