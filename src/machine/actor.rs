//! The actor: the life of a machine from its socket file to its end.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::changes::{self, Clues};
use super::error::Error;
use super::handle::{Command, Handle};
use super::link::{Link, Look};
use super::notice::{Cause, News, Outbox, Vcpu};
use super::removal::Removals;
use super::snapshot::Snapshot;
use crate::config::Limits;
use crate::host::{self, ConnectError, Leader, LeaderError};
use crate::names::MachineName;
use crate::qmp::{self, AcpiOst, Closed, Event};

/// A QEMU that listens but does not answer is shown as disconnected after this time.
const ANSWER_GRACE: Duration = Duration::from_secs(2);
/// QEMU closes QMP a moment before it exits; only one that lives on is disconnected.
const EXIT_GRACE: Duration = Duration::from_millis(250);
/// Events lead to one look at the inventory in this time, however many there are.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// While a call waits for a removal, the inventory is looked at this often without any event:
/// not every QEMU sends one.
const RECHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Why a machine that was never connected is shown as disconnected.
const UNANSWERED: &str = "QEMU listens but does not answer (another QMP client may be attached)";
/// The pauses between attempts to connect grow from the first to the last.
const BACKOFF: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(10)..=Duration::from_secs(5);

/// Where a machine is found, and how it is treated.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its name.
    pub name: MachineName,
    /// Its QMP socket.
    pub socket: PathBuf,
    /// Its time limits.
    pub limits: Limits,
}

/// An actor at work.
#[derive(Debug)]
pub struct Running {
    cancel: CancellationToken,
    task: JoinHandle<()>,
    settled: Option<oneshot::Receiver<()>>,
}

impl Running {
    /// Waits until it is known whether there is a machine: it answered, nobody listens, or it
    /// was silent for two seconds. What followed of that was told.
    pub async fn settled(&mut self) {
        if let Some(settled) = self.settled.take() {
            let _ = settled.await;
        }
    }

    /// Forgets the machine and returns when that was told.
    pub async fn stop(self) {
        self.cancel.cancel();
        let _ = self.task.await;
    }
}

/// Starts the actor for the machine at `source`, which tells its news to `outbox`.
pub fn start(source: Source, outbox: Outbox) -> Running {
    let (commands, requested) = mpsc::channel(64);
    let (snapshot, snapshots) = watch::channel(Arc::default());
    let (settle, settled) = oneshot::channel();
    let handle = Handle {
        name: source.name.clone(),
        commands,
        snapshots,
        outbox: outbox.clone(),
    };
    let mut actor = Actor {
        source,
        handle,
        requested,
        snapshot,
        outbox,
        removals: Removals::default(),
        leader: None,
        visible: false,
        attention: Attention::default(),
        settle: Some(settle),
        last_reason: String::new(),
    };
    let cancel = CancellationToken::new();
    let cancelled = cancel.clone();
    let task = tokio::spawn(async move {
        cancelled.run_until_cancelled(actor.run()).await;
        actor.vanish().await;
    });
    Running {
        cancel,
        task,
        settled: Some(settled),
    }
}

pub(super) struct Actor {
    source: Source,
    handle: Handle,
    requested: mpsc::Receiver<Command>,
    snapshot: watch::Sender<Arc<Snapshot>>,
    outbox: Outbox,
    pub(super) removals: Removals,
    attention: Attention,
    leader: Option<Arc<Leader>>,
    visible: bool,
    settle: Option<oneshot::Sender<()>>,
    last_reason: String,
}

/// What happened since the last look, and when the next is due.
#[derive(Debug, Default)]
struct Attention {
    clues: Clues,
    refusals: Vec<(u32, String)>,
    due: Option<Instant>,
    looked: Option<Instant>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
enum NoLink {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Leader(#[from] LeaderError),
    #[error(transparent)]
    Qmp(#[from] qmp::Error),
}

impl Actor {
    async fn run(&mut self) {
        let mut pause = *BACKOFF.start();
        loop {
            match self.establish().await {
                Ok(link) => {
                    pause = *BACKOFF.start();
                    let reason = self.session(link).await;
                    self.lost(&reason.to_string()).await;
                }
                Err(reason) => {
                    self.note_failure(&reason).await;
                    pause = (pause * 2).min(*BACKOFF.end());
                }
            }
            self.wait_out(pause).await;
        }
    }

    /// Connects and negotiates. Meanwhile requests are turned away, and a QEMU that listens but
    /// does not answer appears after a while, so that it can be seen.
    async fn establish(&mut self) -> Result<Link, NoLink> {
        let stream = host::connect(&self.source.socket).await?;
        let leader = Arc::new(Leader::of_peer(&stream)?);
        if let Some(former) = &self.leader
            && (former.has_exited() || former.pid() != leader.pid())
        {
            self.vanish().await;
        }
        self.leader = Some(leader.clone());

        let attempt = Link::negotiate(stream, leader, self.source.limits.qmp_timeout);
        tokio::pin!(attempt);
        let grace = sleep(ANSWER_GRACE);
        tokio::pin!(grace);
        let mut silent = self.visible;
        loop {
            let deadline = self.removals.next_deadline();
            tokio::select! {
                result = &mut attempt => return Ok(result?),
                Some(command) = self.requested.recv() => self.turn_away(command),
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    self.removals.take_due(Instant::now()).give();
                }
                () = &mut grace, if !silent => {
                    silent = true;
                    warn!(machine = %self.source.name, "{UNANSWERED}");
                    self.show_disconnected(UNANSWERED).await;
                }
            }
        }
    }

    /// Serves a connection until it ends.
    async fn session(&mut self, mut link: Link) -> Closed {
        self.attention = Attention::default();
        if let Err(closed) = self.open_session(&link).await {
            return closed;
        }
        loop {
            let alarm = self.next_alarm();
            let leader = link.leader.clone();
            let step = tokio::select! {
                Some(command) = self.requested.recv() => {
                    let Command::SetVcpus { count, wait, uid, answer } = command;
                    self.set_vcpus(&mut link, count, wait, uid, answer).await
                }
                event = link.events.recv() => match event {
                    Some(event) => event.map(|event| self.note_event(event)),
                    None => Err(Closed::Hangup),
                },
                () = sleep_until(alarm.unwrap_or_else(Instant::now)), if alarm.is_some() => {
                    self.look(&mut link, None).await
                }
                () = leader.exited() => Err(Closed::Hangup),
            };
            if let Err(closed) = step {
                return closed;
            }
        }
    }

    /// The first look: what is there when the connection starts, or came and went without it.
    async fn open_session(&mut self, link: &Link) -> Result<(), Closed> {
        let look = link.look().await?;
        let known = self.visible && self.handle.snapshot().version.is_some();
        let mut snapshot = Snapshot::clone(&self.handle.snapshot());
        let identity = &link.identity;
        snapshot.version = Some(identity.version);
        snapshot.uuid = identity.uuid.clone();
        snapshot.accelerator = identity.accelerator.clone();
        snapshot.architecture = identity.architecture.clone();
        snapshot.leader = link.leader.pid();
        snapshot.disconnected = None;
        let clues = Clues {
            reconnected: true,
            ..Clues::default()
        };
        info!(
            machine = %self.source.name,
            qemu = %identity.version,
            vcpus = look.inventory.vcpu_count(),
            max = look.inventory.max_vcpus(),
            "connected"
        );
        self.last_reason.clear();
        if known {
            self.take_in(snapshot, look, &clues, Vec::new()).await;
        } else {
            snapshot.take_look(look);
            self.publish(snapshot).await;
            self.appear().await;
        }
        Ok(())
    }

    /// When the inventory must be looked at next.
    fn next_alarm(&self) -> Option<Instant> {
        let looked = self.attention.looked.unwrap_or_else(Instant::now);
        let waited_for = self.removals.is_waited_for();
        let recheck = waited_for.then(|| looked + RECHECK_INTERVAL);
        let deadline = self.removals.next_deadline();
        [self.attention.due, recheck, deadline]
            .into_iter()
            .flatten()
            .min()
    }

    /// Notes what an event says; what it means is seen at the next look.
    fn note_event(&mut self, event: Event) {
        debug!(machine = %self.source.name, ?event, "event");
        match event {
            Event::DeviceDeleted { path, .. } => self.attention.clues.note_deleted(path.as_str()),
            Event::UnplugGuestError { path, .. } => {
                if let Some(first) = self.entity_at(path.as_str()) {
                    let reason = "the guest refused to give up the CPU".to_owned();
                    self.attention.refusals.push((first, reason));
                }
            }
            Event::AcpiCpuOst(ost) => {
                if let (Some(reason), Some(first)) = (ost.refusal(), self.entity_of(&ost)) {
                    self.attention.refusals.push((first, reason));
                }
            }
            Event::Reset => self.attention.clues.reset = true,
            Event::RunState => {}
            Event::Other => return,
        }
        if self.attention.due.is_none() {
            let now = Instant::now();
            let earliest = self.attention.looked.map(|looked| looked + LOOK_INTERVAL);
            self.attention.due = Some(earliest.map_or(now, |earliest| earliest.max(now)));
        }
    }

    fn entity_at(&self, path: &str) -> Option<u32> {
        let snapshot = self.snapshot.borrow();
        let mut present = snapshot.inventory.present();
        let found = present.find(|(_, presence)| presence.qom_path.as_str() == path);
        found.map(|(entity, _)| entity.first)
    }

    /// The entity that an `_OST` is about: by its id, or by its slot where it has none.
    fn entity_of(&self, ost: &AcpiOst) -> Option<u32> {
        let snapshot = self.snapshot.borrow();
        let slot = ost.slot.as_str().parse::<u32>().ok();
        let mut present = snapshot.inventory.present();
        let found = present.find(|(entity, _)| match &ost.device {
            Some(device) => entity.alias() == Some(device.as_str()),
            None => Some(entity.slot) == slot,
        });
        found.map(|(entity, _)| entity.first)
    }

    /// Looks at the machine and takes in what is seen; `plugged` are the entities that were just
    /// plugged, and for whom.
    pub(super) async fn look(
        &mut self,
        link: &mut Link,
        plugged: Option<(BTreeSet<u32>, u32)>,
    ) -> Result<(), Closed> {
        let look = link.look().await?;
        self.attention.due = None;
        self.attention.looked = Some(Instant::now());
        // What came before the replies explains what they say. What came after them asks for
        // another look, which then needs the clues again.
        while let Ok(event) = link.events.try_recv() {
            self.note_event(event?);
        }
        let mut clues = if self.attention.due.is_some() {
            self.attention.clues.clone()
        } else {
            std::mem::take(&mut self.attention.clues)
        };
        clues.plugged = plugged;
        let refusals = std::mem::take(&mut self.attention.refusals);
        let snapshot = Snapshot::clone(&self.handle.snapshot());
        self.take_in(snapshot, look, &clues, refusals).await;
        Ok(())
    }

    /// Makes a look the truth: settles removals, publishes the snapshot, tells what happened,
    /// and then answers who waited for it.
    async fn take_in(
        &mut self,
        mut snapshot: Snapshot,
        look: Look,
        clues: &Clues,
        refusals: Vec<(u32, String)>,
    ) {
        let before = snapshot.inventory.clone();
        let (departed, arrived) = changes::between(&before, &look.inventory, clues, &self.removals);
        let mut news = Vec::new();
        for change in departed {
            self.removals.gone(change.first);
            let told = change.vcpus.iter().map(|&id| change.vcpu(id));
            news.extend(told.map(News::VcpuRemoved));
        }
        for (first, reason) in refusals {
            let still_there = look
                .inventory
                .entity(first)
                .filter(|e| e.presence.is_some());
            let Some(entity) = still_there else { continue };
            let removal = self.removals.refused(first, &reason);
            let cause = if removal.is_some() {
                Cause::Request
            } else {
                Cause::External
            };
            let uid = removal.map(|r| r.uid);
            let alias = entity.alias().unwrap_or_default();
            news.extend(removal_failed(entity.vcpus(), alias, cause, uid, &reason));
        }
        for change in arrived {
            let told = change.vcpus.iter().map(|&id| change.vcpu(id));
            news.extend(told.map(News::VcpuAdded));
        }
        snapshot.take_look(look);
        snapshot.pending = self.removals.pending_vcpus();
        self.publish(snapshot).await;
        for news in news {
            self.tell(news).await;
        }
        self.removals.take_due(Instant::now()).give();
    }

    /// Makes `snapshot` the one that is read, and says so if it is another.
    pub(super) async fn publish(&mut self, snapshot: Snapshot) {
        let snapshot = Arc::new(snapshot);
        let replace = |current: &mut Arc<Snapshot>| {
            let changed = **current != *snapshot;
            *current = snapshot.clone();
            changed
        };
        if self.snapshot.send_if_modified(replace) && self.visible {
            self.tell(News::Changed).await;
        }
    }

    pub(super) async fn tell(&self, news: News) {
        match &news {
            News::VcpuAdded(vcpu) => {
                info!(machine = %self.source.name, vcpu = vcpu.id, alias = vcpu.alias, cause = vcpu.cause.as_str(), "vCPU added");
            }
            News::VcpuRemoved(vcpu) => {
                info!(machine = %self.source.name, vcpu = vcpu.id, alias = vcpu.alias, cause = vcpu.cause.as_str(), "vCPU removed");
            }
            News::VcpuRemovalFailed { vcpu, reason } => {
                warn!(machine = %self.source.name, vcpu = vcpu.id, alias = vcpu.alias, reason, "vCPU not removed");
            }
            _ => {}
        }
        self.outbox.tell(&self.source.name, news).await;
    }

    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        self.handle.snapshot()
    }

    pub(super) fn limits(&self) -> Limits {
        self.source.limits
    }

    async fn appear(&mut self) {
        if !self.visible {
            self.visible = true;
            self.tell(News::Appeared(self.handle.clone())).await;
        }
        self.settled();
    }

    fn settled(&mut self) {
        if let Some(settle) = self.settle.take() {
            let _ = settle.send(());
        }
    }

    /// The machine is gone: nothing that was known of it is true any more.
    async fn vanish(&mut self) {
        self.leader = None;
        if self.visible {
            self.visible = false;
            info!(machine = %self.source.name, "gone");
            self.tell(News::Vanished).await;
        }
        self.removals.take_all().give();
        self.snapshot.send_replace(Arc::default());
        self.settled();
    }

    /// The connection ended. A machine whose QEMU ended too is gone.
    async fn lost(&mut self, reason: &str) {
        if let Some(leader) = self.leader.clone()
            && timeout(EXIT_GRACE, leader.exited()).await.is_ok()
        {
            self.vanish().await;
            return;
        }
        warn!(machine = %self.source.name, reason, "disconnected");
        self.last_reason = reason.to_owned();
        self.show_disconnected(reason).await;
    }

    /// No connection came about. Nobody is told of a socket where nobody listens.
    async fn note_failure(&mut self, reason: &NoLink) {
        let text = reason.to_string();
        if self.last_reason != text {
            match reason {
                NoLink::Connect(ConnectError::Refused | ConnectError::Missing) => {
                    debug!(machine = %self.source.name, socket = %self.source.socket.display(), reason = text, "no machine");
                }
                _ => {
                    warn!(machine = %self.source.name, socket = %self.source.socket.display(), reason = text, "cannot connect");
                }
            }
            self.last_reason.clone_from(&text);
        }
        if self
            .leader
            .as_ref()
            .is_some_and(|leader| leader.has_exited())
        {
            self.vanish().await;
        } else if self.visible {
            self.show_disconnected(&text).await;
        }
        self.settled();
    }

    async fn show_disconnected(&mut self, reason: &str) {
        let mut snapshot = Snapshot::clone(&self.handle.snapshot());
        snapshot.disconnected = Some(reason.to_owned());
        snapshot.leader = self.leader.as_ref().map_or(0, |leader| leader.pid());
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
                () = sleep_until(deadline) => self.removals.take_due(Instant::now()).give(),
                Some(command) = self.requested.recv() => self.turn_away(command),
                () = exited => self.vanish().await,
            }
            if Instant::now() >= end {
                return;
            }
        }
    }

    fn turn_away(&self, command: Command) {
        let Command::SetVcpus { answer, .. } = command;
        let snapshot = self.handle.snapshot();
        let reason = snapshot.disconnected.clone();
        let reason = reason.unwrap_or_else(|| "it is being set up".to_owned());
        let _ = answer.send(Err(Error::Disconnected(reason)));
    }
}

impl Snapshot {
    fn take_look(&mut self, look: Look) {
        self.inventory = Arc::new(look.inventory);
        self.run_state = look.run_state;
        self.no_hotplug = look.no_hotplug;
    }
}

impl changes::Change {
    fn vcpu(&self, id: u32) -> Vcpu {
        Vcpu {
            id,
            alias: self.alias.clone(),
            cause: self.cause,
            uid: self.uid,
        }
    }
}

/// One `VcpuRemovalFailed` for every vCPU of an entity.
pub(super) fn removal_failed(
    vcpus: impl Iterator<Item = u32>,
    alias: &str,
    cause: Cause,
    uid: Option<u32>,
    reason: &str,
) -> Vec<News> {
    let failed = |id| News::VcpuRemovalFailed {
        vcpu: Vcpu {
            id,
            alias: alias.to_owned(),
            cause,
            uid,
        },
        reason: reason.to_owned(),
    };
    vcpus.map(failed).collect()
}
