//! One connection of the actor: commands and events in, one look at the inventory after them,
//! and what each look makes known.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing::{debug, info};

use super::actor::Actor;
use super::changes::{self, Clues};
use super::error::Error;
use super::handle::Command;
use super::link::{Link, Look};
use super::notice::{Cause, MachineEvent, Vcpu};
use super::record::PendingEvent;
use super::snapshot::Snapshot;
use crate::ids::{SlotId, Uid, VcpuId};
use crate::inventory::Inventory;
use crate::process::LeaderError;
use crate::qmp::{AcpiOst, Closed, Event, Events};
use crate::text::Text;

/// A guest that ejects a CPU by itself says so after the CPU is gone, within this time.
const EJECTION_GRACE: Duration = Duration::from_millis(250);
/// Events lead to one look at the inventory in this time, however many there are.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// After a refresh that events led to, the next one waits so many times as long as that took.
const REST: u32 = 10;
/// But no longer than this.
const LONGEST_REST: Duration = Duration::from_secs(5);
/// While a call waits for a removal, or QEMU is in a state that it leaves by itself, it is looked
/// at this often without any event: not every QEMU sends one.
const RECHECK_INTERVAL: Duration = Duration::from_secs(1);
/// The same while a removal is open for which nobody waits.
const RECHECK_INTERVAL_UNWAITED: Duration = Duration::from_secs(10);

/// What happened since the last look, and when the next is due.
#[derive(Debug, Default)]
pub(super) struct Attention {
    clues: Clues,
    /// The last refusal of each slot, by its first vCPU.
    refusals: BTreeMap<SlotId, Refused>,
    due: Option<Instant>,
    looked: Option<Instant>,
    /// No event leads to a refresh before.
    rests_until: Option<Instant>,
}

/// A guest keeps an entity that somebody wanted to go.
#[derive(Clone, Debug)]
struct Refused {
    /// The cause, unless a caller of this service asked for the removal.
    cause: Cause,
    reason: String,
}

impl Refused {
    fn by(ost: &AcpiOst) -> Option<Self> {
        Some(Self {
            cause: match ost.is_guests_own() {
                true => Cause::Guest,
                false => Cause::External,
            },
            reason: ost.refusal()?,
        })
    }
}

impl Actor {
    /// Serves a connection until it ends.
    pub(super) async fn session(&mut self, mut link: Link, look: Look) -> Closed {
        if let Err(closed) = self.open_session(&link, look).await {
            return closed;
        }
        loop {
            let alarm = self.next_alarm();
            let leader = link.leader.clone();
            let step = tokio::select! {
                Some(command) = self.requested.recv() => match verify(&link).await {
                    Ok(()) => self.execute(&mut link, command).await,
                    Err(closed) => {
                        command.refuse(Error::Disconnected(closed.to_string()));
                        Err(closed)
                    }
                },
                event = link.events.recv() => match event {
                    Some(event) => event.map(|event| self.note_event(event)),
                    None => Err(Closed::Hangup),
                },
                () = sleep_until(alarm.unwrap_or_else(Instant::now)), if alarm.is_some() => {
                    self.look(&mut link).await
                }
                () = leader.exited() => Err(Closed::Hangup),
            };
            if let Err(closed) = step.and_then(|()| self.check_size()) {
                // What came before the end may tell of refusals that nobody tells again.
                self.note_last_events(&mut link.events);
                return closed;
            }
        }
    }

    async fn execute(&mut self, link: &mut Link, command: Command) -> Result<(), Closed> {
        match command {
            Command::SetVcpus(request, answer) => self.set_vcpus(link, request, answer).await,
            Command::Tune(change, subject, answer) => {
                self.tune(change, subject, answer).await;
                Ok(())
            }
            Command::TakeUp(answer) => {
                self.take_up_treatment().await;
                let _ = answer.send(());
                Ok(())
            }
        }
    }

    /// Checks that the state of the machine fits into its file. No real machine has more.
    fn check_size(&self) -> Result<(), Closed> {
        match self.record.is_too_large() {
            true => Err(Closed::Malformed(
                "its vCPUs need more than 1 MiB of persisted state".into(),
            )),
            false => Ok(()),
        }
    }

    /// Takes in the first look: what is there when the connection starts, or came and went
    /// without it.
    async fn open_session(&mut self, link: &Link, look: Look) -> Result<(), Closed> {
        verify(link).await?;
        let known = self.recalled.is_some() || self.snapshot().version.is_some();
        let mut snapshot = Snapshot::clone(&self.snapshot());
        let identity = &link.identity;
        snapshot.version = Some(identity.version);
        snapshot.uuid = match &self.source.uuid {
            Some(uuid) => Text::lossy(uuid.as_str()),
            None => identity.uuid.clone(),
        };
        snapshot.accelerator = identity.accelerator.clone();
        snapshot.architecture = identity.architecture.clone();
        snapshot.disconnected = None;
        let missed = match known {
            true => self.missed_refusals(link).await?,
            false => BTreeMap::new(),
        };
        // Taken when nothing can fail any more: what an event told before the connection broke may
        // not have been looked at yet.
        let attention = std::mem::take(&mut self.attention);
        let clues = Clues {
            reconnected: true,
            plugged: self.plugging.take(),
            ..attention.clues
        };
        info!(
            machine = %self.source.name,
            qemu = %identity.version,
            vcpus = look.inventory.vcpu_count(),
            max = look.inventory.max_vcpus(),
            "connected"
        );
        let before = match known {
            true => self.known_inventory(),
            // Nobody was told that there were none, so none came.
            false => look.inventory.clone(),
        };
        self.recalled = None;
        let mut refusals = attention.refusals;
        refusals.extend(missed);
        self.last_reason.clear();
        self.take_in(&before, snapshot, look, &clues, refusals)
            .await;
        if !known {
            self.audit_start();
        }
        self.take_up_treatment().await;
        self.check_size()
    }

    /// Notes what came before the end of a connection: it may tell of refusals that nobody tells
    /// again.
    pub(super) fn note_last_events(&mut self, events: &mut Events) {
        while let Ok(Ok(event)) = events.try_recv() {
            self.note_event(event);
        }
    }

    /// The open removals that the guest refused while there was no connection to tell. A refusal
    /// that was there before QEMU was asked may be that of a former request, and is none.
    async fn missed_refusals(&self, link: &Link) -> Result<BTreeMap<SlotId, Refused>, Closed> {
        if self.removals.is_empty() {
            return Ok(BTreeMap::new());
        }
        let status = link.ospm_status().await?;
        let refusals = status
            .iter()
            .filter_map(|ost| Some((self.entity_of(ost)?, Refused::by(ost)?)));
        let is_new = |(first, _): &(SlotId, Refused)| {
            let removal = self.removals.get(*first);
            removal.is_some_and(|removal| !removal.refused_before)
        };
        Ok(refusals.filter(is_new).collect())
    }

    /// When the inventory must be looked at next.
    fn next_alarm(&self) -> Option<Instant> {
        let looked = self.attention.looked.unwrap_or_else(Instant::now);
        let recheck = match self.removals.is_waited_for() {
            true => Some(looked + RECHECK_INTERVAL),
            // QEMU tells of no end of these.
            false if self.snapshot().is_passing() => Some(looked + RECHECK_INTERVAL),
            false if self.removals.is_empty() => None,
            false => Some(looked + RECHECK_INTERVAL_UNWAITED),
        };
        let deadline = self.removals.next_deadline();
        // A look ends with what is to be remembered.
        let rewrite = self.record.is_behind();
        let rewrite = rewrite.then(|| looked + RECHECK_INTERVAL_UNWAITED);
        let (due, placing) = (self.attention.due, self.placing.due());
        [due, recheck, deadline, rewrite, placing]
            .into_iter()
            .flatten()
            .min()
    }

    /// Notes what an event says; what it means is seen at the next look.
    fn note_event(&mut self, event: Event) {
        debug!(machine = %self.source.name, ?event, "event");
        let now = Instant::now();
        let looked = self.attention.looked.map(|looked| looked + LOOK_INTERVAL);
        let earliest = looked.max(self.attention.rests_until);
        let mut due = earliest.map_or(now, |earliest| earliest.max(now));
        match event {
            Event::DeviceDeleted { path, .. } => {
                if self.is_unasked_departure(path.as_str()) {
                    due = due.max(now + EJECTION_GRACE);
                }
            }
            Event::UnplugGuestError { path, .. } => {
                if let Some(first) = self.entity_at(path.as_str()) {
                    let refused = Refused {
                        cause: Cause::External,
                        reason: "the guest refused to give up the CPU".to_owned(),
                    };
                    self.attention.refusals.insert(first, refused);
                }
            }
            Event::AcpiCpuOst(ost) => {
                if let Some(first) = self.entity_of(&ost) {
                    let refused = Refused::by(&ost);
                    if refused.is_none() && ost.is_guests_own() {
                        self.attention.clues.ejected.insert(first);
                    }
                    let refused = refused.map(|refused| (first, refused));
                    self.attention.refusals.extend(refused);
                }
            }
            Event::Reset => self.attention.clues.reset = true,
            Event::RunState => {}
            Event::Other => return,
        }
        let due = self.attention.due.map_or(due, |former| former.min(due));
        self.attention.due = Some(due);
    }

    /// Whether the device at `path` is an entity, or a part of one, that nobody asked us to
    /// remove.
    fn is_unasked_departure(&self, path: &str) -> bool {
        let inventory = self.known_inventory();
        let mut present = inventory.present();
        let found = present.find(|(_, presence)| {
            let rest = path.strip_prefix(presence.qom_path.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        });
        found.is_some_and(|(entity, _)| self.removals.asked_by(entity.id).is_none())
    }

    /// The vCPUs as they were last seen, if by a former run of the service.
    fn known_inventory(&self) -> Arc<Inventory> {
        let recalled = self.recalled.as_ref();
        recalled.unwrap_or(&self.snapshot().inventory).clone()
    }

    fn entity_at(&self, path: &str) -> Option<SlotId> {
        let inventory = self.known_inventory();
        let mut present = inventory.present();
        let found = present.find(|(_, presence)| presence.qom_path.as_str() == path);
        found.map(|(entity, _)| entity.id)
    }

    /// The entity that an `_OST` is about: by its id, or by its slot where it has none.
    pub(super) fn entity_of(&self, ost: &AcpiOst) -> Option<SlotId> {
        let inventory = self.known_inventory();
        let slot = ost.slot.as_str().parse::<u32>().ok();
        let mut present = inventory.present();
        let found = present.find(|(entity, _)| match &ost.device {
            Some(device) => entity.alias() == Some(device.as_str()),
            None => Some(entity.acpi_slot) == slot,
        });
        found.map(|(entity, _)| entity.id)
    }

    /// Looks at the machine and takes in what is seen.
    pub(super) async fn look(&mut self, link: &mut Link) -> Result<(), Closed> {
        let look = link.look().await?;
        // A placement pass follows.
        verify(link).await?;
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
        clues.plugged = self.plugging.take();
        let refusals = std::mem::take(&mut self.attention.refusals);
        let snapshot = Snapshot::clone(&self.snapshot());
        let before = snapshot.inventory.clone();
        let (start, reading) = (Instant::now(), look.cost);
        self.take_in(&before, snapshot, look, &clues, refusals)
            .await;
        // Nothing that a machine does by itself costs more than a share of a CPU.
        let cost = reading + start.elapsed();
        let rest = (REST * cost).min(LONGEST_REST);
        let until = Instant::now() + rest;
        self.attention.rests_until = Some(until);
        self.attention.due = self.attention.due.map(|due| due.max(until));
        Ok(())
    }

    /// Takes in a look: persists what changed since `before`, publishes the snapshot, emits the
    /// signals, persists that they were emitted, and then answers the callers that waited.
    async fn take_in(
        &mut self,
        before: &Inventory,
        mut snapshot: Snapshot,
        look: Look,
        clues: &Clues,
        refusals: BTreeMap<SlotId, Refused>,
    ) {
        let news = self.settle(before, &look.inventory, clues, refusals);
        self.place(&look.inventory).await;
        snapshot.take_look(look);
        snapshot.pending = self.removals.pending_vcpus();
        if !news.is_empty() {
            // Emitted twice is better than never, should the service end in the middle of it. Persisted
            // first, so that the signals follow the properties at once.
            self.telling = PendingEvent::of(&news);
            // A failure is logged, and the signals are emitted all the same.
            let _ = self.persist(&snapshot.inventory).await;
        }
        self.publish(snapshot).await;
        self.appear().await;
        let after = self.snapshot().inventory.vcpu_count();
        self.audit_news(before.vcpu_count(), after, &news);
        if !news.is_empty() {
            for news in news {
                self.tell(news).await;
            }
            self.passed_on().await;
            self.telling.clear();
        }
        self.remember().await;
        self.log_dropped();
        self.answer_due();
    }

    /// Settles the removals by what changed between `before` and `inventory`. Returns the news.
    fn settle(
        &mut self,
        before: &Inventory,
        inventory: &Inventory,
        clues: &Clues,
        refusals: BTreeMap<SlotId, Refused>,
    ) -> Vec<MachineEvent> {
        let (departed, arrived) = changes::between(before, inventory, clues, &self.removals);
        // What a former run may not have told comes first, and again if it did.
        let mut news: Vec<MachineEvent> = self.telling.drain(..).map(PendingEvent::news).collect();
        for change in departed {
            self.removals.gone(change.first);
            let told = change.vcpus.iter().map(|&id| change.vcpu(id));
            news.extend(told.map(MachineEvent::VcpuRemoved));
        }
        for (first, Refused { cause, reason }) in refusals {
            let still_there = inventory.slot(first).filter(|e| e.presence.is_some());
            let Some(entity) = still_there else { continue };
            let removal = self.removals.refused(first, &reason);
            let cause = match removal {
                Some(_) => Cause::Request,
                None => cause,
            };
            let uid = removal.map(|r| r.uid);
            let alias = entity.alias().unwrap_or_default();
            news.extend(removal_failed(entity.vcpus(), alias, cause, uid, &reason));
        }
        for change in arrived {
            let told = change.vcpus.iter().map(|&id| change.vcpu(id));
            news.extend(told.map(MachineEvent::VcpuAdded));
        }
        news
    }
}

/// Checks that the process behind the connection is the one that it was, and of the same user.
async fn verify(link: &Link) -> Result<(), Closed> {
    link.leader.verify().await.map_err(|error| match error {
        LeaderError::NoProcess => Closed::Hangup,
        other => Closed::OtherProcess(other.to_string()),
    })
}

impl Snapshot {
    fn take_look(&mut self, look: Look) {
        self.inventory = look.inventory;
        self.run_state = look.run_state;
        self.no_hotplug = look.no_hotplug;
    }
}

impl changes::Change {
    fn vcpu(&self, id: VcpuId) -> Vcpu {
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
    vcpus: impl Iterator<Item = VcpuId>,
    alias: &str,
    cause: Cause,
    uid: Option<Uid>,
    reason: &str,
) -> Vec<MachineEvent> {
    let failed = |id| MachineEvent::VcpuRemovalFailed {
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
