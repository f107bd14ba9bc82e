//! The directories of the service, and its configuration.
//!
//! ```text
//!   vcpud.toml, vcpud.toml.d/*.toml ──▶ Service, and the Settings of all machines ─┐
//!   machines.d/NAME.toml ─────────────▶ the Settings of machine NAME ──────────────┼▶ Configuration
//!                                       ConfigErrors with file, line and key ──────┘
//! ```
//!
//! [`parse`] is pure: it turns text into settings or a list of errors. `files` reads the files, except
//! those that users other than root can write to. An error never ends the service. The service reports
//! each error, and uses the rest of the configuration.

mod describe;
mod error;
mod files;
mod nearest;
mod parse;
mod settings;
#[cfg(test)]
mod tests;
mod uuid;
mod value;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use error::{ConfigError, Location};
pub use parse::{options, parse_machine, parse_service};
pub use settings::{Limits, MachineSettings, Settings, socket_path};
pub use uuid::Uuid;
pub use value::{Entry, Item, Value};

use crate::ids::Uid;
use crate::names::MachineName;

/// The directories of one instance of the service.
#[derive(Clone, Debug)]
pub struct Directories {
    /// State that lives until the next boot; `qmp/` in it holds the QMP sockets, and `machines/` the
    /// persisted state.
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
    pub fn machine_states(&self) -> PathBuf {
        self.runtime.join("machines")
    }

    /// The directory of the persisted registrations.
    pub fn registrations(&self) -> PathBuf {
        self.runtime.join("registrations")
    }
}

/// The settings of the service itself: the table `[service]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// How long the service stays without a machine and without a call.
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
    /// The path of the file.
    pub path: PathBuf,
    /// Its settings; `None` if the file has an error. Such a file starts no machine, and no other
    /// machine can have its name.
    pub settings: Option<MachineSettings>,
}

/// The content of all configuration files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    /// The settings of the service itself.
    pub service: Service,
    /// The settings of machines that have no settings of their own.
    pub defaults: Settings,
    /// Whether `service` and `defaults` lack settings because their files have errors.
    pub has_service_errors: bool,
    /// The machines that have files.
    pub machines: BTreeMap<MachineName, MachineFile>,
    /// All errors, sorted by file and line.
    pub errors: Vec<ConfigError>,
}

impl Configuration {
    /// Reads all files below `directory`. A file or directory that does not exist is not an error.
    pub fn read(directory: &Path) -> Self {
        files::read(directory)
    }

    /// Returns this configuration as the successor of `previous`. The previous settings of a file that
    /// has an error now stay in force.
    #[must_use]
    pub fn replacing(mut self, previous: &Self) -> Self {
        if self.has_service_errors {
            self.service = previous.service.clone();
            self.defaults = previous.defaults.clone();
        }
        for (name, file) in &mut self.machines {
            if file.settings.is_none()
                && let Some(previous) = previous.machines.get(name)
            {
                file.settings.clone_from(&previous.settings);
            }
        }
        self
    }

    /// Returns the settings of the machine `name`. The settings of its `registration` by a user take
    /// precedence over those of its file, and these over the defaults.
    ///
    /// Of the defaults, only the time limits apply to a machine that a user except root registered, unless
    /// `defaults-for-users` is set. The scope of such a machine is in the slice of the user.
    pub fn settings_of(
        &self,
        name: &MachineName,
        registration: Option<(Uid, &Settings)>,
    ) -> Settings {
        let file = self.machines.get(name);
        let file = file.and_then(|file| file.settings.as_ref());
        let user = registration.map(|(uid, _)| uid);
        let user = user.filter(|uid| !uid.is_root() && !self.service.defaults_for_users);
        let defaults = match user {
            Some(uid) => Settings {
                slice: Some(format!("user-{uid}.slice")),
                ..self.defaults.for_users()
            },
            None => self.defaults.clone(),
        };
        let own = registration.map(|(_, own)| own.clone()).unwrap_or_default();
        match file {
            Some(file) => own.over(&file.settings).over(&defaults),
            None => own.over(&defaults),
        }
    }
}
