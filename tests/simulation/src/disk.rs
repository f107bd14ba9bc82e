//! A simulated state file. Writes end in their order; those that wait become one.

use vcpud::machine::model::input::{Input, SaveError, SaveId};
use vcpud::machine::model::saved_state::SavedState;

/// The state file.
#[derive(Default)]
pub(crate) struct Disk {
    /// The state that the next instance reads.
    pub content: Option<SavedState>,
    /// Whether the content lacks something that was reported, because a write failed.
    pub is_behind: bool,
    waiting: Vec<(SaveId, SavedState)>,
    writing: Vec<(SaveId, SavedState)>,
}

impl Disk {
    pub(crate) fn save(&mut self, id: SaveId, state: SavedState) {
        self.waiting.push((id, state));
        self.begin();
    }

    fn begin(&mut self) {
        if self.writing.is_empty() {
            self.writing = std::mem::take(&mut self.waiting);
        }
    }

    pub(crate) fn is_writing(&self) -> bool {
        !self.writing.is_empty()
    }

    /// Ends the write that goes on.
    pub(crate) fn end(&mut self, result: Result<(), SaveError>) -> Vec<Input> {
        let written = std::mem::take(&mut self.writing);
        if let Some((_, state)) = written.last() {
            match result {
                Ok(()) => {
                    self.is_behind = state.present.is_empty();
                    self.content = Some(state.clone());
                }
                Err(_) => self.is_behind = true,
            }
        }
        self.begin();
        let ids = written.into_iter().map(|(id, _)| id);
        ids.map(|id| Input::Saved(id, result.clone())).collect()
    }

    /// Drops the writes, as a crash does.
    pub(crate) fn crash(&mut self) {
        self.waiting.clear();
        self.writing.clear();
    }

    /// Removes the file.
    pub(crate) fn remove(&mut self) {
        *self = Self::default();
    }
}
