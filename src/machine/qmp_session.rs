//! One QMP connection: it is opened, and runs one batch of commands after the other. A batch borrows
//! nothing of the machine, so that the machine is served while QEMU owes replies. `qmp_state.rs` has the queries
//! of QEMU's state.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::sync::{Mutex, OnceCell};

use super::model::effect::Batch;
use super::model::input::{Exchanged, Opened};
use crate::ids::{SlotId, Tid};
use crate::inventory::{HotplugMethod, HotplugSlot, Inventory, MAX_VCPUS, Slots};
use crate::limited::Limited;
use crate::process::{Leader, LeaderError};
use crate::qmp::{self, AcpiOst, Client, Closed, CommandError, Events, Identity, Reply};
use crate::statistics::{KvmReply, kvm_query};
use crate::text::Text;

/// How often a device id is chosen again that another device has.
const ID_TRIES: u32 = 8;

/// A list from QEMU with one element for each vCPU or slot.
pub(super) type List<T> = Limited<T, { MAX_VCPUS as usize }>;

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
    pub(super) client: Client,
    pub(super) leader: Arc<Leader>,
    identity: Identity,
    /// The CPUs of a QEMU that does not list them; their number never changes.
    pub(super) counted: OnceCell<(Slots, Option<Text>)>,
    /// The threads of the last refresh that were tasks of the leader: by the numbers that QEMU reported,
    /// those on the host.
    pub(super) verified: Mutex<Arc<BTreeMap<Tid, Tid>>>,
}

/// A connection that was not opened.
#[derive(Debug)]
pub(super) struct OpenFailed {
    pub error: qmp::Error,
    /// QEMU's events before that, if QEMU got so far.
    pub events: Option<Events>,
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
                created: 0,
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

    /// Sends all commands of `batch` and the queries of the state at once, and awaits all replies. QEMU executes
    /// commands in their order.
    ///
    /// # Errors
    /// Fails if the connection ends, QEMU breaks the protocol, or the process is another one.
    pub(super) async fn run(&self, batch: Batch) -> Result<Exchanged, Closed> {
        self.verify().await?;
        // A placement pass checks the process again.
        match batch {
            Batch::Refresh(vcpus) => self.refresh(self.ask_state(), &vcpus).await,
            Batch::Look(known, vcpus) => self.refresh(self.ask_cpus(&known), &vcpus).await,
            Batch::Add(known, slots) => self.add(&known, slots).await,
            Batch::Remove(known, slots) => self.remove(&known, slots).await,
        }
    }

    /// Checks that the process behind the connection is the one that it was, and of the same user.
    async fn verify(&self) -> Result<(), Closed> {
        self.leader.verify().await.map_err(closed_by)
    }

    /// Sends a `device_add` for each of `slots` of the inventory `known`, all at once.
    async fn add(
        &self,
        known: &Arc<Inventory>,
        slots: Vec<HotplugSlot>,
    ) -> Result<Exchanged, Closed> {
        let mut refused: Vec<(SlotId, CommandError)> = Vec::new();
        let mut left = slots;
        // Any device may have the id that is chosen first.
        let mut attempt = 0;
        loop {
            let mut replies: Vec<(HotplugSlot, Reply<IgnoredAny>)> = Vec::new();
            for slot in std::mem::take(&mut left) {
                let (command, arguments) = match known.method() {
                    HotplugMethod::CpuAdd => ("cpu-add", json!({"id": slot.id})),
                    _ => ("device_add", device_add_arguments(&slot, attempt)),
                };
                replies.push((slot, self.client.send(command, Some(arguments))));
            }
            let state = self.ask_cpus(known);
            refused.retain(|(_, error)| !is_duplicate_id(error));
            for (slot, reply) in replies {
                if let Some(error) = refusal(reply).await? {
                    refused.push((slot.id, error.clone()));
                    if is_duplicate_id(&error) {
                        left.push(slot);
                    }
                }
            }
            attempt += 1;
            if left.is_empty() || attempt == ID_TRIES {
                return Ok(Exchanged {
                    refused,
                    ospm: Vec::new(),
                    state: self.read_state(state).await?,
                });
            }
        }
    }

    /// Sends a `device_del` for each of `slots` of the inventory `known`, all at once, after the query of the
    /// reports of the guest.
    async fn remove(
        &self,
        known: &Arc<Inventory>,
        slots: Vec<(SlotId, Text)>,
    ) -> Result<Exchanged, Closed> {
        let ospm = self.ospm_status();
        let replies = slots.into_iter().map(|(slot, path)| {
            // By path, which boot CPUs have too (qdev_device_del takes both).
            let arguments = json!({"id": path.as_str()});
            let reply: Reply<IgnoredAny> = self.client.send("device_del", Some(arguments));
            (slot, reply)
        });
        let replies: Vec<_> = replies.collect();
        let state = self.ask_cpus(known);
        let ospm = ospm.await?;
        let mut refused = Vec::new();
        for (slot, reply) in replies {
            refused.extend(refusal(reply).await?.map(|error| (slot, error)));
        }
        let state = self.read_state(state).await?;
        Ok(Exchanged {
            refused,
            ospm,
            state,
        })
    }

    /// Queries the last report of the guest about each CPU slot, when it is called and not when it is
    /// awaited. The result is empty if QEMU does not keep the reports.
    fn ospm_status(&self) -> impl Future<Output = Result<Vec<AcpiOst>, Closed>> + use<> {
        let query = "query-acpi-ospm-status";
        let reply = self.has(query).then(|| self.client.send(query, None));
        read_ospm_status(reply)
    }

    /// Returns whether the leader has one of the threads that QEMU reports. QEMU may report none, before it has created
    /// the machine.
    pub(super) async fn is_of_leader(&self, inventory: &Inventory) -> bool {
        let reports_none = inventory
            .present()
            .all(|(_, presence)| presence.threads.is_empty());
        reports_none || !self.verified.lock().await.is_empty()
    }

    /// Returns whether KVM runs the vCPUs.
    pub(super) fn is_kvm(&self) -> bool {
        self.identity.accelerator.as_str() == "kvm"
    }

    /// Queries the counters of KVM, when it is called and not when the reply is awaited; `None` if QEMU cannot.
    /// QEMU interrupts every vCPU for it.
    pub(super) fn ask_kvm(&self) -> Option<Reply<KvmReply>> {
        let query = "query-stats";
        let can = self.has(query);
        can.then(|| self.client.send(query, Some(kvm_query())))
    }

    /// Returns whether QEMU has `command`.
    pub(super) fn has(&self, command: &str) -> bool {
        self.identity.commands.contains(command)
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

/// Returns the end of a connection whose QEMU did not answer a command as every QEMU does.
pub(super) fn broken(error: qmp::Error) -> Closed {
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
