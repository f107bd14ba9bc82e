//! A live connection to a QEMU: its QMP client, the process behind it, and one look at its vCPUs.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use crate::host::Leader;
use crate::inventory::{CpuInfoFast, HotpluggableCpu, Inventory};
use crate::qmp::{self, Client, Closed, Event, Identity};
use crate::text::Text;

/// A QEMU that answered.
#[derive(Debug)]
pub(super) struct Link {
    pub client: Client,
    pub events: mpsc::Receiver<Result<Event, Closed>>,
    pub leader: Arc<Leader>,
    pub identity: Identity,
}

/// One look at what can change.
#[derive(Clone, Debug)]
pub(super) struct Look {
    pub inventory: Inventory,
    pub run_state: Text,
    /// Why there are no hotpluggable CPUs, in QEMU's words.
    pub no_hotplug: Option<Text>,
}

#[derive(Deserialize)]
struct StatusInfo {
    status: Text,
}

impl Link {
    /// Speaks with the QEMU on the other side of `stream`.
    pub(super) async fn negotiate(
        stream: UnixStream,
        leader: Arc<Leader>,
        silence: Duration,
    ) -> Result<Self, qmp::Error> {
        let (client, events) = Client::connect(stream, silence).await?;
        let identity = qmp::negotiate(&client).await?;
        Ok(Self {
            client,
            events,
            leader,
            identity,
        })
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

    async fn look_once(&self) -> Result<Look, Closed> {
        let has_query = self
            .identity
            .commands
            .contains(&Text::lossy("query-hotpluggable-cpus"));
        let hotpluggable = has_query.then(|| {
            self.client
                .send::<Vec<HotpluggableCpu>>("query-hotpluggable-cpus", None)
        });
        let cpus = self
            .client
            .send::<Vec<CpuInfoFast>>("query-cpus-fast", None);
        let status = self.client.send::<StatusInfo>("query-status", None);

        let (hotpluggable, no_hotplug) = match hotpluggable {
            None => (None, None),
            Some(reply) => match reply.wait().await {
                Ok(list) => (Some(list), None),
                Err(qmp::Error::Command { error, .. }) => (None, Some(error.desc)),
                Err(error) => return Err(broken(error)),
            },
        };
        let cpus = cpus.wait().await.map_err(broken)?;
        let run_state = status.wait().await.map_err(broken)?.status;
        let mut inventory = Inventory::read(hotpluggable, cpus)
            .map_err(|contradiction| Closed::Malformed(contradiction.to_string()))?;
        let foreign = inventory.trust_threads(self.leader.pid(), |t| self.leader.has_task(t));
        if !foreign.is_empty() {
            tracing::debug!(threads = ?foreign, "not threads of the QMP peer, so not used");
        }
        Ok(Look {
            inventory,
            run_state,
            no_hotplug,
        })
    }
}

/// A query that every QEMU has was not answered as every QEMU does.
pub(super) fn broken(error: qmp::Error) -> Closed {
    match error {
        qmp::Error::Closed(closed) => closed,
        other => Closed::Malformed(other.to_string()),
    }
}
