//! From a wanted number of vCPUs to the entities that must come or go, or to why that cannot be.

use std::collections::BTreeSet;

use super::{Entity, HotplugMethod, Inventory};

/// What brings a machine to the wanted number of vCPUs. Entities are named by their first vCPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Entities to plug, lowest first.
    pub add: Vec<u32>,
    /// Entities to unplug, highest first.
    pub remove: Vec<u32>,
    /// Entities that are leaving already and whose leaving the number needs.
    pub leaving: Vec<u32>,
}

/// Why a number of vCPUs cannot be had. Nothing was sent to QEMU.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// Below 1 or above the maximum.
    #[error("{asked} is out of range: the machine can have 1 to {max} vCPUs")]
    OutOfRange {
        /// The number asked for.
        asked: u32,
        /// The greatest number of this machine.
        max: u32,
    },
    /// Not a sum of whole entities.
    #[error(
        "{asked} vCPUs cannot be reached in groups of {group}; the nearest numbers are {}",
        join(nearest, " and ")
    )]
    Unreachable {
        /// The number asked for.
        asked: u32,
        /// How many vCPUs come and go together.
        group: u32,
        /// The nearest numbers below and above that can be had.
        nearest: Vec<u32>,
    },
    /// The vCPUs that could come are still leaving.
    #[error(
        "{asked} vCPUs need ones that are still leaving ({}); wait for VcpuRemoved or \
         VcpuRemovalFailed and ask again",
        join(leaving, ", ")
    )]
    Busy {
        /// The number asked for.
        asked: u32,
        /// The first vCPUs of the entities that are leaving.
        leaving: Vec<u32>,
    },
    /// The machine's CPUs cannot be plugged at all.
    #[error("the CPUs of this machine cannot be hot-plugged; its number of vCPUs stays {present}")]
    NoHotplug {
        /// The number of vCPUs it has.
        present: u32,
    },
    /// The machine's CPUs can be plugged, not unplugged.
    #[error(
        "{architecture} machines cannot unplug vCPUs; the number can grow from {present}, not shrink"
    )]
    NoUnplug {
        /// QEMU's name of the target.
        architecture: String,
        /// The number of vCPUs it has.
        present: u32,
    },
    /// The vCPUs that would have to go cannot.
    #[error("QEMU does not unplug the boot CPU; the lowest number of vCPUs is {lowest}")]
    NotRemovable {
        /// The number asked for.
        asked: u32,
        /// The lowest number that can be had.
        lowest: u32,
    },
}

/// Plans the way to `count` vCPUs. Entities in `leaving` (by first vCPU) count as gone.
///
/// The lowest free entities come first, the highest removable ones go first.
pub fn plan(inventory: &Inventory, leaving: &BTreeSet<u32>, count: u32) -> Result<Plan, Denial> {
    let max = inventory.max_vcpus();
    if count == 0 || count > max {
        return Err(Denial::OutOfRange { asked: count, max });
    }
    let is_leaving = |e: &Entity| leaving.contains(&e.first);
    let staying = inventory.present().filter(|(e, _)| !is_leaving(e));
    let current: u32 = staying.map(|(e, _)| e.width).sum();

    let entities = inventory.entities();
    let free: Vec<&Entity> = entities.iter().filter(|e| e.presence.is_none()).collect();
    let removable = |e: &&Entity| inventory.is_removable(e) && !is_leaving(e);
    let removable: Vec<&Entity> = entities.iter().rev().filter(removable).collect();
    let firsts = |chosen: Vec<&Entity>| chosen.into_iter().map(|e| e.first).collect();

    if count > current {
        if inventory.method() == HotplugMethod::None {
            return Err(Denial::NoHotplug { present: current });
        }
        if let Some(chosen) = choose(&free, count - current) {
            return Ok(Plan {
                add: firsts(chosen),
                ..Plan::default()
            });
        }
        if total(&free) < count - current {
            return Err(Denial::Busy {
                asked: count,
                leaving: leaving.iter().copied().collect(),
            });
        }
    } else {
        if let Some(chosen) = choose(&removable, current - count) {
            return Ok(Plan {
                remove: firsts(chosen),
                leaving: leaving.iter().copied().collect(),
                ..Plan::default()
            });
        }
        if total(&removable) < current - count {
            return Err(cannot_shrink(inventory, count, current, total(&removable)));
        }
    }
    Err(Denial::Unreachable {
        asked: count,
        group: inventory.vcpus_per_slot(),
        nearest: nearest(count, current, &free, &removable),
    })
}

/// Takes entities in order, leaving out those that would be too much; `None` if no sum fits.
fn choose<'a>(candidates: &[&'a Entity], vcpus: u32) -> Option<Vec<&'a Entity>> {
    let mut missing = vcpus;
    let fits = |e: &&&Entity| {
        let fits = e.width <= missing;
        missing -= if fits { e.width } else { 0 };
        fits
    };
    let chosen = candidates.iter().filter(fits).copied().collect();
    (missing == 0).then_some(chosen)
}

fn total(entities: &[&Entity]) -> u32 {
    entities.iter().map(|e| e.width).sum()
}

fn cannot_shrink(inventory: &Inventory, asked: u32, current: u32, removable: u32) -> Denial {
    if inventory.method() == HotplugMethod::None {
        Denial::NoHotplug { present: current }
    } else if !inventory.can_unplug() {
        Denial::NoUnplug {
            architecture: inventory.architecture().to_owned(),
            present: current,
        }
    } else {
        Denial::NotRemovable {
            asked,
            lowest: current - removable,
        }
    }
}

/// The greatest number below `count` and the least above it that whole entities give.
fn nearest(count: u32, current: u32, free: &[&Entity], removable: &[&Entity]) -> Vec<u32> {
    let mut reachable = BTreeSet::from([current]);
    let mut up = current;
    for entity in free {
        up += entity.width;
        reachable.insert(up);
    }
    let mut down = current;
    for entity in removable {
        down -= entity.width;
        reachable.insert(down);
    }
    let below = reachable.range(1..count).next_back();
    let above = reachable.range(count + 1..).next();
    below.into_iter().chain(above).copied().collect()
}

fn join(numbers: &[u32], separator: &str) -> String {
    let numbers: Vec<String> = numbers.iter().map(u32::to_string).collect();
    numbers.join(separator)
}
