//! From two inventories to what came and went between them, and why. Pure.

use std::collections::BTreeSet;

use super::notice::Cause;
use super::removal::Removals;
use crate::inventory::{Entity, Inventory, Presence};

/// What is known of why the inventory changed since the last look.
#[derive(Clone, Debug, Default)]
pub(super) struct Clues {
    /// The connection was lost meanwhile, and with it the events.
    pub reconnected: bool,
    /// The guest was reset.
    pub reset: bool,
    /// Paths of deleted devices.
    pub deleted: Vec<String>,
    /// The entities that were just plugged, and for whom.
    pub plugged: Option<(BTreeSet<u32>, u32)>,
}

/// One entity that came or went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// Its first vCPU.
    pub first: u32,
    /// All of its vCPUs.
    pub vcpus: Vec<u32>,
    /// The id that it was plugged with, or empty.
    pub alias: String,
    /// Why.
    pub cause: Cause,
    /// For whom.
    pub uid: Option<u32>,
}

impl Clues {
    /// How many deletions are remembered; a flood of them is no better explanation.
    const MAX_DELETED: usize = 256;

    /// Remembers that the device at `path` was deleted.
    pub(super) fn note_deleted(&mut self, path: &str) {
        if self.deleted.len() < Self::MAX_DELETED {
            self.deleted.push(path.to_owned());
        }
    }

    fn of_arrival(&self, entity: &Entity) -> (Cause, Option<u32>) {
        match &self.plugged {
            Some((firsts, uid)) if firsts.contains(&entity.first) => (Cause::Request, Some(*uid)),
            _ if self.reconnected => (Cause::Reconnect, None),
            _ => (Cause::External, None),
        }
    }

    fn of_departure(
        &self,
        entity: &Entity,
        presence: &Presence,
        removals: &Removals,
    ) -> (Cause, Option<u32>) {
        let uid = removals.get(entity.first).map(|removal| removal.uid);
        let path = presence.qom_path.as_str();
        let is_part = |deleted: &String| {
            let rest = deleted.strip_prefix(path);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let cause = if self.reconnected {
            Cause::Reconnect
        } else if self.reset {
            Cause::Reset
        } else if uid.is_some() {
            Cause::Request
        } else if self.deleted.iter().any(is_part) {
            Cause::Guest
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
    let same = |other: &Inventory, entity: &Entity, presence: &Presence| {
        let twin = other.entity(entity.first).and_then(|e| e.presence.as_ref());
        twin.is_some_and(|twin| twin.is_same(presence))
    };
    let change = |entity: &Entity, (cause, uid)| Change {
        first: entity.first,
        vcpus: entity.vcpus().collect(),
        alias: entity.alias().unwrap_or_default().to_owned(),
        cause,
        uid,
    };
    let departed = before.present().filter(|(e, p)| !same(after, e, p));
    let departed = departed.map(|(e, p)| change(e, clues.of_departure(e, p, removals)));
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
        changes.iter().map(|c| (c.first, c.cause, c.uid)).collect()
    }

    #[test]
    fn who_asked_is_the_cause() {
        let (before, after) = (
            inventory(&[(0, 10), (1, 11)]),
            inventory(&[(0, 10), (2, 12), (3, 13)]),
        );
        let mut removals = Removals::default();
        removals.open(
            1,
            Removal {
                vcpus: vec![1],
                uid: 7,
                asked: Instant::now(),
            },
        );
        let clues = Clues {
            plugged: Some((BTreeSet::from([3]), 8)),
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
        let deleted = |path: &str| Clues {
            deleted: vec![path.into()],
            ..Clues::default()
        };
        assert_eq!(cause(Clues::default()), Cause::External);
        assert_eq!(
            cause(deleted("/machine/peripheral/vcpu1/lapic")),
            Cause::Guest
        );
        assert_eq!(cause(deleted("/machine/peripheral/vcpu1")), Cause::Guest);
        assert_eq!(
            cause(deleted("/machine/peripheral/vcpu11")),
            Cause::External
        );
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
        assert_eq!((departed[0].first, arrived[0].first), (1, 1));
        let (departed, arrived) =
            between(&before, &before, &Clues::default(), &Removals::default());
        assert!(departed.is_empty() && arrived.is_empty());
    }
}
