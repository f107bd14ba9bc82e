//! All public names: the bus name, objects, errors, polkit actions, machine names. Other names are not part
//! of the interface.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

/// The well-known bus name of the service.
pub const BUS_NAME: &str = "org.vcpud1";
/// The root object: `ObjectManager` and [`MANAGER_INTERFACE`].
pub const ROOT_PATH: &str = "/org/vcpud1";
/// The prefix of the object paths of machines.
pub const MACHINE_PATH_PREFIX: &str = "/org/vcpud1/machine/";
/// The interface of the root object.
pub const MANAGER_INTERFACE: &str = "org.vcpud1.Manager";
/// The interface of every machine object.
pub const MACHINE_INTERFACE: &str = "org.vcpud1.Machine";

/// The well-known bus name and the interface of `vcpud-autoscale`.
pub const AUTOSCALE_NAME: &str = "org.vcpud1.Autoscale";
/// Its object.
pub const AUTOSCALE_PATH: &str = "/org/vcpud1/autoscale";

/// The names of D-Bus errors.
pub mod error_name {
    macro_rules! own {
        ($($constant:ident = $name:literal;)*) => {
            $(
                #[doc = concat!("`org.vcpud1.Error.", $name, "`")]
                pub const $constant: &str = concat!("org.vcpud1.Error.", $name);
            )*
            /// All errors of the service, in alphabetical order.
            pub const ALL: &[&str] = &[$($constant),*];
        };
    }

    own! {
        BUSY = "Busy";
        CPU_UNAVAILABLE = "CpuUnavailable";
        DISCONNECTED = "Disconnected";
        GUEST_DID_NOT_START = "GuestDidNotStart";
        GUEST_REFUSED = "GuestRefused";
        INVALID_CPU_LIST = "InvalidCpuList";
        INVALID_VCPU = "InvalidVcpu";
        LIMIT_EXCEEDED = "LimitExceeded";
        MACHINE_EXISTS = "MachineExists";
        NO_SUCH_MACHINE = "NoSuchMachine";
        NOT_REMOVABLE = "NotRemovable";
        NOT_SUPPORTED = "NotSupported";
        OUT_OF_RANGE = "OutOfRange";
        PLACEMENT_FAILED = "PlacementFailed";
        QMP_FAILED = "QmpFailed";
        QMP_TIMEOUT = "QmpTimeout";
        REMOVAL_PENDING = "RemovalPending";
    }

    /// The caller is not authorized.
    pub const ACCESS_DENIED: &str = "org.freedesktop.DBus.Error.AccessDenied";
    /// The caller must authenticate, and the message does not allow the question.
    pub const INTERACTIVE_AUTHORIZATION_REQUIRED: &str =
        "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired";
    /// An argument is not valid.
    pub const INVALID_ARGS: &str = "org.freedesktop.DBus.Error.InvalidArgs";
    /// The state cannot be saved.
    pub const IO_ERROR: &str = "org.freedesktop.DBus.Error.IOError";
}

/// The ids of messages of the journal (`MESSAGE_ID` in `systemd.journal-fields(7)`), which
/// `systemd/vcpud.catalog` explains.
pub mod message_id {
    /// A vCPU was added.
    pub const VCPU_ADDED: &str = "9f4e0c4e91c24cafaa929189f8a649eb";
    /// The guest started a vCPU that was added.
    pub const VCPU_STARTED: &str = "9427bbdf433e4397ae2cc384539ded0a";
    /// A vCPU was removed.
    pub const VCPU_REMOVED: &str = "3598f460a1c2447c9c19365cd6bd577d";
    /// The guest or QEMU refused to remove a vCPU.
    pub const VCPU_REMOVAL_FAILED: &str = "54fe9cb5ef784d6d95654fc2f2fabe84";
    /// The time limit of a call ended before vCPUs were removed.
    pub const VCPU_REMOVAL_PENDING: &str = "6125963b38934c3fbaa3a4661cc5d373";
    /// A vCPU could not be placed as configured.
    pub const VCPU_NOT_PLACED: &str = "dbb090f188cf40068c61fd0936e0ab6a";
    /// A call was authorized.
    pub const CALL_AUTHORIZED: &str = "0e7de91df5b945eabe337c3ac2db00ad";
    /// All ids.
    pub const ALL: &[&str] = &[
        CALL_AUTHORIZED,
        VCPU_ADDED,
        VCPU_STARTED,
        VCPU_REMOVED,
        VCPU_REMOVAL_FAILED,
        VCPU_REMOVAL_PENDING,
        VCPU_NOT_PLACED,
    ];
}

/// The polkit actions.
pub mod action_id {
    /// Registers and unregisters machines, and reloads the configuration.
    pub const MANAGE_MACHINES: &str = "org.vcpud1.manage-machines";
    /// Changes which machines `vcpud-autoscale` scales.
    pub const MANAGE_AUTOSCALE: &str = "org.vcpud1.manage-autoscale";
    /// Changes the number of vCPUs.
    pub const SET_VCPUS: &str = "org.vcpud1.set-vcpus";
    /// Changes where and how vCPUs run on the host.
    pub const TUNE_VCPUS: &str = "org.vcpud1.tune-vcpus";
}

/// The name of a machine: 1 to 64 bytes of `[A-Za-z0-9._-]`, not starting with `.` or `-`.
///
/// The name is part of file names, unit names and object paths. A value of this type was checked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MachineName(String);

/// The error for a text that is not a [`MachineName`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a machine name: 1 to 64 characters of A-Z, a-z, 0-9, '.', '_', '-', not starting with '.' or '-'"
)]
pub struct InvalidMachineName(pub String);

impl MachineName {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the object path of the machine.
    pub fn object_path(&self) -> String {
        format!("{MACHINE_PATH_PREFIX}{}", escape_label(&self.0))
    }
}

impl MachineName {
    /// Returns the name of the scope of the machine (`systemd.scope(5)`).
    pub fn scope(&self) -> String {
        format!("vcpud-{}.scope", escape_label(&self.0))
    }
}

impl FromStr for MachineName {
    type Err = InvalidMachineName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let valid = (1..=64).contains(&text.len())
            && !text.starts_with(['.', '-'])
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidMachineName(text.chars().take(80).collect()))
        }
    }
}

impl fmt::Display for MachineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Borrow<str> for MachineName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// Escapes a text to one element of an object path, as `sd_bus_path_encode(3)`: every byte outside `[A-Za-z0-9]`, and a leading digit, becomes `_xx`; the empty text becomes `_`.
pub fn escape_label(text: &str) -> String {
    if text.is_empty() {
        return "_".to_owned();
    }
    let mut label = String::with_capacity(text.len());
    for (i, byte) in text.bytes().enumerate() {
        if byte.is_ascii_alphabetic() || (i > 0 && byte.is_ascii_digit()) {
            label.push(char::from(byte));
        } else {
            label.push_str(&format!("_{byte:02x}"));
        }
    }
    label
}

/// Returns the text whose [`escape_label`] is `label`; `None` if no text has it.
pub fn unescape_label(label: &str) -> Option<String> {
    if label == "_" {
        return Some(String::new());
    }
    let mut bytes = Vec::with_capacity(label.len());
    let mut rest = label.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first == b'_' {
            let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    let text = String::from_utf8(bytes).ok()?;
    // Only the spelling of escape_label() is a label.
    (escape_label(&text) == label).then_some(text)
}

/// Returns the name of the machine with this object path; the path itself if it is not that of a machine.
pub fn name_of(path: &str) -> String {
    let label = path.strip_prefix(MACHINE_PATH_PREFIX);
    let name = label.and_then(unescape_label);
    name.unwrap_or_else(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn escapes_labels_as_sd_bus() {
        for (text, label) in [
            ("", "_"),
            ("web", "web"),
            ("web-1", "web_2d1"),
            ("1web", "_31web"),
            ("a.b_c", "a_2eb_5fc"),
            ("ä", "_c3_a4"),
        ] {
            assert_eq!(escape_label(text), label);
            assert_eq!(unescape_label(label).as_deref(), Some(text));
        }
    }

    #[test]
    fn a_scope_has_the_name_of_its_machine() {
        let name: MachineName = "web-1".parse().unwrap();
        assert_eq!(name.scope(), "vcpud-web_2d1.scope");
    }

    #[test]
    fn refuses_other_spellings_of_labels() {
        for label in ["", "_2", "_zz", "_61", "a_2D", "a__", "1a", "_+1", "a-b"] {
            assert_eq!(unescape_label(label), None, "{label}");
        }
    }

    #[test]
    fn checks_the_names_of_machines() {
        for good in ["a", "web-1", "1", "_x", "a.b", &"x".repeat(64)] {
            assert!(good.parse::<MachineName>().is_ok(), "{good}");
        }
        for bad in ["", ".a", "-a", "a b", "a/b", "ä", "a\n", &"x".repeat(65)] {
            assert!(bad.parse::<MachineName>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn labels_round_trip(text in ".*") {
            let label = escape_label(&text);
            prop_assert!(label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'));
            prop_assert_eq!(unescape_label(&label), Some(text));
        }
    }
}
