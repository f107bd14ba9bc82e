//! Numbers of vCPUs in whole slots. Pure. It must not know why a number is wanted.

/// The present vCPUs of a machine, which are added and removed in slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slots {
    present: u32,
    /// The number of vCPUs of a slot.
    pub(super) size: u32,
}

impl Slots {
    /// Returns the slots of a machine with `present` vCPUs. A size of 0 counts as 1.
    pub(super) fn new(present: u32, size: u32) -> Self {
        let size = size.max(1);
        Self { present, size }
    }

    /// Returns the number of slots that can be added without more than `limit` vCPUs.
    pub(super) fn below(self, limit: u32) -> u32 {
        limit.saturating_sub(self.present) / self.size
    }

    /// Returns the number of slots that can be removed without fewer than `limit` vCPUs.
    pub(super) fn above(self, limit: u32) -> u32 {
        self.present.saturating_sub(limit) / self.size
    }

    /// Returns the number of vCPUs in the slots that a machine with `goal` vCPUs does not need.
    pub(super) fn gain(self, goal: u32) -> u32 {
        self.above(goal) * self.size
    }

    /// Returns the number of vCPUs after the removal of each slot that is not within `max`.
    pub(super) fn within(self, max: u32) -> u32 {
        let excess = self.present.saturating_sub(max).div_ceil(self.size);
        self.present
            .saturating_sub(excess.saturating_mul(self.size))
    }

    /// Returns the number of vCPUs after an addition up to `goal`: at most one `step`, which has at least a slot, and
    /// not beyond `limit`.
    pub(super) fn larger(self, goal: u32, step: u32, limit: u32) -> u32 {
        let wanted = goal.saturating_sub(self.present).div_ceil(self.size);
        let slots = wanted.min(step.div_ceil(self.size)).min(self.below(limit));
        self.present + slots * self.size
    }

    /// Returns the number of vCPUs after a removal down to `goal`: at most one `step`, which has at least a slot, and
    /// not below `limit`.
    pub(super) fn smaller(self, goal: u32, step: u32, limit: u32) -> u32 {
        let slots = self
            .above(goal)
            .min(step.div_ceil(self.size))
            .min(self.above(limit));
        self.present - slots * self.size
    }
}
