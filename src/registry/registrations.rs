//! Registrations, remembered over a restart of the service: a file each, JSON, replaced as a whole.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::config::MachineSettings;
use crate::host::{ProcessId, memory};
use crate::names::MachineName;

/// The version of the files. A file of a version that is not known is not read.
const VERSION: u32 = 1;
/// More than any of them has.
const MAX_SIZE: u64 = 1 << 20;

/// A registration that was successful.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Registered {
    version: u32,
    /// The user who registered the machine.
    pub uid: u32,
    /// What he said of it; without `qmp` where he passed a connection.
    pub settings: MachineSettings,
    /// Its QEMU, where that is not who serves QMP.
    #[serde(default)]
    pub leader: Option<ProcessId>,
}

impl Registered {
    pub(super) fn new(uid: u32, settings: MachineSettings, leader: Option<ProcessId>) -> Self {
        Self {
            version: VERSION,
            uid,
            settings,
            leader,
        }
    }
}

/// The directory of their files.
#[derive(Debug)]
pub(super) struct Registrations {
    directory: PathBuf,
}

impl Registrations {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// All that are remembered. What cannot be read is forgotten.
    pub(super) fn load(&self) -> Vec<(MachineName, Registered)> {
        let Ok(files) = fs::read_dir(&self.directory) else {
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
                    warn!(file = %file.display(), %error, "a registration cannot be read, so it is forgotten");
                    let _ = fs::remove_file(&file);
                }
            }
        }
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    /// Writes down that `name` is registered, which does not count before [`Self::confirm`].
    pub(super) fn prepare(&self, name: &MachineName, registered: &Registered) -> io::Result<()> {
        memory::prepare(&self.new_file(name), registered, MAX_SIZE)
    }

    /// Remembers that `name` is registered, as was prepared. That takes no room.
    pub(super) fn confirm(&self, name: &MachineName) {
        if let Err(error) = fs::rename(self.new_file(name), self.file(name)) {
            warn!(machine = %name, %error, "the registration cannot be remembered, a restart of the service will forget it");
        }
    }

    /// Forgets `name`, also where that was only prepared.
    pub(super) fn remove(&self, name: &MachineName) {
        // A start of the service removes what is left.
        let _ = fs::remove_file(self.new_file(name));
        match fs::remove_file(self.file(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!(machine = %name, %error, "the registration cannot be forgotten");
            }
            _ => {}
        }
    }

    fn file(&self, name: &MachineName) -> PathBuf {
        // A name may have dots in it, so its ending is not for with_extension() to replace.
        self.directory.join(format!("{name}.json"))
    }

    fn new_file(&self, name: &MachineName) -> PathBuf {
        self.directory.join(format!("{name}.new"))
    }
}

fn read(file: &Path) -> io::Result<Registered> {
    let registered: Registered = memory::recall(file, MAX_SIZE)?;
    match registered.version {
        VERSION => Ok(registered),
        other => Err(memory::strange(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_loaded_and_the_rest_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("registrations");
        let registrations = Registrations::new(path.clone());
        assert_eq!(registrations.load(), []);
        let settings = crate::config::parse_machine(
            "qmp = '/run/a'\nscheduler = 'rr'\npriority = 2\ncache = [{ vcpus = '1', schemata = 'L3:0=f' }]",
        );
        let registered =
            Registered::new(7, settings.unwrap(), Some(ProcessId { pid: 1, start: 2 }));
        let names: [MachineName; 2] = ["web".parse().unwrap(), "web.1".parse().unwrap()];
        for name in &names {
            registrations.prepare(name, &registered).unwrap();
            registrations.confirm(name);
        }
        let other: MachineName = "other".parse().unwrap();
        registrations.prepare(&other, &registered).unwrap();
        registrations.remove(&other);
        assert_eq!(fs::read_dir(&path).unwrap().count(), 2);
        registrations.prepare(&other, &registered).unwrap();
        fs::write(path.join("half.new"), "").unwrap();
        fs::write(path.join("broken.json"), "{").unwrap();
        let all = names.clone().map(|name| (name, registered.clone()));
        assert_eq!(registrations.load(), all);
        registrations.remove(&names[0]);
        registrations.remove(&names[0]);
        assert_eq!(registrations.load(), all[1..]);
        assert_eq!(fs::read_dir(&path).unwrap().count(), 1);
    }
}
