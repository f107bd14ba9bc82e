//! The file of a machine's persisted state, `machines/NAME.json` in the runtime directory. It is read and
//! written on the blocking pool, one access after the other.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::Mutex;
use tracing::warn;

use super::model::input::SaveError;
use super::model::saved_state::{SavedState, VERSION};
use crate::blocking::blocking;
use crate::names::MachineName;
use crate::state_file;

/// The maximum size. 4,096 vCPUs need 700 kB; a machine that needs more is treated as one whose QEMU
/// breaks the limits of the protocol.
const MAX_SIZE: u64 = 1 << 20;

/// The state file of one machine. All clones are the same file.
#[derive(Clone, Debug)]
pub(super) struct StateFile(Arc<Mutex<File>>);

/// The file, as the holder of its lock accesses it. These calls block.
#[derive(Debug)]
struct File {
    path: PathBuf,
    /// The content of the file; `None` if there is no file, or if the content is not known.
    written: Option<SavedState>,
}

impl StateFile {
    /// Returns the file at `path`, whether it exists or not.
    pub(super) fn new(path: PathBuf) -> Self {
        let written = None;
        Self(Arc::new(Mutex::new(File { path, written })))
    }

    /// Reads the file, if it exists.
    ///
    /// # Errors
    /// Fails if the file cannot be read or has an unsupported version.
    pub(super) async fn load(&self) -> io::Result<Option<SavedState>> {
        self.access(File::load).await
    }

    /// Replaces the file by one with `state`, unless that is its content. Returns when it is written.
    ///
    /// # Errors
    /// Fails if the file cannot be written or would be too large. Then it stays as it was.
    pub(super) async fn save(&self, state: SavedState) -> Result<(), SaveError> {
        let mut file = self.0.clone().lock_owned().await;
        if file.written.as_ref() == Some(&state) {
            return Ok(());
        }
        let saved = blocking(move || file.save(state)).await;
        saved.map_err(|error| match error.kind() {
            io::ErrorKind::FileTooLarge => SaveError::TooLarge,
            _ => SaveError::Io(error.to_string()),
        })
    }

    /// Removes the file, if it exists.
    ///
    /// # Errors
    /// Fails if the file stays.
    pub(super) async fn remove(&self) -> io::Result<()> {
        self.access(File::remove).await
    }

    /// Waits until no access goes on.
    pub(super) async fn finish(&self) {
        drop(self.0.lock().await);
    }

    /// Accesses the file after all earlier accesses. An access that has begun keeps the lock to its
    /// end, even if the call is dropped.
    async fn access<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut File) -> T + Send + 'static,
    ) -> T {
        let mut file = self.0.clone().lock_owned().await;
        blocking(move || work(&mut file)).await
    }
}

impl File {
    fn load(&mut self) -> io::Result<Option<SavedState>> {
        let state: SavedState = match state_file::load(&self.path, MAX_SIZE) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            state => state?,
        };
        if state.version != VERSION {
            return Err(state_file::unsupported_version(state.version));
        }
        self.written = Some(state.clone());
        Ok(Some(state))
    }

    fn save(&mut self, state: SavedState) -> io::Result<()> {
        // The content is not known until this has succeeded.
        self.written = None;
        let new = self.path.with_extension("new");
        state_file::write_new(&new, &state, MAX_SIZE)?;
        fs::rename(&new, &self.path).inspect_err(|_| {
            let _ = fs::remove_file(&new);
        })?;
        self.written = Some(state);
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
        let vm_name = path.file_stem().and_then(OsStr::to_str);
        if vm_name.is_none_or(|name| !known.contains(name))
            && let Err(error) = fs::remove_file(&path)
        {
            let file = path.display();
            warn!(vm_name, %file, %error, "cannot remove the persisted state {file}: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::ids::{Pid, SlotId, Tid};
    use crate::inventory::PresentSlot;
    use crate::process::ProcessId;
    use crate::text::Text;

    fn state() -> SavedState {
        SavedState::new(ProcessId {
            pid: Pid(7),
            start: 9,
        })
    }

    #[tokio::test]
    async fn a_removal_waits_for_a_write_that_was_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web.json");
        let file = StateFile::new(path.clone());
        let (go_on, waits) = mpsc::channel::<()>();
        let write = file.access(move |file| {
            let _ = waits.recv();
            file.save(state())
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

    #[tokio::test]
    async fn refuses_a_state_above_1_mib() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web.json");
        let file = StateFile::new(path.clone());
        let row = PresentSlot {
            id: SlotId(0),
            width: 1,
            acpi_slot: 0,
            qom_path: Text::lossy("/machine/unattached/device[0]"),
            threads: vec![Tid(9)],
        };
        let large = SavedState {
            present: vec![row; 16_384],
            ..state()
        };
        assert_eq!(file.save(large).await, Err(SaveError::TooLarge));
        assert!(!path.exists() && !path.with_extension("new").exists());
        assert_eq!(file.save(state()).await, Ok(()));
    }

    #[tokio::test]
    async fn loads_what_was_saved() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("machines/web.json");
        assert_eq!(StateFile::new(path.clone()).load().await.unwrap(), None);
        StateFile::new(path.clone()).save(state()).await.unwrap();
        let file = StateFile::new(path.clone());
        assert_eq!(file.load().await.unwrap(), Some(state()));

        // An unchanged state is not written again.
        fs::remove_file(&path).unwrap();
        file.save(state()).await.unwrap();
        assert!(!path.exists());
        file.remove().await.unwrap();
        file.save(state()).await.unwrap();
        assert!(path.exists());
        file.remove().await.unwrap();
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn refuses_other_versions_and_parts_of_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web.json");
        let load = async |text: &str| {
            fs::write(&path, text).unwrap();
            StateFile::new(path.clone()).load().await
        };
        let whole = serde_json::to_string(&state()).unwrap();
        assert_eq!(load(&whole).await.unwrap(), Some(state()));
        let other = whole.replace("\"version\":1", "\"version\":2");
        assert!(load(&other).await.is_err());
        assert!(load(&whole[..20]).await.is_err());
        assert!(load("").await.is_err());
    }
}
