//! One QMP connection: it is opened, and runs one batch of commands after the other. A batch borrows
//! nothing of the machine, so that the machine is served while QEMU owes replies.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::sync::{Mutex, OnceCell};
use tokio::time::Instant;

use super::model::effect::Batch;
use super::model::input::{Exchanged, Opened, QemuState};
use super::placement::on_host;
use crate::ids::{SlotId, Tid};
use crate::inventory::{
    CpuInfoFast, HotplugMethod, HotplugSlot, HotpluggableCpu, Inventory, MAX_VCPUS, Slots,
};
use crate::limited::Limited;
use crate::process::{Leader, LeaderError};
use crate::qmp::{self, AcpiOst, Client, Closed, CommandError, Events, Identity, Reply};
use crate::text::Text;

/// How often a device id is chosen again that another device has.
const ID_TRIES: u32 = 8;
/// How often QEMU is queried again if a CPU came or went between two queries.
const REFRESH_TRIES: u32 = 3;

/// A list from QEMU with one element for each vCPU or slot.
type List<T> = Limited<T, { MAX_VCPUS as usize }>;

/// A connected socket.
#[derive(Debug)]
pub(super) enum Socket {
    /// A new connection.
    New(UnixStream),
    /// A connection of a previous instance.
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
pub(super) struct QmpSession {
    client: Client,
    leader: Arc<Leader>,
    identity: Identity,
    /// The CPUs of a QEMU that does not list them; their number never changes.
    counted: OnceCell<(Slots, Option<Text>)>,
    /// The threads of the last refresh that were tasks of the leader: by the numbers that QEMU reported,
    /// those on the host.
    verified: Mutex<Arc<BTreeMap<Tid, Tid>>>,
}

/// A connection that was not opened.
#[derive(Debug)]
pub(super) struct OpenFailed {
    pub error: qmp::Error,
    /// QEMU's events before that, if QEMU got so far.
    pub events: Option<Events>,
}

#[derive(Deserialize)]
struct StatusInfo {
    status: Text,
}

impl QmpSession {
    /// Negotiates with the QEMU behind `socket`, and queries its state, and with `with_ospm` the
    /// reports of the guest. Each reply may take as long as `silence`.
    ///
    /// # Errors
    /// Fails if the peer does not answer as QEMU does, or not in time.
    pub(super) async fn open(
        socket: Socket,
        leader: Arc<Leader>,
        silence: Duration,
        with_ospm: bool,
    ) -> Result<(Self, Opened, Events), OpenFailed> {
        let (client, events) = match socket {
            Socket::New(stream) => match Client::connect(stream, silence).await {
                Ok(connected) => connected,
                Err(closed) => {
                    let (error, events) = (closed.into(), None);
                    return Err(OpenFailed { error, events });
                }
            },
            Socket::Kept(stream) => Client::resume(stream, silence),
        };
        let opened = async {
            let identity = qmp::negotiate(&client).await?;
            let session = Self {
                client,
                leader,
                identity: identity.clone(),
                counted: OnceCell::new(),
                verified: Mutex::default(),
            };
            let state = session.query_state().await?;
            // A QEMU that changes its user (`-run-with user=`) does so before it executes commands, and
            // after its socket exists.
            session.verify().await?;
            let ospm = if with_ospm {
                session.ospm_status().await?
            } else {
                Vec::new()
            };
            let opened = Opened {
                identity,
                state,
                ospm,
            };
            Ok((session, opened))
        };
        match opened.await {
            Ok((session, opened)) => Ok((session, opened, events)),
            Err(error) => Err(OpenFailed {
                error,
                events: Some(events),
            }),
        }
    }

    /// Sends all commands of `batch`, awaits all replies, and queries the state.
    ///
    /// # Errors
    /// Fails if the connection ends, QEMU breaks the protocol, or the process is another one.
    pub(super) async fn run(&self, batch: Batch) -> Result<Exchanged, Closed> {
        self.verify().await?;
        let (refused, ospm) = match batch {
            Batch::Refresh => (Vec::new(), Vec::new()),
            Batch::Add(method, slots) => (self.add(method, slots).await?, Vec::new()),
            Batch::Remove(slots) => self.remove(slots).await?,
        };
        // A placement pass checks the process again.
        let state = self.query_state().await?;
        Ok(Exchanged {
            refused,
            ospm,
            state,
        })
    }

    /// Checks that the process behind the connection is the one that it was, and of the same user.
    async fn verify(&self) -> Result<(), Closed> {
        self.leader.verify().await.map_err(closed_by)
    }

    /// Sends a `device_add` for each of `slots`, all at once. Returns QEMU's refusals.
    async fn add(
        &self,
        method: HotplugMethod,
        slots: Vec<HotplugSlot>,
    ) -> Result<Vec<(SlotId, CommandError)>, Closed> {
        let mut refused: Vec<(SlotId, CommandError)> = Vec::new();
        let mut left = slots;
        // Any device may have the id that is chosen first.
        for attempt in 0..ID_TRIES {
            let mut replies: Vec<(HotplugSlot, Reply<IgnoredAny>)> = Vec::new();
            for slot in std::mem::take(&mut left) {
                let (command, arguments) = match method {
                    HotplugMethod::CpuAdd => ("cpu-add", json!({"id": slot.id})),
                    _ => ("device_add", device_add_arguments(&slot, attempt)),
                };
                replies.push((slot, self.client.send(command, Some(arguments))));
            }
            refused.retain(|(_, error)| !is_duplicate_id(error));
            for (slot, reply) in replies {
                if let Some(error) = refusal(reply).await? {
                    refused.push((slot.id, error.clone()));
                    if is_duplicate_id(&error) {
                        left.push(slot);
                    }
                }
            }
            if left.is_empty() {
                break;
            }
        }
        Ok(refused)
    }

    /// Sends a `device_del` for each of `slots`, all at once. Returns QEMU's refusals, and the reports of
    /// the guest before that.
    async fn remove(
        &self,
        slots: Vec<(SlotId, Text)>,
    ) -> Result<(Vec<(SlotId, CommandError)>, Vec<AcpiOst>), Closed> {
        let ospm = self.ospm_status();
        let replies = slots.into_iter().map(|(slot, path)| {
            // By path, which boot CPUs have too (qdev_device_del takes both).
            let arguments = json!({"id": path.as_str()});
            let reply: Reply<IgnoredAny> = self.client.send("device_del", Some(arguments));
            (slot, reply)
        });
        let replies: Vec<_> = replies.collect();
        let ospm = ospm.await?;
        let mut refused = Vec::new();
        for (slot, reply) in replies {
            refused.extend(refusal(reply).await?.map(|error| (slot, error)));
        }
        Ok((refused, ospm))
    }

    /// Queries the last report of the guest about each CPU slot, when it is called and not when it is
    /// awaited. The result is empty if QEMU does not keep the reports.
    fn ospm_status(&self) -> impl Future<Output = Result<Vec<AcpiOst>, Closed>> + use<> {
        let query = "query-acpi-ospm-status";
        let reply = self.has(query).then(|| self.client.send(query, None));
        read_ospm_status(reply)
    }

    fn has(&self, command: &str) -> bool {
        self.identity.commands.contains(command)
    }

    /// Queries the vCPUs and the run state. A QEMU whose answers cannot be true breaks the protocol.
    async fn query_state(&self) -> Result<QemuState, Closed> {
        let mut tries = 1;
        loop {
            let state = self.query_state_once().await?;
            // A CPU that comes or goes between the two queries is in one of them only, which ends by
            // itself. If it does not, the list of slots counts.
            if !state.inventory.is_torn() || tries == REFRESH_TRIES {
                return Ok(state);
            }
            tries += 1;
        }
    }

    async fn query_state_once(&self) -> Result<QemuState, Closed> {
        let slots = self.has("query-hotpluggable-cpus").then(|| {
            let query = "query-hotpluggable-cpus";
            self.client.send::<List<HotpluggableCpu>>(query, None)
        });
        let query = if self.has("query-cpus-fast") {
            "query-cpus-fast"
        } else {
            "query-cpus"
        };
        let cpus = self.client.send::<List<CpuInfoFast>>(query, None);
        let status = self.client.send::<StatusInfo>("query-status", None);

        let (slots, no_hotplug) = match slots {
            None => {
                let counted = self.counted.get_or_try_init(|| self.count_slots());
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
            // QEMU has no vCPUs before the machine is created (`-preconfig`).
            Err(qmp::Error::Command { error, .. }) if is_too_early(&error) => Vec::new(),
            Err(error) => return Err(broken(error)),
        };
        let run_state = status.wait().await.map_err(broken)?.status;
        let start = Instant::now();
        let inventory = Inventory::read(slots, cpus);
        let mut inventory = inventory.map_err(|error| Closed::Malformed(error.to_string()))?;
        let tasks = self.tasks_of(&inventory).await;
        let task = |thread: Tid| tasks.get(&thread).copied();
        let missing = inventory.trust_threads(self.leader.pid(), task);
        if !missing.is_empty() {
            tracing::debug!(threads = ?missing, "not threads of the QMP peer, so not used");
        }
        Ok(QemuState {
            inventory: Arc::new(inventory),
            run_state,
            no_hotplug,
            cost: start.elapsed(),
        })
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

/// Returns the arguments of `device_add` for `slot`: its properties verbatim, and an id: `vcpuN`, or at
/// later attempts `vcpuN-2`, `vcpuN-3`, ….
fn device_add_arguments(slot: &HotplugSlot, attempt: u32) -> Value {
    let id = match attempt {
        0 => format!("vcpu{}", slot.id),
        _ => format!("vcpu{}-{}", slot.id, attempt + 1),
    };
    let mut arguments = slot.props.arguments();
    arguments.insert("driver".into(), slot.driver.as_str().into());
    arguments.insert("id".into(), id.into());
    Value::Object(arguments)
}

fn is_duplicate_id(error: &CommandError) -> bool {
    error.desc.as_str().starts_with("Duplicate device ID")
}

/// Awaits a command whose result is empty. QEMU's refusal is no failure here.
async fn refusal(reply: Reply<IgnoredAny>) -> Result<Option<CommandError>, Closed> {
    match reply.wait().await {
        Ok(_) => Ok(None),
        Err(qmp::Error::Command { error, .. }) => Ok(Some(error)),
        Err(error) => Err(broken(error)),
    }
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

/// Returns the end of a connection whose QEMU did not answer a command as every QEMU does.
fn broken(error: qmp::Error) -> Closed {
    match error {
        qmp::Error::Closed(closed) => closed,
        other => Closed::Malformed(other.to_string()),
    }
}

/// Returns the end of a connection whose process cannot be used because of `error`.
pub(super) fn closed_by(error: LeaderError) -> Closed {
    match error {
        LeaderError::NoProcess => Closed::Hangup,
        other => Closed::OtherProcess(other.to_string()),
    }
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
