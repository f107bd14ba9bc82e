//! From two inventories to what came and went between them, and why. Pure.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::notice::Cause;
use super::removal::Removals;
use crate::ids::{SlotId, Uid, VcpuId};
use crate::inventory::{HotplugSlot, Inventory, Presence};

/// What is known of why the inventory changed since the last look.
#[derive(Clone, Debug, Default)]
pub(super) struct Clues {
    /// The connection was lost meanwhile, and with it the events.
    pub reconnected: bool,
    /// The guest was reset.
    pub reset: bool,
    /// The entities that the guest said it ejected by itself.
    pub ejected: BTreeSet<SlotId>,
    /// The entities that QEMU was asked to plug, and for whom.
    pub plugged: Option<Plugging>,
}

/// One entity that came or went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// Its first vCPU.
    pub first: SlotId,
    /// All of its vCPUs.
    pub vcpus: Vec<VcpuId>,
    /// The id that it was plugged with, or empty.
    pub alias: String,
    /// Why.
    pub cause: Cause,
    /// For whom.
    pub uid: Option<Uid>,
}

/// Entities that QEMU is asked to plug, by their first vCPUs, and for whom.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plugging {
    pub firsts: BTreeSet<SlotId>,
    pub uid: Uid,
}

impl Clues {
    fn of_arrival(&self, entity: &HotplugSlot) -> (Cause, Option<Uid>) {
        match &self.plugged {
            Some(plugging) if plugging.firsts.contains(&entity.id) => {
                (Cause::Request, Some(plugging.uid))
            }
            _ if self.reconnected => (Cause::Reconnect, None),
            _ => (Cause::External, None),
        }
    }

    fn of_departure(&self, entity: &HotplugSlot, removals: &Removals) -> (Cause, Option<Uid>) {
        let uid = removals.asked_by(entity.id);
        let cause = if self.reset {
            Cause::Reset
        } else if uid.is_some() {
            Cause::Request
        } else if self.ejected.contains(&entity.id) {
            Cause::Guest
        } else if self.reconnected {
            Cause::Reconnect
        } else {
            Cause::External
        };
        (cause, uid)
    }
}

/// What went from `before` and what came in `after`, by number. An entity that was replaced is
/// in both.
pub(super) fn between(
    before: &Inventory,
    after: &Inventory,
    clues: &Clues,
    removals: &Removals,
) -> (Vec<Change>, Vec<Change>) {
    let same = |other: &Inventory, entity: &HotplugSlot, presence: &Presence| {
        let twin = other.slot(entity.id).and_then(|e| e.presence.as_ref());
        twin.is_some_and(|twin| twin.is_same(presence))
    };
    let change = |entity: &HotplugSlot, (cause, uid)| Change {
        first: entity.id,
        vcpus: entity.vcpus().collect(),
        alias: entity.alias().unwrap_or_default().to_owned(),
        cause,
        uid,
    };
    let departed = before.present().filter(|(e, p)| !same(after, e, p));
    let departed = departed.map(|(e, _)| change(e, clues.of_departure(e, removals)));
    let arrived = after.present().filter(|(e, p)| !same(before, e, p));
    let arrived = arrived.map(|(e, _)| change(e, clues.of_arrival(e)));
    (departed.collect(), arrived.collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::time::Instant;

    use super::super::removal::Removal;
    use super::*;
    use crate::inventory::Slots;

    /// Four entities of one vCPU; those in `plugged` are present with these threads.
    fn inventory(plugged: &[(u32, u32)]) -> Inventory {
        let path = |n: u32| format!("/machine/peripheral/vcpu{n}");
        let at = |n: u32| plugged.iter().any(|(p, _)| *p == n).then(|| path(n));
        let slots = (0..4u32).rev().map(|n| {
            json!({"type": "cpu", "vcpus-count": 1, "props": {"core-id": n}, "qom-path": at(n)})
        });
        let slots = slots.map(|slot| serde_json::from_value(slot).unwrap());
        let cpus = plugged.iter().map(
            |&(n, thread)| json!({"cpu-index": n, "qom-path": path(n), "thread-id": thread, "target": "x86_64"}),
        );
        let cpus = cpus.map(|cpu| serde_json::from_value(cpu).unwrap());
        Inventory::read(Slots::Listed(slots.collect()), cpus.collect()).unwrap()
    }

    fn told(changes: &[Change]) -> Vec<(u32, Cause, Option<u32>)> {
        changes
            .iter()
            .map(|c| (c.first.get(), c.cause, c.uid.map(Uid::get)))
            .collect()
    }

    #[test]
    fn who_asked_is_the_cause() {
        let (before, after) = (
            inventory(&[(0, 10), (1, 11)]),
            inventory(&[(0, 10), (2, 12), (3, 13)]),
        );
        let mut removals = Removals::default();
        let removal = Removal {
            vcpus: vec![VcpuId(1)],
            uid: Uid(7),
            asked: Instant::now(),
            refused_before: false,
        };
        removals.ask(SlotId(1), removal);
        let clues = Clues {
            plugged: Some(Plugging {
                firsts: [SlotId(3)].into(),
                uid: Uid(8),
            }),
            ..Clues::default()
        };
        let (departed, arrived) = between(&before, &after, &clues, &removals);
        assert_eq!(told(&departed), [(1, Cause::Request, Some(7))]);
        assert_eq!(
            told(&arrived),
            [(2, Cause::External, None), (3, Cause::Request, Some(8))]
        );
        assert_eq!(arrived[0].alias, "vcpu2");
    }

    #[test]
    fn who_did_not_ask_is_told_by_the_clues() {
        let (before, after) = (inventory(&[(0, 10), (1, 11)]), inventory(&[(0, 10)]));
        let cause = |clues: Clues| {
            let (departed, _) = between(&before, &after, &clues, &Removals::default());
            departed[0].cause
        };
        let ejected = |first| Clues {
            ejected: [SlotId(first)].into(),
            ..Clues::default()
        };
        assert_eq!(cause(Clues::default()), Cause::External);
        assert_eq!(cause(ejected(1)), Cause::Guest);
        assert_eq!(cause(ejected(2)), Cause::External);
        assert_eq!(
            cause(Clues {
                reset: true,
                ..Clues::default()
            }),
            Cause::Reset
        );
        assert_eq!(
            cause(Clues {
                reconnected: true,
                ..Clues::default()
            }),
            Cause::Reconnect
        );
    }

    #[test]
    fn a_successor_in_the_same_place_is_another_cpu() {
        let (before, after) = (
            inventory(&[(0, 10), (1, 11)]),
            inventory(&[(0, 10), (1, 99)]),
        );
        let (departed, arrived) = between(&before, &after, &Clues::default(), &Removals::default());
        assert_eq!(
            (departed[0].first, arrived[0].first),
            (SlotId(1), SlotId(1))
        );
        let (departed, arrived) =
            between(&before, &before, &Clues::default(), &Removals::default());
        assert!(departed.is_empty() && arrived.is_empty());
    }
}
