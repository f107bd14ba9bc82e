//! What the service remembers over a restart: small files of JSON, each replaced as a whole.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Reads the file at `path`, which must not have more than `limit` bytes.
pub fn recall<T: DeserializeOwned>(path: &Path, limit: u64) -> io::Result<T> {
    let size = fs::symlink_metadata(path)?.len();
    if size > limit {
        return Err(io::Error::other(format!("it has {size} bytes")));
    }
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

/// Writes `value` to the file `new`, which is then to be renamed: that takes no room. A missing
/// directory is made, for the service only. A failure leaves no file.
///
/// # Errors
/// Fails with [`io::ErrorKind::FileTooLarge`] where the file would have more than `limit` bytes.
pub fn prepare(new: &Path, value: &impl Serialize, limit: u64) -> io::Result<()> {
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
        // Half of it takes the room that others may need.
        let _ = fs::remove_file(new);
    })
}

/// What is read where a file is of another `version`.
pub fn strange(version: u32) -> io::Error {
    io::Error::other(format!("it is of version {version}"))
}
