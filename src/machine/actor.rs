//! The actor: the life of a machine from its socket file to its end.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::backoff::Backoff;
use super::changes::Plugging;
use super::error::Error;
use super::guest::Agent;
use super::handle::{Command, Handle};
use super::notice::{EventSender, MachineEvent};
use super::placing::{HostServices, PlacementConfig, Placing};
use super::quota::Quota;
use super::record::PendingEvent;
use super::record_file::RecordFile;
use super::removal::Removals;
use super::running::{Running, Settled};
use super::session::Attention;
use super::snapshot::Snapshot;
use super::source::{Access, ConnectError, Lifetime, MachineConfig, Source};
use crate::ids::Pid;
use crate::inventory::Inventory;
use crate::placement::Tuning;
use crate::process::{Leader, SocketError};

/// QEMU closes QMP a moment before it exits; only one that lives on is disconnected.
const EXIT_GRACE: Duration = Duration::from_millis(250);
/// How many log lines, and how many audit records, a machine may cause in a second by changes that no
/// caller asked for.
const RECORDS_PER_SECOND: u32 = 50;
/// How many log lines it may cause at once: more than one client of QEMU changes at a time.
const LOG_BURST: u32 = 1000;
/// The same for audit records. One record is about all vCPUs that change together.
const AUDIT_BURST: u32 = 100;

/// Starts the actor for the machine at `source` on `site`, which tells its news to `outbox`.
pub fn start(source: Source, site: HostServices, outbox: EventSender) -> Running {
    let (commands, requested) = mpsc::channel(64);
    let (snapshot, snapshots) = watch::channel(Arc::default());
    let (leaders, known_leaders) = watch::channel(None);
    let (treatment, treatments) = watch::channel(source.treatment.clone());
    let (settle, settled) = oneshot::channel();
    let handle = Handle {
        name: source.name.clone(),
        registrant: source.registrant,
        commands,
        snapshots,
        leaders: known_leaders,
        outbox: outbox.clone(),
        agent: Agent::new(source.agent.clone()),
        treatment: treatments.clone(),
    };
    let configured = source.treatment.placement.tuning.clone();
    let over = CancellationToken::new();
    let record = RecordFile::new(source.record.clone());
    let mut actor = Actor {
        record: record.clone(),
        recalled: None,
        plugging: None,
        telling: Vec::new(),
        placing: Placing::new(configured.clone()),
        treatment: treatments,
        configured,
        site,
        leaders,
        source,
        handle: handle.clone(),
        requested,
        snapshot,
        outbox,
        removals: Removals::default(),
        leader: None,
        backoff: Backoff::default(),
        log_quota: Quota::new(RECORDS_PER_SECOND, LOG_BURST),
        audit_quota: Quota::new(RECORDS_PER_SECOND, AUDIT_BURST),
        over: over.clone(),
        visible: false,
        attention: Attention::default(),
        settle: Some(settle),
        failure: None,
        last_reason: String::new(),
    };
    let cancel = CancellationToken::new();
    let done = CancellationToken::new();
    let (cancelled, ending) = (cancel.clone(), done.clone().drop_guard());
    let task = tokio::spawn(async move {
        cancelled.run_until_cancelled(actor.run()).await;
        actor.vanish().await;
        drop(ending);
    });
    Running {
        handle,
        treatment,
        cancel,
        done,
        over,
        record,
        task,
        settled: Some(settled),
    }
}

/// One machine's state and the only one to change it.
pub(super) struct Actor {
    pub(super) source: Source,
    pub(super) site: HostServices,
    handle: Handle,
    pub(super) requested: mpsc::Receiver<Command>,
    snapshot: watch::Sender<Arc<Snapshot>>,
    pub(super) outbox: EventSender,
    pub(super) removals: Removals,
    pub(super) attention: Attention,
    /// What QEMU was asked to plug and was not yet looked at.
    pub(super) plugging: Option<Plugging>,
    /// What is being told, and may have been by a former run of the service.
    pub(super) telling: Vec<PendingEvent>,
    /// The process of the machine that is visible, or would be.
    pub(super) leader: Option<Arc<Leader>>,
    /// The same, for who only looks.
    pub(super) leaders: watch::Sender<Option<Arc<Leader>>>,
    pub(super) placing: Placing,
    /// How the machine is to be treated.
    pub(super) treatment: watch::Receiver<MachineConfig>,
    /// What the configuration wants for the vCPUs, as far as that was taken up.
    pub(super) configured: Tuning,
    pub(super) backoff: Backoff,
    /// For log lines about changes that no caller asked for.
    pub(super) log_quota: Quota,
    /// For audit records about them.
    pub(super) audit_quota: Quota,
    /// Cancelled before the end of a machine is reported that will not come back.
    over: CancellationToken,
    pub(super) record: RecordFile,
    /// What a former run of the service told of the vCPUs, until the first look.
    pub(super) recalled: Option<Arc<Inventory>>,
    /// Whether it was told that the machine is there.
    pub(super) visible: bool,
    /// To be told once whether there is a machine.
    settle: Option<oneshot::Sender<Settled>>,
    /// Why there will be none, where that is known.
    failure: Option<ConnectError>,
    /// Why there is no connection, as it was logged last.
    pub(super) last_reason: String,
}

impl Actor {
    /// Lives as long as there is such a machine.
    async fn run(&mut self) {
        loop {
            match self.establish().await {
                Ok((link, look)) => {
                    let start = Instant::now();
                    let reason = self.session(link, look).await;
                    self.backoff.connected_for(start.elapsed());
                    self.note_breach(reason.is_breach()).await;
                    if self.is_on_trial() {
                        self.failure = Some(ConnectError::Qmp(reason.into()));
                        return;
                    }
                    self.lost(&reason.to_string()).await;
                }
                Err(reason) if self.is_on_trial() => {
                    self.failure = Some(reason);
                    return;
                }
                Err(reason) => {
                    self.note_breach(reason.is_breach()).await;
                    self.note_failure(&reason).await;
                }
            }
            if !self.has_ended() {
                let pause = self.backoff.pause();
                self.wait_out(pause).await;
            }
            if self.has_ended() {
                return;
            }
        }
    }

    /// Counts a breach of the limits, if there was one.
    async fn note_breach(&mut self, is_breach: bool) {
        if is_breach {
            self.backoff.breach();
            self.remember().await;
        }
    }

    /// Whether the machine must answer now, or there is none.
    pub(super) fn is_on_trial(&self) -> bool {
        self.source.tenure == Lifetime::Registration && self.settle.is_some()
    }

    /// Whether there can be no such machine any more.
    pub(super) fn has_ended(&self) -> bool {
        let is_spent = matches!(self.source.access, Access::Connection(None));
        self.source.tenure.ends_with_leader() && (is_spent || self.leader.is_none())
    }

    pub(super) fn placement(&self) -> PlacementConfig {
        self.treatment.borrow().placement.clone()
    }

    /// Makes `snapshot` the one that is read, and says so if it is another.
    pub(super) async fn publish(&mut self, mut snapshot: Snapshot) {
        self.add_place(&mut snapshot).await;
        snapshot.process = self.leader.as_ref().map(|leader| leader.id());
        snapshot.leader = snapshot.process.map_or(Pid(0), |process| process.pid);
        let snapshot = Arc::new(snapshot);
        let replace = |current: &mut Arc<Snapshot>| {
            let changed = **current != *snapshot;
            *current = snapshot.clone();
            changed
        };
        if self.snapshot.send_if_modified(replace) && self.visible {
            self.tell(MachineEvent::Changed).await;
        }
    }

    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        self.handle.snapshot()
    }

    /// Waits until all that was told is passed on.
    pub(super) async fn passed_on(&self) {
        self.outbox.barrier().await;
    }

    /// The machine is there and can be seen.
    pub(super) async fn appear(&mut self) {
        if !self.visible {
            self.visible = true;
            self.tell(MachineEvent::Appeared(self.handle.clone())).await;
        }
        self.settled(Ok(()));
    }

    fn settled(&mut self, result: Settled) {
        if let Some(settle) = self.settle.take() {
            let _ = settle.send(result);
        }
    }

    /// The machine is gone: nothing that was known of it is true any more.
    pub(super) async fn vanish(&mut self) {
        self.release();
        self.placing.leave(self.leader.clone()).await;
        self.configured = self.placement().tuning;
        self.placing = Placing::new(self.configured.clone());
        if let Some(leader) = self.leader.take() {
            let (processes, name) = (&self.source.processes, &self.source.name);
            processes.release(leader.id(), name);
        }
        self.backoff = Backoff::default();
        self.leaders.send_replace(None);
        self.recalled = None;
        self.plugging = None;
        self.telling.clear();
        if let Err(error) = self.record.remove().await {
            let (machine, file) = (&self.source.name, self.source.record.display());
            warn!(%machine, %file, %error, "{machine}: cannot remove the persisted state {file}: {error}");
        }
        self.attention = Attention::default();
        if self.has_ended() {
            self.over.cancel();
        }
        if self.visible {
            self.visible = false;
            info!(machine = %self.source.name, "gone");
            self.tell(MachineEvent::Vanished).await;
        }
        self.removals.take_all().give();
        self.snapshot.send_replace(Arc::default());
        let failure = self.failure.take();
        self.settled(Err(failure.unwrap_or(ConnectError::Gone)));
    }

    /// The connection ended. A machine whose QEMU ended too is gone, as is one whose connection
    /// cannot be made again.
    async fn lost(&mut self, reason: &str) {
        self.release();
        let has_exited = match self.leader.clone() {
            Some(leader) => timeout(EXIT_GRACE, leader.exited()).await.is_ok(),
            None => false,
        };
        if !has_exited && self.is_new_reason(reason) {
            warn!(machine = %self.source.name, reason, "disconnected");
        }
        match has_exited || self.has_ended() {
            true => self.vanish().await,
            false => self.show_disconnected(reason).await,
        }
    }

    /// No connection came about. Nobody is told of a socket where nobody listens.
    async fn note_failure(&mut self, reason: &ConnectError) {
        self.release();
        let text = reason.to_string();
        if self.is_new_reason(&text) {
            match reason {
                ConnectError::Connect(SocketError::Refused | SocketError::Missing) => {
                    debug!(machine = %self.source.name, way = %self.source.access, reason = text, "no machine");
                }
                _ => {
                    warn!(machine = %self.source.name, way = %self.source.access, reason = text, "cannot connect");
                }
            }
        }
        if self
            .leader
            .as_ref()
            .is_some_and(|leader| leader.has_exited())
        {
            self.vanish().await;
        } else if self.visible || reason.is_silence() {
            self.show_disconnected(&text).await;
        }
        self.settled(Ok(()));
    }

    /// Whether `reason` is not the one that was logged last: a failure is logged once.
    fn is_new_reason(&mut self, reason: &str) -> bool {
        let is_new = self.last_reason != reason;
        reason.clone_into(&mut self.last_reason);
        is_new
    }

    pub(super) async fn show_disconnected(&mut self, reason: &str) {
        let mut snapshot = Snapshot::clone(&self.handle.snapshot());
        snapshot.disconnected = Some(reason.to_owned());
        snapshot.pending = self.removals.pending_vcpus();
        self.publish(snapshot).await;
        self.appear().await;
    }

    /// Lets time pass before the next attempt to connect.
    async fn wait_out(&mut self, pause: Duration) {
        let end = Instant::now() + pause;
        loop {
            let leader = self.leader.clone();
            let exited = async {
                match &leader {
                    Some(leader) => leader.exited().await,
                    None => std::future::pending().await,
                }
            };
            let deadline = self.removals.next_deadline().unwrap_or(end).min(end);
            tokio::select! {
                () = sleep_until(deadline) => self.answer_due(),
                Some(command) = self.requested.recv() => self.turn_away(command),
                () = exited => self.vanish().await,
            }
            if self.has_ended() || Instant::now() >= end {
                return;
            }
        }
    }

    pub(super) fn turn_away(&self, command: Command) {
        let snapshot = self.handle.snapshot();
        let reason = snapshot.disconnected.clone();
        let reason = reason.unwrap_or_else(|| "it is being set up".to_owned());
        command.refuse(Error::Disconnected(reason));
    }
}
