//! What is remembered of a machine over a restart of the service: what was told of it, and what
//! was asked of its QEMU. So a vCPU that goes while the service is down is told of, with who
//! asked for it, and nothing is told twice.
//!
//! A file a machine, JSON, replaced as a whole; it lives as long as its QEMU. Unknown members are
//! skipped and missing ones are empty, so that neighbouring versions read each other's files.

use serde::{Deserialize, Serialize};

use super::changes::Plugging;
use super::notice::{MachineEvent, Vcpu};
use crate::ids::{Uid, VcpuId};
use crate::inventory::PresentSlot;
use crate::placement::Tuning;
use crate::process::ProcessId;

/// The version of the files. A file of a version that is not known is not read.
pub(super) const VERSION: u32 = 1;

/// What is remembered of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The version of the file.
    pub version: u32,
    /// The QEMU that it is about.
    pub leader: ProcessId,
    /// The vCPUs that were told of.
    pub present: Vec<PresentSlot>,
    /// The removals that were asked for and have not ended.
    #[serde(default)]
    pub removals: Vec<AskedRemoval>,
    /// What QEMU was asked to plug and may have plugged.
    #[serde(default)]
    pub plugging: Option<Plugging>,
    /// What is being told, and may have been.
    #[serde(default)]
    pub telling: Vec<PendingEvent>,
    /// What is wanted for the vCPUs on the host; `None` if it was not remembered.
    #[serde(default)]
    pub tuning: Option<Tuning>,
    /// What the configuration wanted of that.
    #[serde(default)]
    pub configured: Option<Tuning>,
    /// How often the QEMU broke the limits of the protocol.
    #[serde(default)]
    pub breaches: u32,
}

/// A vCPU of which it is being told that it came or went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum PendingEvent {
    Added(Vcpu),
    Removed(Vcpu),
}

impl PendingEvent {
    /// What of `news` must be told again if it is not known whether it was.
    pub(super) fn of(news: &[MachineEvent]) -> Vec<Self> {
        let telling = news.iter().filter_map(|news| match news {
            MachineEvent::VcpuAdded(vcpu) => Some(Self::Added(vcpu.clone())),
            MachineEvent::VcpuRemoved(vcpu) => Some(Self::Removed(vcpu.clone())),
            _ => None,
        });
        telling.collect()
    }

    pub(super) fn news(self) -> MachineEvent {
        match self {
            Self::Added(vcpu) => MachineEvent::VcpuAdded(vcpu),
            Self::Removed(vcpu) => MachineEvent::VcpuRemoved(vcpu),
        }
    }
}

/// A removal that was asked for and has not ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AskedRemoval {
    /// The vCPUs of the entity.
    pub vcpus: Vec<VcpuId>,
    /// Who asked last.
    pub uid: Uid,
    /// Whether QEMU agreed to it; else it may not have heard.
    pub agreed: bool,
    /// Whether the guest had refused a former request.
    #[serde(default)]
    pub refused_before: bool,
}

impl Record {
    /// A record of the QEMU `leader`.
    pub(super) fn new(leader: ProcessId) -> Self {
        Self {
            version: VERSION,
            leader,
            present: Vec::new(),
            removals: Vec::new(),
            plugging: None,
            telling: Vec::new(),
            tuning: None,
            configured: None,
            breaches: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io};

    use serde_json::Value;

    use super::super::notice::Cause;
    use super::super::record_file::RecordFile;
    use super::*;
    use crate::ids::{Pid, SlotId, Tid};
    use crate::placement::Scheduler;
    use crate::text::Text;

    fn record() -> Record {
        let leader = ProcessId {
            pid: Pid(7),
            start: 9,
        };
        let removal = AskedRemoval {
            vcpus: vec![VcpuId(4), VcpuId(5)],
            uid: Uid(1000),
            agreed: true,
            refused_before: false,
        };
        Record {
            removals: vec![removal],
            ..Record::new(leader)
        }
    }

    /// A record in which every member is set.
    fn full() -> Record {
        let vcpu = Vcpu {
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
        Record {
            present: vec![PresentSlot {
                id: SlotId(0),
                width: 1,
                acpi_slot: 0,
                qom_path: Text::lossy("/machine/x"),
                threads: vec![Tid(9)],
            }],
            plugging: Some(Plugging {
                firsts: [SlotId(3)].into(),
                uid: Uid(7),
            }),
            telling: vec![PendingEvent::Added(vcpu)],
            tuning: Some(tuning.clone()),
            configured: Some(tuning),
            breaches: 2,
            ..record()
        }
    }

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

    #[tokio::test]
    async fn a_record_above_1_mib_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web.json");
        let mut file = RecordFile::new(path.clone());
        let row = full().present.remove(0);
        let large = Record {
            present: vec![row; 16_384],
            ..full()
        };
        let error = file.save(large).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        assert!(file.is_behind() && file.is_too_large());
        assert!(!path.exists() && !path.with_extension("new").exists());
        file.save(full()).await.unwrap();
        assert!(!file.is_behind());
    }

    #[tokio::test]
    async fn what_was_saved_is_loaded() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("machines/web.json");
        assert_eq!(RecordFile::new(path.clone()).load().await.unwrap(), None);
        RecordFile::new(path.clone()).save(record()).await.unwrap();
        let mut file = RecordFile::new(path.clone());
        assert_eq!(file.load().await.unwrap(), Some(record()));

        // What has not changed is not written again.
        fs::remove_file(&path).unwrap();
        file.save(record()).await.unwrap();
        assert!(!path.exists());
        file.remove().await.unwrap();
        file.save(record()).await.unwrap();
        assert!(path.exists());
        file.remove().await.unwrap();
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_neighbouring_versions_file_is_read_and_a_strangers_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web.json");
        let load = async |text: &str| {
            fs::write(&path, text).unwrap();
            RecordFile::new(path.clone()).load().await
        };
        let neighbour =
            r#"{"version": 1, "leader": {"pid": 7, "start": 9}, "present": [], "news": [1]}"#;
        let expected = Record::new(ProcessId {
            pid: Pid(7),
            start: 9,
        });
        assert_eq!(load(neighbour).await.unwrap(), Some(expected));
        let full = serde_json::to_value(full()).unwrap();
        let newer = with_unknown_members(full.clone());
        assert_ne!(newer, full);
        assert_eq!(load(&newer.to_string()).await.unwrap(), Some(self::full()));
        assert!(load(&neighbour.replace("1,", "2,")).await.is_err());
        assert!(load(&neighbour[..20]).await.is_err());
        assert!(load("").await.is_err());
    }
}
