//! The callers whose requests are not answered yet.

use std::collections::BTreeMap;

use tokio::sync::oneshot;

use super::model::request::{Answer, RequestId};

/// The callers, by the ids of their requests.
#[derive(Debug, Default)]
pub(super) struct Callers {
    waiting: BTreeMap<RequestId, oneshot::Sender<Answer>>,
    last: u64,
}

impl Callers {
    /// Adds a caller. Returns the id of its request.
    pub(super) fn add(&mut self, caller: oneshot::Sender<Answer>) -> RequestId {
        self.last += 1;
        let id = RequestId(self.last);
        self.waiting.insert(id, caller);
        id
    }

    /// Takes out the caller of the request `id`.
    pub(super) fn take(&mut self, id: RequestId) -> Option<oneshot::Sender<Answer>> {
        self.waiting.remove(&id)
    }
}
