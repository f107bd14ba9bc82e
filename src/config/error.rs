//! An error in the configuration.

use std::fmt;
use std::path::{Path, PathBuf};

use super::value::Entry;

/// The number of characters of a key that an error repeats.
const MAX_KEY: usize = 64;

/// An error in a configuration file, or in the options of a registration.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConfigError {
    /// The place of the error.
    pub location: Location,
    /// The key; empty for an error that is not about one key.
    pub key: String,
    /// The description of the error.
    pub text: String,
}

/// The place of an error.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Location {
    /// The file or directory; `None` for text that was not read from a file.
    pub file: Option<PathBuf>,
    /// The line, from 1; 0 for an error about the whole file.
    pub line: usize,
}

impl ConfigError {
    /// Returns an error in the value of `entry`.
    pub(super) fn at(entry: &Entry, text: impl fmt::Display) -> Self {
        Self::in_line(entry.line, &entry.key, text)
    }

    /// Returns an error of `key` in `line`.
    pub(super) fn in_line(line: usize, key: &str, text: impl fmt::Display) -> Self {
        Self {
            location: Location { file: None, line },
            key: key.chars().take(MAX_KEY).collect(),
            text: text.to_string(),
        }
    }

    /// Returns an error about the whole file.
    pub(super) fn whole(text: impl fmt::Display) -> Self {
        Self::in_line(0, "", text)
    }

    /// Returns the error, which was found in `file`.
    pub(super) fn in_file(mut self, file: &Path) -> Self {
        self.location.file = Some(file.to_owned());
        self
    }
}

/// Displays as `FILE:LINE: KEY: TEXT`, without the parts that are not known.
impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Location { file, line } = &self.location;
        if let Some(file) = file {
            write!(f, "{}:", file.display())?;
            if *line > 0 {
                write!(f, "{line}:")?;
            }
            f.write_str(" ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.text)
    }
}
