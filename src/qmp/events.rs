//! The events of one QMP connection that are not read yet.
//!
//! An event only says when to query QEMU, and explains what the query shows. Equal events therefore
//! count once, and of the reports of the guest about one CPU slot the last of each kind counts: QEMU may
//! send any number of events at once, for example one for each failed request of a disk.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::error::Closed;
use super::event::{Event, MAX_EVENTS};
use crate::text::Text;

/// The events of a connection, and the reason of its end after them.
#[derive(Debug)]
pub struct Events(Arc<Queue>);

/// The side of the connection.
#[derive(Debug)]
pub(super) struct EventSink(Arc<Queue>);

#[derive(Debug, Default)]
struct Queue {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    unread: BTreeMap<Key, Event>,
    closed: Option<Closed>,
    has_ended: bool,
}

/// Events with the same key count once.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Deleted(Text),
    UnplugError(Text),
    /// Of a slot: whether the guest reports a refusal, and whether it began the ejection.
    Ost(Text, bool, bool),
    Reset,
    RunState,
}

impl Key {
    /// Returns the key of `event`; `None` if the event says nothing.
    fn of(event: &Event) -> Option<Self> {
        Some(match event {
            Event::DeviceDeleted { path, .. } => Self::Deleted(path.clone()),
            Event::UnplugGuestError { path, .. } => Self::UnplugError(path.clone()),
            Event::AcpiCpuOst(ost) => {
                let is_refusal = ost.failed_ejection().is_some();
                Self::Ost(ost.slot.clone(), is_refusal, ost.is_guests_own())
            }
            Event::Reset => Self::Reset,
            Event::RunState => Self::RunState,
            Event::Other => return None,
        })
    }
}

/// Returns both sides of a queue without events.
pub(super) fn queue() -> (EventSink, Events) {
    let queue = Arc::<Queue>::default();
    (EventSink(queue.clone()), Events(queue))
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EventSink {
    /// Adds an event.
    ///
    /// # Errors
    /// [`Closed::TooManyEvents`] if too many different events are not read.
    pub(super) fn push(&self, event: Event) -> Result<(), Closed> {
        let Some(key) = Key::of(&event) else {
            return Ok(());
        };
        let mut state = self.0.state();
        if state.unread.len() >= MAX_EVENTS && !state.unread.contains_key(&key) {
            return Err(Closed::TooManyEvents);
        }
        state.unread.insert(key, event);
        drop(state);
        self.0.changed.notify_one();
        Ok(())
    }

    /// Ends the queue, with the reason of the end of the connection.
    pub(super) fn close(self, reason: Closed) {
        self.0.state().closed = Some(reason);
    }
}

impl Drop for EventSink {
    fn drop(&mut self) {
        self.0.state().has_ended = true;
        self.0.changed.notify_one();
    }
}

impl Events {
    /// Returns the next event, or the reason of the end of the connection after all events. `None` after
    /// that.
    pub async fn recv(&mut self) -> Option<Result<Event, Closed>> {
        loop {
            if let Some(next) = self.try_recv() {
                return Some(next);
            }
            if self.0.state().has_ended {
                return self.try_recv();
            }
            self.0.changed.notified().await;
        }
    }

    /// Returns what [`Self::recv`] returns, if that is not to be waited for.
    pub fn try_recv(&mut self) -> Option<Result<Event, Closed>> {
        let mut state = self.0.state();
        let event = state.unread.pop_first().map(|(_, event)| Ok(event));
        event.or_else(|| state.closed.take().map(Err))
    }
}

#[cfg(test)]
mod tests {
    use super::super::event::AcpiOst;
    use super::*;

    fn ost(slot: u32, source: u64, status: u64) -> Event {
        Event::AcpiCpuOst(AcpiOst {
            device: None,
            slot: Text::lossy(&slot.to_string()),
            slot_type: Text::lossy("CPU"),
            source,
            status,
        })
    }

    fn unread(events: &mut Events) -> Vec<Event> {
        let next = std::iter::from_fn(|| events.try_recv());
        next.map(Result::unwrap).collect()
    }

    #[test]
    fn equal_events_count_once() {
        let (sink, mut events) = queue();
        for _ in 0..100_000 {
            sink.push(Event::RunState).unwrap();
            sink.push(Event::Reset).unwrap();
            sink.push(Event::Other).unwrap();
        }
        assert_eq!(unread(&mut events), [Event::Reset, Event::RunState]);
    }

    #[test]
    fn the_last_report_of_a_guest_about_a_slot_counts() {
        let (sink, mut events) = queue();
        for status in 0..100_000 {
            sink.push(ost(1, 3, status)).unwrap();
            sink.push(ost(1, 0x103, status)).unwrap();
        }
        // That an ejection succeeded is another kind of report than that it was refused.
        let expected = [
            ost(1, 3, 0x84),
            ost(1, 0x103, 0x84),
            ost(1, 3, 99_999),
            ost(1, 0x103, 99_999),
        ];
        assert_eq!(unread(&mut events), expected);
    }

    #[tokio::test]
    async fn the_reason_of_the_end_comes_last() {
        let (sink, mut events) = queue();
        sink.push(Event::Reset).unwrap();
        sink.close(Closed::Hangup);
        assert_eq!(events.recv().await, Some(Ok(Event::Reset)));
        assert_eq!(events.recv().await, Some(Err(Closed::Hangup)));
        assert_eq!(events.recv().await, None);
    }

    #[test]
    fn too_many_different_events_are_a_breach() {
        let (sink, _events) = queue();
        let deleted = |n: usize| Event::DeviceDeleted {
            device: None,
            path: Text::lossy(&n.to_string()),
        };
        for n in 0..MAX_EVENTS {
            sink.push(deleted(n)).unwrap();
        }
        assert_eq!(sink.push(deleted(0)), Ok(()));
        assert_eq!(sink.push(deleted(MAX_EVENTS)), Err(Closed::TooManyEvents));
    }
}
