//! The persisted registrations: a JSON file for each, which is replaced as a whole.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::blocking::blocking;
use crate::config::MachineSettings;
use crate::ids::Uid;
use crate::names::MachineName;
use crate::process::ProcessId;
use crate::state_file;

/// The version of the files. A file of another version is not read.
const VERSION: u32 = 1;
/// The maximum size of a file, in bytes.
const MAX_SIZE: u64 = 1 << 20;

/// A registration that was successful.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Registered {
    version: u32,
    /// The user who registered the machine.
    pub uid: Uid,
    /// The settings of the registration; without `qmp` for a machine that was registered with a connection.
    pub settings: MachineSettings,
    /// Its QEMU, if another process serves QMP.
    #[serde(default)]
    pub leader: Option<ProcessId>,
}

impl Registered {
    pub(super) fn new(uid: Uid, settings: MachineSettings, leader: Option<ProcessId>) -> Self {
        Self {
            version: VERSION,
            uid,
            settings,
            leader,
        }
    }
}

/// The directory of the files, which are accessed on the blocking pool.
#[derive(Debug)]
pub(super) struct Registrations {
    directory: PathBuf,
}

impl Registrations {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Returns all persisted registrations. Deletes the files that cannot be read.
    pub(super) async fn load(&self) -> Vec<(MachineName, Registered)> {
        let directory = self.directory.clone();
        blocking(move || load(&directory)).await
    }

    /// Writes the registration of `name` to a file that has no effect before [`Self::commit`].
    ///
    /// # Errors
    /// Fails if the file cannot be written.
    pub(super) async fn prepare(
        &self,
        name: &MachineName,
        registered: Registered,
    ) -> io::Result<()> {
        let file = self.new_file(name);
        blocking(move || state_file::write_new(&file, &registered, MAX_SIZE)).await
    }

    /// Puts the prepared registration of `name` in force. That needs no free space.
    pub(super) async fn commit(&self, name: &MachineName) {
        let (new, file) = (self.new_file(name), self.file(name));
        if let Err(error) = blocking(move || fs::rename(new, file)).await {
            warn!(vm_name = %name, %error, "{name}: cannot persist the registration: {error}; it is lost when the service restarts");
        }
    }

    /// Deletes the registration of `name`, prepared or not.
    pub(super) async fn remove(&self, name: &MachineName) {
        let (new, file) = (self.new_file(name), self.file(name));
        let removed = blocking(move || {
            // The next instance removes a file that is left.
            let _ = fs::remove_file(new);
            fs::remove_file(file)
        });
        match removed.await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!(vm_name = %name, %error, "{name}: cannot delete the registration: {error}");
            }
            _ => {}
        }
    }

    fn file(&self, name: &MachineName) -> PathBuf {
        // A name may contain dots, so with_extension() would replace a part of it.
        self.directory.join(format!("{name}.json"))
    }

    fn new_file(&self, name: &MachineName) -> PathBuf {
        self.directory.join(format!("{name}.new"))
    }
}

/// Reads all registrations in `directory`. Deletes the files that cannot be read.
fn load(directory: &Path) -> Vec<(MachineName, Registered)> {
    let Ok(files) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut all = Vec::new();
    for file in files.flatten().map(|entry| entry.path()) {
        let name = file.file_stem().and_then(OsStr::to_str);
        let name: Option<MachineName> = name.and_then(|name| name.parse().ok());
        let is_whole = file.extension() == Some(OsStr::new("json"));
        let Some(name) = name.filter(|_| is_whole) else {
            let _ = fs::remove_file(&file);
            continue;
        };
        match read(&file) {
            Ok(registered) => all.push((name, registered)),
            Err(error) => {
                warn!(vm_name = %name, %error, "{name}: deleted a registration that cannot be read: {error}");
                let _ = fs::remove_file(&file);
            }
        }
    }
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

fn read(file: &Path) -> io::Result<Registered> {
    let registered: Registered = state_file::load(file, MAX_SIZE)?;
    match registered.version {
        VERSION => Ok(registered),
        other => Err(state_file::unsupported_version(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Pid;

    #[tokio::test]
    async fn loads_what_is_saved_and_deletes_the_rest() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("registrations");
        let registrations = Registrations::new(path.clone());
        assert_eq!(registrations.load().await, []);
        let settings = crate::config::parse_machine(
            "qmp = '/run/a'\nscheduler = 'rr'\npriority = 2\ncache = [{ vcpus = '1', schemata = 'L3:0=f' }]",
        );
        let registered = Registered::new(
            Uid(7),
            settings.unwrap(),
            Some(ProcessId {
                pid: Pid(1),
                start: 2,
            }),
        );
        let names: [MachineName; 2] = ["web".parse().unwrap(), "web.1".parse().unwrap()];
        for name in &names {
            let prepared = registrations.prepare(name, registered.clone());
            prepared.await.unwrap();
            registrations.commit(name).await;
        }
        let other: MachineName = "other".parse().unwrap();
        let prepared = registrations.prepare(&other, registered.clone());
        prepared.await.unwrap();
        registrations.remove(&other).await;
        assert_eq!(fs::read_dir(&path).unwrap().count(), 2);
        let prepared = registrations.prepare(&other, registered.clone());
        prepared.await.unwrap();
        fs::write(path.join("half.new"), "").unwrap();
        fs::write(path.join("broken.json"), "{").unwrap();
        let all = names.clone().map(|name| (name, registered.clone()));
        assert_eq!(registrations.load().await, all);
        registrations.remove(&names[0]).await;
        registrations.remove(&names[0]).await;
        assert_eq!(registrations.load().await, all[1..]);
        assert_eq!(fs::read_dir(&path).unwrap().count(), 1);
    }
}
