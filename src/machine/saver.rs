//! The writes of a machine's state file: one at a time, and each has the last state.

use super::jobs::Done;
use super::model::input::{Input, SaveId};
use super::model::saved_state::SavedState;
use super::state_file::StateFile;

/// The writes that are due.
#[derive(Debug)]
pub(super) struct Saver {
    file: StateFile,
    waiting: Vec<(SaveId, SavedState)>,
    is_busy: bool,
}

impl Saver {
    pub(super) fn new(file: StateFile) -> Self {
        Self {
            file,
            waiting: Vec::new(),
            is_busy: false,
        }
    }

    /// Returns the file.
    pub(super) fn file(&self) -> &StateFile {
        &self.file
    }

    /// Adds a state to save.
    pub(super) fn push(&mut self, id: SaveId, state: SavedState) {
        self.waiting.push((id, state));
    }

    /// Notes that the write that went on has ended.
    pub(super) fn end(&mut self) {
        self.is_busy = false;
    }

    /// Forgets all writes that are due.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
        self.is_busy = false;
    }

    /// Returns the next write, unless one goes on. All states before the last are saved with it.
    pub(super) fn next(&mut self) -> Option<impl Future<Output = Done> + Send + use<>> {
        if self.is_busy {
            return None;
        }
        let mut waiting = std::mem::take(&mut self.waiting);
        let (last, state) = waiting.pop()?;
        self.is_busy = true;
        let file = self.file.clone();
        Some(async move {
            let result = file.save(state).await;
            let ids = waiting.into_iter().map(|(id, _)| id).chain([last]);
            Done::Saved(ids.map(|id| Input::Saved(id, result.clone())).collect())
        })
    }
}
