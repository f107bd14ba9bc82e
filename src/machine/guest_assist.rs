//! Requests with the help of the guest agent: CPUs that were added are brought online in guests that do
//! not do so themselves, and taken offline before they are removed.
//!
//! This is a layer above the handle: the caller's task does it, and no other caller waits for it. QEMU's
//! answers stay the truth; the agent only helps. CPUs that are offline for a removal are part of the
//! persisted state (`model::guest`), so that they come online again after a restart of the service.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::sleep;
use tracing::warn;

use super::agent::{Agent, GuestCpus, bring_back};
use super::handle::Handle;
use super::model::error::Error;
use super::model::request::{OfflineCpu, Outcome, Request, Wait};
use super::model::snapshot::Snapshot;
use crate::guest_agent::{self, GuestAgent, GuestCpu};
use crate::ids::{Pid, VcpuId};
use crate::inventory::{HotplugSlot, Inventory, Target};

/// How often the guest is queried until it has all added CPUs.
const POLL_INTERVAL: Duration = Duration::from_millis(25);

impl From<guest_agent::Error> for Error {
    fn from(error: guest_agent::Error) -> Self {
        Self::GuestAgent(error)
    }
}

/// Changes the vCPUs of `machine`, with the guest agent if `request` asks for it. Returns after all
/// events that the request led to were emitted.
///
/// # Errors
/// [`Error`] says what was done nevertheless.
pub async fn set_vcpus(machine: &Handle, request: Request) -> Result<Outcome, Error> {
    if !request.guest_online {
        return machine.set_vcpus(request).await;
    }
    let snapshot = machine.snapshot();
    snapshot.check(&request.subject)?;
    let target = request.target.clone();
    let (plan, _) = snapshot.plan(&target)?;
    let slots = plan.remove.iter();
    let slots = slots.filter_map(|&id| snapshot.inventory.slot(id));
    let leaving: BTreeSet<VcpuId> = slots.flat_map(HotplugSlot::vcpus).collect();
    let assist = Assist {
        machine,
        agent: machine.agent(),
        leader: snapshot.leader(),
        limit: match request.wait {
            Wait::UpTo(Some(limit)) => limit,
            Wait::UpTo(None) | Wait::No => machine.removal_timeout(),
        },
    };
    let (before, held) = assist.take_offline(&snapshot, &leaving).await?;
    let result = machine.set_vcpus(request).await;
    assist.release(held, &result).await;
    let outcome = result?;
    let is_removal = matches!(target, Target::Absent(_)) || !leaving.is_empty();
    if !is_removal {
        let brought = assist.bring_online(&target, &before).await;
        brought.map_err(|reason| Error::NotOnline {
            asked: target.clone(),
            added: outcome.added.clone(),
            reason,
        })?;
    }
    Ok(outcome)
}

/// Returns which of the present vCPUs the guest uses; only those about which that is certain.
pub async fn online(machine: &Handle) -> BTreeMap<VcpuId, bool> {
    let snapshot = machine.snapshot();
    let Some(cpus) = machine.agent().look(snapshot.leader()).await else {
        return BTreeMap::new();
    };
    let matched = match_up(&snapshot.inventory, &cpus).into_iter();
    matched.map(|(vcpu, cpu)| (vcpu, cpu.online)).collect()
}

/// One request with the help of the agent.
struct Assist<'a> {
    machine: &'a Handle,
    agent: &'a Agent,
    leader: Pid,
    /// How long the guest has for each step.
    limit: Duration,
}

impl Assist<'_> {
    /// Takes the CPUs of the vCPUs `leaving` offline, after they are saved. Returns the CPUs of the guest
    /// before that, and those that were taken offline.
    async fn take_offline(
        &self,
        snapshot: &Snapshot,
        leaving: &BTreeSet<VcpuId>,
    ) -> Result<(GuestCpus, Held), Error> {
        let take = async |agent: &mut GuestAgent| {
            let cpus = agent.cpus().await?;
            let offline = to_take_offline(&snapshot.inventory, &cpus, leaving);
            let held = Held {
                machine: self.machine.clone(),
                cpus: offline.iter().map(|offline| offline.cpu).collect(),
            };
            if offline.is_empty() {
                return Ok((cpus, held));
            }
            self.machine.note_offline(offline).await?;
            if let Err(reason) = agent.set_online(&held.cpus, false).await {
                let offline = held.cpus.clone();
                let restored = bring_back(agent, &offline).await;
                let is_restored = restored.is_ok();
                self.end(held, restored).await;
                return Err(if is_restored {
                    Error::GuestAgent(reason)
                } else {
                    Error::StillOffline { offline, reason }
                });
            }
            Ok((cpus, held))
        };
        self.agent.converse(self.leader, self.limit, take).await
    }

    /// Brings the CPUs online again whose vCPUs stay. Those that may still be leaving stay offline, so that
    /// they can be removed; the machine brings them online if the guest refuses later.
    async fn release(&self, mut held: Held, result: &Result<Outcome, Error>) {
        if held.cpus.is_empty() {
            return;
        }
        let is_leaving = match result {
            Ok(outcome) => !outcome.pending.is_empty(),
            Err(error) => matches!(error, Error::RemovalPending { .. } | Error::Interrupted(_)),
        };
        if is_leaving {
            self.machine.release_offline(held.take(), false).await;
            return;
        }
        let restored = self
            .agent
            .bring_back(self.leader, self.limit, &held.cpus)
            .await;
        self.end(held, restored).await;
    }

    /// Ends the responsibility for CPUs that were brought online again, or could not be: then the
    /// machine tries again.
    async fn end(&self, mut held: Held, restored: Result<(), guest_agent::Error>) {
        if let Err(error) = &restored {
            let (machine, cpus) = (self.machine.name(), &held.cpus);
            warn!(%machine, ?cpus, %error, "{machine}: the CPUs {cpus:?} may still be offline in the guest: {error}");
        }
        let is_restored = restored.is_ok();
        self.machine.release_offline(held.take(), is_restored).await;
    }

    /// Waits until the guest has all vCPUs that are present for `target`, and brings them online.
    async fn bring_online(
        &self,
        target: &Target,
        before: &GuestCpus,
    ) -> Result<(), guest_agent::Error> {
        let bring = async |agent: &mut GuestAgent| loop {
            let snapshot = self.machine.snapshot();
            let cpus = agent.cpus().await?;
            let offline = to_bring_online(&snapshot.inventory, &cpus, target, before);
            agent.set_online(&offline, true).await?;
            if cpus.len() as u64 >= u64::from(snapshot.inventory.vcpu_count()) {
                return Ok(());
            }
            sleep(POLL_INTERVAL).await;
        };
        self.agent.converse(self.leader, self.limit, bring).await
    }
}

/// The guest CPUs that a call is responsible for. If the call is cancelled, the machine brings them online
/// again.
struct Held {
    machine: Handle,
    cpus: Vec<u32>,
}

impl Held {
    fn take(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.cpus)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let cpus = self.take();
        let runtime = tokio::runtime::Handle::try_current();
        if let (false, Ok(runtime)) = (cpus.is_empty(), runtime) {
            let machine = self.machine.clone();
            runtime.spawn(async move { machine.release_offline(cpus, false).await });
        }
    }
}

/// Returns the offline CPUs that a request for `target` brings online. `before` are the CPUs before it.
fn to_bring_online(
    inventory: &Inventory,
    cpus: &GuestCpus,
    target: &Target,
    before: &GuestCpus,
) -> Vec<u32> {
    let matched = match_up(inventory, cpus);
    let is_wanted = |cpu: &&GuestCpu| match target {
        Target::Present(vcpus) => {
            let is_named = |(vcpu, of): &(VcpuId, &GuestCpu)| {
                vcpus.contains(vcpu) && of.logical_id == cpu.logical_id
            };
            !before.contains_key(&cpu.logical_id) || matched.iter().any(is_named)
        }
        _ => true,
    };
    let offline = cpus.values().filter(|cpu| !cpu.online).filter(is_wanted);
    offline.map(|cpu| cpu.logical_id).collect()
}

/// Returns the CPUs of the vCPUs `leaving` that the guest uses and can take offline, as far as it is
/// certain which they are.
fn to_take_offline(
    inventory: &Inventory,
    cpus: &GuestCpus,
    leaving: &BTreeSet<VcpuId>,
) -> Vec<OfflineCpu> {
    let matched = match_up(inventory, cpus).into_iter();
    let offline =
        matched.filter(|(vcpu, cpu)| leaving.contains(vcpu) && cpu.online && cpu.can_offline);
    let offline = offline.map(|(vcpu, cpu)| OfflineCpu {
        vcpu,
        cpu: cpu.logical_id,
    });
    offline.collect()
}

/// Returns the CPU of the guest for each present vCPU, as far as it is certain.
///
/// The agent reports the guest's numbers only. Linux gives a CPU the number of its position (6.9 and
/// later), or the next free one when it is added. If both are possible they must agree.
fn match_up<'a>(inventory: &Inventory, cpus: &'a GuestCpus) -> Vec<(VcpuId, &'a GuestCpu)> {
    let mut present: Vec<(u32, u32)> = inventory
        .present()
        .flat_map(|(slot, presence)| slot.vcpus().map(|vcpu| (presence.order, vcpu.get())))
        .collect();
    present.sort_unstable();
    let by_position: BTreeMap<u32, u32> = present.iter().map(|&(_, vcpu)| (vcpu, vcpu)).collect();
    let by_arrival = present
        .iter()
        .map(|&(_, vcpu)| vcpu)
        .zip(cpus.keys().copied());
    let by_arrival: BTreeMap<u32, u32> = by_arrival.collect();
    let may_be_by_position = cpus.keys().all(|id| by_position.contains_key(id));
    let may_be_by_arrival = cpus.len() == present.len();
    let number = |vcpu: u32| match (may_be_by_position, may_be_by_arrival) {
        (true, true) => (by_arrival.get(&vcpu) == Some(&vcpu)).then_some(vcpu),
        (true, false) => Some(vcpu),
        (false, true) => by_arrival.get(&vcpu).copied(),
        (false, false) => None,
    };
    let matched = by_position
        .keys()
        .filter_map(|&vcpu| Some((VcpuId(vcpu), cpus.get(&number(vcpu)?)?)));
    matched.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::inventory::Slots;

    /// Returns an inventory of 8 in which `order` were added, in this order.
    fn inventory(order: &[u32]) -> Inventory {
        let path = |n: u32| format!("/machine/peripheral/vcpu{n}");
        let slots = (0..8u32).rev().map(|n| {
            let path = order.contains(&n).then(|| path(n));
            json!({"type": "cpu", "vcpus-count": 1, "props": {"core-id": n}, "qom-path": path})
        });
        let cpus = order.iter().map(
            |&n| json!({"cpu-index": n, "qom-path": path(n), "thread-id": n, "target": "x86_64"}),
        );
        let slots = slots.map(|slot| serde_json::from_value(slot).unwrap());
        let cpus = cpus.map(|cpu| serde_json::from_value(cpu).unwrap());
        Inventory::read(Slots::Listed(slots.collect()), cpus.collect()).unwrap()
    }

    fn matched(order: &[u32], guest: &[u32]) -> Vec<(u32, u32)> {
        let cpu = |&logical_id: &u32| GuestCpu {
            logical_id,
            online: true,
            can_offline: true,
        };
        let cpus: GuestCpus = guest.iter().map(|id| (*id, cpu(id))).collect();
        let matched = match_up(&inventory(order), &cpus);
        matched
            .into_iter()
            .map(|(vcpu, cpu)| (vcpu.get(), cpu.logical_id))
            .collect()
    }

    #[test]
    fn matches_a_vcpu_if_only_one_cpu_is_possible() {
        assert_eq!(matched(&[0, 1, 2], &[0, 1, 2]), [(0, 0), (1, 1), (2, 2)]);
        // By position: a gap, and a vCPU that the guest does not use.
        assert_eq!(matched(&[0, 5], &[0, 5]), [(0, 0), (5, 5)]);
        assert_eq!(matched(&[0, 1, 2], &[0, 2]), [(0, 0), (2, 2)]);
        // By arrival: a gap that the guest does not know.
        assert_eq!(matched(&[0, 5, 3], &[0, 1, 2]), [(0, 0), (3, 2), (5, 1)]);
        // Either: 2 was added before 1.
        assert_eq!(matched(&[0, 2, 1], &[0, 1, 2]), [(0, 0)]);
        // Neither.
        assert_eq!(matched(&[0, 1], &[0, 7, 9]), []);
        assert_eq!(matched(&[0, 1], &[]), []);
    }
}
