//! The files: the configuration of the administrator, and the state: what `Enable` and `Disable` have set, and the
//! holds. Its functions block.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use vcpud::names::{InvalidMachineName, MachineName};
use vcpud::process::monotonic;

use crate::holds::{self, Holds, Now};
use crate::settings::{Settings, with_line};

/// The maximum number of machines with settings.
pub(crate) const MAX_MACHINES: usize = 4096;

/// The maximum length of a file, in bytes.
const MAX_LENGTH: u64 = 64 * 1024;

/// The file of the holds. No file of a machine has this name.
const HOLDS: &str = "holds.json";
/// The maximum length of this file, in bytes.
const MAX_HOLDS: u64 = 1024 * 1024;

/// The maximum length of an error, in characters.
const MAX_ERROR: usize = 500;
/// The maximum number of errors.
const MAX_ERRORS: usize = 100;

/// The directories.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    /// `/etc/vcpud`: `autoscale.toml` and `autoscale.d/NAME.toml`.
    configuration: PathBuf,
    /// `/var/lib/vcpud-autoscale`: `NAME.toml`, and `holds.json`.
    state: PathBuf,
}

/// Where the settings of a machine come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A file of the administrator.
    File,
    /// A call of `Enable` or `Disable`, which precedes a file.
    Call,
}

impl Origin {
    /// Returns the word for it on D-Bus.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Call => "call",
        }
    }
}

/// The content of all files.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Configuration {
    /// The settings for all machines.
    pub(crate) defaults: Settings,
    /// The number of host CPUs for all machines together, if it is set.
    pub(crate) host_cpus: Option<f64>,
    pub(crate) machines: BTreeMap<MachineName, (Settings, Origin)>,
    /// The files that are not used, each with the reason.
    pub(crate) errors: Vec<String>,
}

impl Store {
    /// Takes the directories from the variables that systemd sets.
    pub(crate) fn from_environment() -> Self {
        let directory = |variable: &str, default: &str| {
            std::env::var_os(variable).map_or_else(|| PathBuf::from(default), PathBuf::from)
        };
        Self {
            configuration: directory("CONFIGURATION_DIRECTORY", "/etc/vcpud"),
            state: directory("STATE_DIRECTORY", "/var/lib/vcpud-autoscale"),
        }
    }

    /// Reads all files. A file with an error is not used.
    pub(crate) fn read(&self) -> Configuration {
        let mut configuration = Configuration::default();
        let main = self.configuration.join("autoscale.toml");
        match read(&main, MAX_LENGTH)
            .and_then(|text| text.map(|text| parse_main(&text)).transpose())
        {
            Ok(Some((defaults, host_cpus))) => {
                configuration.defaults = defaults;
                configuration.host_cpus = host_cpus;
            }
            Ok(None) => {}
            Err(error) => configuration.errors.push(describe(&main, &error)),
        }
        let directories = [
            // A call precedes a file.
            (self.state.clone(), Origin::Call),
            (self.configuration.join("autoscale.d"), Origin::File),
        ];
        let mut damaged = BTreeSet::new();
        for (directory, origin) in directories {
            configuration.add(&directory, origin, &mut damaged);
        }
        configuration.check();
        configuration.errors.truncate(MAX_ERRORS);
        configuration
    }

    /// Returns whether the administrator has a file for a machine.
    pub(crate) fn has_file(&self, name: &MachineName) -> bool {
        let directory = self.configuration.join("autoscale.d");
        directory.join(format!("{name}.toml")).exists()
    }

    /// Persists the settings of a machine.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn save(&self, name: &MachineName, settings: &Settings) -> io::Result<()> {
        let text = settings.to_text().map_err(io::Error::other)?;
        self.replace(&format!("{name}.toml"), &text)
    }

    /// Persists the holds.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn save_holds(&self, holds: &Holds) -> io::Result<()> {
        self.replace(HOLDS, &holds::to_text(holds, now())?)
    }

    /// Returns the holds that a previous instance persisted.
    ///
    /// # Errors
    /// The file is not used; the text says why.
    pub(crate) fn holds(&self) -> Result<Holds, String> {
        let path = self.state.join(HOLDS);
        let parse = |text: Option<String>| match text {
            Some(text) => holds::from_text(&text, now()).map_err(|error| error.to_string()),
            None => Ok(Holds::new()),
        };
        read(&path, MAX_HOLDS)
            .and_then(parse)
            .map_err(|error| describe(&path, &error))
    }

    /// Replaces a file of the state as a whole.
    fn replace(&self, name: &str, text: &str) -> io::Result<()> {
        let path = self.state.join(name);
        let new = self.state.join(format!("{name}.new"));
        let write = || {
            // A file of an interrupted write is replaced, whatever it is.
            match fs::remove_file(&new) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = fs::File::create_new(&new)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &path)
        };
        write().inspect_err(|_| {
            // A part of the file occupies space.
            let _ = fs::remove_file(&new);
        })
    }

    /// Forgets the settings of a machine.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub(crate) fn forget(&self, name: &MachineName) -> io::Result<()> {
        match fs::remove_file(self.state.join(format!("{name}.toml"))) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl Configuration {
    /// Reports settings that are not valid together with the defaults.
    fn check(&mut self) {
        for (name, (settings, _)) in &self.machines {
            if let Err(error) = settings.check_over(&self.defaults, u32::MAX) {
                self.errors.push(format!("{name}: not scaled: {error}"));
            }
        }
    }

    /// Adds the files of a directory, unless a previous one has a file for the machine, also a `damaged` one.
    fn add(&mut self, directory: &Path, origin: Origin, damaged: &mut BTreeSet<MachineName>) {
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries.flatten(),
            Err(error) if error.kind() == ErrorKind::NotFound => return,
            Err(error) => return self.errors.push(describe(directory, &error.to_string())),
        };
        let is_new = |path: &PathBuf| {
            let is_known = name(path)
                .is_ok_and(|name| self.machines.contains_key(&name) || damaged.contains(&name));
            path.extension() == Some(OsStr::new("toml")) && !is_known
        };
        let paths = entries.map(|entry| entry.path()).filter(is_new);
        let mut paths: Vec<PathBuf> = paths.collect();
        paths.sort();
        let room = MAX_MACHINES.saturating_sub(self.machines.len());
        if let Some(path) = paths.get(room) {
            let left = paths.len() - room;
            let error = format!("{left} files from here on; the limit is {MAX_MACHINES} machines");
            self.errors.push(describe(path, &error));
        }
        for path in paths.into_iter().take(room) {
            match machine(&path) {
                Ok((name, settings)) => {
                    self.machines.insert(name, (settings, origin));
                }
                Err(error) => {
                    damaged.extend(name(&path));
                    self.errors.push(describe(&path, &error));
                }
            }
        }
    }
}

fn now() -> Now {
    let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    Now {
        monotonic: monotonic(),
        wall: wall.unwrap_or_default(),
    }
}

/// Returns the machine that a file is about.
fn name(path: &Path) -> Result<MachineName, InvalidMachineName> {
    let name = path.file_stem().and_then(OsStr::to_str).unwrap_or_default();
    name.parse()
}

fn machine(path: &Path) -> Result<(MachineName, Settings), String> {
    let name = name(path).map_err(|error| error.to_string())?;
    let text = read(path, MAX_LENGTH)?.ok_or("the file does not exist")?;
    Ok((name, Settings::parse(&text)?))
}

/// Parses the main file: `host-cpus`, and the keys for all machines.
fn parse_main(text: &str) -> Result<(Settings, Option<f64>), String> {
    let mut table: toml::Table = text.parse().map_err(|error| with_line(text, &error))?;
    let host_cpus = match table.remove("host-cpus") {
        None => None,
        Some(toml::Value::Integer(number @ 1..=65_536)) => {
            u32::try_from(number).ok().map(f64::from)
        }
        Some(toml::Value::Float(number)) if (0.1..=65_536.0).contains(&number) => Some(number),
        Some(other) => {
            return Err(format!(
                "host-cpus is {other}; it must be from 0.1 to 65536"
            ));
        }
    };
    Ok((Settings::from_table(table)?, host_cpus))
}

fn describe(path: &Path, error: &str) -> String {
    let text = format!("{}: not used: {error}", path.display());
    text.chars()
        .take(MAX_ERROR)
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

/// Reads a file of at most `limit` bytes; `None` if it does not exist.
fn read(path: &Path, limit: u64) -> Result<Option<String>, String> {
    // A FIFO must not block.
    let mut options = fs::File::options();
    options.read(true).custom_flags(libc::O_NONBLOCK);
    let file = match options.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return Err("it is not a regular file".to_owned());
    }
    let mut text = String::new();
    let read = file.take(limit + 1).read_to_string(&mut text);
    read.map_err(|error| error.to_string())?;
    if text.len() as u64 > limit {
        return Err(format!("the file is longer than {limit} bytes"));
    }
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(directory: &Path) -> Store {
        let store = Store {
            configuration: directory.join("etc"),
            state: directory.join("state"),
        };
        fs::create_dir_all(store.configuration.join("autoscale.d")).unwrap();
        fs::create_dir(&store.state).unwrap();
        store
    }

    #[test]
    fn an_error_of_the_main_file_names_the_key() {
        let error = |text| parse_main(text).unwrap_err();
        let text = error("host-cpus = 4\n\nweight = 50\nmaxx = 3\n");
        assert!(text.starts_with("\"maxx\": unknown field `maxx`"), "{text}");
        let text = error("min = \"two\"");
        assert_eq!(text, "\"min\": invalid type: string \"two\", expected u32");
    }

    #[test]
    fn a_damaged_file_of_a_call_hides_the_file_of_the_administrator() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path());
        fs::write(store.configuration.join("autoscale.d/web.toml"), "").unwrap();
        fs::write(store.state.join("web.toml"), "mode =").unwrap();
        let configuration = store.read();
        assert_eq!(configuration.machines.len(), 0);
        assert_eq!(configuration.errors.len(), 1);
    }

    #[test]
    fn the_rest_of_an_interrupted_write_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path());
        let other = directory.path().join("other");
        fs::write(&other, "kept").unwrap();
        std::os::unix::fs::symlink(&other, store.state.join("web.toml.new")).unwrap();
        store
            .save(&"web".parse().unwrap(), &Settings::off())
            .unwrap();
        assert_eq!(fs::read_to_string(&other).unwrap(), "kept");
        assert!(!store.state.join("web.toml").is_symlink());
    }

    #[test]
    fn the_number_of_files_is_limited() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path());
        let files = store.configuration.join("autoscale.d");
        for number in 0..MAX_MACHINES + 3 {
            fs::write(files.join(format!("vm-{number:04}.toml")), "").unwrap();
        }
        // A call precedes files, also that of the same machine.
        for name in ["vm-4098", "zoo"] {
            store
                .save(&name.parse().unwrap(), &Settings::off())
                .unwrap();
        }
        let configuration = store.read();
        assert_eq!(configuration.machines.len(), MAX_MACHINES);
        for name in ["zoo", "vm-4098"] {
            assert_eq!(configuration.machines[name].1, Origin::Call);
        }
        let [error] = configuration.errors.as_slice() else {
            panic!("{:?}", configuration.errors);
        };
        let text = "vm-4094.toml: not used: 4 files from here on; the limit is 4096 machines";
        assert!(error.ends_with(text), "{error}");
    }
}
