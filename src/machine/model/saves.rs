//! The writes of the state file, as far as the model knows them.

use super::effect::LogEntry;
use super::input::{SaveError, SaveId};

/// The state of the file.
#[derive(Debug, Default)]
pub(super) struct Saves {
    last: SaveId,
    /// The last write that has ended.
    ended: SaveId,
    failure: Option<SaveError>,
}

impl Saves {
    /// Returns the id of the next write.
    pub(super) fn begin(&mut self) -> SaveId {
        self.last.0 += 1;
        self.last
    }

    /// Returns whether the write `id` has ended.
    pub(super) fn is_over(&self, id: SaveId) -> bool {
        id <= self.ended
    }

    /// Notes the result of the write `id`. Returns what to log: a failure is logged once until it is over.
    pub(super) fn end(&mut self, id: SaveId, result: &Result<(), SaveError>) -> Option<LogEntry> {
        self.ended = self.ended.max(id);
        // A short state is saved instead of one that is too large, which it stays.
        if self.is_too_large() && result.is_ok() {
            return None;
        }
        let before = std::mem::replace(&mut self.failure, result.as_ref().err().cloned());
        match (before, result) {
            (None, Err(error)) => Some(LogEntry::NotSaved(text(error))),
            (Some(_), Ok(())) => Some(LogEntry::SavedAgain),
            _ => None,
        }
    }

    /// Returns whether the last state could not be written.
    pub(super) fn is_behind(&self) -> bool {
        self.failure.is_some()
    }

    /// Returns whether the last state is larger than that of any real machine.
    pub(super) fn is_too_large(&self) -> bool {
        self.failure == Some(SaveError::TooLarge)
    }

    /// Lets the next write have the whole state again.
    pub(super) fn retry_whole(&mut self) {
        self.failure = None;
    }
}

/// Returns the text of `error` for callers and the log.
pub(super) fn text(error: &SaveError) -> String {
    match error {
        SaveError::TooLarge => "it would have more than 1 MiB".to_owned(),
        SaveError::Io(text) => text.clone(),
    }
}
