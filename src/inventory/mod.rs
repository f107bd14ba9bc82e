//! The inventory: what QEMU's answers say about the vCPUs of a machine.
//!
//! Pure data and arithmetic. QEMU hot-plugs *entities*: on most machines one vCPU each, on
//! pseries a core of several. Here they get the vCPU numbers that everything else speaks of, and
//! [`plan`] says which entities must come or go for a wanted number of vCPUs. Nothing here
//! talks to QEMU; a wrong answer of QEMU becomes a [`InconsistentReply`], never a panic.

mod plan;
mod props;
mod reply;
#[cfg(test)]
mod tests;
mod topology;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::text::Text;

pub(crate) use plan::numbers;
pub use plan::{Plan, PlanError, Target, count_after, nearest, plan};
pub use props::{Prop, Props};
pub use reply::{CpuInfoFast, HotpluggableCpu};
pub use topology::{Level, Topology};

/// More vCPUs than any QEMU machine type has (4,096 in QEMU 11). A QEMU that reports more is not
/// believed.
pub const MAX_VCPUS: u32 = 16_384;
/// More vCPUs than one slot has on any machine (8 on pseries).
pub const MAX_VCPUS_PER_SLOT: u32 = 64;

/// How vCPUs are plugged into this machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HotplugMethod {
    /// `device_add`, QEMU 2.7 and later.
    DeviceAdd,
    /// `cpu-add`, before QEMU 2.7; what came cannot go.
    CpuAdd,
    /// Not at all.
    #[default]
    None,
}

impl HotplugMethod {
    /// The word for it on D-Bus.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DeviceAdd => "device-add",
            Self::CpuAdd => "cpu-add",
            Self::None => "none",
        }
    }
}

/// What QEMU says of the CPUs that could be there.
#[derive(Clone, Debug)]
pub enum Slots {
    /// The reply of `query-hotpluggable-cpus`.
    Listed(Vec<HotpluggableCpu>),
    /// It only counts them (before QEMU 2.7): there can be this many.
    Counted(u32),
    /// There are none but those that are there.
    Fixed,
}

/// The vCPUs of a machine, present and possible, by number.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inventory {
    entities: Vec<HotplugSlot>,
    method: HotplugMethod,
    architecture: Text,
    torn: bool,
}

/// What QEMU plugs and unplugs as one.
#[derive(Clone, Debug, PartialEq)]
pub struct HotplugSlot {
    /// The number of its first vCPU, and its name within the inventory.
    pub first: u32,
    /// How many vCPUs it brings.
    pub width: u32,
    /// Its place in QEMU's own list, which ACPI calls the slot.
    pub slot: u32,
    /// The QOM type, the `driver` of `device_add`.
    pub driver: Text,
    /// The properties that `device_add` needs.
    pub props: Props,
    /// The members of `props` that say where the slot is.
    pub topology: Topology,
    /// Where it is plugged in.
    pub presence: Option<Presence>,
}

/// An entity that is plugged in.
#[derive(Clone, Debug, PartialEq)]
pub struct Presence {
    /// Its QOM path, by which it can be unplugged.
    pub qom_path: Text,
    /// When it was enabled among the others, from 1; 0 where QEMU did not list it.
    pub order: u32,
    /// The thread ids that QEMU gives for its vCPUs, in order; fewer where QEMU names fewer.
    pub threads: Vec<Thread>,
}

/// A host thread that QEMU says runs a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thread {
    /// The thread id that QEMU gave.
    pub id: u32,
    /// Whether it was found to be a thread of the leader and of no other vCPU.
    pub trusted: bool,
}

/// An entity that is plugged in, as it is remembered over a restart of the service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PresentSlot {
    /// The number of its first vCPU.
    pub first: u32,
    /// How many vCPUs it has.
    pub width: u32,
    /// Its slot.
    pub slot: u32,
    /// Its QOM path.
    pub qom_path: Text,
    /// The thread ids that QEMU gave for its vCPUs.
    pub threads: Vec<u32>,
}

/// One vCPU, present or possible.
#[derive(Clone, Copy, Debug)]
pub struct Vcpu<'a> {
    /// Its number, from 0.
    pub id: u32,
    /// The entity that brings it.
    pub entity: &'a HotplugSlot,
    /// Its thread, where it is present and the thread is trusted.
    pub thread: Option<u32>,
}

/// QEMU's answers cannot be true.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InconsistentReply {
    /// A slot with no or too many vCPUs, or too many vCPUs in total.
    #[error(
        "QEMU reports an impossible number of vCPUs (at most {MAX_VCPUS} are believed, and {MAX_VCPUS_PER_SLOT} in a slot)"
    )]
    Count,
    /// Two entities at one path.
    #[error("QEMU reports two hotpluggable CPUs at {0}")]
    SharedPath(Text),
}

impl HotplugSlot {
    /// The numbers of its vCPUs.
    pub fn vcpus(&self) -> std::ops::Range<u32> {
        self.first..self.first + self.width
    }

    /// The id that it was plugged with: the last part of `/machine/peripheral/ID`.
    pub fn alias(&self) -> Option<&str> {
        let path = self.presence.as_ref()?.qom_path.as_str();
        path.strip_prefix("/machine/peripheral/")
            .filter(|id| !id.is_empty() && !id.contains('/'))
    }
}

impl Presence {
    /// Whether `other` is the same plugged CPU, not its successor in the same place.
    pub fn is_same(&self, other: &Self) -> bool {
        let ids = |p: &Self| p.threads.iter().map(|t| t.id).collect::<Vec<_>>();
        // QEMU may not name a CPU's threads in a torn answer, which makes it no other CPU.
        let unknown = self.threads.is_empty() || other.threads.is_empty();
        self.qom_path == other.qom_path && (unknown || ids(self) == ids(other))
    }
}

impl Inventory {
    /// Joins what can be there and what is there by QOM path.
    pub fn read(slots: Slots, cpus: Vec<CpuInfoFast>) -> Result<Self, InconsistentReply> {
        let architecture = cpus
            .iter()
            .find_map(|cpu| cpu.target.clone())
            .unwrap_or_default();
        let mut running = group_by_entity(&cpus);
        let (method, slots) = match slots {
            Slots::Listed(list) => (HotplugMethod::DeviceAdd, list),
            Slots::Counted(max) if max > MAX_VCPUS => return Err(InconsistentReply::Count),
            Slots::Counted(max) => (
                HotplugMethod::CpuAdd,
                reply::as_counted_entities(&cpus, max),
            ),
            Slots::Fixed => (HotplugMethod::None, reply::as_fixed_entities(&cpus)),
        };
        let slot_count = u32::try_from(slots.len()).map_err(|_| InconsistentReply::Count)?;

        let mut entities = Vec::with_capacity(slots.len());
        let mut torn = false;
        // QEMU lists the entities in descending order, so its first is the last slot.
        for (reported, slot) in slots.into_iter().zip((0..slot_count).rev()) {
            let presence = match reported.qom_path {
                None => None,
                Some(qom_path) => {
                    let found = running.remove(qom_path.as_str());
                    torn |= found.is_none();
                    let (order, threads) = found.unwrap_or_default();
                    Some(Presence {
                        qom_path,
                        order,
                        threads,
                    })
                }
            };
            entities.push(HotplugSlot {
                first: 0,
                width: u32::try_from(reported.vcpus_count).map_err(|_| InconsistentReply::Count)?,
                slot,
                driver: reported.driver,
                topology: Topology::of(&reported.props),
                props: reported.props,
                presence,
            });
        }
        torn |= !running.is_empty();
        number(&mut entities)?;
        check_paths(&entities)?;
        Ok(Self {
            entities,
            method,
            architecture,
            torn,
        })
    }

    /// Whether the two answers that made this inventory disagree: a CPU came or went between
    /// them. Asking again settles it.
    pub fn is_torn(&self) -> bool {
        self.torn
    }

    /// What is to be remembered of it.
    pub fn record(&self) -> Vec<PresentSlot> {
        let row = |(entity, presence): (&HotplugSlot, &Presence)| PresentSlot {
            first: entity.first,
            width: entity.width,
            slot: entity.slot,
            qom_path: presence.qom_path.clone(),
            threads: presence.threads.iter().map(|thread| thread.id).collect(),
        };
        self.present().map(row).collect()
    }

    /// An inventory of what was remembered and nothing else, to compare another with.
    pub fn recall(mut recorded: Vec<PresentSlot>) -> Self {
        recorded.sort_by_key(|row| row.first);
        recorded.dedup_by_key(|row| row.first);
        let trusted = false;
        let thread = |id| Thread { id, trusted };
        let entity = |row: PresentSlot| HotplugSlot {
            first: row.first,
            width: row.width.min(MAX_VCPUS_PER_SLOT),
            slot: row.slot,
            driver: Text::default(),
            props: Props::default(),
            topology: Topology::default(),
            presence: Some(Presence {
                qom_path: row.qom_path,
                order: 0,
                threads: row.threads.into_iter().map(thread).collect(),
            }),
        };
        Self {
            entities: recorded.into_iter().map(entity).collect(),
            ..Self::default()
        }
    }

    /// How vCPUs are plugged here.
    pub fn method(&self) -> HotplugMethod {
        self.method
    }

    /// QEMU's name of the target, such as `x86_64`.
    pub fn architecture(&self) -> &str {
        self.architecture.as_str()
    }

    /// All entities in the order of their vCPU numbers.
    pub fn entities(&self) -> &[HotplugSlot] {
        &self.entities
    }

    /// The entity whose first vCPU is `first`.
    pub fn entity(&self, first: u32) -> Option<&HotplugSlot> {
        let index = self.entities.binary_search_by_key(&first, |e| e.first);
        index.ok().map(|i| &self.entities[i])
    }

    /// The entities that are plugged in, with their presence.
    pub fn present(&self) -> impl Iterator<Item = (&HotplugSlot, &Presence)> {
        self.entities
            .iter()
            .filter_map(|e| e.presence.as_ref().map(|p| (e, p)))
    }

    /// The number of vCPUs that are present.
    pub fn vcpu_count(&self) -> u32 {
        self.present().map(|(e, _)| e.width).sum()
    }

    /// The number of vCPUs that can be present.
    pub fn max_vcpus(&self) -> u32 {
        self.entities.iter().map(|e| e.width).sum()
    }

    /// How many vCPUs one entity brings.
    pub fn vcpus_per_slot(&self) -> u32 {
        self.entities.iter().map(|e| e.width).max().unwrap_or(0)
    }

    /// Every vCPU, present or possible, by number.
    pub fn vcpus(&self) -> impl Iterator<Item = Vcpu<'_>> {
        self.entities.iter().flat_map(|entity| {
            let threads = entity.presence.as_ref().map_or(&[][..], |p| &p.threads);
            entity.vcpus().enumerate().map(move |(i, id)| Vcpu {
                id,
                entity,
                thread: threads.get(i).filter(|t| t.trusted).map(|t| t.id),
            })
        })
    }

    /// Whether QEMU can be asked to unplug this entity.
    ///
    /// Only targets that can unplug are ever asked (QEMU 7.2 for aarch64 aborts when asked), and
    /// the entity of vCPU 0 stays: all of those targets refuse to unplug the boot CPU.
    pub fn is_removable(&self, entity: &HotplugSlot) -> bool {
        entity.presence.is_some() && entity.first != 0 && self.can_unplug()
    }

    /// Whether this kind of machine can unplug vCPUs.
    pub fn can_unplug(&self) -> bool {
        self.method == HotplugMethod::DeviceAdd
            && matches!(
                self.architecture(),
                "x86_64" | "i386" | "ppc64" | "loongarch64"
            )
    }

    /// Trusts the threads that `is_task` says are tasks of the leader, unless two vCPUs share
    /// one or it is the leader itself (single-threaded TCG: then no vCPU has a thread of its
    /// own). Returns the ids that are no tasks of the leader.
    pub fn trust_threads(&mut self, leader: u32, is_task: impl Fn(u32) -> bool) -> Vec<u32> {
        let mut seen: BTreeMap<u32, u32> = BTreeMap::new();
        let threads = |entities: &mut Vec<HotplugSlot>, f: &mut dyn FnMut(&mut Thread)| {
            let present = entities.iter_mut().filter_map(|e| e.presence.as_mut());
            present.flat_map(|p| p.threads.iter_mut()).for_each(f);
        };
        threads(&mut self.entities, &mut |t| {
            *seen.entry(t.id).or_default() += 1;
        });
        let mut foreign = Vec::new();
        threads(&mut self.entities, &mut |t| {
            let own = t.id != leader && seen[&t.id] == 1;
            t.trusted = own && is_task(t.id);
            if own && !t.trusted {
                foreign.push(t.id);
            }
        });
        foreign
    }
}

/// The order of enabling and the threads of an entity.
type Running = (u32, Vec<Thread>);

/// Groups what `query-cpus-fast` lists by the QOM path of the entity.
fn group_by_entity(cpus: &[CpuInfoFast]) -> BTreeMap<String, Running> {
    let mut groups: BTreeMap<String, Running> = BTreeMap::new();
    for cpu in cpus {
        let order = groups.len() as u32 + 1;
        let group = groups.entry(cpu.entity_path().to_owned());
        let (_, threads) = group.or_insert((order, Vec::new()));
        threads.push(Thread {
            id: u32::try_from(cpu.thread_id).unwrap_or(0),
            trusted: false,
        });
    }
    groups
}

/// Sorts the entities by topology and numbers their vCPUs.
fn number(entities: &mut [HotplugSlot]) -> Result<(), InconsistentReply> {
    entities.sort_by_key(|e| (e.topology.rank(), e.slot));
    let mut next = 0;
    for entity in entities {
        entity.first = next;
        next = match next.checked_add(entity.width) {
            Some(sum) if is_possible(entity.width) && sum <= MAX_VCPUS => sum,
            _ => return Err(InconsistentReply::Count),
        };
    }
    Ok(())
}

fn is_possible(width: u32) -> bool {
    (1..=MAX_VCPUS_PER_SLOT).contains(&width)
}

/// Checks that no two slots have one path.
fn check_paths(entities: &[HotplugSlot]) -> Result<(), InconsistentReply> {
    let mut paths: Vec<&Text> = entities
        .iter()
        .filter_map(|e| e.presence.as_ref().map(|p| &p.qom_path))
        .collect();
    paths.sort();
    match paths.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(InconsistentReply::SharedPath(pair[0].clone())),
        None => Ok(()),
    }
}
