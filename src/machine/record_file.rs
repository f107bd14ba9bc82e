//! The file in which a machine's record is persisted. It is read and written on the blocking pool, one
//! access after the other.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::Mutex;
use tracing::warn;

use super::record::{Record, VERSION};
use crate::blocking::blocking;
use crate::names::MachineName;
use crate::state_file;

/// The maximum size. 4,096 vCPUs take 700 kB; a machine that needs more is treated as one whose QEMU
/// breaks the protocol.
const MAX_SIZE: u64 = 1 << 20;

/// The file of one machine's record. All clones are the same file.
#[derive(Clone, Debug)]
pub(super) struct RecordFile {
    file: Arc<Mutex<File>>,
    /// Why the last record is not in it.
    behind: Option<io::ErrorKind>,
}

/// The file, as whoever holds its lock accesses it. These calls block.
#[derive(Debug)]
struct File {
    path: PathBuf,
    /// The content of the file; `None` if there is no file, or if the content is not known.
    written: Option<Record>,
}

impl RecordFile {
    /// Returns the file at `path`, whether it exists or not.
    pub(super) fn new(path: PathBuf) -> Self {
        let written = None;
        Self {
            file: Arc::new(Mutex::new(File { path, written })),
            behind: None,
        }
    }

    /// Returns whether the last record could not be written.
    pub(super) fn is_behind(&self) -> bool {
        self.behind.is_some()
    }

    /// Returns whether the last record was larger than any machine needs.
    pub(super) fn is_too_large(&self) -> bool {
        self.behind == Some(io::ErrorKind::FileTooLarge)
    }

    /// Writes `record` instead of one that was too large.
    pub(super) async fn replace_too_large(&mut self, record: Record) {
        // Without it the next instance only knows less.
        let _ = self.save(record).await;
        self.behind = Some(io::ErrorKind::FileTooLarge);
    }

    /// Reads the file, if it exists.
    ///
    /// # Errors
    /// Fails where the file cannot be read, or is of an unknown version.
    pub(super) async fn load(&self) -> io::Result<Option<Record>> {
        self.access(File::load).await
    }

    /// Replaces the file by one with `record`, unless that is in it already. Returns when it is
    /// written.
    ///
    /// # Errors
    /// Fails where the file cannot be written or would be too large. The file stays as it was then.
    pub(super) async fn save(&mut self, record: Record) -> io::Result<()> {
        let mut file = self.file.clone().lock_owned().await;
        if file.written.as_ref() == Some(&record) {
            return Ok(());
        }
        let saved = blocking(move || file.save(record)).await;
        self.behind = saved.as_ref().err().map(io::Error::kind);
        saved
    }

    /// Removes the file, if it exists.
    ///
    /// # Errors
    /// Fails where the file stays.
    pub(super) async fn remove(&mut self) -> io::Result<()> {
        self.behind = None;
        self.access(File::remove).await
    }

    /// Waits until no access is under way.
    pub(super) async fn finish(&self) {
        drop(self.file.lock().await);
    }

    /// Accesses the file after all earlier accesses. An access that has begun keeps the lock to its end,
    /// even if the call is given up.
    async fn access<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut File) -> T + Send + 'static,
    ) -> T {
        let mut file = self.file.clone().lock_owned().await;
        blocking(move || work(&mut file)).await
    }
}

impl File {
    fn load(&mut self) -> io::Result<Option<Record>> {
        let record: Record = match state_file::load(&self.path, MAX_SIZE) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            record => record?,
        };
        if record.version != VERSION {
            return Err(state_file::unsupported_version(record.version));
        }
        self.written = Some(record.clone());
        Ok(Some(record))
    }

    fn save(&mut self, record: Record) -> io::Result<()> {
        // The content is not known until this has succeeded.
        self.written = None;
        let new = self.path.with_extension("new");
        state_file::write_new(&new, &record, MAX_SIZE)?;
        fs::rename(&new, &self.path).inspect_err(|_| {
            let _ = fs::remove_file(&new);
        })?;
        self.written = Some(record);
        Ok(())
    }

    fn remove(&mut self) -> io::Result<()> {
        self.written = None;
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Removes the persisted state in `directory` of all machines except `known`.
pub async fn forget_others(directory: PathBuf, known: BTreeSet<MachineName>) {
    blocking(move || remove_others(&directory, &known)).await;
}

fn remove_others(directory: &Path, known: &BTreeSet<MachineName>) {
    let Ok(files) = fs::read_dir(directory) else {
        return;
    };
    for path in files.flatten().map(|entry| entry.path()) {
        let name = path.file_stem().and_then(OsStr::to_str);
        if name.is_none_or(|name| !known.contains(name))
            && let Err(error) = fs::remove_file(&path)
        {
            let file = path.display();
            warn!(%file, %error, "cannot remove the persisted state {file}: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::process::ProcessId;

    #[tokio::test]
    async fn a_removal_waits_for_a_write_that_was_given_up() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web.json");
        let mut file = RecordFile::new(path.clone());
        let (go_on, waits) = mpsc::channel::<()>();
        let write = file.access(move |file| {
            let _ = waits.recv();
            file.save(Record::new(ProcessId {
                pid: crate::ids::Pid(7),
                start: 9,
            }))
        });
        tokio::select! {
            biased;
            _ = write => panic!("the write waits"),
            () = tokio::task::yield_now() => {}
        }
        let other = file.clone();
        let (removed, ()) = tokio::join!(file.remove(), async { drop(go_on) });
        removed.unwrap();
        other.finish().await;
        assert!(!path.exists());
    }
}
