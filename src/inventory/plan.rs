//! Selects the slots that must be filled or emptied to reach a target, or says why that is impossible.

use std::collections::BTreeSet;
use std::fmt;

use super::inventory::Inventory;
use super::slot::{HotplugMethod, HotplugSlot};
use crate::ids::{SlotId, VcpuId};

/// The vCPUs that a caller wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// This number of vCPUs.
    Count(u32),
    /// These vCPUs present; the others as they are.
    Present(BTreeSet<VcpuId>),
    /// These vCPUs absent; the others as they are.
    Absent(BTreeSet<VcpuId>),
}

/// The changes that bring a machine to a target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Slots to plug, lowest first.
    pub add: Vec<SlotId>,
    /// Slots to unplug, highest first.
    pub remove: Vec<SlotId>,
    /// Slots whose removal is pending and which the target needs removed.
    pub leaving: Vec<SlotId>,
}

/// The reason why a target cannot be reached. QEMU was not asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The number is below 1 or above the maximum.
    #[error("the machine can have {}", name_range(*max))]
    OutOfRange {
        /// The maximum number of this machine.
        max: u32,
    },
    /// The number is not a sum of whole slots.
    #[error(
        "the machine adds and removes vCPUs in groups of {group}; {}",
        name_nearest(nearest)
    )]
    Unreachable {
        /// The number of vCPUs in a slot.
        group: u32,
        /// The nearest possible numbers below and above.
        nearest: Vec<u32>,
    },
    /// The machine does not have the vCPU.
    #[error("vCPU {vcpu} does not exist; {}", numbers(*max))]
    NoSuchVcpu {
        /// The number in the request.
        vcpu: VcpuId,
        /// The maximum number of vCPUs of the machine.
        max: u32,
    },
    /// The list has a part of a slot.
    #[error(
        "{} can only be added and removed together; name all of them or none",
        name_vcpus(group)
    )]
    PartOfGroup {
        /// The vCPUs of the slot.
        group: Vec<VcpuId>,
    },
    /// The removal of vCPUs that would be added is still pending.
    #[error(
        "the removal of {} is still pending; wait for VcpuRemoved or VcpuRemovalFailed and try again",
        name_vcpus(leaving)
    )]
    Busy {
        /// Those vCPUs.
        leaving: Vec<VcpuId>,
    },
    /// The machine's CPUs cannot be plugged.
    #[error("QEMU cannot add or remove vCPUs of this machine; the number of vCPUs stays {present}")]
    NoHotplug {
        /// The number of vCPUs of the machine.
        present: u32,
    },
    /// The machine's CPUs can be plugged and not unplugged.
    #[error("{machine} cannot unplug vCPUs; the number of vCPUs cannot be less than {present}")]
    NoUnplug {
        /// The kind of machine.
        machine: String,
        /// The number of vCPUs of the machine.
        present: u32,
    },
    /// The boot CPU cannot be removed.
    #[error("QEMU does not unplug the boot CPU, vCPU 0; the lowest number of vCPUs is {lowest}")]
    NotRemovable {
        /// The lowest possible number.
        lowest: u32,
    },
}

/// A machine with its pending removals, as the planner sees it.
struct Planner<'a> {
    inventory: &'a Inventory,
    leaving: &'a BTreeSet<SlotId>,
    /// The number of vCPUs that are present without a pending removal.
    current: u32,
    /// Slots that can be plugged, lowest first.
    free: Vec<&'a HotplugSlot>,
    /// Slots that can be unplugged, highest first.
    removable: Vec<&'a HotplugSlot>,
}

/// Plans the changes that reach `target`. Slots in `leaving` count as absent.
///
/// For a number, the lowest free slots are plugged first, and the highest removable ones are unplugged
/// first.
///
/// # Errors
///
/// Fails if the target cannot be reached.
pub fn plan(
    inventory: &Inventory,
    leaving: &BTreeSet<SlotId>,
    target: &Target,
) -> Result<Plan, PlanError> {
    let planner = Planner::new(inventory, leaving);
    match target {
        Target::Count(count) => planner.to_count(*count),
        Target::Present(vcpus) => planner.to_presence(&planner.slots_of(vcpus)?),
        Target::Absent(vcpus) => planner.to_absence(&planner.slots_of(vcpus)?),
    }
}

/// Returns the number of vCPUs after `plan` and all pending removals are carried out.
pub fn count_after(inventory: &Inventory, leaving: &BTreeSet<SlotId>, plan: &Plan) -> u32 {
    let width = |id: &SlotId| inventory.slot(*id).map_or(0, |slot| slot.width);
    let sum = |slots: &[SlotId]| slots.iter().map(width).sum::<u32>();
    Planner::new(inventory, leaving).current + sum(&plan.add) - sum(&plan.remove)
}

/// Returns the reachable numbers nearest to `count`: the greatest below, `count` itself, and the least above.
/// Numbers that do not exist are left out.
pub fn nearest(inventory: &Inventory, leaving: &BTreeSet<SlotId>, count: u32) -> Vec<u32> {
    let reachable = Planner::new(inventory, leaving).reachable();
    let below = reachable.range(..count).next_back();
    let above = reachable.range(count.saturating_add(1)..).next();
    let same = reachable.get(&count);
    [below, same, above]
        .into_iter()
        .flatten()
        .copied()
        .collect()
}

impl<'a> Planner<'a> {
    fn new(inventory: &'a Inventory, leaving: &'a BTreeSet<SlotId>) -> Self {
        let stays = |slot: &HotplugSlot| slot.presence.is_some() && !leaving.contains(&slot.id);
        let slots = inventory.slots();
        let can_grow = inventory.method() != HotplugMethod::None;
        let free = |slot: &&HotplugSlot| slot.presence.is_none() && can_grow;
        let removable = |slot: &&HotplugSlot| inventory.is_removable(slot) && stays(slot);
        let staying = slots.iter().filter(|slot| stays(slot));
        Self {
            inventory,
            leaving,
            current: staying.map(|slot| slot.width).sum(),
            free: slots.iter().filter(free).collect(),
            removable: slots.iter().rev().filter(removable).collect(),
        }
    }

    fn to_count(&self, count: u32) -> Result<Plan, PlanError> {
        let max = self.inventory.max_vcpus();
        if count != self.current {
            self.can_plug()?;
        }
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

    fn to_presence(&self, slots: &[&HotplugSlot]) -> Result<Plan, PlanError> {
        let absent = slots.iter().filter(|slot| slot.presence.is_none());
        let add: Vec<SlotId> = absent.map(|slot| slot.id).collect();
        if !add.is_empty() {
            self.can_plug()?;
        }
        let busy = slots.iter().filter(|slot| self.leaving.contains(&slot.id));
        let leaving: Vec<VcpuId> = busy.flat_map(|slot| slot.vcpus()).collect();
        if !leaving.is_empty() {
            return Err(PlanError::Busy { leaving });
        }
        Ok(Plan {
            add,
            ..Plan::default()
        })
    }

    fn to_absence(&self, slots: &[&HotplugSlot]) -> Result<Plan, PlanError> {
        let present = slots.iter().rev().filter(|slot| slot.presence.is_some());
        let (leaving, remove): (Vec<&HotplugSlot>, Vec<&HotplugSlot>) =
            present.partition(|slot| self.leaving.contains(&slot.id));
        if !remove.is_empty() {
            self.can_unplug()?;
        }
        if !remove.iter().all(|slot| self.inventory.is_removable(slot)) {
            return Err(self.not_removable());
        }
        Ok(Plan {
            add: Vec::new(),
            remove: remove.iter().map(|slot| slot.id).collect(),
            leaving: leaving.iter().rev().map(|slot| slot.id).collect(),
        })
    }

    /// Returns the slots that hold `vcpus`, which must be all vCPUs of each of them.
    fn slots_of(&self, vcpus: &BTreeSet<VcpuId>) -> Result<Vec<&'a HotplugSlot>, PlanError> {
        let max = self.inventory.max_vcpus();
        if let Some(&vcpu) = vcpus.range(VcpuId(max)..).next() {
            return Err(PlanError::NoSuchVcpu { vcpu, max });
        }
        let named = |slot: &&HotplugSlot| slot.vcpus().any(|vcpu| vcpus.contains(&vcpu));
        let is_part = |slot: &&&HotplugSlot| !slot.vcpus().all(|vcpu| vcpus.contains(&vcpu));
        let slots: Vec<&HotplugSlot> = self.inventory.slots().iter().filter(named).collect();
        match slots.iter().find(is_part) {
            Some(part) => Err(PlanError::PartOfGroup {
                group: part.vcpus().collect(),
            }),
            None => Ok(slots),
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

    fn leaving_vcpus(&self) -> Vec<VcpuId> {
        let slots = self.leaving.iter();
        let slots = slots.filter_map(|id| self.inventory.slot(*id));
        slots.flat_map(HotplugSlot::vcpus).collect()
    }

    /// Returns the numbers of vCPUs that result from plugging or unplugging slots one after the other.
    fn reachable(&self) -> BTreeSet<u32> {
        let mut up = self.current;
        let mut down = self.current;
        let mut reachable = BTreeSet::from([self.current]);
        reachable.extend(self.free.iter().map(|slot| {
            up += slot.width;
            up
        }));
        reachable.extend(self.removable.iter().map(|slot| {
            down -= slot.width;
            down
        }));
        reachable.remove(&0);
        reachable
    }
}

/// Chooses slots in order, without those that would be too much. Returns `None` if no sum fits.
fn choose(candidates: &[&HotplugSlot], vcpus: u32) -> Option<Vec<SlotId>> {
    let mut missing = vcpus;
    let fits = |slot: &&&HotplugSlot| {
        let fits = slot.width <= missing;
        missing -= if fits { slot.width } else { 0 };
        fits
    };
    let chosen = candidates.iter().filter(fits).map(|slot| slot.id).collect();
    (missing == 0).then_some(chosen)
}

fn total(slots: &[&HotplugSlot]) -> u32 {
    slots.iter().map(|slot| slot.width).sum()
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "set the number of vCPUs to {count}"),
            Self::Present(vcpus) => write!(f, "add {}", name_vcpus(vcpus)),
            Self::Absent(vcpus) => write!(f, "remove {}", name_vcpus(vcpus)),
        }
    }
}

/// Returns a text with the vCPU numbers of a machine with at most `max` vCPUs. A machine that QEMU has not
/// created yet has no vCPUs.
pub(crate) fn numbers(max: u32) -> String {
    match max.checked_sub(1) {
        Some(last) => format!("the vCPUs are numbered 0 to {last}"),
        None => "the machine has no vCPUs".to_owned(),
    }
}

/// Returns a number of vCPUs as text.
pub(crate) fn count_vcpus(count: u32) -> String {
    match count {
        1 => "1 vCPU".to_owned(),
        _ => format!("{count} vCPUs"),
    }
}

/// Returns vCPUs as text, such as "vCPU 3" or "vCPUs 1-3,8".
pub(crate) fn name_vcpus<'a>(vcpus: impl IntoIterator<Item = &'a VcpuId>) -> String {
    let vcpus: BTreeSet<u32> = vcpus.into_iter().map(|vcpu| vcpu.get()).collect();
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for &vcpu in &vcpus {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == vcpu => *last = vcpu,
            _ => ranges.push((vcpu, vcpu)),
        }
    }
    let text = |(first, last): &(u32, u32)| {
        if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        }
    };
    let list: Vec<String> = ranges.iter().map(text).collect();
    let noun = if vcpus.len() == 1 { "vCPU" } else { "vCPUs" };
    format!("{noun} {}", list.join(","))
}

fn name_range(max: u32) -> String {
    match max {
        0 | 1 => "only 1 vCPU".to_owned(),
        max => format!("1 to {max} vCPUs"),
    }
}

fn name_nearest(nearest: &[u32]) -> String {
    let numbers: Vec<String> = nearest.iter().map(u32::to_string).collect();
    match numbers.len() {
        1 => format!("the nearest number is {}", numbers[0]),
        _ => format!("the nearest numbers are {}", numbers.join(" and ")),
    }
}
