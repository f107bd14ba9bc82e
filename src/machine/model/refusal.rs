//! Refusals to add or remove vCPUs, and their reasons. Owns the codes and texts of reasons.

use serde::{Deserialize, Serialize};

use crate::ids::VcpuId;
use crate::qmp::{AcpiOst, CommandError};

/// A refusal to add or remove vCPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The vCPUs of one slot.
    pub vcpus: Vec<VcpuId>,
    /// The reason.
    pub reason: RefusalReason,
}

/// The reason of a refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusalReason {
    /// The kind, for programs.
    pub code: RefusalCode,
    /// The text, for people.
    pub text: String,
}

/// The kind of a reason. The words are a part of the interface on D-Bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalCode {
    /// The guest, or QEMU for this guest, does not support it (`_OST` status 0x80).
    NotSupported,
    /// The guest uses the CPU (0x81).
    InUse,
    /// The guest is busy with the CPU (0x82).
    Busy,
    /// Another device of the guest depends on the CPU (0x83).
    Dependency,
    /// The guest failed to give up the CPU, for another reason.
    GuestFailed,
    /// QEMU has no operating system to ask.
    NoGuest,
    /// QEMU refuses because of a migration.
    Migrating,
    /// QEMU refused for another reason.
    QemuRefused,
    /// QEMU took the request and does not list the CPU.
    NotListed,
}

impl RefusalCode {
    /// Returns the word for it on D-Bus.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotSupported => "not-supported",
            Self::InUse => "in-use",
            Self::Busy => "busy",
            Self::Dependency => "dependency",
            Self::GuestFailed => "guest-failed",
            Self::NoGuest => "no-guest",
            Self::Migrating => "migrating",
            Self::QemuRefused => "qemu-refused",
            Self::NotListed => "not-listed",
        }
    }
}

impl RefusalReason {
    fn new(code: RefusalCode, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { code, text }
    }

    /// Returns the reason that the guest reports with `ost`; `None` if that is not a refusal. The statuses are
    /// those of ACPI 6.5, table 6.51.
    pub(super) fn from_ost(ost: &AcpiOst) -> Option<Self> {
        let (code, text) = match ost.failed_ejection()? {
            0x80 => (
                RefusalCode::NotSupported,
                "the guest does not support removing this CPU",
            ),
            0x81 => (RefusalCode::InUse, "the CPU is in use by the guest"),
            0x82 => (RefusalCode::Busy, "the guest is busy with the CPU"),
            0x83 => (
                RefusalCode::Dependency,
                "another device of the guest depends on the CPU",
            ),
            other => {
                let text = format!("the guest failed to remove the CPU (_OST status {other:#x})");
                return Some(Self::new(RefusalCode::GuestFailed, text));
            }
        };
        Some(Self::new(code, text))
    }

    /// Returns the reason of the event `DEVICE_UNPLUG_GUEST_ERROR`, which has none.
    pub(super) fn from_guest_error() -> Self {
        Self::new(
            RefusalCode::GuestFailed,
            "the guest refused to give up the CPU",
        )
    }

    /// Returns the reason of a CPU that QEMU does not list after it took the request.
    pub(super) fn not_listed() -> Self {
        Self::new(
            RefusalCode::NotListed,
            "QEMU took the request and does not list the CPU",
        )
    }

    /// Returns the reason that QEMU gives, with what the caller can do.
    pub(super) fn from_qemu(error: &CommandError) -> Self {
        let text = error.desc.as_str();
        let (code, hint) = if text.contains("not allowed while migrating") {
            let hint = " (try again when the migration is over)";
            (RefusalCode::Migrating, hint)
        } else if text.contains("unplug request for not supported device type") {
            let hint = " (no operating system has taken charge of the CPUs: try again when the guest is up; a guest without ACPI and a machine type of QEMU 2.6 or older never give up CPUs)";
            (RefusalCode::NoGuest, hint)
        } else if text.contains("not supported without ACPI") {
            // hw/i386/pc.c, `-machine acpi=off`: QEMU reports it only when it is asked.
            (RefusalCode::NotSupported, "")
        } else {
            (RefusalCode::QemuRefused, "")
        };
        Self::new(code, format!("{error}{hint}"))
    }
}

#[cfg(test)]
impl From<&str> for RefusalReason {
    fn from(text: &str) -> Self {
        Self::new(RefusalCode::GuestFailed, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::Text;

    #[test]
    fn statuses_of_the_guest_have_codes() {
        let code = |status| {
            let ost = AcpiOst {
                device: None,
                slot: Text::lossy("1"),
                slot_type: Text::lossy("CPU"),
                source: 3,
                status,
            };
            RefusalReason::from_ost(&ost).map(|reason| reason.code.as_str())
        };
        assert_eq!(code(0), None);
        assert_eq!(code(0x80), Some("not-supported"));
        assert_eq!(code(0x81), Some("in-use"));
        assert_eq!(code(0x82), Some("busy"));
        assert_eq!(code(0x83), Some("dependency"));
        assert_eq!(code(1), Some("guest-failed"));
    }

    #[test]
    fn words_are_those_of_the_persisted_state() {
        for code in [
            RefusalCode::NotSupported,
            RefusalCode::InUse,
            RefusalCode::Busy,
            RefusalCode::Dependency,
            RefusalCode::GuestFailed,
            RefusalCode::NoGuest,
            RefusalCode::Migrating,
            RefusalCode::QemuRefused,
            RefusalCode::NotListed,
        ] {
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
        }
    }
}
