//! How a request is carried out: plan, ask QEMU for all at once, look again.

use std::time::Duration;

use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::actor::Actor;
use super::changes::Plugging;
use super::error::{Error, Refusal, Report};
use super::handle::{Answer, Outcome, Request, Wait};
use super::link::{Link, broken};
use super::notice::Cause;
use super::removal::{Removal, Waiter};
use super::session::removal_failed;
use super::snapshot::Snapshot;
use crate::ids::{SlotId, Uid, VcpuId};
use crate::inventory::{HotplugMethod, HotplugSlot, Inventory, Plan, Presence};
use crate::qmp::{self, Closed, CommandError, Reply};

/// A removal that is asked for again after this time is passed on to QEMU again. Before it QEMU
/// refuses some (`qdev-monitor.c`), and a guest that is at it needs no reminder.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(5);

impl Actor {
    /// Carries out a request. Fails only where the connection does; the caller is answered in
    /// every case, at once or when the removals that it waits for have ended.
    pub(super) async fn set_vcpus(
        &mut self,
        link: &mut Link,
        request: Request,
        answer: Answer,
    ) -> Result<(), Closed> {
        match self.plan(&request) {
            Ok(plan) if plan == Plan::default() => {
                let _ = answer.send(Ok(Outcome::default()));
                Ok(())
            }
            Ok(plan) if plan.add.is_empty() => self.shrink(link, request, &plan, answer).await,
            Ok(plan) => {
                let result = self.grow(link, request, &plan.add).await;
                let (result, connection) = split(result);
                let _ = answer.send(result);
                connection
            }
            Err(error) => {
                let _ = answer.send(Err(error));
                Ok(())
            }
        }
    }

    fn plan(&self, request: &Request) -> Result<Plan, Error> {
        let snapshot = self.snapshot();
        snapshot.check(&request.subject)?;
        let (plan, count) = snapshot.plan(&request.target)?;
        // Between the authorization and now others may have changed what the request leads to.
        if count != request.count {
            let (asked, told) = (request.target.clone(), request.count);
            return Err(Error::Conflict { asked, count, told });
        }
        Ok(plan)
    }

    /// Plugs the entities `firsts`: all `device_add`s at once, then one look.
    async fn grow(
        &mut self,
        link: &mut Link,
        request: Request,
        firsts: &[SlotId],
    ) -> Result<Outcome, Stop> {
        let before = self.snapshot();
        self.plugging = Some(Plugging {
            firsts: firsts.iter().copied().collect(),
            uid: request.uid,
        });
        if let Err(error) = self.try_remember().await {
            self.plugging = None;
            return Err(Stop::Failed(error));
        }
        let entities = firsts.iter().filter_map(|&f| before.inventory.slot(f));
        let vcpus: Vec<VcpuId> = entities.flat_map(HotplugSlot::vcpus).collect();
        self.placing.prepare(vcpus).await;
        let errors = plug(link, &before.inventory, firsts).await?;
        self.look(link).await?;

        let after = self.snapshot();
        let entities = firsts
            .iter()
            .filter_map(|&first| after.inventory.slot(first));
        let (came, missing): (Vec<&HotplugSlot>, Vec<&HotplugSlot>) =
            entities.partition(|e| e.presence.is_some());
        let added: Vec<VcpuId> = came.iter().flat_map(|e| e.vcpus()).collect();
        if missing.is_empty() {
            let failures = self.placing.failures(&added);
            if !failures.is_empty() {
                return Err(Stop::Failed(Error::PlacementFailed {
                    asked: request.target,
                    added,
                    failures,
                }));
            }
            return Ok(Outcome {
                added,
                ..Outcome::default()
            });
        }
        let refusal = |entity: &&HotplugSlot| {
            let error = errors.iter().find(|(first, _)| *first == entity.id);
            let unlisted = "QEMU took the request and does not list the CPU";
            let reason = error.map_or(unlisted.to_owned(), |(_, error)| in_words(error));
            Refusal {
                vcpus: entity.vcpus().collect(),
                reason,
            }
        };
        let lacking = missing.iter().map(|e| e.width).sum::<u32>();
        let count = after.inventory.vcpu_count();
        self.audit(count, count + lacking, Some(request.uid), false);
        Err(Stop::Failed(Error::QmpFailed(Box::new(Report {
            asked: request.target,
            added,
            removed: Vec::new(),
            pending: Vec::new(),
            refused: missing.iter().map(refusal).collect(),
        }))))
    }

    /// Asks for removals and lets the caller wait for them as he wishes.
    async fn shrink(
        &mut self,
        link: &mut Link,
        request: Request,
        plan: &Plan,
        answer: Answer,
    ) -> Result<(), Closed> {
        let before = self.snapshot();
        let rejected = match self.ask_to_leave(link, &before, plan, request.uid).await {
            Ok(rejected) => rejected,
            Err(stop) => {
                let (result, connection) = split(Err(stop));
                let _ = answer.send(result);
                return connection;
            }
        };
        let wanted = plan.remove.iter().chain(&plan.leaving).copied().collect();
        let patience = match request.wait {
            Wait::No => None,
            Wait::UpTo(limit) => {
                Some(limit.unwrap_or(self.treatment.borrow().limits.removal_timeout))
            }
        };
        // Registered before the look, so that nothing that ends is missed.
        self.removals.wait(Waiter {
            asked: request.target,
            outstanding: &self.removals.leaving() & &wanted,
            rejected,
            patience,
            uid: request.uid,
            answer,
        });
        // What needs no guest is gone already.
        self.look(link).await
    }

    /// Sends all `device_del`s at once. Returns what QEMU refused, which was told too.
    async fn ask_to_leave(
        &mut self,
        link: &Link,
        before: &Snapshot,
        plan: &Plan,
        uid: Uid,
    ) -> Result<Vec<Refusal>, Stop> {
        let now = Instant::now();
        let is_old = |first: &&SlotId| {
            let removal = self.removals.get(**first);
            removal.is_some_and(|r| now.duration_since(r.asked) >= ASK_AGAIN_AFTER)
        };
        let again: Vec<SlotId> = plan.leaving.iter().filter(is_old).copied().collect();
        let entities = plan.remove.iter().chain(&again).filter_map(|&first| {
            let entity = before.inventory.slot(first)?;
            Some((entity, entity.presence.as_ref()?))
        });
        let entities: Vec<(&HotplugSlot, &Presence)> = entities.collect();
        for (entity, _) in &entities {
            let removal = Removal {
                vcpus: entity.vcpus().collect(),
                uid,
                asked: now,
                refused_before: false,
            };
            self.removals.ask(entity.id, removal);
        }
        if !entities.is_empty()
            && let Err(error) = self.try_remember().await
        {
            for (entity, _) in entities {
                self.removals.rejected(entity.id);
            }
            return Err(Stop::Failed(error));
        }
        let status = link.ospm_status();
        let mut replies = Vec::new();
        for (entity, presence) in entities {
            // By path, which boot CPUs have too (qdev_device_del takes both).
            let arguments = json!({"id": presence.qom_path.as_str()});
            let reply: Reply<IgnoredAny> = link.client.send("device_del", Some(arguments));
            replies.push((entity, reply));
        }
        for ost in status.await?.iter().filter(|ost| ost.refusal().is_some()) {
            if let Some(first) = self.entity_of(ost) {
                self.removals.refused_before(first);
            }
        }
        let mut refused = Vec::new();
        for (entity, reply) in replies {
            let is_again = again.contains(&entity.id);
            match refusal(reply).await? {
                // QEMU still has the first request; that it takes no second is no failure.
                Some(_) if is_again => self.removals.rejected(entity.id),
                Some(error) if !is_under_way(&error) => {
                    self.removals.rejected(entity.id);
                    let reason = in_words(&error);
                    let alias = entity.alias().unwrap_or_default();
                    let count = before.inventory.vcpu_count();
                    self.audit(count, count - entity.width, Some(uid), false);
                    let vcpus = entity.vcpus();
                    for news in removal_failed(vcpus, alias, Cause::Request, Some(uid), &reason) {
                        self.tell(news).await;
                    }
                    let vcpus = entity.vcpus().collect();
                    refused.push(Refusal { vcpus, reason });
                }
                _ => self.removals.agreed(entity.id),
            }
        }
        Ok(refused)
    }
}

/// Why a step ended early.
enum Stop {
    /// The request failed; the connection is well.
    Failed(Error),
    /// The connection broke.
    Broken(Closed),
}

impl From<Closed> for Stop {
    fn from(closed: Closed) -> Self {
        Self::Broken(closed)
    }
}

/// What the caller is told, and what the connection is told.
fn split(result: Result<Outcome, Stop>) -> (Result<Outcome, Error>, Result<(), Closed>) {
    match result {
        Ok(outcome) => (Ok(outcome), Ok(())),
        Err(Stop::Failed(error)) => (Err(error), Ok(())),
        Err(Stop::Broken(closed)) => (Err(Error::Interrupted(closed.clone())), Err(closed)),
    }
}

/// Sends a `device_add` for each of `firsts`, all at once. Returns QEMU's refusals.
async fn plug(
    link: &Link,
    inventory: &Inventory,
    firsts: &[SlotId],
) -> Result<Vec<(SlotId, CommandError)>, Closed> {
    let mut refused = Vec::new();
    let mut left: Vec<&HotplugSlot> = firsts.iter().filter_map(|&f| inventory.slot(f)).collect();
    // Any device may have the id that we would give; then the next free one is taken.
    for attempt in 0..8 {
        let mut replies: Vec<(&HotplugSlot, Reply<IgnoredAny>)> = Vec::new();
        for entity in std::mem::take(&mut left) {
            let (command, arguments) = match inventory.method() {
                HotplugMethod::CpuAdd => ("cpu-add", json!({"id": entity.id})),
                _ => ("device_add", device_add_arguments(entity, attempt)),
            };
            replies.push((entity, link.client.send(command, Some(arguments))));
        }
        refused.retain(|(_, error)| !is_duplicate_id(error));
        for (entity, reply) in replies {
            if let Some(error) = refusal(reply).await? {
                if is_duplicate_id(&error) {
                    left.push(entity);
                }
                refused.push((entity.id, error));
            }
        }
        if left.is_empty() {
            break;
        }
    }
    Ok(refused)
}

/// The arguments of `device_add` for `entity`: its properties verbatim, and an id: `vcpuN`, or
/// at later attempts `vcpuN-2`, `vcpuN-3`, ….
fn device_add_arguments(entity: &HotplugSlot, attempt: u32) -> Value {
    let id = match attempt {
        0 => format!("vcpu{}", entity.id),
        _ => format!("vcpu{}-{}", entity.id, attempt + 1),
    };
    let mut arguments = entity.props.arguments();
    arguments.insert("driver".into(), entity.driver.as_str().into());
    arguments.insert("id".into(), id.into());
    Value::Object(arguments)
}

fn is_duplicate_id(error: &CommandError) -> bool {
    error.desc.as_str().starts_with("Duplicate device ID")
}

/// Somebody else asked QEMU for the same before.
fn is_under_way(error: &CommandError) -> bool {
    error
        .desc
        .as_str()
        .contains("already in the process of unplug")
}

/// QEMU's text, with what it means to the caller where QEMU does not say.
fn in_words(error: &CommandError) -> String {
    let text = error.desc.as_str();
    let meaning = if text.contains("not allowed while migrating") {
        " (ask again when the migration is over)"
    } else if text.contains("unplug request for not supported device type") {
        " (no operating system has taken charge of the CPUs yet; ask again when the guest is up)"
    } else {
        ""
    };
    format!("{error}{meaning}")
}

/// Waits for a command whose result is empty; QEMU's refusal is no failure here.
async fn refusal(reply: Reply<IgnoredAny>) -> Result<Option<CommandError>, Closed> {
    match reply.wait().await {
        Ok(_) => Ok(None),
        Err(qmp::Error::Command { error, .. }) => Ok(Some(error)),
        Err(error) => Err(broken(error)),
    }
}
