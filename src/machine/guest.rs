//! The way of a vCPU in the guest, where a guest agent helps: CPUs that were plugged are brought
//! online in guests that do not do so by themselves, and taken offline before they are unplugged.
//!
//! This is done by who asks, before and after the actor does its part, and holds nobody else up.
//! What the actor and QEMU say stays the truth; the agent is only asked for help.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

use super::error::Error;
use super::handle::{Handle, Outcome, Request, Wait};
use crate::guest_agent::{self, GuestAgent, GuestCpu};
use crate::ids::{Pid, VcpuId};
use crate::inventory::{HotplugSlot, Inventory, Target};

/// How long the agent may take when somebody only looks.
const LOOK_LIMIT: Duration = Duration::from_secs(1);
/// How long an answer is good enough for those who only look. They need no authorization, so they
/// must not be able to keep the guest busy.
const FRESH: Duration = Duration::from_millis(250);
/// The same for a failure to answer.
const FRESH_FAILURE: Duration = Duration::from_secs(5);
/// How often the guest is asked whether it has taken in what was plugged.
const POLL_INTERVAL: Duration = Duration::from_millis(25);

/// The guest's CPUs by its own numbers.
type GuestCpus = BTreeMap<u32, GuestCpu>;

/// The guest agent of a machine.
#[derive(Clone, Debug)]
pub(super) struct Agent(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    socket: PathBuf,
    /// Held by who speaks with the agent: its socket takes one client at a time.
    conversation: Mutex<()>,
    /// What was last seen of the guest's CPUs by who only looked.
    seen: std::sync::Mutex<Option<Seen>>,
}

#[derive(Clone, Debug)]
struct Seen {
    at: Instant,
    leader: Pid,
    cpus: Option<Arc<GuestCpus>>,
}

impl Agent {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self(Arc::new(Shared {
            socket,
            conversation: Mutex::default(),
            seen: std::sync::Mutex::default(),
        }))
    }

    /// The guest's CPUs, for who only looks; `None` where there is no agent or no answer.
    async fn look(&self, leader: Pid) -> Option<Arc<GuestCpus>> {
        if let Some(seen) = self.seen(leader) {
            return seen.cpus;
        }
        let turn = timeout(LOOK_LIMIT, self.0.conversation.lock()).await;
        // Another may have looked meanwhile.
        if let Some(seen) = self.seen(leader) {
            return seen.cpus;
        }
        let cpus = async {
            let _turn = turn.map_err(|_| guest_agent::Error::Silent)?;
            let mut agent = GuestAgent::connect(&self.0.socket, leader, LOOK_LIMIT).await?;
            agent.cpus().await
        };
        let cpus = match cpus.await {
            Ok(cpus) => Some(Arc::new(cpus)),
            Err(guest_agent::Error::None) => return None,
            Err(error) => {
                debug!(socket = %self.0.socket.display(), %error, "no word of the guest agent");
                None
            }
        };
        let at = Instant::now();
        self.set_seen(Some(Seen {
            at,
            leader,
            cpus: cpus.clone(),
        }));
        cpus
    }

    fn seen(&self, leader: Pid) -> Option<Seen> {
        let seen = self.0.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let is_fresh = |seen: &&Seen| {
            let limit = match seen.cpus {
                Some(_) => FRESH,
                None => FRESH_FAILURE,
            };
            seen.leader == leader && seen.at.elapsed() < limit
        };
        seen.as_ref().filter(is_fresh).cloned()
    }

    fn set_seen(&self, seen: Option<Seen>) {
        *self.0.seen.lock().unwrap_or_else(PoisonError::into_inner) = seen;
    }

    /// Speaks with the agent within `limit`, which includes the time until other conversations end.
    /// The answers that others saw before are outdated then.
    async fn converse<T>(
        &self,
        leader: Pid,
        limit: Duration,
        what: impl AsyncFnOnce(&mut GuestAgent) -> Result<T, guest_agent::Error>,
    ) -> Result<T, guest_agent::Error> {
        let start = Instant::now();
        let turn = timeout(limit.min(guest_agent::LONGEST), self.0.conversation.lock()).await;
        let _turn = turn.map_err(|_| guest_agent::Error::Silent)?;
        let left = limit.saturating_sub(start.elapsed());
        let mut agent = GuestAgent::connect(&self.0.socket, leader, left).await?;
        let result = what(&mut agent).await;
        self.set_seen(None);
        result
    }
}

impl Handle {
    /// Which of the present vCPUs the guest uses; only those of which that is known for sure.
    pub async fn online(&self) -> BTreeMap<VcpuId, bool> {
        let snapshot = self.snapshot();
        let Some(cpus) = self.agent.look(snapshot.leader).await else {
            return BTreeMap::new();
        };
        let matched = match_up(&snapshot.inventory, &cpus).into_iter();
        matched.map(|(vcpu, cpu)| (vcpu, cpu.online)).collect()
    }

    /// Carries out `request` with the help of the guest agent.
    pub(super) async fn set_with_guest(&self, request: Request) -> Result<Outcome, Error> {
        let limit = match request.wait {
            Wait::UpTo(Some(limit)) => limit,
            Wait::UpTo(None) | Wait::No => self.removal_timeout(),
        };
        let snapshot = self.snapshot();
        snapshot.check(&request.subject)?;
        let (target, leader) = (request.target.clone(), snapshot.leader);
        let (plan, _) = snapshot.plan(&target)?;
        let entities = plan.remove.iter();
        let entities = entities.filter_map(|&first| snapshot.inventory.slot(first));
        let leaving: BTreeSet<VcpuId> = entities.flat_map(HotplugSlot::vcpus).collect();

        let prepare = async |agent: &mut GuestAgent| {
            let cpus = agent.cpus().await?;
            let taken = to_take_offline(&snapshot.inventory, &cpus, &leaving);
            if let Err(error) = agent.set_online(&taken, false).await {
                self.put_back(agent, &taken).await;
                return Err(error);
            }
            Ok((cpus, taken))
        };
        let prepared = self.agent.converse(leader, limit, prepare).await;
        let (before, taken) = prepared.map_err(Error::GuestAgent)?;

        let result = self.ask_actor(request).await;

        // What is still leaving stays offline, so that it can.
        let is_leaving = match &result {
            Ok(outcome) => !outcome.pending.is_empty(),
            Err(error) => matches!(error, Error::RemovalPending { .. }),
        };
        if !taken.is_empty() && !is_leaving {
            let put_back = async |agent: &mut GuestAgent| {
                self.put_back(agent, &taken).await;
                Ok(())
            };
            let restored = self.agent.converse(leader, limit, put_back).await;
            self.warn_of(&taken, restored);
        }
        let outcome = result?;
        let shrinks = matches!(target, Target::Absent(_)) || !leaving.is_empty();
        if !shrinks {
            let bring =
                async |agent: &mut GuestAgent| self.bring_online(agent, &target, &before).await;
            let brought = self.agent.converse(leader, limit, bring).await;
            brought.map_err(|reason| Error::NotOnline {
                asked: target.clone(),
                added: outcome.added.clone(),
                reason,
            })?;
        }
        Ok(outcome)
    }

    /// Brings online again what was taken offline and is there all the same.
    async fn put_back(&self, agent: &mut GuestAgent, taken: &[u32]) {
        let restored = async {
            let cpus = agent.cpus().await?;
            let there = |id: &u32| cpus.get(id).is_some_and(|cpu| !cpu.online);
            let there: Vec<u32> = taken.iter().copied().filter(there).collect();
            agent.set_online(&there, true).await
        };
        let restored = restored.await;
        self.warn_of(taken, restored);
    }

    fn warn_of(&self, taken: &[u32], restored: Result<(), guest_agent::Error>) {
        if let Err(error) = restored {
            warn!(machine = %self.name(), cpus = ?taken, %error, "CPUs may be left offline in the guest");
        }
    }

    /// Waits until the guest has taken in what is there for `target`, and brings it online.
    async fn bring_online(
        &self,
        agent: &mut GuestAgent,
        target: &Target,
        before: &GuestCpus,
    ) -> Result<(), guest_agent::Error> {
        loop {
            let snapshot = self.snapshot();
            let cpus = agent.cpus().await?;
            let matched = match_up(&snapshot.inventory, &cpus);
            let is_wanted = |cpu: &&GuestCpu| match target {
                Target::Present(vcpus) => {
                    let asked = |(vcpu, of): &(VcpuId, &GuestCpu)| {
                        vcpus.contains(vcpu) && of.logical_id == cpu.logical_id
                    };
                    !before.contains_key(&cpu.logical_id) || matched.iter().any(asked)
                }
                _ => true,
            };
            let offline = cpus.values().filter(|cpu| !cpu.online).filter(is_wanted);
            let offline: Vec<u32> = offline.map(|cpu| cpu.logical_id).collect();
            agent.set_online(&offline, true).await?;
            if cpus.len() as u64 >= u64::from(snapshot.inventory.vcpu_count()) {
                return Ok(());
            }
            sleep(POLL_INTERVAL).await;
        }
    }
}

/// The guest's numbers of those of the vCPUs `leaving` that it uses and can do without, where it is
/// known for sure which they are.
fn to_take_offline(
    inventory: &Inventory,
    cpus: &GuestCpus,
    leaving: &BTreeSet<VcpuId>,
) -> Vec<u32> {
    let matched = match_up(inventory, cpus).into_iter();
    let taken =
        matched.filter(|(vcpu, cpu)| leaving.contains(vcpu) && cpu.online && cpu.can_offline);
    taken.map(|(_, cpu)| cpu.logical_id).collect()
}

/// Which CPU of the guest each present vCPU is, as far as that is known for sure.
///
/// The agent tells the guest's numbers only. Linux gives a CPU the number of its place (6.9 and
/// later), or the next free one when it comes. Where both ways are possible they must agree.
fn match_up<'a>(inventory: &Inventory, cpus: &'a GuestCpus) -> Vec<(VcpuId, &'a GuestCpu)> {
    let mut present: Vec<(u32, VcpuId)> = inventory
        .present()
        .flat_map(|(entity, presence)| entity.vcpus().map(|vcpu| (presence.order, vcpu)))
        .collect();
    present.sort_unstable();
    let by_place: BTreeMap<u32, VcpuId> = present
        .iter()
        .map(|&(_, vcpu)| (vcpu.get(), vcpu))
        .collect();
    let by_arrival = present
        .iter()
        .map(|&(_, vcpu)| vcpu)
        .zip(cpus.keys().copied());
    let by_arrival: BTreeMap<VcpuId, u32> = by_arrival.collect();
    let may_be_by_place = cpus.keys().all(|id| by_place.contains_key(id));
    let may_be_by_arrival = cpus.len() == present.len();
    let number = |vcpu: VcpuId| match (may_be_by_place, may_be_by_arrival) {
        (true, true) => (by_arrival.get(&vcpu) == Some(&vcpu.get())).then_some(vcpu.get()),
        (true, false) => Some(vcpu.get()),
        (false, true) => by_arrival.get(&vcpu).copied(),
        (false, false) => None,
    };
    let matched = by_place
        .values()
        .filter_map(|&vcpu| Some((vcpu, cpus.get(&number(vcpu)?)?)));
    matched.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::inventory::Slots;

    /// An inventory of 8 in which `order` were plugged, in this order.
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
    fn a_vcpu_is_matched_where_there_is_one_way_to() {
        assert_eq!(matched(&[0, 1, 2], &[0, 1, 2]), [(0, 0), (1, 1), (2, 2)]);
        // By place: a gap, and one that the guest has not taken.
        assert_eq!(matched(&[0, 5], &[0, 5]), [(0, 0), (5, 5)]);
        assert_eq!(matched(&[0, 1, 2], &[0, 2]), [(0, 0), (2, 2)]);
        // By arrival: a gap that the guest does not know of.
        assert_eq!(matched(&[0, 5, 3], &[0, 1, 2]), [(0, 0), (3, 2), (5, 1)]);
        // Either: 2 came before 1.
        assert_eq!(matched(&[0, 2, 1], &[0, 1, 2]), [(0, 0)]);
        // Neither.
        assert_eq!(matched(&[0, 1], &[0, 7, 9]), []);
        assert_eq!(matched(&[0, 1], &[]), []);
    }
}
