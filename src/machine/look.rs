//! The look for evidence that the guest has started vCPUs: one query of QEMU, and the CPU time of threads.

use std::collections::{BTreeMap, BTreeSet};

use super::model::input::Exchanged;
use super::model::starts::Reading;
use super::placement::on_host;
use super::qmp_session::QmpSession;
use super::qmp_state::StateReplies;
use crate::ids::{Tid, VcpuId};
use crate::inventory::Inventory;
use crate::process::Tasks;
use crate::qmp::{self, Closed, Reply};
use crate::statistics::{KvmCounters, KvmReply, by_vcpu, exits_query, thread_times};

impl QmpSession {
    /// Awaits the state that was asked for, and looks at `vcpus`.
    ///
    /// # Errors
    /// Fails as [`Self::read_state`] does.
    pub(super) async fn refresh(
        &self,
        asked: StateReplies,
        vcpus: &BTreeSet<VcpuId>,
    ) -> Result<Exchanged, Closed> {
        let mut state = self.read_state(asked).await?;
        state.readings = self.look(&state.inventory, vcpus).await?;
        Ok(Exchanged {
            refused: Vec::new(),
            ospm: Vec::new(),
            state,
        })
    }

    /// Looks at those of `vcpus` that are present in `inventory`. QEMU wakes no other vCPU for that.
    ///
    /// # Errors
    /// Fails if the connection ends.
    async fn look(
        &self,
        inventory: &Inventory,
        vcpus: &BTreeSet<VcpuId>,
    ) -> Result<BTreeMap<VcpuId, Reading>, Closed> {
        if vcpus.is_empty() {
            return Ok(BTreeMap::new());
        }
        let counters = self.exits(inventory, vcpus).await?;
        let threads = inventory.vcpus().filter(|vcpu| vcpus.contains(&vcpu.id));
        let threads: Vec<(VcpuId, Option<Tid>)> =
            threads.map(|vcpu| (vcpu.id, vcpu.thread)).collect();
        let leader = self.leader.clone();
        let readings = on_host(move || {
            let reading = |(vcpu, thread): (VcpuId, Option<Tid>)| {
                // If its thread has ended, the exits can be those of another CPU at its path.
                let times = match thread {
                    Some(thread) => leader.hold(thread)?.read("schedstat").ok(),
                    None => None,
                };
                let times = times.as_deref().and_then(thread_times);
                let exits = counters.get(&vcpu).and_then(|counters| counters.exits);
                let cpu_time = times.map(|times| times.usage);
                Some((vcpu, Reading { exits, cpu_time }))
            };
            threads.into_iter().filter_map(reading).collect()
        });
        Ok(readings.await)
    }

    /// Returns the exits of those of `vcpus` for which KVM counts them.
    async fn exits(
        &self,
        inventory: &Inventory,
        vcpus: &BTreeSet<VcpuId>,
    ) -> Result<BTreeMap<VcpuId, KvmCounters>, Closed> {
        if !self.has("query-stats") || !self.is_kvm() {
            return Ok(BTreeMap::new());
        }
        let query = exits_query(inventory, vcpus);
        let reply: Reply<KvmReply> = self.client.send("query-stats", Some(query));
        match reply.wait().await {
            Ok(rows) => Ok(by_vcpu(inventory, &rows.0)),
            Err(qmp::Error::Closed(closed)) => Err(closed),
            // A kernel or a QEMU without these statistics.
            Err(_) => Ok(BTreeMap::new()),
        }
    }
}
