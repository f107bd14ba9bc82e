//! A live connection to a QEMU: its QMP client, the process behind it, and one look at its vCPUs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json;
use tokio::net::UnixStream;
use tokio::sync::{Mutex, OnceCell};
use tokio::time::Instant;

use super::worker::on_host;
use crate::ids::Tid;
use crate::inventory::{CpuInfoFast, HotpluggableCpu, Inventory, MAX_VCPUS, Slots};
use crate::limited::Limited;
use crate::process::Leader;
use crate::qmp::{self, AcpiOst, Client, Closed, CommandError, Events, Identity, Reply};
use crate::text::Text;

/// A list from QEMU with one element for each vCPU or slot.
type List<T> = Limited<T, { MAX_VCPUS as usize }>;

/// The way to a QEMU.
#[derive(Debug)]
pub(super) enum Socket {
    /// A connection that was just made.
    New(UnixStream),
    /// One that a former run of the service had.
    Kept(UnixStream),
}

impl Socket {
    pub(super) fn stream(&self) -> &UnixStream {
        match self {
            Self::New(stream) | Self::Kept(stream) => stream,
        }
    }
}

/// A QEMU that answered.
#[derive(Debug)]
pub(super) struct Link {
    pub client: Client,
    pub events: Events,
    pub leader: Arc<Leader>,
    pub identity: Identity,
    /// The CPUs of a QEMU that does not list them; their number never changes.
    counted: OnceCell<(Slots, Option<Text>)>,
    /// The threads of the last look that were tasks of the leader.
    verified: Mutex<Arc<BTreeSet<Tid>>>,
}

/// A connection that did not come about.
#[derive(Debug)]
pub(super) struct Failed {
    pub error: qmp::Error,
    /// What QEMU told before, if it came so far.
    pub events: Option<Events>,
}

impl Failed {
    pub(super) fn new(error: impl Into<qmp::Error>, events: Option<Events>) -> Self {
        let error = error.into();
        Self { error, events }
    }
}

/// One look at what can change.
#[derive(Clone, Debug)]
pub(super) struct Look {
    pub inventory: Arc<Inventory>,
    pub run_state: Text,
    /// Why there are no hotpluggable CPUs, in QEMU's words.
    pub no_hotplug: Option<Text>,
    /// How long it took to read QEMU's answers.
    pub cost: Duration,
}

#[derive(Deserialize)]
struct StatusInfo {
    status: Text,
}

impl Link {
    /// Speaks with the QEMU on the other side of `stream`, and takes a first look.
    pub(super) async fn open(
        socket: Socket,
        leader: Arc<Leader>,
        silence: Duration,
    ) -> Result<(Self, Look), Failed> {
        let (client, events) = match socket {
            Socket::New(stream) => {
                let connected = Client::connect(stream, silence).await;
                connected.map_err(|closed| Failed::new(closed, None))?
            }
            Socket::Kept(stream) => Client::resume(stream, silence),
        };
        let identity = match qmp::negotiate(&client).await {
            Ok(identity) => identity,
            Err(error) => return Err(Failed::new(error, Some(events))),
        };
        let link = Self {
            client,
            events,
            leader,
            identity,
            counted: OnceCell::new(),
            verified: Mutex::default(),
        };
        match link.look().await {
            Ok(look) => Ok((link, look)),
            Err(closed) => Err(Failed::new(closed, Some(link.events))),
        }
    }

    /// Looks at the vCPUs and the run state. A QEMU whose answers cannot be true is treated as
    /// one that broke the protocol.
    pub(super) async fn look(&self) -> Result<Look, Closed> {
        // A CPU that comes or goes between the two queries is in one of them only. That settles
        // itself; who answers like that for ever is taken at his word on what is plugged.
        const TRIES: u32 = 3;
        let mut tries = 1;
        loop {
            let look = self.look_once().await?;
            if !look.inventory.is_torn() || tries == TRIES {
                return Ok(look);
            }
            tries += 1;
        }
    }

    /// Asks what the guest said last of each CPU slot, now and not when the answer is awaited;
    /// nothing where QEMU does not keep it.
    pub(super) fn ospm_status(&self) -> impl Future<Output = Result<Vec<AcpiOst>, Closed>> + use<> {
        let query = "query-acpi-ospm-status";
        let reply = self.has(query).then(|| self.client.send(query, None));
        read_ospm_status(reply)
    }

    fn has(&self, command: &str) -> bool {
        self.identity.commands.contains(command)
    }

    /// The CPUs of a QEMU that does not list them (before 2.7): it has no query for their number,
    /// but says it when it is asked to add one beyond.
    async fn counted_slots(&self) -> Result<(Slots, Option<Text>), Closed> {
        if !self.has("cpu-add") {
            return Ok((Slots::Fixed, None));
        }
        let beyond = json!({"id": i32::MAX});
        match self
            .client
            .send::<IgnoredAny>("cpu-add", Some(beyond))
            .wait()
            .await
        {
            Err(qmp::Error::Command { error, .. }) => Ok(match max_allowed(error.desc.as_str()) {
                Some(max) => (Slots::Counted(max), None),
                None => (Slots::Fixed, Some(error.desc)),
            }),
            Err(error) => Err(broken(error)),
            Ok(_) => Err(Closed::Malformed("a CPU that cannot be".into())),
        }
    }

    async fn look_once(&self) -> Result<Look, Closed> {
        let slots = self.has("query-hotpluggable-cpus").then(|| {
            let query = "query-hotpluggable-cpus";
            self.client.send::<List<HotpluggableCpu>>(query, None)
        });
        let query = match self.has("query-cpus-fast") {
            true => "query-cpus-fast",
            false => "query-cpus",
        };
        let cpus = self.client.send::<List<CpuInfoFast>>(query, None);
        let status = self.client.send::<StatusInfo>("query-status", None);

        let (slots, no_hotplug) = match slots {
            None => {
                let counted = self.counted.get_or_try_init(|| self.counted_slots());
                counted.await?.clone()
            }
            Some(reply) => match reply.wait().await {
                Ok(list) => (Slots::Listed(list.0), None),
                Err(qmp::Error::Command { error, .. }) => (Slots::Fixed, Some(error.desc)),
                Err(error) => return Err(broken(error)),
            },
        };
        let cpus = match cpus.wait().await {
            Ok(cpus) => cpus.0,
            // Until the machine is made (`-preconfig`) there are none to list.
            Err(qmp::Error::Command { error, .. }) if is_too_early(&error) => Vec::new(),
            Err(error) => return Err(broken(error)),
        };
        let run_state = status.wait().await.map_err(broken)?.status;
        let start = Instant::now();
        let mut inventory = Inventory::read(slots, cpus)
            .map_err(|contradiction| Closed::Malformed(contradiction.to_string()))?;
        let tasks = self.tasks_of(&inventory).await;
        let foreign = inventory.trust_threads(self.leader.pid(), |thread| tasks.contains(&thread));
        if !foreign.is_empty() {
            tracing::debug!(threads = ?foreign, "not threads of the QMP peer, so not used");
        }
        Ok(Look {
            inventory: Arc::new(inventory),
            run_state,
            no_hotplug,
            cost: start.elapsed(),
        })
    }
}

impl Link {
    /// Returns the threads in `inventory` that are tasks of the leader. They are read again only for
    /// another list: each use of a thread checks it again.
    async fn tasks_of(&self, inventory: &Inventory) -> Arc<BTreeSet<Tid>> {
        let threads = inventory.present();
        let threads = threads.flat_map(|(_, presence)| presence.threads.iter());
        let listed: BTreeSet<Tid> = threads.map(|thread| thread.id).collect();
        let mut verified = self.verified.lock().await;
        // Where all were tasks, the same list needs no other look.
        if **verified != listed {
            let leader = self.leader.clone();
            let tasks = on_host(move || {
                let tasks = listed.into_iter();
                tasks.filter(|thread| leader.has_task(*thread)).collect()
            });
            *verified = Arc::new(tasks.await);
        }
        verified.clone()
    }
}

async fn read_ospm_status(reply: Option<Reply<List<AcpiOst>>>) -> Result<Vec<AcpiOst>, Closed> {
    let Some(reply) = reply else {
        return Ok(Vec::new());
    };
    let mut status = match reply.wait().await {
        Ok(status) => status.0,
        // A machine type without ACPI.
        Err(qmp::Error::Command { .. }) => Vec::new(),
        Err(error) => return Err(broken(error)),
    };
    status.retain(|ost| ost.slot_type.as_str() == "CPU");
    Ok(status)
}

/// Whether a command was refused because the machine is not made yet.
fn is_too_early(error: &CommandError) -> bool {
    let text = error.desc.as_str();
    text.contains("only after machine initialization has completed")
}

/// The greatest CPU number in a refusal such as `Unable to add CPU: 2147483647, max allowed: 3`.
fn max_allowed(refusal: &str) -> Option<u32> {
    let (_, number) = refusal.rsplit_once("max allowed: ")?;
    number.trim().parse::<u32>().ok()?.checked_add(1)
}

/// A command that every QEMU has was not answered as every QEMU does.
pub(super) fn broken(error: qmp::Error) -> Closed {
    match error {
        qmp::Error::Closed(closed) => closed,
        other => Closed::Malformed(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::max_allowed;

    #[test]
    fn the_number_of_cpus_is_in_the_refusal() {
        let refusal = "Unable to add CPU: 2147483647, max allowed: 3";
        assert_eq!(max_allowed(refusal), Some(4));
        assert_eq!(max_allowed("Not supported"), None);
        assert_eq!(max_allowed("max allowed: 4294967295"), None);
        assert_eq!(max_allowed("max allowed: -1"), None);
    }
}
