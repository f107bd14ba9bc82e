//! The persisted state of a machine: the reported vCPUs, and the requests to its QEMU. With it, the
//! next instance reports a vCPU that was removed in the meantime with the user who asked for it, and
//! reports nothing twice.
//!
//! One JSON file for each machine, replaced as a whole. It is about one QEMU process. Unknown members
//! are ignored and missing ones are empty, so that the previous and the next version of the service
//! can read it.

use serde::{Deserialize, Serialize};

use super::event::VcpuChange;
use super::evidence::Plugging;
use super::numbering::Numbering;
use super::refusal::RefusalReason;
use super::request::OfflineCpu;
use super::starts::AwaitedVcpus;
use crate::ids::{Uid, VcpuId};
use crate::inventory::PresentSlot;
use crate::placement::{ChangedThreads, Tuning};
use crate::process::ProcessId;

/// The version of the files. Files of other versions are not read.
pub(in crate::machine) const VERSION: u32 = 1;

/// The persisted state of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedState {
    /// The version of the file.
    pub version: u32,
    /// The QEMU process.
    pub leader: ProcessId,
    /// The vCPUs that were reported.
    pub present: Vec<PresentSlot>,
    /// The removals that were requested and have not ended.
    #[serde(default)]
    pub removals: Vec<AskedRemoval>,
    /// The vCPUs that the guest has not started, as far as it is known; `None` if the file does not say.
    #[serde(default)]
    pub awaited: Option<AwaitedVcpus>,
    /// The slots that QEMU was asked to add, and may have added.
    #[serde(default)]
    pub plugging: Option<Plugging>,
    /// The changes that are being emitted, and may have been.
    #[serde(default, rename = "telling")]
    pub unemitted: Vec<UnemittedChange>,
    /// The refusals that are being emitted, and may have been. The previous version does not know them.
    #[serde(default)]
    pub unemitted_refusals: Vec<UnemittedRefusal>,
    /// The vCPUs whose start is being emitted, and may have been. The previous version does not know them.
    #[serde(default)]
    pub unemitted_starts: Vec<VcpuChange>,
    /// The desired tuning; `None` if the file does not say.
    #[serde(default)]
    pub tuning: Option<Tuning>,
    /// The tuning of the configuration at that time.
    #[serde(default)]
    pub configured: Option<Tuning>,
    /// How often QEMU broke the limits of the protocol.
    #[serde(default)]
    pub breaches: u32,
    /// How many vCPUs QEMU created in its life, as far as it is known.
    #[serde(default)]
    pub created: u32,
    /// The guest CPUs that were taken offline for removals.
    #[serde(default)]
    pub offline: Vec<OfflineCpu>,
    /// The vCPUs whose number in the guest is known; `None` if the file does not say.
    #[serde(default)]
    pub numbering: Option<Numbering>,
    /// The threads with values to restore when nothing else is wanted.
    #[serde(default)]
    pub changed: ChangedThreads,
}

/// A change that is emitted again if it is not known whether it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UnemittedChange {
    Added(VcpuChange),
    Removed(VcpuChange),
}

impl UnemittedChange {
    /// Returns the vCPU that was added or removed.
    pub fn vcpu(&self) -> VcpuId {
        let (Self::Added(vcpu) | Self::Removed(vcpu)) = self;
        vcpu.id
    }
}

/// A `VcpuRemovalFailed` that is emitted again if it is not known whether it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnemittedRefusal {
    pub vcpu: VcpuChange,
    pub reason: RefusalReason,
}

/// A removal that was requested and has not ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskedRemoval {
    /// The vCPUs of the slot.
    pub vcpus: Vec<VcpuId>,
    /// The user who asked last.
    pub uid: Uid,
    /// Whether QEMU accepted it; else QEMU may not have received it.
    pub agreed: bool,
    /// Whether the guest had refused an earlier request.
    #[serde(default)]
    pub refused_before: bool,
}

impl SavedState {
    /// Returns an empty state about the QEMU process `leader`.
    pub(in crate::machine) fn new(leader: ProcessId) -> Self {
        Self {
            version: VERSION,
            leader,
            present: Vec::new(),
            removals: Vec::new(),
            awaited: None,
            plugging: None,
            unemitted: Vec::new(),
            unemitted_refusals: Vec::new(),
            unemitted_starts: Vec::new(),
            tuning: None,
            configured: None,
            breaches: 0,
            created: 0,
            offline: Vec::new(),
            numbering: None,
            changed: ChangedThreads::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::event::Cause;
    use super::super::starts::Awaited;
    use super::*;
    use crate::ids::{Pid, SlotId, Tid};
    use crate::placement::{ChangedThread, Scheduler};
    use crate::text::Text;

    const LEADER: ProcessId = ProcessId {
        pid: Pid(7),
        start: 9,
    };

    /// A state whose members are all set.
    fn full() -> SavedState {
        let vcpu = VcpuChange {
            id: VcpuId(3),
            alias: "vcpu3".into(),
            cause: Cause::Request,
            uid: Some(Uid(7)),
        };
        let tuning = Tuning {
            pins: [(VcpuId(1), "0".parse().unwrap())].into(),
            schedulers: [(VcpuId(1), Scheduler::Fifo(1))].into(),
            ..Tuning::default()
        };
        let changed = ChangedThread {
            thread: Tid(9),
            scheduler: Some(Scheduler::Batch),
            affinity: true,
        };
        SavedState {
            present: vec![PresentSlot {
                id: SlotId(0),
                width: 1,
                acpi_slot: 0,
                qom_path: Text::lossy("/machine/x"),
                threads: vec![Tid(9)],
            }],
            removals: vec![AskedRemoval {
                vcpus: vec![VcpuId(4), VcpuId(5)],
                uid: Uid(1000),
                agreed: true,
                refused_before: false,
            }],
            awaited: Some([(VcpuId(0), Awaited::default())].into()),
            plugging: Some(Plugging {
                slots: [SlotId(3)].into(),
                uid: Uid(7),
            }),
            unemitted: vec![UnemittedChange::Added(vcpu.clone())],
            unemitted_starts: vec![vcpu.clone()],
            unemitted_refusals: vec![UnemittedRefusal {
                vcpu,
                reason: "busy".into(),
            }],
            tuning: Some(tuning.clone()),
            configured: Some(tuning),
            breaches: 2,
            created: 3,
            offline: vec![OfflineCpu {
                vcpu: VcpuId(4),
                cpu: 2,
            }],
            numbering: Some(Numbering::default()),
            changed: [(VcpuId(1), changed)].into(),
            ..SavedState::new(LEADER)
        }
    }

    /// The file of the previous version, as that version writes it.
    const PREVIOUS: &str = r#"{"version":1,"leader":{"pid":7,"start":9},
        "present":[{"first":0,"width":1,"slot":0,"qom_path":"/machine/x","threads":[9]}],
        "removals":[{"vcpus":[4,5],"uid":1000,"agreed":true,"refused_before":false}],
        "plugging":{"firsts":[3],"uid":7},
        "telling":[{"Added":{"id":3,"alias":"vcpu3","cause":"Request","uid":7}}],
        "breaches":2}"#;

    /// Adds a member to each object with named members, at every level.
    fn with_unknown_members(value: Value) -> Value {
        match value {
            Value::Array(values) => values.into_iter().map(with_unknown_members).collect(),
            Value::Object(members) => {
                // Maps by number, and the member that names a variant, have no others.
                let is_map = members.keys().all(|name| name.parse::<u32>().is_ok());
                let is_variant = members.contains_key("Added");
                let members = members.into_iter();
                let members = members.map(|(name, value)| (name, with_unknown_members(value)));
                let mut members: serde_json::Map<String, Value> = members.collect();
                if !is_map && !is_variant {
                    members.insert("unknown".into(), true.into());
                }
                Value::Object(members)
            }
            other => other,
        }
    }

    #[test]
    fn reads_the_file_of_the_previous_version() {
        let expected = SavedState {
            tuning: None,
            configured: None,
            offline: Vec::new(),
            numbering: None,
            changed: ChangedThreads::new(),
            awaited: None,
            unemitted_refusals: Vec::new(),
            unemitted_starts: Vec::new(),
            created: 0,
            ..full()
        };
        let read: SavedState = serde_json::from_str(PREVIOUS).unwrap();
        assert_eq!(read, expected);
    }

    #[test]
    fn ignores_the_members_of_the_next_version() {
        let written = serde_json::to_value(full()).unwrap();
        let newer = with_unknown_members(written.clone());
        assert_ne!(newer, written);
        let read: SavedState = serde_json::from_value(newer).unwrap();
        assert_eq!(read, full());
    }

    #[test]
    fn the_previous_version_can_read_what_is_written() {
        let written = serde_json::to_value(full()).unwrap();
        let previous: Value = serde_json::from_str(PREVIOUS).unwrap();
        for (name, value) in previous.as_object().unwrap() {
            assert_eq!(written.get(name), Some(value), "{name}");
        }
    }
}
