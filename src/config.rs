//! Where the service finds its world, and the limits it works with.

use std::path::PathBuf;
use std::time::Duration;

/// The directories and limits of one run of the service.
#[derive(Clone, Debug)]
pub struct Config {
    /// State that lives until the next boot; `qmp/` in it holds the QMP sockets.
    pub runtime_directory: PathBuf,
    /// How machines are treated.
    pub limits: Limits,
    /// How long the service stays when there is nothing to do.
    pub idle_exit: Duration,
    /// In which slice of systemd machines get scopes of their own.
    pub slice: String,
}

/// The time limits for one machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long a call waits for removals, unless it says otherwise.
    pub removal_timeout: Duration,
    /// How long QEMU may take for one reply.
    pub qmp_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            removal_timeout: Duration::from_secs(5),
            qmp_timeout: Duration::from_secs(10),
        }
    }
}

impl Config {
    /// What the environment says, in the variables that systemd sets (`systemd.exec(5)`).
    pub fn from_environment() -> Self {
        let runtime_directory = std::env::var_os("RUNTIME_DIRECTORY")
            .filter(|value| !value.is_empty())
            .map_or_else(|| PathBuf::from("/run/vcpud"), PathBuf::from);
        Self {
            runtime_directory,
            limits: Limits::default(),
            idle_exit: Duration::from_secs(30),
            slice: "machine.slice".to_owned(),
        }
    }

    /// The directory whose `NAME.sock` files are QMP sockets of machines.
    pub fn qmp_directory(&self) -> PathBuf {
        self.runtime_directory.join("qmp")
    }

    /// The directory whose `NAME.sock` files are sockets of machines' guest agents.
    pub fn guest_agent_directory(&self) -> PathBuf {
        self.runtime_directory.join("guest-agent")
    }

    /// The directory in which machines are remembered over a restart of the service.
    pub fn record_directory(&self) -> PathBuf {
        self.runtime_directory.join("machines")
    }
}
