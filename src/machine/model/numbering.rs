//! The guest's numbers of the vCPUs, as far as they follow from the history of the machine.
//!
//! QEMU does not report which number the guest gives a vCPU, and the guest does not report which vCPU has a
//! number. Linux numbers the CPUs of its boot in ascending order. A CPU that is added later gets the number of
//! its position (6.9 and later), or the next number, which it keeps when it is removed (earlier), or the lowest
//! free number (pseries). All agree on the number of the vCPU if the guest never saw a vCPU while a lower
//! one was free.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::evidence::Clues;
use crate::inventory::{Inventory, Presence};

/// The vCPUs that have the same number in the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Numbering {
    /// Every vCPU below this that is present has its own number in the guest, and no other vCPU has one below
    /// this.
    equal: u32,
    /// Whether the guest may have given the number `equal` to another vCPU.
    is_mixed: bool,
}

impl Numbering {
    /// Returns the numbering of a machine whose history is not known. The vCPUs that QEMU had at its start were
    /// present at each boot of the guest, unless the guest comes from another QEMU (`is_incoming`).
    pub(super) fn first(inventory: &Inventory, is_incoming: bool) -> Self {
        let is_from_start = |presence: &Presence| {
            let path = presence.qom_path.as_str();
            path.starts_with("/machine/unattached/")
        };
        let from_start = inventory.present().filter(|(_, p)| is_from_start(p));
        let from_start = from_start.flat_map(|(slot, _)| slot.vcpus());
        let equal = if is_incoming {
            0
        } else {
            prefix(&from_start.map(|vcpu| vcpu.get()).collect())
        };
        Self {
            equal,
            is_mixed: numbers(inventory).last().is_some_and(|&last| last >= equal),
        }
    }

    /// Returns the numbering after the vCPUs changed from `before` to `after`.
    pub(super) fn next(self, before: &Inventory, after: &Inventory, clues: &Clues) -> Self {
        let (old, new) = (numbers(before), numbers(after));
        let at_boot = prefix(&old).min(prefix(&new));
        let mut next = self;
        if clues.reset {
            // The guest numbers its CPUs again.
            next = Self {
                equal: at_boot,
                is_mixed: false,
            };
        } else if clues.reconnected {
            // The guest may have been reset.
            next.equal = next.equal.min(at_boot);
        }
        let (removed, added) = difference(before, after);
        let mut there = old;
        if clues.reset || clues.reconnected {
            there.retain(|vcpu| *vcpu < next.equal);
            next.add_all(&there, &arrivals(after, |vcpu| vcpu >= next.equal));
            return next;
        }
        if let (Some(first), false) = (removed.first(), added.is_empty()) {
            // The order of the changes is not known.
            let first = added.first().map_or(*first, |added| *added.min(first));
            next.equal = next.equal.min(first);
            next.is_mixed = true;
            return next;
        }
        next.add_all(&there, &arrivals(after, |vcpu| added.contains(&vcpu)));
        next
    }

    /// Notes that the guest saw the vCPUs `added` in this order, when those of `there` were present.
    fn add_all(&mut self, there: &BTreeSet<u32>, added: &[u32]) {
        let mut lowest_free = prefix(there);
        let mut there = there.clone();
        for &vcpu in added {
            if vcpu != lowest_free || (vcpu >= self.equal && self.is_mixed) {
                self.equal = self.equal.min(lowest_free);
                self.is_mixed = true;
            } else if vcpu >= self.equal {
                self.equal = vcpu + 1;
            }
            there.insert(vcpu);
            while there.contains(&lowest_free) {
                lowest_free += 1;
            }
        }
    }

    /// Returns the first vCPU whose number is not certain.
    pub fn equal(self) -> u32 {
        self.equal
    }
}

/// Returns the numbers of the present vCPUs.
fn numbers(inventory: &Inventory) -> BTreeSet<u32> {
    let present = inventory.present();
    let vcpus = present.flat_map(|(slot, _)| slot.vcpus());
    vcpus.map(|vcpu| vcpu.get()).collect()
}

/// Returns how many of the numbers from 0 up are in `numbers` without a gap.
fn prefix(numbers: &BTreeSet<u32>) -> u32 {
    let in_order = (0..).zip(numbers);
    in_order.take_while(|(at, number)| at == *number).count() as u32
}

/// Returns the vCPUs of `inventory` that are `wanted`, in the order in which they were plugged.
fn arrivals(inventory: &Inventory, wanted: impl Fn(u32) -> bool) -> Vec<u32> {
    let present = inventory.present();
    let mut plugged: Vec<(u32, u32)> = present
        .flat_map(|(slot, presence)| slot.vcpus().map(|vcpu| (presence.order, vcpu.get())))
        .filter(|(_, vcpu)| wanted(*vcpu))
        .collect();
    plugged.sort_unstable();
    plugged.into_iter().map(|(_, vcpu)| vcpu).collect()
}

/// Returns the vCPUs that were removed and those that were added, from `before` to `after`. One that was
/// replaced is in both.
fn difference(before: &Inventory, after: &Inventory) -> (BTreeSet<u32>, BTreeSet<u32>) {
    let lacking = |of: &Inventory, other: &Inventory| {
        let of = of.present().filter(|(slot, presence)| {
            let twin = other.slot(slot.id).and_then(|slot| slot.presence.as_ref());
            !twin.is_some_and(|twin| twin.is_same(presence))
        });
        let vcpus = of.flat_map(|(slot, _)| slot.vcpus());
        vcpus.map(|vcpu| vcpu.get()).collect()
    };
    (lacking(before, after), lacking(after, before))
}

#[cfg(test)]
mod tests {
    use super::super::testing::inventory;
    use super::*;
    use crate::ids::{SlotId, Tid};
    use crate::inventory::PresentSlot;
    use crate::text::Text;

    /// Returns an inventory of 8 to which `order` were added in this order.
    fn added(order: &[u32]) -> Inventory {
        let plugged: Vec<(u32, u32)> = order.iter().map(|&n| (n, 10 + n)).collect();
        inventory(8, &plugged)
    }

    /// Returns the numbering after the vCPUs changed in these steps, without a reset of the guest. Those of
    /// the first step are those of the boot.
    fn after(steps: &[&[u32]]) -> (u32, bool) {
        let boot = Clues {
            reset: true,
            ..Clues::default()
        };
        let mut at = added(steps[0]);
        let mut numbering = Numbering::default().next(&at, &at, &boot);
        for step in &steps[1..] {
            let next = added(step);
            numbering = numbering.next(&at, &next, &Clues::default());
            at = next;
        }
        (numbering.equal, numbering.is_mixed)
    }

    fn then(steps: &[&[u32]], clues: &Clues) -> (u32, bool) {
        let (equal, is_mixed) = after(steps);
        let at = added(steps[steps.len() - 1]);
        let next = Numbering { equal, is_mixed }.next(&at, &at, clues);
        (next.equal, next.is_mixed)
    }

    #[test]
    fn vcpus_that_are_added_in_order_have_their_own_numbers() {
        assert_eq!(after(&[&[0, 1]]), (2, false));
        assert_eq!(after(&[&[0], &[0, 1], &[0, 1, 2, 3]]), (4, false));
        // Those that were removed keep their numbers, and get them again.
        let again: [&[u32]; 4] = [&[0, 1, 2], &[0, 1], &[0], &[0, 1, 2, 3]];
        assert_eq!(after(&again), (4, false));
        let gap: [&[u32]; 3] = [&[0, 1, 2, 3], &[0, 2, 3], &[0, 2, 3, 1]];
        assert_eq!(after(&gap), (4, false));
    }

    #[test]
    fn vcpus_that_are_added_above_a_gap_have_unknown_numbers() {
        assert_eq!(after(&[&[0], &[0, 5]]), (1, true));
        assert_eq!(after(&[&[0], &[0, 2, 1]]), (1, true));
        // The gap is filled later, and the vCPU above it is replaced.
        let filled: [&[u32]; 5] = [&[0], &[0, 2], &[0, 2, 1], &[0, 1], &[0, 1, 2]];
        assert_eq!(after(&filled), (1, true));
        // A vCPU that gets the lowest free number of pseries.
        assert_eq!(after(&[&[0, 1, 2], &[0, 2], &[0, 2, 3]]), (1, true));
        // One that was replaced between two refreshes.
        let one = inventory(8, &[(0, 10), (1, 11), (2, 12)]);
        let other = inventory(8, &[(0, 10), (1, 11), (2, 99)]);
        let numbering = Numbering {
            equal: 3,
            is_mixed: false,
        };
        let next = numbering.next(&one, &other, &Clues::default());
        assert_eq!((next.equal, next.is_mixed), (2, true));
    }

    #[test]
    fn a_reset_of_the_guest_numbers_the_vcpus_again() {
        let reset = Clues {
            reset: true,
            ..Clues::default()
        };
        let mixed: [&[u32]; 3] = [&[0], &[0, 2], &[0, 2, 1]];
        assert_eq!(then(&mixed, &reset), (3, false));
        assert_eq!(then(&[&[0], &[0, 5], &[0, 5, 3]], &reset), (1, true));
        // A vCPU above a gap loses the number that it had.
        assert_eq!(then(&[&[0, 1, 2], &[0, 2]], &reset), (1, true));
    }

    #[test]
    fn the_guest_may_have_been_reset_without_a_connection() {
        let gap = Clues {
            reconnected: true,
            ..Clues::default()
        };
        assert_eq!(then(&[&[0], &[0, 1, 2]], &gap), (3, false));
        assert_eq!(then(&[&[0, 1, 2], &[0, 1]], &gap), (2, false));
        assert_eq!(then(&[&[0, 1, 2], &[0, 2]], &gap), (1, true));
        assert_eq!(then(&[&[0], &[0, 2], &[0, 2, 1]], &gap), (1, true));
    }

    #[test]
    fn only_the_vcpus_of_the_start_of_qemu_need_no_history() {
        let row = |(id, path): (u32, &str)| PresentSlot {
            id: SlotId(id),
            width: 1,
            acpi_slot: id,
            qom_path: Text::lossy(path),
            threads: vec![Tid(10 + id)],
        };
        let (own, plugged) = ("/machine/unattached/device[1]", "/machine/peripheral/a");
        let rows = [(0, own), (1, own), (2, plugged), (3, own)];
        let all = Inventory::from_saved(rows.map(row).into());
        let first = |is_incoming| {
            let numbering = Numbering::first(&all, is_incoming);
            (numbering.equal, numbering.is_mixed)
        };
        assert_eq!(first(false), (2, true));
        assert_eq!(first(true), (0, true));
        let start = Inventory::from_saved(rows[..2].iter().copied().map(row).collect());
        let numbering = Numbering::first(&start, false);
        assert_eq!((numbering.equal, numbering.is_mixed), (2, false));
    }
}
