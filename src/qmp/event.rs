//! The events that vcpud is woken by. All others are [`Event::Other`], whatever they carry.

use serde::Deserialize;

use crate::text::Text;

/// The maximum number of different events that wait to be read. A guest causes at most four for each CPU
/// slot, and the service reads them within milliseconds.
pub(super) const MAX_EVENTS: usize = 4096;

/// What an event tells. Events only say when to look; what is true is in the inventory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// `DEVICE_DELETED`: a device, or a child of it such as `…/lapic`, is gone, or was gone
    /// before its id was used again.
    DeviceDeleted {
        /// The id that it was plugged with.
        device: Option<Text>,
        /// Its QOM path.
        path: Text,
    },
    /// `DEVICE_UNPLUG_GUEST_ERROR`: the guest refused to give a device up.
    UnplugGuestError {
        /// The id that it was plugged with.
        device: Option<Text>,
        /// Its QOM path.
        path: Text,
    },
    /// `ACPI_DEVICE_OST` for a CPU slot: the guest says how it gets on with it.
    AcpiCpuOst(AcpiOst),
    /// `RESET`: the guest was reset, which completes removals on some machines.
    Reset,
    /// The machine's run state changed.
    RunState,
    /// Anything else.
    Other,
}

/// The guest's evaluation of the ACPI `_OST` method (ACPI 6.5, 6.3.5).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct AcpiOst {
    /// The id of the CPU, where it was plugged with one and is still there.
    #[serde(default)]
    pub device: Option<Text>,
    /// The slot, a number in text.
    pub slot: Text,
    /// `CPU` for CPU slots.
    #[serde(rename = "slot-type")]
    pub slot_type: Text,
    /// What the status is about: 1 insertion, 3 ejection request, 0x103 ejection.
    pub source: u64,
    /// How it went.
    pub status: u64,
}

/// `source` of an `_OST` about the ejection that somebody outside the guest asked for.
const EJECTION_REQUEST: u64 = 3;
/// `source` of an `_OST` about an ejection that the guest began by itself.
const EJECTION: u64 = 0x103;
/// `status` while the guest is at it.
const IN_PROGRESS: u64 = 0x84;

impl AcpiOst {
    /// Whether it is about an ejection that the guest began by itself. Only the last `_OST` of an
    /// ejection says so (Linux, `acpi_device_hotplug()`).
    pub fn is_guests_own(&self) -> bool {
        self.source == EJECTION
    }

    /// Why the guest keeps the CPU, in words; `None` if this is no refusal of a removal.
    pub fn refusal(&self) -> Option<String> {
        if !matches!(self.source, EJECTION_REQUEST | EJECTION) {
            return None;
        }
        Some(match self.status {
            0 | IN_PROGRESS => return None,
            0x80 => "the guest does not support removing this CPU".into(),
            0x81 => "the CPU is in use by the guest".into(),
            0x82 => "the guest is busy with the CPU".into(),
            0x83 => "another device of the guest depends on the CPU".into(),
            other => format!("the guest failed to remove the CPU (_OST status {other:#x})"),
        })
    }
}

#[derive(Deserialize)]
struct Device {
    #[serde(default)]
    device: Option<Text>,
    path: Text,
}

#[derive(Deserialize)]
struct OstInfo {
    info: AcpiOst,
}

impl Event {
    /// Reads the event `name` with its `data`.
    pub(super) fn parse(name: &str, data: &str) -> serde_json::Result<Self> {
        Ok(match name {
            "DEVICE_DELETED" => {
                let Device { device, path } = serde_json::from_str(data)?;
                Event::DeviceDeleted { device, path }
            }
            "DEVICE_UNPLUG_GUEST_ERROR" => {
                let Device { device, path } = serde_json::from_str(data)?;
                Event::UnplugGuestError { device, path }
            }
            "ACPI_DEVICE_OST" => {
                let OstInfo { info } = serde_json::from_str(data)?;
                if info.slot_type.as_str() == "CPU" {
                    Event::AcpiCpuOst(info)
                } else {
                    Event::Other
                }
            }
            "RESET" => Event::Reset,
            "STOP" | "RESUME" | "SHUTDOWN" | "SUSPEND" | "SUSPEND_DISK" | "WAKEUP"
            | "GUEST_PANICKED" | "GUEST_CRASHLOADED" | "MIGRATION" | "WATCHDOG"
            | "BLOCK_IO_ERROR" => Event::RunState,
            _ => Event::Other,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ost(source: u64, status: u64) -> AcpiOst {
        AcpiOst {
            device: None,
            slot: Text::lossy("1"),
            slot_type: Text::lossy("CPU"),
            source,
            status,
        }
    }

    #[test]
    fn only_a_failed_ejection_is_a_refusal() {
        assert_eq!(ost(1, 0x80).refusal(), None, "about an insertion");
        assert_eq!(ost(3, 0).refusal(), None);
        assert_eq!(ost(3, 0x84).refusal(), None, "in progress");
        for status in [0x80, 0x81, 0x82, 0x83, 1, 0xff] {
            assert!(ost(3, status).refusal().is_some(), "{status:#x}");
            assert!(ost(0x103, status).refusal().is_some(), "{status:#x}");
        }
    }

    #[test]
    fn other_slot_types_are_other_events() {
        let memory = r#"{"info": {"source": 3, "status": 1, "slot": "0", "slot-type": "DIMM"}}"#;
        assert_eq!(
            Event::parse("ACPI_DEVICE_OST", memory).unwrap(),
            Event::Other
        );
        assert_eq!(Event::parse("NEWS", "[1]").unwrap(), Event::Other);
    }
}
