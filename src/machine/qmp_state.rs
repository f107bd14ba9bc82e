//! The queries of QEMU's state: its vCPUs and its run state.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json;
use tokio::time::Instant;

use super::model::input::QemuState;
use super::placement::on_host;
use super::qmp_session::{List, QmpSession, broken};
use crate::ids::Tid;
use crate::inventory::{CpuInfoFast, HotpluggableCpu, Inventory, Slots};
use crate::qmp::{self, Closed, CommandError, Reply};
use crate::text::Text;

/// How often QEMU is queried again if a CPU came or went between two queries.
const REFRESH_TRIES: u32 = 3;

/// The replies to the queries of the state, which may not have arrived yet.
#[derive(Debug)]
#[must_use = "the state is read from them"]
pub(super) struct StateReplies {
    slots: SlotReply,
    cpus: Reply<List<CpuInfoFast>>,
    status: Reply<StatusInfo>,
}

/// Where the slots come from.
#[derive(Debug)]
enum SlotReply {
    /// QEMU lists them.
    Listed(Reply<List<HotpluggableCpu>>),
    /// QEMU does not list them.
    Counted,
    /// They are known.
    Known(Arc<Inventory>),
}

#[derive(Debug, Deserialize)]
struct StatusInfo {
    status: Text,
}

impl QmpSession {
    /// Queries the vCPUs and the run state.
    ///
    /// # Errors
    /// Fails as [`Self::read_state`] does.
    pub(super) async fn query_state(&self) -> Result<QemuState, Closed> {
        self.read_state(self.ask_state()).await
    }

    /// Sends the queries of the state. QEMU answers them after the commands that were sent before.
    pub(super) fn ask_state(&self) -> StateReplies {
        let query = "query-hotpluggable-cpus";
        let slots = if self.has(query) {
            SlotReply::Listed(self.client.send(query, None))
        } else {
            SlotReply::Counted
        };
        self.ask_with(slots)
    }

    /// Does the same as [`Self::ask_state`], but does not ask for the slots, which are those of `known`.
    pub(super) fn ask_cpus(&self, known: &Arc<Inventory>) -> StateReplies {
        self.ask_with(SlotReply::Known(known.clone()))
    }

    fn ask_with(&self, slots: SlotReply) -> StateReplies {
        let query = if self.has("query-cpus-fast") {
            "query-cpus-fast"
        } else {
            "query-cpus"
        };
        StateReplies {
            slots,
            cpus: self.client.send(query, None),
            status: self.client.send("query-status", None),
        }
    }

    /// Awaits the state that was asked for.
    ///
    /// # Errors
    /// Fails if the connection ends. A QEMU whose answers cannot be true breaks the protocol.
    pub(super) async fn read_state(&self, mut asked: StateReplies) -> Result<QemuState, Closed> {
        let mut tries = 1;
        loop {
            // A CPU that comes or goes between the two queries is in one of them only, which ends by itself. If it
            // does not, the list of slots counts.
            match self.read_once(asked).await? {
                Some(state) if !state.inventory.is_torn() || tries == REFRESH_TRIES => {
                    return Ok(state);
                }
                Some(_) => tries += 1,
                None => {}
            }
            asked = self.ask_state();
        }
    }

    /// Awaits the replies. The result is `None` if the slots are needed too.
    async fn read_once(&self, replies: StateReplies) -> Result<Option<QemuState>, Closed> {
        let cpus = match replies.cpus.wait().await {
            Ok(cpus) => cpus.0,
            // QEMU has no vCPUs before the machine is created (`-preconfig`).
            Err(qmp::Error::Command { error, .. }) if is_too_early(&error) => Vec::new(),
            Err(error) => return Err(broken(error)),
        };
        let run_state = replies.status.wait().await.map_err(broken)?.status;
        let start = Instant::now();
        let (inventory, no_hotplug) = match replies.slots {
            SlotReply::Known(known) => match known.with_cpus(&cpus) {
                Some(inventory) => (inventory, None),
                None => return Ok(None),
            },
            SlotReply::Counted => {
                let counted = self.counted.get_or_try_init(|| self.count_slots());
                let (slots, reason) = counted.await?.clone();
                (read(slots, cpus)?, reason)
            }
            SlotReply::Listed(reply) => match reply.wait().await {
                Ok(list) => (read(Slots::Listed(list.0), cpus)?, None),
                Err(qmp::Error::Command { error, .. }) => {
                    (read(Slots::Fixed, cpus)?, Some(error.desc))
                }
                Err(error) => return Err(broken(error)),
            },
        };
        Ok(Some(QemuState {
            inventory: Arc::new(self.trust(inventory).await),
            run_state,
            no_hotplug,
            readings: BTreeMap::new(),
            cost: start.elapsed(),
        }))
    }

    /// Finds the threads on the host.
    async fn trust(&self, mut inventory: Inventory) -> Inventory {
        let tasks = self.tasks_of(&inventory).await;
        let task = |thread: Tid| tasks.get(&thread).copied();
        let missing = inventory.trust_threads(self.leader.pid(), task);
        if !missing.is_empty() {
            tracing::debug!(threads = ?missing, "not threads of the QMP peer, so not used");
        }
        inventory
    }

    /// Returns the CPUs of a QEMU that does not list them (before 2.7): it has no query for their number,
    /// but reports it when it is asked to add one beyond.
    async fn count_slots(&self) -> Result<(Slots, Option<Text>), Closed> {
        if !self.has("cpu-add") {
            return Ok((Slots::Fixed, None));
        }
        let beyond = json!({"id": i32::MAX});
        let reply = self.client.send::<IgnoredAny>("cpu-add", Some(beyond));
        match reply.wait().await {
            Err(qmp::Error::Command { error, .. }) => Ok(match max_allowed(error.desc.as_str()) {
                Some(max) => (Slots::Counted(max), None),
                None => (Slots::Fixed, Some(error.desc)),
            }),
            Err(error) => Err(broken(error)),
            Ok(_) => Err(Closed::Malformed("a CPU that cannot be".into())),
        }
    }

    /// Returns the threads in `inventory` that are tasks of the leader, with their numbers on the host.
    /// They are read again only for another list: each use of a thread checks it again.
    async fn tasks_of(&self, inventory: &Inventory) -> Arc<BTreeMap<Tid, Tid>> {
        let threads = inventory.present();
        let threads = threads.flat_map(|(_, presence)| presence.threads.iter());
        let listed: BTreeSet<Tid> = threads.map(|thread| thread.id).collect();
        let mut verified = self.verified.lock().await;
        if !verified.keys().eq(&listed) {
            let leader = self.leader.clone();
            let tasks = on_host(move || leader.tasks_by_own_number(&listed));
            *verified = Arc::new(tasks.await);
        }
        verified.clone()
    }
}

fn read(slots: Slots, cpus: Vec<CpuInfoFast>) -> Result<Inventory, Closed> {
    Inventory::read(slots, cpus).map_err(|error| Closed::Malformed(error.to_string()))
}

/// Returns whether a command was refused because the machine is not created yet.
fn is_too_early(error: &CommandError) -> bool {
    let text = error.desc.as_str();
    text.contains("only after machine initialization has completed")
}

/// Returns the number of CPUs in a refusal such as `Unable to add CPU: 2147483647, max allowed: 3`.
fn max_allowed(refusal: &str) -> Option<u32> {
    let (_, number) = refusal.rsplit_once("max allowed: ")?;
    number.trim().parse::<u32>().ok()?.checked_add(1)
}

#[cfg(test)]
mod tests {
    use super::max_allowed;

    #[test]
    fn a_refusal_contains_the_number_of_cpus() {
        let refusal = "Unable to add CPU: 2147483647, max allowed: 3";
        assert_eq!(max_allowed(refusal), Some(4));
        assert_eq!(max_allowed("Not supported"), None);
        assert_eq!(max_allowed("max allowed: 4294967295"), None);
        assert_eq!(max_allowed("max allowed: -1"), None);
    }
}
