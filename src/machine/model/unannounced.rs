//! Events that may not have been emitted on the bus. They are persisted, and emitted again by the next
//! instance.

use super::record::PendingEvent;

/// The events, each with the number of the flush that follows it. 0 is for those of a previous
/// instance.
#[derive(Debug, Default)]
pub(super) struct Unannounced {
    events: Vec<(u64, PendingEvent)>,
    last: u64,
}

impl Unannounced {
    /// Adds events, which another flush follows.
    pub(super) fn add(&mut self, events: Vec<PendingEvent>) {
        self.last += 1;
        let events = events.into_iter().map(|event| (self.last, event));
        self.events.extend(events);
    }

    /// Returns the number of the last flush.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Notes that all events up to `flush` were emitted. Returns whether there were such events.
    pub(super) fn flushed(&mut self, flush: u64) -> bool {
        let before = self.events.len();
        self.events.retain(|(of, _)| *of > flush);
        self.events.len() != before
    }

    /// Restores the events of a previous instance.
    pub(super) fn restore(&mut self, events: Vec<PendingEvent>) {
        self.events = events.into_iter().map(|event| (0, event)).collect();
    }

    /// Takes the events of a previous instance.
    pub(super) fn take_restored(&mut self) -> Vec<PendingEvent> {
        let events = std::mem::take(&mut self.events).into_iter();
        let (restored, events): (Vec<_>, Vec<_>) = events.partition(|(of, _)| *of == 0);
        self.events = events;
        restored.into_iter().map(|(_, event)| event).collect()
    }

    /// Returns the persisted form.
    pub(super) fn to_record(&self) -> Vec<PendingEvent> {
        self.events.iter().map(|(_, event)| event.clone()).collect()
    }
}
