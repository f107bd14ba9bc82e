//! The promises of the model about single effects.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use vcpud::ids::SlotId;
use vcpud::machine::Snapshot;
use vcpud::machine::model::effect::Batch;
use vcpud::machine::model::saved_state::{AskedRemoval, SavedState};

use crate::guest;

/// QEMU is asked to remove the same CPU again after this time at the earliest.
const REPEAT_AFTER: Duration = Duration::from_secs(5);
/// The model may need this many ticks at one instant.
const MAX_TICKS: u32 = 8;

/// The effects so far, as far as the promises need them.
pub(crate) struct Promises {
    /// How often the machine was reported to be ready.
    pub ready: u32,
    /// The number of exchanges.
    pub exchanges: u32,
    /// The number of exchanges that look for evidence.
    pub looks: u32,
    /// The removals that QEMU is about to be asked for, as they were saved last.
    requested: BTreeSet<SlotId>,
    /// When these were requested.
    begun: BTreeMap<SlotId, Instant>,
    /// When those were requested that QEMU was asked for.
    asked: BTreeMap<SlotId, Instant>,
    ticks: (Instant, u32),
}

impl Promises {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            ready: 0,
            exchanges: 0,
            looks: 0,
            requested: BTreeSet::new(),
            begun: BTreeMap::new(),
            asked: BTreeMap::new(),
            ticks: (now, 0),
        }
    }

    /// Continues with what a new instance reads.
    pub(crate) fn crash(&mut self, now: Instant, state: Option<&SavedState>) {
        *self = Self::new(now);
        let rows = state.into_iter().flat_map(|state| &state.removals);
        for row in rows {
            self.asked.extend(slot_of(row).map(|slot| (slot, now)));
        }
        self.requested = state.map(requested).unwrap_or_default();
    }

    /// Checks that the model does not loop.
    pub(crate) fn tick(&mut self, now: Instant) {
        let (at, count) = self.ticks;
        self.ticks = (now, if at == now { count + 1 } else { 1 });
        assert!(
            self.ticks.1 <= MAX_TICKS,
            "the model needs {MAX_TICKS} ticks at once"
        );
    }

    /// Checks that the removals that are about to be requested are not under way.
    pub(crate) fn save(&mut self, now: Instant, state: &SavedState, snapshot: &Snapshot) {
        if state.present.is_empty() {
            // The state is too large, and only a part is saved.
            return;
        }
        let requested = requested(state);
        for slot in requested.difference(&self.requested) {
            self.begun.insert(*slot, now);
            let asked = self.asked.get(slot);
            let is_pending = snapshot.pending.contains(&slot.first());
            let is_early = asked.is_some_and(|asked| now - *asked < REPEAT_AFTER);
            assert!(
                !is_pending || !is_early,
                "slot {slot} is being removed already"
            );
        }
        self.requested = requested;
    }

    /// Checks that the request was saved before QEMU receives it.
    pub(crate) fn exchange(&mut self, batch: &Batch, content: Option<&SavedState>) {
        self.exchanges += 1;
        if let Batch::Remove(_, slots) = batch {
            let begun = slots
                .iter()
                .filter_map(|(slot, _)| self.begun.get_key_value(slot));
            self.asked.extend(begun);
        }
        let is_saved = match batch {
            Batch::Refresh(_) | Batch::Look(..) => true,
            Batch::Add(_, slots) => {
                let plugging = content.and_then(|state| state.plugging.as_ref());
                let saved = plugging.map(|plugging| plugging.slots.clone());
                let saved = saved.unwrap_or_default();
                slots.iter().all(|slot| saved.contains(&slot.id))
            }
            Batch::Remove(_, slots) => {
                let saved = content.map(requested).unwrap_or_default();
                slots.iter().all(|(slot, _)| saved.contains(slot))
            }
        };
        assert!(is_saved, "{batch:?} is not saved");
    }

    /// Notes that QEMU refused to remove a CPU, so that the next request may follow at once.
    pub(crate) fn refuse(&mut self, slot: SlotId) {
        self.asked.remove(&slot);
    }

    /// Checks that the guest CPUs to bring online are not those of pending removals.
    pub(crate) fn restore_guest(&self, cpus: &[u32], snapshot: &Snapshot) {
        let is_leaving = |cpu: &u32| snapshot.pending.contains(&guest::vcpu(*cpu));
        assert!(!cpus.iter().any(is_leaving), "{cpus:?} are leaving");
    }

    pub(crate) fn report_ready(&mut self) {
        self.ready += 1;
        assert_eq!(self.ready, 1, "Ready comes twice");
    }
}

/// Returns the slots that QEMU is about to be asked to remove.
fn requested(state: &SavedState) -> BTreeSet<SlotId> {
    let rows = state.removals.iter().filter(|row| !row.agreed);
    rows.filter_map(slot_of).collect()
}

/// Returns the slot of a saved removal.
pub(crate) fn slot_of(row: &AskedRemoval) -> Option<SlotId> {
    row.vcpus.first().map(|vcpu| SlotId(vcpu.get()))
}
