//! The messages of a machine for which the queue to the bus has no room yet.

use std::collections::VecDeque;

use tokio::sync::oneshot;

use super::events::{BusMessage, EventSender};
use super::running::Ready;

/// A machine with more to report reads no more requests and events.
const LIMIT: usize = 256;

/// The unsent messages, in order.
#[derive(Debug)]
pub(super) struct Outbox {
    events: EventSender,
    ready: Option<oneshot::Sender<Ready>>,
    items: VecDeque<Item>,
}

#[derive(Debug)]
enum Item {
    Message(BusMessage),
    Ready(Ready),
}

impl Outbox {
    pub(super) fn new(events: EventSender, ready: oneshot::Sender<Ready>) -> Self {
        Self {
            events,
            ready: Some(ready),
            items: VecDeque::new(),
        }
    }

    /// Sends `message` after all earlier ones.
    pub(super) fn send(&mut self, message: BusMessage) {
        self.items.push_back(Item::Message(message));
        self.try_send_all();
    }

    /// Reports whether there is a machine, after all earlier messages.
    pub(super) fn report(&mut self, ready: Ready) {
        self.items.push_back(Item::Ready(ready));
        self.try_send_all();
    }

    /// Returns whether too much waits.
    pub(super) fn is_clogged(&self) -> bool {
        self.items.len() >= LIMIT
    }

    /// Sends the unsent messages, in order, until the queue has no room.
    fn try_send_all(&mut self) {
        while let Some(item) = self.items.pop_front() {
            match item {
                Item::Ready(ready) => {
                    if let Some(sender) = self.ready.take() {
                        let _ = sender.send(ready);
                    }
                }
                Item::Message(message) => {
                    if let Err(message) = self.events.try_send(message) {
                        self.items.push_front(Item::Message(message));
                        return;
                    }
                }
            }
        }
        // An idle machine keeps no memory for messages.
        self.items.shrink_to_fit();
    }

    /// Waits until the next message can be sent, and sends it. Waits forever if no message is unsent.
    pub(super) async fn send_next(&mut self) {
        let Some(Item::Message(message)) = self.items.front() else {
            return std::future::pending().await;
        };
        let room = self.events.room_for(message).await;
        if let (Some(Item::Message(message)), Some(room)) = (self.items.pop_front(), room) {
            room.send(message);
        }
        self.try_send_all();
    }

    /// Sends everything. Events that no client could receive yet are dropped, because the machine is gone.
    pub(super) async fn finish(&mut self) {
        let events = &self.events;
        let is_lost = |item: &Item| matches!(item, Item::Message(m) if events.is_early(m));
        self.items.retain(|item| !is_lost(item));
        self.try_send_all();
        while !self.items.is_empty() {
            self.send_next().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::poll;

    use super::*;
    use crate::machine::events::Completion;

    /// Room that one machine gave back went to the next one, which did the same.
    #[tokio::test]
    async fn each_machine_that_waits_for_room_gets_it_in_turn() {
        let (events, mut queue) = EventSender::new();
        let message = || BusMessage::Completion(Completion::new(|| ()));
        while events.try_send(message()).is_ok() {}
        let outbox = || {
            let mut outbox = Outbox::new(events.clone(), oneshot::channel().0);
            outbox.send(message());
            outbox
        };
        let (mut first, mut second) = (outbox(), outbox());
        let mut first = pin!(first.finish());
        let mut second = pin!(second.finish());
        assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
        assert!(queue.recv().await.is_some());
        assert!(poll!(&mut first).is_ready());
        assert!(poll!(&mut second).is_pending());
        assert!(queue.recv().await.is_some());
        assert!(poll!(&mut second).is_ready());
    }
}
