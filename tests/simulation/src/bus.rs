//! The messages to the bus, in their order.

use std::collections::VecDeque;
use std::sync::Arc;

use vcpud::machine::MachineEvent;
use vcpud::machine::Snapshot;
use vcpud::machine::model::request::{Answer, RequestId};

/// A message that the bus has not taken.
pub(crate) enum Message {
    Event(MachineEvent),
    Published(Arc<Snapshot>),
    Flush(u64),
    Reply(RequestId, Answer),
}

/// The bus.
#[derive(Default)]
pub(crate) struct Bus {
    pub queue: VecDeque<Message>,
    /// The flushes that ended.
    pub flushed: VecDeque<u64>,
}
