//! What is known of a machine at one moment; readers get it whole and at once.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::error::Error;
use crate::ids::{Pid, SlotId, VcpuId};
use crate::inventory::{HotplugMethod, Inventory, Plan, Target, count_after, nearest, plan};
use crate::placement::{Tuning, UnitPlacement};
use crate::process::ProcessId;
use crate::qmp::Version;
use crate::text::Text;

/// The word for a machine whose QMP connection is lost or was never answered.
pub const DISCONNECTED: &str = "disconnected";

/// The state of a machine, as QEMU last told it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// QEMU's version; `None` while it never answered, and then all else is empty too.
    pub version: Option<Version>,
    /// The VM's UUID, or empty.
    pub uuid: Text,
    /// What runs the vCPUs: `kvm`, `tcg`, ….
    pub accelerator: Text,
    /// QEMU's name of the target.
    pub architecture: Text,
    /// The PID of the QEMU process; 0 where it is not known.
    pub leader: Pid,
    /// The PID and start time of the QEMU process; `None` where it is not known.
    pub process: Option<ProcessId>,
    /// QEMU's word for the run state; what is shown is [`Snapshot::state`].
    pub run_state: Text,
    /// Why there is no connection, where there is none.
    pub disconnected: Option<String>,
    /// The vCPUs.
    pub inventory: Arc<Inventory>,
    /// Why QEMU does not hot-plug CPUs, in its words.
    pub no_hotplug: Option<Text>,
    /// Where the machine is on its host; `None` while that is not known.
    pub home: Option<UnitPlacement>,
    /// What is wanted for its vCPUs there.
    pub tuning: Arc<Tuning>,
    /// The host CPUs of vCPUs that have no others of their own, as a list.
    pub affinity: String,
    /// The vCPUs whose removal was asked for and is neither done nor refused.
    pub pending: Vec<VcpuId>,
}

/// The QEMU process and the VM that a caller was authorized for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    process: Option<ProcessId>,
    uuid: Text,
}

impl Snapshot {
    /// Returns the QEMU process and the VM that the snapshot is about.
    pub fn subject(&self) -> Subject {
        Subject {
            process: self.process,
            uuid: self.uuid.clone(),
        }
    }

    /// Checks that the snapshot is about `subject`.
    pub(super) fn check(&self, subject: &Subject) -> Result<(), Error> {
        match self.subject() == *subject {
            true => Ok(()),
            false => Err(Error::Replaced),
        }
    }

    /// The run state in QEMU's words, or [`DISCONNECTED`].
    pub fn state(&self) -> &str {
        match self.disconnected {
            Some(_) => DISCONNECTED,
            None => self.run_state.as_str(),
        }
    }

    /// Whether QEMU is in a run state that it leaves by itself, without an event
    /// (`runstate_set()` in migration and snapshots).
    pub(super) fn is_passing(&self) -> bool {
        let passing = ["finish-migrate", "inmigrate", "restore-vm", "save-vm"];
        passing.contains(&self.run_state.as_str())
    }

    /// QEMU's version as text; empty where it never answered.
    pub fn qemu_version(&self) -> String {
        self.version
            .map(|version| version.to_string())
            .unwrap_or_default()
    }

    /// The first vCPUs of the entities that are leaving.
    pub fn leaving(&self) -> BTreeSet<SlotId> {
        let slots = self.pending.iter().map(|vcpu| SlotId(vcpu.get()));
        slots
            .filter(|slot| self.inventory.slot(*slot).is_some())
            .collect()
    }

    /// What would be done to reach `target` now, and the number of vCPUs that come of it.
    pub fn plan(&self, target: &Target) -> Result<(Plan, u32), Error> {
        if let Some(reason) = &self.disconnected {
            return Err(Error::Disconnected(reason.clone()));
        }
        let leaving = self.leaving();
        match plan(&self.inventory, &leaving, target) {
            Ok(plan) => {
                let count = count_after(&self.inventory, &leaving, &plan);
                Ok((plan, count))
            }
            Err(denial) => Err(Error::Denied {
                asked: target.clone(),
                denial,
                qemu: self.no_hotplug.clone(),
            }),
        }
    }

    /// The numbers of vCPUs nearest to `count` that can be reached now.
    pub fn nearest(&self, count: u32) -> Vec<u32> {
        nearest(&self.inventory, &self.leaving(), count)
    }

    /// How vCPUs are plugged.
    pub fn hotplug_method(&self) -> HotplugMethod {
        self.inventory.method()
    }
}
