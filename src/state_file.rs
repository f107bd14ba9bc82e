//! Files of persisted state: small, JSON, each replaced as a whole.
//!
//! All functions block.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Reads the file at `path`.
///
/// # Errors
/// Fails if the file does not exist, has more than `limit` bytes, or is not a `T` in JSON.
pub(crate) fn load<T: DeserializeOwned>(path: &Path, limit: u64) -> io::Result<T> {
    let size = fs::symlink_metadata(path)?.len();
    if size > limit {
        return Err(io::Error::other(format!("it has {size} bytes")));
    }
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

/// Writes `value` to the file `new`. The caller then renames it, which needs no free space. Creates a
/// missing directory with mode 0700.
///
/// # Errors
/// Fails if the file cannot be written, and with [`io::ErrorKind::FileTooLarge`] if it would have more
/// than `limit` bytes. No file is left then.
pub(crate) fn write_new(new: &Path, value: &impl Serialize, limit: u64) -> io::Result<()> {
    if let Some(directory) = new.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
    }
    let bytes = serde_json::to_vec(value)?;
    if bytes.len() as u64 > limit {
        let text = format!("it would have {} bytes, more than {limit}", bytes.len());
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    fs::write(new, bytes).inspect_err(|_| {
        // A part of the file occupies space that other files may need.
        let _ = fs::remove_file(new);
    })
}

/// Returns the error for a file of an unsupported `version`.
pub(crate) fn unsupported_version(version: u32) -> io::Error {
    io::Error::other(format!("it has the unsupported version {version}"))
}
