//! The events of QEMU that vcpud reacts to. All others are [`Event::Other`], regardless of their data.

use serde::Deserialize;

use crate::text::Text;

/// The maximum number of different events that wait to be read. A guest causes at most four for each CPU
/// slot, and the service reads them within milliseconds.
pub(super) const MAX_EVENTS: usize = 4096;

/// An event of QEMU. It only leads to a refresh; the inventory decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// `DEVICE_DELETED`: a device, or a child of it such as `…/lapic`, was removed. Its id may be in use
    /// again.
    DeviceDeleted {
        /// The id of the device.
        device: Option<Text>,
        /// Its QOM path.
        path: Text,
    },
    /// `DEVICE_UNPLUG_GUEST_ERROR`: the guest refused to release a device.
    UnplugGuestError {
        /// The id of the device.
        device: Option<Text>,
        /// Its QOM path.
        path: Text,
    },
    /// `ACPI_DEVICE_OST` for a CPU slot: the guest reports the state of a request.
    AcpiCpuOst(AcpiOst),
    /// `RESET`: the guest was reset, which completes removals on some machines.
    Reset,
    /// The machine's run state changed.
    RunState,
    /// Another event.
    Other,
}

/// An evaluation of the ACPI method `_OST` by the guest (ACPI 6.5, 6.3.5).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct AcpiOst {
    /// The id of the CPU, if it has one and is present.
    #[serde(default)]
    pub device: Option<Text>,
    /// The number of the slot, as text.
    pub slot: Text,
    /// `CPU` for CPU slots.
    #[serde(rename = "slot-type")]
    pub slot_type: Text,
    /// The subject of the status: 1 insertion, 3 ejection request, 0x103 ejection.
    pub source: u64,
    /// The status.
    pub status: u64,
}

/// `source` of an `_OST` about an ejection that was requested from outside the guest.
const EJECTION_REQUEST: u64 = 3;
/// `source` of an `_OST` about an ejection that the guest began itself.
const EJECTION: u64 = 0x103;
/// `status` while the ejection is in progress.
const IN_PROGRESS: u64 = 0x84;

impl AcpiOst {
    /// Returns whether the guest began the ejection itself. Only the last `_OST` of an ejection has this
    /// source (Linux, `acpi_device_hotplug()`).
    pub fn is_guests_own(&self) -> bool {
        self.source == EJECTION
    }

    /// Returns the status with which the guest keeps the CPU; `None` if the ejection goes on or has succeeded, or if
    /// this is about something else.
    pub fn failed_ejection(&self) -> Option<u64> {
        let is_ejection = matches!(self.source, EJECTION_REQUEST | EJECTION);
        (is_ejection && !matches!(self.status, 0 | IN_PROGRESS)).then_some(self.status)
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
    /// Parses the event `name` with its `data`.
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
        assert_eq!(ost(1, 0x80).failed_ejection(), None, "about an insertion");
        assert_eq!(ost(3, 0).failed_ejection(), None);
        assert_eq!(ost(3, 0x84).failed_ejection(), None, "in progress");
        for status in [0x80, 0x81, 0x82, 0x83, 1, 0xff] {
            assert_eq!(ost(3, status).failed_ejection(), Some(status));
            assert_eq!(ost(0x103, status).failed_ejection(), Some(status));
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
