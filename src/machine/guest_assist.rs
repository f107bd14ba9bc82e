//! Requests with the help of the guest agent: CPUs that were added are brought online in guests that do
//! not do so themselves, and taken offline before they are removed.
//!
//! This is a layer above the handle: the caller's task does it, and no other caller waits for it. QEMU's
//! answers stay the truth; the agent only helps. CPUs that are offline for a removal are part of the
//! persisted state (`model::guest`), so that they come online again after a restart of the service.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::warn;

use super::agent::{Agent, GuestCpus, bring_back};
use super::handle::Handle;
use super::model::error::Error;
use super::model::request::{AwaitStart, OfflineCpu, Outcome, Request, Until, Wait};
use super::model::snapshot::Snapshot;
use crate::guest_agent::{self, GuestAgent, GuestCpu};
use crate::ids::{Pid, VcpuId};
use crate::inventory::{HotplugSlot, Target};

/// How often the guest is queried until it has all added CPUs.
const POLL_INTERVAL: Duration = Duration::from_millis(25);
/// An agent that answered within this time is alive.
const ALIVE: Duration = Duration::from_secs(1);

impl From<guest_agent::Error> for Error {
    fn from(error: guest_agent::Error) -> Self {
        Self::GuestAgent(error)
    }
}

/// Changes the vCPUs of `machine`, with the guest agent if `request` asks for it, and waits for the guest to
/// start them if it asks for that. Returns after all events that the request led to were emitted.
///
/// # Errors
/// [`Error`] says what was done nevertheless.
pub async fn set_vcpus(machine: &Handle, request: Request) -> Result<Outcome, Error> {
    let begin = Instant::now();
    let result = change_and_wait(machine, request, begin).await;
    machine.tally().request(begin.elapsed(), &result);
    result
}

async fn change_and_wait(
    machine: &Handle,
    request: Request,
    begin: Instant,
) -> Result<Outcome, Error> {
    if request.until == Until::Present {
        return change(machine, request).await;
    }
    let (target, wait, guest_online) = (request.target.clone(), request.wait, request.guest_online);
    let snapshot = machine.snapshot();
    let is_addition = match &target {
        Target::Count(count) => *count >= snapshot.inventory.vcpu_count(),
        Target::Present(_) => true,
        Target::Absent(_) => false,
    };
    if is_addition && !guest_online {
        snapshot.check_evidence(&target)?;
    }
    let outcome = change(machine, request).await?;
    let vcpus = match &target {
        _ if !is_addition => return Ok(outcome),
        Target::Present(vcpus) => vcpus.clone(),
        _ => staying(&machine.snapshot()),
    };
    if guest_online {
        // The report of the guest agent is evidence.
        online(machine).await;
    }
    let (patience, spent) = match wait {
        Wait::UpTo(Some(limit)) => (limit, begin.elapsed()),
        Wait::UpTo(None) | Wait::No => (machine.removal_timeout(), Duration::ZERO),
    };
    let request = AwaitStart {
        asked: target,
        added: outcome.added.clone(),
        vcpus,
        left: patience.saturating_sub(spent),
        patience,
    };
    machine.await_start(request).await?;
    Ok(outcome)
}

/// Returns the present vCPUs that are not being removed.
fn staying(snapshot: &Snapshot) -> BTreeSet<VcpuId> {
    let present = snapshot.inventory.present();
    let present = present.flat_map(|(slot, _)| slot.vcpus());
    let staying = present.filter(|vcpu| !snapshot.pending.contains(vcpu));
    staying.collect()
}

/// Changes the vCPUs of `machine`, with the guest agent if `request` asks for it.
async fn change(machine: &Handle, request: Request) -> Result<Outcome, Error> {
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
    let (before, held) = assist.take_offline(&target, &leaving).await?;
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

/// Returns which of the present vCPUs the guest uses; only those about which that is certain. A vCPU that it uses
/// is started.
pub async fn online(machine: &Handle) -> BTreeMap<VcpuId, bool> {
    let snapshot = machine.snapshot();
    let Some(cpus) = machine.agent().look(snapshot.leader()).await else {
        return BTreeMap::new();
    };
    let matched = match_up(&snapshot, &cpus).into_iter();
    let matched = matched.filter_map(|(vcpu, cpu)| Some((vcpu, cpu?.online)));
    let matched: BTreeMap<VcpuId, bool> = matched.collect();
    let awaited = snapshot.awaited.iter().copied();
    let started: Vec<VcpuId> = awaited
        .filter(|vcpu| matched.get(vcpu) == Some(&true))
        .collect();
    if !started.is_empty() {
        let inventory = snapshot.inventory.clone();
        machine.note_online(inventory, started).await;
    }
    matched
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
        target: &Target,
        leaving: &BTreeSet<VcpuId>,
    ) -> Result<(GuestCpus, Held), Error> {
        let take = async |agent: &mut GuestAgent| {
            let cpus = agent.cpus().await?;
            let offline = to_take_offline(&self.machine.snapshot(), &cpus, leaving);
            let offline = offline.map_err(|vcpus| Error::UnknownGuestCpu {
                asked: target.clone(),
                vcpus,
            })?;
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
            Err(error) => matches!(
                error,
                Error::RemovalPending { .. } | Error::Interrupted { .. }
            ),
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
            let (vm_name, cpus) = (self.machine.name().as_str(), &held.cpus);
            warn!(vm_name, ?cpus, %error, "{vm_name}: the CPUs {cpus:?} may still be offline in the guest: {error}");
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
        let mut last = None;
        let bring = async |agent: &mut GuestAgent| loop {
            let snapshot = self.machine.snapshot();
            let cpus = agent.cpus().await?;
            let (listed, present) = (cpus.len(), snapshot.inventory.vcpu_count());
            let offline = to_bring_online(&snapshot, &cpus, target, before);
            agent.set_online(&offline, true).await?;
            if listed as u64 >= u64::from(present) {
                return Ok(());
            }
            last = Some((
                Instant::now(),
                guest_agent::Error::Fewer { listed, present },
            ));
            sleep(POLL_INTERVAL).await;
        };
        let result = self.agent.converse(self.leader, self.limit, bring).await;
        match (result, last) {
            // The time of the caller ran out, not that of the agent.
            (Err(guest_agent::Error::Silent), Some((at, fewer))) if at.elapsed() < ALIVE => {
                Err(fewer)
            }
            (result, _) => result,
        }
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
    snapshot: &Snapshot,
    cpus: &GuestCpus,
    target: &Target,
    before: &GuestCpus,
) -> Vec<u32> {
    let matched = match_up(snapshot, cpus);
    let is_wanted = |cpu: &&GuestCpu| match target {
        Target::Present(vcpus) => {
            let is_named = |(vcpu, of): (&VcpuId, &Option<&GuestCpu>)| {
                vcpus.contains(vcpu) && of.is_some_and(|of| of.logical_id == cpu.logical_id)
            };
            !before.contains_key(&cpu.logical_id) || matched.iter().any(is_named)
        }
        _ => true,
    };
    let offline = cpus.values().filter(|cpu| !cpu.online).filter(is_wanted);
    offline.map(|cpu| cpu.logical_id).collect()
}

/// Returns the CPUs of the vCPUs `leaving` that the guest uses and can take offline.
///
/// # Errors
/// Returns the vCPUs that may be online and whose numbers in the guest are not certain.
fn to_take_offline(
    snapshot: &Snapshot,
    cpus: &GuestCpus,
    leaving: &BTreeSet<VcpuId>,
) -> Result<Vec<OfflineCpu>, Vec<VcpuId>> {
    let matched = match_up(snapshot, cpus);
    let is_matched = |id: &u32| {
        let mut matched = matched.values().flatten();
        matched.any(|cpu| cpu.logical_id == *id)
    };
    let mut others = cpus.iter().filter(|(id, _)| !is_matched(id));
    let unknown = leaving.iter().filter(|vcpu| !matched.contains_key(vcpu));
    let unknown: Vec<VcpuId> = unknown.copied().collect();
    if !unknown.is_empty() && others.any(|(_, cpu)| cpu.online) {
        return Err(unknown);
    }
    let matched = matched.into_iter();
    let matched = matched.filter_map(|(vcpu, cpu)| Some((vcpu, cpu?)));
    let offline =
        matched.filter(|(vcpu, cpu)| leaving.contains(vcpu) && cpu.online && cpu.can_offline);
    let offline = offline.map(|(vcpu, cpu)| OfflineCpu {
        vcpu,
        cpu: cpu.logical_id,
    });
    Ok(offline.collect())
}

/// Returns the CPU of the guest for each present vCPU whose number in the guest is certain; `None` if the
/// guest does not have the vCPU.
///
/// The agent reports the guest's numbers only. The history of the machine shows which vCPUs have their own
/// numbers ([`Numbering`](super::model::numbering::Numbering)). One other vCPU is the one other CPU.
fn match_up<'a>(
    snapshot: &Snapshot,
    cpus: &'a GuestCpus,
) -> BTreeMap<VcpuId, Option<&'a GuestCpu>> {
    let equal = snapshot.numbering.equal();
    let present = snapshot.inventory.present();
    let present: BTreeSet<u32> = present
        .flat_map(|(slot, _)| slot.vcpus().map(VcpuId::get))
        .collect();
    if cpus.range(..equal).any(|(id, _)| !present.contains(id)) {
        // The guest numbers its CPUs in another way.
        return BTreeMap::new();
    }
    let matched = present.range(..equal);
    let mut matched: BTreeMap<_, _> = matched.map(|&n| (VcpuId(n), cpus.get(&n))).collect();
    let other_cpus: Vec<&GuestCpu> = cpus.range(equal..).map(|(_, cpu)| cpu).collect();
    let mut others = present.range(equal..).map(|&n| VcpuId(n));
    match (&other_cpus[..], others.clone().count()) {
        ([], _) => matched.extend(others.map(|vcpu| (vcpu, None))),
        ([cpu], 1) => matched.extend(others.next().map(|vcpu| (vcpu, Some(*cpu)))),
        _ => {}
    }
    matched
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::model::testing::{inventory, numbering};
    use super::*;

    /// Returns the state of a machine of 8 to which `order` were added in this order. The vCPUs below `equal`
    /// have their own numbers in the guest.
    fn snapshot(order: &[u32], equal: u32) -> Snapshot {
        let plugged: Vec<(u32, u32)> = order.iter().map(|&n| (n, 10 + n)).collect();
        Snapshot {
            inventory: Arc::new(inventory(8, &plugged)),
            numbering: numbering(equal),
            ..Snapshot::default()
        }
    }

    fn guest(cpus: &[(u32, bool)]) -> GuestCpus {
        let cpu = |&(logical_id, online): &(u32, bool)| GuestCpu {
            logical_id,
            online,
            can_offline: true,
        };
        cpus.iter().map(|row| (row.0, cpu(row))).collect()
    }

    fn matched(order: &[u32], equal: u32, cpus: &[u32]) -> Vec<(u32, Option<u32>)> {
        let cpus: Vec<(u32, bool)> = cpus.iter().map(|&id| (id, true)).collect();
        let cpus = guest(&cpus);
        let matched = match_up(&snapshot(order, equal), &cpus).into_iter();
        let number = |cpu: Option<&GuestCpu>| cpu.map(|cpu| cpu.logical_id);
        matched
            .map(|(vcpu, cpu)| (vcpu.get(), number(cpu)))
            .collect()
    }

    #[test]
    fn matches_a_vcpu_only_if_it_is_certain() {
        let all = [(0, Some(0)), (1, Some(1)), (2, Some(2))];
        assert_eq!(matched(&[0, 1, 2], 3, &[0, 1, 2]), all);
        // A vCPU that the guest does not use.
        assert_eq!(
            matched(&[0, 1, 2], 3, &[0, 2]),
            [(0, Some(0)), (1, None), (2, Some(2))]
        );
        // One vCPU above a gap, in guests that number it by its position and by its arrival.
        assert_eq!(matched(&[0, 5], 1, &[0, 5]), [(0, Some(0)), (5, Some(5))]);
        assert_eq!(matched(&[0, 5], 1, &[0, 1]), [(0, Some(0)), (5, Some(1))]);
        assert_eq!(matched(&[0, 5], 1, &[0]), [(0, Some(0)), (5, None)]);
        // Two above a gap: a reset of the guest or a replaced vCPU gives them the numbers of each other.
        assert_eq!(matched(&[0, 5, 3], 1, &[0, 1, 2]), [(0, Some(0))]);
        assert_eq!(matched(&[0, 3, 5], 1, &[0, 1, 2]), [(0, Some(0))]);
        assert_eq!(matched(&[0, 1, 2], 1, &[0, 1, 2]), [(0, Some(0))]);
        // A guest with a number of its own below.
        assert_eq!(matched(&[0, 2], 3, &[0, 1]), []);
        assert_eq!(matched(&[0, 1], 0, &[0, 7, 9]), []);
        assert_eq!(matched(&[0, 1], 0, &[]), [(0, None), (1, None)]);
    }

    #[test]
    fn takes_no_cpu_offline_that_may_be_another_vcpu() {
        let take = |cpus: &[(u32, bool)], leaving: &[u32]| {
            let leaving = leaving.iter().copied().map(VcpuId).collect();
            let taken = to_take_offline(&snapshot(&[0, 1, 5, 3], 2), &guest(cpus), &leaving);
            taken.map(|taken| taken.iter().map(|of| of.cpu).collect::<Vec<_>>())
        };
        let all = [(0, true), (1, true), (2, true), (3, true)];
        assert_eq!(take(&all, &[1]), Ok(vec![1]));
        assert_eq!(take(&all, &[1, 3]), Err(vec![VcpuId(3)]));
        // Nothing needs to be taken offline.
        let offline = [(0, true), (1, true), (2, false), (3, false)];
        assert_eq!(take(&offline, &[3, 5]), Ok(vec![]));
        assert_eq!(take(&offline, &[1, 3]), Ok(vec![1]));
    }
}
