//! From what a caller wants to the entities that must come or go, or to why that cannot be.

use std::collections::BTreeSet;
use std::fmt;

use super::{HotplugMethod, HotplugSlot, Inventory};

/// What a caller wants of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// This number of vCPUs.
    Count(u32),
    /// These vCPUs present; the others as they are.
    Present(BTreeSet<u32>),
    /// These vCPUs gone; the others as they are.
    Absent(BTreeSet<u32>),
}

/// What brings a machine to a target. Entities are named by their first vCPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Entities to plug, lowest first.
    pub add: Vec<u32>,
    /// Entities to unplug, highest first.
    pub remove: Vec<u32>,
    /// Entities that are leaving already and whose leaving the target needs.
    pub leaving: Vec<u32>,
}

/// Why a target cannot be reached. Nothing was sent to QEMU.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A number below 1 or above the maximum.
    #[error("it can have 1 to {max} vCPUs")]
    OutOfRange {
        /// The greatest number of this machine.
        max: u32,
    },
    /// A number that is not a sum of whole entities.
    #[error(
        "they come and go in groups of {group}; the nearest numbers are {}",
        join(nearest, " and ")
    )]
    Unreachable {
        /// How many vCPUs come and go together.
        group: u32,
        /// The nearest numbers below and above that can be had.
        nearest: Vec<u32>,
    },
    /// A vCPU that the machine does not have.
    #[error("there is no vCPU {vcpu}; {}", numbers(*max))]
    NoSuchVcpu {
        /// The number asked for.
        vcpu: u32,
        /// How many vCPUs the machine can have.
        max: u32,
    },
    /// A part of an entity.
    #[error(
        "vCPUs {} come and go together; name all of them or none",
        join(group, ", ")
    )]
    PartOfGroup {
        /// The vCPUs of the entity.
        group: Vec<u32>,
    },
    /// The vCPUs that could come are still leaving.
    #[error(
        "still leaving: vCPU {}; wait for VcpuRemoved or VcpuRemovalFailed and ask again",
        join(leaving, ", ")
    )]
    Busy {
        /// The vCPUs that are leaving and would be needed.
        leaving: Vec<u32>,
    },
    /// The machine's CPUs cannot be plugged at all.
    #[error("its CPUs cannot be hot-plugged; their number stays {present}")]
    NoHotplug {
        /// The number of vCPUs it has.
        present: u32,
    },
    /// The machine's CPUs can be plugged, not unplugged.
    #[error("{machine} cannot unplug vCPUs; their number can grow from {present}, not shrink")]
    NoUnplug {
        /// What kind of machine it is.
        machine: String,
        /// The number of vCPUs it has.
        present: u32,
    },
    /// The vCPUs that would have to go cannot.
    #[error("QEMU does not unplug the boot CPU, vCPU 0; the lowest number of vCPUs is {lowest}")]
    NotRemovable {
        /// The lowest number that can be had.
        lowest: u32,
    },
}

/// A machine as a planner sees it.
struct Scene<'a> {
    inventory: &'a Inventory,
    leaving: &'a BTreeSet<u32>,
    /// The number of vCPUs that are present and not leaving.
    current: u32,
    /// Entities that can be plugged, lowest first.
    free: Vec<&'a HotplugSlot>,
    /// Entities that can be unplugged, highest first.
    removable: Vec<&'a HotplugSlot>,
}

/// Plans the way to `target`. Entities in `leaving` (by first vCPU) count as gone.
///
/// For a number, the lowest free entities come first, and the highest removable ones go first.
pub fn plan(
    inventory: &Inventory,
    leaving: &BTreeSet<u32>,
    target: &Target,
) -> Result<Plan, PlanError> {
    let scene = Scene::of(inventory, leaving);
    match target {
        Target::Count(count) => scene.to_count(*count),
        Target::Present(vcpus) => scene.to_presence(&scene.entities_of(vcpus)?),
        Target::Absent(vcpus) => scene.to_absence(&scene.entities_of(vcpus)?),
    }
}

/// The number of vCPUs that the machine has once `plan` is carried out and what leaves has left.
pub fn count_after(inventory: &Inventory, leaving: &BTreeSet<u32>, plan: &Plan) -> u32 {
    let width = |first: &u32| inventory.entity(*first).map_or(0, |e| e.width);
    let sum = |firsts: &[u32]| firsts.iter().map(width).sum::<u32>();
    Scene::of(inventory, leaving).current + sum(&plan.add) - sum(&plan.remove)
}

/// The numbers nearest to `count` that can be reached now: the greatest below, `count` itself,
/// the least above, as far as there are such.
pub fn nearest(inventory: &Inventory, leaving: &BTreeSet<u32>, count: u32) -> Vec<u32> {
    let reachable = Scene::of(inventory, leaving).reachable();
    let below = reachable.range(..count).next_back();
    let above = reachable.range(count.saturating_add(1)..).next();
    let same = reachable.get(&count);
    [below, same, above]
        .into_iter()
        .flatten()
        .copied()
        .collect()
}

impl<'a> Scene<'a> {
    fn of(inventory: &'a Inventory, leaving: &'a BTreeSet<u32>) -> Self {
        let stays = |e: &HotplugSlot| e.presence.is_some() && !leaving.contains(&e.first);
        let entities = inventory.entities();
        let can_grow = inventory.method() != HotplugMethod::None;
        let free = |e: &&HotplugSlot| e.presence.is_none() && can_grow;
        let removable = |e: &&HotplugSlot| inventory.is_removable(e) && stays(e);
        Self {
            inventory,
            leaving,
            current: entities.iter().filter(|e| stays(e)).map(|e| e.width).sum(),
            free: entities.iter().filter(free).collect(),
            removable: entities.iter().rev().filter(removable).collect(),
        }
    }

    fn to_count(&self, count: u32) -> Result<Plan, PlanError> {
        let max = self.inventory.max_vcpus();
        if count == 0 || count > max {
            return Err(PlanError::OutOfRange { max });
        }
        if let Some(more) = count.checked_sub(self.current).filter(|more| *more > 0) {
            if let Some(add) = choose(&self.free, more) {
                return Ok(Plan {
                    add,
                    ..Plan::default()
                });
            }
            self.can_plug()?;
            if total(&self.free) < more {
                return Err(PlanError::Busy {
                    leaving: self.leaving_vcpus(),
                });
            }
        } else {
            let fewer = self.current - count;
            if let Some(remove) = choose(&self.removable, fewer) {
                let leaving = self.leaving.iter().copied().collect();
                return Ok(Plan {
                    remove,
                    leaving,
                    ..Plan::default()
                });
            }
            self.can_unplug()?;
            if total(&self.removable) < fewer {
                return Err(self.not_removable());
            }
        }
        Err(PlanError::Unreachable {
            group: self.inventory.vcpus_per_slot(),
            nearest: nearest(self.inventory, self.leaving, count),
        })
    }

    fn to_presence(&self, entities: &[&HotplugSlot]) -> Result<Plan, PlanError> {
        let absent = entities.iter().filter(|e| e.presence.is_none());
        let add: Vec<u32> = absent.map(|e| e.first).collect();
        if !add.is_empty() {
            self.can_plug()?;
        }
        let busy = entities.iter().filter(|e| self.leaving.contains(&e.first));
        let leaving: Vec<u32> = busy.flat_map(|e| e.vcpus()).collect();
        if !leaving.is_empty() {
            return Err(PlanError::Busy { leaving });
        }
        Ok(Plan {
            add,
            ..Plan::default()
        })
    }

    fn to_absence(&self, entities: &[&HotplugSlot]) -> Result<Plan, PlanError> {
        let present = entities.iter().rev().filter(|e| e.presence.is_some());
        let (leaving, remove): (Vec<&HotplugSlot>, Vec<&HotplugSlot>) =
            present.partition(|e| self.leaving.contains(&e.first));
        if !remove.is_empty() {
            self.can_unplug()?;
        }
        if !remove.iter().all(|e| self.inventory.is_removable(e)) {
            return Err(self.not_removable());
        }
        Ok(Plan {
            add: Vec::new(),
            remove: remove.iter().map(|e| e.first).collect(),
            leaving: leaving.iter().rev().map(|e| e.first).collect(),
        })
    }

    /// The entities that `vcpus` are, all of each.
    fn entities_of(&self, vcpus: &BTreeSet<u32>) -> Result<Vec<&'a HotplugSlot>, PlanError> {
        let max = self.inventory.max_vcpus();
        if let Some(&vcpu) = vcpus.range(max..).next() {
            return Err(PlanError::NoSuchVcpu { vcpu, max });
        }
        let named = |e: &&HotplugSlot| e.vcpus().any(|vcpu| vcpus.contains(&vcpu));
        let entities: Vec<&HotplugSlot> = self.inventory.entities().iter().filter(named).collect();
        match entities
            .iter()
            .find(|e| !e.vcpus().all(|vcpu| vcpus.contains(&vcpu)))
        {
            Some(part) => Err(PlanError::PartOfGroup {
                group: part.vcpus().collect(),
            }),
            None => Ok(entities),
        }
    }

    fn can_plug(&self) -> Result<(), PlanError> {
        match self.inventory.method() {
            HotplugMethod::None => Err(PlanError::NoHotplug {
                present: self.current,
            }),
            HotplugMethod::DeviceAdd | HotplugMethod::CpuAdd => Ok(()),
        }
    }

    fn can_unplug(&self) -> Result<(), PlanError> {
        self.can_plug()?;
        if self.inventory.can_unplug() {
            return Ok(());
        }
        let machine = match self.inventory.method() {
            HotplugMethod::CpuAdd => "a QEMU before 2.7".to_owned(),
            _ => format!("QEMU for {}", self.inventory.architecture()),
        };
        Err(PlanError::NoUnplug {
            machine,
            present: self.current,
        })
    }

    fn not_removable(&self) -> PlanError {
        PlanError::NotRemovable {
            lowest: self.current - total(&self.removable),
        }
    }

    fn leaving_vcpus(&self) -> Vec<u32> {
        let entities = self
            .leaving
            .iter()
            .filter_map(|first| self.inventory.entity(*first));
        entities.flat_map(HotplugSlot::vcpus).collect()
    }

    /// The numbers that come about when entities come or go one after the other.
    fn reachable(&self) -> BTreeSet<u32> {
        let mut up = self.current;
        let mut down = self.current;
        let mut reachable = BTreeSet::from([self.current]);
        reachable.extend(self.free.iter().map(|e| {
            up += e.width;
            up
        }));
        reachable.extend(self.removable.iter().map(|e| {
            down -= e.width;
            down
        }));
        reachable.remove(&0);
        reachable
    }
}

/// Takes entities in order, leaving out those that would be too much; `None` if no sum fits.
fn choose(candidates: &[&HotplugSlot], vcpus: u32) -> Option<Vec<u32>> {
    let mut missing = vcpus;
    let fits = |e: &&&HotplugSlot| {
        let fits = e.width <= missing;
        missing -= if fits { e.width } else { 0 };
        fits
    };
    let chosen = candidates.iter().filter(fits).map(|e| e.first).collect();
    (missing == 0).then_some(chosen)
}

fn total(entities: &[&HotplugSlot]) -> u32 {
    entities.iter().map(|e| e.width).sum()
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |vcpus: &BTreeSet<u32>| join(&vcpus.iter().copied().collect::<Vec<_>>(), ", ");
        match self {
            Self::Count(count) => write!(f, "{count} vCPUs"),
            Self::Present(vcpus) => write!(f, "vCPUs {} to be plugged", list(vcpus)),
            Self::Absent(vcpus) => write!(f, "vCPUs {} to be unplugged", list(vcpus)),
        }
    }
}

/// Which numbers the vCPUs of a machine have that can have `max`. Before it is made it has none.
pub(crate) fn numbers(max: u32) -> String {
    match max.checked_sub(1) {
        Some(last) => format!("they are numbered 0 to {last}"),
        None => "the machine has none".to_owned(),
    }
}

fn join(numbers: &[u32], separator: &str) -> String {
    let numbers: Vec<String> = numbers.iter().map(u32::to_string).collect();
    numbers.join(separator)
}
