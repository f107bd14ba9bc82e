//! The start of a QMP connection: capabilities, and what does not change while it lasts.

use std::collections::BTreeSet;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};

use super::client::Client;
use super::error::{Closed, Error};
use crate::text::Text;

/// What a QEMU says of itself once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Its version.
    pub version: Version,
    /// The VM's UUID; empty where it has none.
    pub uuid: Text,
    /// `kvm`, `tcg`, or what else runs the vCPUs.
    pub accelerator: Text,
    /// QEMU's name of the target; empty where it does not say.
    pub architecture: Text,
    /// The commands that it has, of those that the service asks about.
    pub commands: Commands,
}

/// A QEMU version, `MAJOR.MINOR.MICRO`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Version {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// Third number.
    pub micro: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

#[derive(Deserialize)]
struct VersionInfo {
    qemu: Version,
}

/// The commands that some QEMUs have and others lack, as far as the service sends them.
const OPTIONAL: [&str; 5] = [
    "cpu-add",
    "query-accelerators",
    "query-acpi-ospm-status",
    "query-cpus-fast",
    "query-hotpluggable-cpus",
];

/// A set of commands. Commands that the service never sends are ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Commands(BTreeSet<&'static str>);

impl Commands {
    /// Returns whether QEMU has `command`, which must be one that not every QEMU has.
    pub fn contains(&self, command: &str) -> bool {
        debug_assert!(OPTIONAL.contains(&command), "{command} is never looked up");
        self.0.contains(command)
    }
}

impl<'de> Deserialize<'de> for Commands {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(CommandList)
    }
}

struct CommandList;

impl<'de> Visitor<'de> for CommandList {
    type Value = Commands;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of commands")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Commands, A::Error> {
        let mut commands = BTreeSet::new();
        while let Some(CommandInfo { name }) = seq.next_element()? {
            let known = OPTIONAL.into_iter();
            commands.extend(known.filter(|known| *known == name.as_str()));
        }
        Ok(Commands(commands))
    }
}

#[derive(Deserialize)]
struct CommandInfo {
    name: Text,
}

#[derive(Deserialize)]
struct UuidInfo {
    #[serde(rename = "UUID")]
    uuid: Text,
}

#[derive(Deserialize)]
struct TargetInfo {
    arch: Text,
}

#[derive(Deserialize)]
struct KvmInfo {
    enabled: bool,
}

#[derive(Deserialize)]
struct AcceleratorInfo {
    enabled: Text,
}

/// The UUID that QEMU reports for a VM that was given none.
const NO_UUID: &str = "00000000-0000-0000-0000-000000000000";

/// Leaves the capabilities mode and queries what does not change.
///
/// # Errors
///
/// Fails if the connection ends, if QEMU refuses a command that each version has, or if an answer has
/// another type. A command that some versions do not have may fail.
pub async fn negotiate(client: &Client) -> Result<Identity, Error> {
    let capabilities = client.send::<IgnoredAny>("qmp_capabilities", None);
    let commands = client.send::<Commands>("query-commands", None);
    let version = client.send::<VersionInfo>("query-version", None);
    let uuid = client.send::<UuidInfo>("query-uuid", None);
    let target = client.send::<TargetInfo>("query-target", None);
    let kvm = client.send::<KvmInfo>("query-kvm", None);

    match capabilities.wait().await {
        // A previous instance of the service did it; if not, QEMU refuses all that follows.
        Err(Error::Command { .. }) => {}
        done => drop(done?),
    }
    let commands = commands.wait().await?;
    let version = version.wait().await?.qemu;
    let uuid = optional(uuid.wait().await)?.map(|u| u.uuid);
    let architecture = optional(target.wait().await)?.map(|t| t.arch);
    let kvm = optional(kvm.wait().await)?.is_some_and(|k| k.enabled);

    // QEMU 11 names them all; before it, what is not KVM is TCG but for rare builds.
    let accelerator = if commands.contains("query-accelerators") {
        let reply = client.send::<AcceleratorInfo>("query-accelerators", None);
        optional(reply.wait().await)?.map(|a| a.enabled)
    } else {
        None
    };
    Ok(Identity {
        version,
        uuid: uuid
            .filter(|uuid| uuid.as_str() != NO_UUID)
            .unwrap_or_default(),
        accelerator: accelerator.unwrap_or_else(|| Text::lossy(if kvm { "kvm" } else { "tcg" })),
        architecture: architecture.unwrap_or_default(),
        commands,
    })
}

/// What QEMU has no command for, or refuses to tell, is absent; a lost connection is an error.
fn optional<T>(result: Result<T, Error>) -> Result<Option<T>, Closed> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Error::Closed(closed)) => Err(closed),
        Err(_) => Ok(None),
    }
}
