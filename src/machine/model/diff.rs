//! The differences between two inventories, and their causes.

use super::event::{Cause, VcpuChange};
use super::evidence::Clues;
use crate::ids::{SlotId, Uid, VcpuId};
use crate::inventory::{HotplugSlot, Inventory, Presence};

/// A slot whose vCPUs were added or removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SlotChange {
    /// The slot.
    pub slot: SlotId,
    /// All of its vCPUs.
    pub vcpus: Vec<VcpuId>,
    /// The device id that it was added with, or empty.
    pub alias: String,
    /// The cause.
    pub cause: Cause,
    /// The user who asked for it.
    pub uid: Option<Uid>,
}

impl SlotChange {
    /// Returns one change for each vCPU.
    pub(super) fn changes(&self) -> impl Iterator<Item = VcpuChange> {
        self.vcpus.iter().map(|&id| VcpuChange {
            id,
            alias: self.alias.clone(),
            cause: self.cause,
            uid: self.uid,
        })
    }
}

impl Clues {
    fn cause_of_arrival(&self, slot: SlotId) -> (Cause, Option<Uid>) {
        match &self.plugged {
            Some(plugging) if plugging.slots.contains(&slot) => {
                (Cause::Request, Some(plugging.uid))
            }
            _ if self.reconnected => (Cause::Reconnect, None),
            _ => (Cause::External, None),
        }
    }

    fn cause_of_departure(&self, slot: SlotId, uid: Option<Uid>) -> (Cause, Option<Uid>) {
        let cause = if self.reset {
            Cause::Reset
        } else if uid.is_some() {
            Cause::Request
        } else if self.ejected.contains(&slot) {
            Cause::Guest
        } else if self.reconnected {
            Cause::Reconnect
        } else {
            Cause::External
        };
        (cause, uid)
    }
}

/// Returns the slots whose vCPUs were removed and those whose vCPUs were added, from `before` to
/// `after`, in the order of their numbers. A slot whose CPU was replaced is in both. `asked_by` returns
/// the user who asked for the removal of a slot.
pub(super) fn diff(
    before: &Inventory,
    after: &Inventory,
    clues: &Clues,
    asked_by: impl Fn(SlotId) -> Option<Uid>,
) -> (Vec<SlotChange>, Vec<SlotChange>) {
    let is_in = |other: &Inventory, slot: &HotplugSlot, presence: &Presence| {
        let twin = other.slot(slot.id).and_then(|slot| slot.presence.as_ref());
        twin.is_some_and(|twin| twin.is_same(presence))
    };
    let change = |slot: &HotplugSlot, (cause, uid)| SlotChange {
        slot: slot.id,
        vcpus: slot.vcpus().collect(),
        alias: slot.alias().unwrap_or_default().to_owned(),
        cause,
        uid,
    };
    let removed = before.present().filter(|(s, p)| !is_in(after, s, p));
    let removed = removed.map(|(s, _)| change(s, clues.cause_of_departure(s.id, asked_by(s.id))));
    let added = after.present().filter(|(s, p)| !is_in(before, s, p));
    let added = added.map(|(s, _)| change(s, clues.cause_of_arrival(s.id)));
    (removed.collect(), added.collect())
}

#[cfg(test)]
mod tests {
    use super::super::evidence::Plugging;
    use super::super::testing::inventory;
    use super::*;

    fn causes(changes: &[SlotChange]) -> Vec<(u32, Cause, Option<u32>)> {
        let row = |c: &SlotChange| (c.slot.get(), c.cause, c.uid.map(Uid::get));
        changes.iter().map(row).collect()
    }

    #[test]
    fn a_request_is_the_cause_of_what_it_asked_for() {
        let before = inventory(4, &[(0, 10), (1, 11)]);
        let after = inventory(4, &[(0, 10), (2, 12), (3, 13)]);
        let clues = Clues {
            plugged: Some(Plugging {
                slots: [SlotId(3)].into(),
                uid: Uid(8),
            }),
            ..Clues::default()
        };
        let asked_by = |slot: SlotId| (slot == 1).then_some(Uid(7));
        let (removed, added) = diff(&before, &after, &clues, asked_by);
        assert_eq!(causes(&removed), [(1, Cause::Request, Some(7))]);
        assert_eq!(
            causes(&added),
            [(2, Cause::External, None), (3, Cause::Request, Some(8))]
        );
        assert_eq!(added[0].alias, "vcpu2");
    }

    #[test]
    fn without_a_request_the_clues_name_the_cause() {
        let before = inventory(4, &[(0, 10), (1, 11)]);
        let after = inventory(4, &[(0, 10)]);
        let cause = |clues: Clues| diff(&before, &after, &clues, |_| None).0[0].cause;
        let ejected = |slot| Clues {
            ejected: [SlotId(slot)].into(),
            ..Clues::default()
        };
        let reset = Clues {
            reset: true,
            ..Clues::default()
        };
        let reconnected = Clues {
            reconnected: true,
            ..Clues::default()
        };
        assert_eq!(cause(Clues::default()), Cause::External);
        assert_eq!(cause(ejected(1)), Cause::Guest);
        assert_eq!(cause(ejected(2)), Cause::External);
        assert_eq!(cause(reset), Cause::Reset);
        assert_eq!(cause(reconnected), Cause::Reconnect);
    }

    #[test]
    fn a_replaced_cpu_is_removed_and_added() {
        let before = inventory(4, &[(0, 10), (1, 11)]);
        let after = inventory(4, &[(0, 10), (1, 99)]);
        let (removed, added) = diff(&before, &after, &Clues::default(), |_| None);
        assert_eq!((removed[0].slot, added[0].slot), (SlotId(1), SlotId(1)));
        let (removed, added) = diff(&before, &before, &Clues::default(), |_| None);
        assert!(removed.is_empty() && added.is_empty());
    }
}
