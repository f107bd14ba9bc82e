//! The queue of messages to the bus, in the order in which things happened. Replies are in it too, as
//! completions, so a reply follows the signals that led to it.

use std::fmt;

use tokio::sync::{mpsc, oneshot, watch};

use super::handle::Handle;
use super::model::event::MachineEvent;
use crate::names::MachineName;

/// How many messages may wait to be emitted.
const CAPACITY: usize = 256;

/// A message to the bus.
#[derive(Debug)]
pub enum BusMessage {
    /// A machine is known from now on.
    Appeared {
        /// The machine.
        machine: Handle,
        /// Whether a previous instance of the service knew it, and emitted so.
        is_known: bool,
    },
    /// The service owns its name, so that clients receive its signals.
    NameOwned,
    /// An event of a machine.
    Event {
        /// The machine.
        machine: MachineName,
        /// The event.
        event: MachineEvent,
    },
    /// All errors of the configuration, because they changed.
    Problems(Vec<String>),
    /// The receiver runs it when everything before it is emitted.
    Completion(Completion),
}

/// A step that follows the messages before it in the queue: it sends a reply to a requester, or reports
/// that these messages were emitted.
pub struct Completion(Box<dyn FnOnce() + Send + Sync>);

impl Completion {
    /// Returns a completion that sends `result` to the requester that waits for `answer`.
    pub(super) fn reply<T: Send + Sync + 'static>(answer: oneshot::Sender<T>, result: T) -> Self {
        // A requester that left needs no reply.
        Self(Box::new(move || drop(answer.send(result))))
    }

    /// Returns a completion that calls `call`.
    pub(super) fn new(call: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self(Box::new(call))
    }

    /// Sends the reply, or reports.
    pub fn run(self) {
        (self.0)();
    }
}

impl fmt::Debug for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Completion")
    }
}

impl BusMessage {
    /// Returns whether the message is about a vCPU. Such an event happens once, so it waits until
    /// clients can receive it.
    fn needs_audience(&self) -> bool {
        matches!(self, Self::Event { event, .. } if event.vcpu().is_some())
    }
}

/// The room for one message in the queue.
pub(super) type Room<'a> = mpsc::Permit<'a, BusMessage>;

/// The sending side of the queue.
#[derive(Clone, Debug)]
pub struct EventSender {
    messages: mpsc::Sender<BusMessage>,
    /// Whether clients can receive events.
    has_audience: watch::Sender<bool>,
}

impl EventSender {
    /// Returns a queue: the sending side, and the receiving one, which must be drained.
    pub fn new() -> (Self, mpsc::Receiver<BusMessage>) {
        let (messages, receiver) = mpsc::channel(CAPACITY);
        let sender = Self {
            messages,
            has_audience: watch::Sender::new(false),
        };
        (sender, receiver)
    }

    /// Reports that the service owns its name, and lets events of vCPUs pass. Before this they wait,
    /// because no client would receive them.
    pub async fn open(&self) {
        let _ = self.messages.send(BusMessage::NameOwned).await;
        self.has_audience.send_replace(true);
    }

    /// Sends `message` if that needs no waiting; else returns it. A service that is ending takes all.
    pub(super) fn try_send(&self, message: BusMessage) -> Result<(), BusMessage> {
        if self.is_early(&message) {
            return Err(message);
        }
        match self.messages.try_send(message) {
            Err(mpsc::error::TrySendError::Full(message)) => Err(message),
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
        }
    }

    /// Returns whether no client could receive `message` yet.
    pub(super) fn is_early(&self, message: &BusMessage) -> bool {
        message.needs_audience() && !*self.has_audience.borrow()
    }

    /// Waits until there is room for `message`, and holds it: machines that wait get room in turn. Returns
    /// `None` if the service is ending.
    pub(super) async fn room_for(&self, message: &BusMessage) -> Option<Room<'_>> {
        if message.needs_audience() {
            let _ = self.has_audience.subscribe().wait_for(|open| *open).await;
        }
        self.messages.reserve().await.ok()
    }

    /// Sends all errors of the configuration.
    pub async fn send_problems(&self, problems: Vec<String>) {
        let _ = self.messages.send(BusMessage::Problems(problems)).await;
    }

    /// Sends `result` to `answer` when everything sent so far is emitted. Waits only for room in the
    /// queue. Drops `answer` if the service is ending.
    pub async fn reply<T: Send + Sync + 'static>(&self, answer: oneshot::Sender<T>, result: T) {
        let reply = Completion::reply(answer, result);
        let _ = self.messages.send(BusMessage::Completion(reply)).await;
    }

    /// Waits until everything sent so far is emitted.
    pub async fn barrier(&self) {
        let (answer, emitted) = oneshot::channel();
        self.reply(answer, ()).await;
        let _ = emitted.await;
    }
}
