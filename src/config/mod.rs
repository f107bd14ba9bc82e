//! Where the service finds its world, and what the administrator wants of it.
//!
//! ```text
//!   vcpud.toml, vcpud.toml.d/*.toml ──▶ Service, and the Settings of all machines ─┐
//!   machines.d/NAME.toml ─────────────▶ the Settings of machine NAME ──────────────┼▶ Configuration
//!                                       what is wrong: file, line, key ────────────┘
//! ```
//!
//! [`parse`] turns text into settings or a list of mistakes and touches nothing; `files` reads, and
//! trusts no file that users other than root can write to. The service never ends for a mistake: it
//! reports each one, and uses the rest of the configuration.

mod describe;
mod files;
mod nearest;
mod parse;
mod settings;
#[cfg(test)]
mod tests;
mod uuid;
mod value;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use parse::{ConfigError, options, parse_machine, parse_service};
pub use settings::{Limits, MachineSettings, Settings, socket_path};
pub use uuid::Uuid;
pub use value::{Entry, Item, Value};

use crate::names::MachineName;

/// The directories of one run of the service.
#[derive(Clone, Debug)]
pub struct Directories {
    /// State that lives until the next boot; `qmp/` in it holds the QMP sockets.
    pub runtime: PathBuf,
    /// The configuration.
    pub configuration: PathBuf,
}

impl Directories {
    /// Returns the directories in the variables that systemd sets (`systemd.exec(5)`), or the defaults.
    pub fn from_environment() -> Self {
        let directory = |variable: &str, default: &str| {
            let value = std::env::var_os(variable).filter(|value| !value.is_empty());
            value.map_or_else(|| PathBuf::from(default), PathBuf::from)
        };
        Self {
            runtime: directory("RUNTIME_DIRECTORY", "/run/vcpud"),
            configuration: directory("CONFIGURATION_DIRECTORY", "/etc/vcpud"),
        }
    }

    /// The directory whose `NAME.sock` files are QMP sockets of machines.
    pub fn qmp(&self) -> PathBuf {
        self.runtime.join("qmp")
    }

    /// The directory whose `NAME.sock` files are sockets of machines' guest agents.
    pub fn guest_agents(&self) -> PathBuf {
        self.runtime.join("guest-agent")
    }

    /// The directory of the persisted state of machines.
    pub fn records(&self) -> PathBuf {
        self.runtime.join("machines")
    }

    /// The directory of the persisted registrations.
    pub fn registrations(&self) -> PathBuf {
        self.runtime.join("registrations")
    }
}

/// How the service itself behaves: the table `[service]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// How long it stays when there is nothing to do.
    pub idle_exit: Duration,
    /// Whether `[defaults]` applies to machines that unprivileged users register.
    pub defaults_for_users: bool,
}

impl Default for Service {
    fn default() -> Self {
        Self {
            idle_exit: Duration::from_secs(30),
            defaults_for_users: false,
        }
    }
}

/// The file of one machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its settings; `None` if it has a mistake, and then the machine does not exist.
    pub settings: Option<MachineSettings>,
}

/// A mistake in a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file or directory.
    pub file: PathBuf,
    /// Where in it and what; without a line where it is about the file as a whole.
    pub mistake: ConfigError,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ConfigError { line, key, text } = &self.mistake;
        write!(f, "{}:", self.file.display())?;
        if *line > 0 {
            write!(f, "{line}:")?;
        }
        match key.is_empty() {
            true => write!(f, " {text}"),
            false => write!(f, " {key}: {text}"),
        }
    }
}

/// What all files say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    /// How the service behaves.
    pub service: Service,
    /// The settings of machines that have no settings of their own.
    pub defaults: Settings,
    /// Whether the files of these two have a mistake.
    pub has_mistakes: bool,
    /// The machines that have files.
    pub machines: BTreeMap<MachineName, MachineFile>,
    /// All mistakes, by file and line.
    pub problems: Vec<Problem>,
}

impl Configuration {
    /// Reads all files below `directory`; none need be there.
    pub fn read(directory: &Path) -> Self {
        files::read(directory)
    }

    /// Returns this configuration as it replaces `former`: a file that has a mistake now does not
    /// replace its former settings.
    #[must_use]
    pub fn replacing(mut self, former: &Self) -> Self {
        if self.has_mistakes {
            self.service = former.service.clone();
            self.defaults = former.defaults.clone();
        }
        for (name, file) in &mut self.machines {
            if file.settings.is_none()
                && let Some(former) = former.machines.get(name)
            {
                file.settings.clone_from(&former.settings);
            }
        }
        self
    }
}
