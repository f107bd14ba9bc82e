//! The start of a QMP connection: capabilities, and the constant properties of QEMU.

use std::collections::BTreeSet;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::json;

use super::client::Client;
use super::error::{Closed, Error};
use crate::text::Text;

/// The constant properties of a QEMU process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Its version.
    pub version: Version,
    /// The UUID of the VM; empty if it has none.
    pub uuid: Text,
    /// The accelerator, such as `kvm` or `tcg`.
    pub accelerator: Text,
    /// The target architecture in the spelling of QEMU; empty if QEMU does not report it.
    pub architecture: Text,
    /// Whether the memory of the guest is encrypted (SEV, TDX).
    pub is_confidential: bool,
    /// The commands that QEMU has, of those that the service checks.
    pub commands: Commands,
}

/// A QEMU version, `MAJOR.MINOR.MICRO`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
    /// The third number.
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

/// The commands of the service that some versions of QEMU do not have.
const OPTIONAL: [&str; 6] = [
    "cpu-add",
    "query-accelerators",
    "query-acpi-ospm-status",
    "query-cpus-fast",
    "query-hotpluggable-cpus",
    "query-stats",
];

/// A set of commands. Commands that the service never sends are ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Commands(BTreeSet<&'static str>);

impl Commands {
    /// Returns whether QEMU has `command`, which must be one of `OPTIONAL`.
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
struct SevInfo {
    enabled: bool,
}

#[derive(Deserialize)]
struct AcceleratorInfo {
    enabled: Text,
}

/// The UUID that QEMU reports for a VM without a UUID.
const NO_UUID: &str = "00000000-0000-0000-0000-000000000000";

/// Leaves the capabilities mode, and queries the constant properties.
///
/// # Errors
///
/// Fails if the connection ends, if QEMU refuses a command that each version has, or if a reply has
/// another type. Commands that some versions do not have may fail.
pub async fn negotiate(client: &Client) -> Result<Identity, Error> {
    let capabilities = client.send::<IgnoredAny>("qmp_capabilities", None);
    let commands = client.send::<Commands>("query-commands", None);
    let version = client.send::<VersionInfo>("query-version", None);
    let uuid = client.send::<UuidInfo>("query-uuid", None);
    let target = client.send::<TargetInfo>("query-target", None);
    let kvm = client.send::<KvmInfo>("query-kvm", None);
    // QEMU 6.0 and later name the object that protects the guest, if there is one.
    let property = json!({"path": "/machine", "property": "confidential-guest-support"});
    let protection = client.send::<Text>("qom-get", Some(property));
    let sev = client.send::<SevInfo>("query-sev", None);

    match capabilities.wait().await {
        // The previous instance did it. If not, QEMU refuses all further commands.
        Err(Error::Command { .. }) => {}
        done => drop(done?),
    }
    let commands = commands.wait().await?;
    let version = version.wait().await?.qemu;
    let uuid = optional(uuid.wait().await)?.map(|u| u.uuid);
    let architecture = optional(target.wait().await)?.map(|t| t.arch);
    let kvm = optional(kvm.wait().await)?;
    let kvm = kvm.map(|kvm| Text::lossy(if kvm.enabled { "kvm" } else { "tcg" }));

    let protection = optional(protection.wait().await)?.unwrap_or_default();
    let sev = optional(sev.wait().await)?;

    // QEMU 11 reports the accelerator. Before that, it is KVM, or TCG except in rare builds.
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
        accelerator: accelerator.or(kvm).unwrap_or_default(),
        is_confidential: !protection.as_str().is_empty() || sev.is_some_and(|sev| sev.enabled),
        architecture: architecture.unwrap_or_default(),
        commands,
    })
}

/// Returns `None` if QEMU refused the command or does not have it.
///
/// # Errors
/// Fails if the connection is lost.
fn optional<T>(result: Result<T, Error>) -> Result<Option<T>, Closed> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Error::Closed(closed)) => Err(closed),
        Err(_) => Ok(None),
    }
}
