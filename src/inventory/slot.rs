//! Slots and their vCPUs.

use serde::{Deserialize, Serialize};

use super::props::Props;
use super::topology::Topology;
use crate::ids::{SlotId, Tid, VcpuId};
use crate::text::Text;

/// The maximum number of vCPUs of a slot. No machine type has more than 8 (pseries).
pub const MAX_VCPUS_PER_SLOT: u32 = 64;

/// The command that plugs vCPUs into a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HotplugMethod {
    /// `device_add`, QEMU 2.7 and later.
    DeviceAdd,
    /// `cpu-add`, before QEMU 2.7. It has no counterpart that unplugs.
    CpuAdd,
    /// The vCPUs of the machine cannot be plugged.
    #[default]
    None,
}

impl HotplugMethod {
    /// Returns its name on D-Bus.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DeviceAdd => "device-add",
            Self::CpuAdd => "cpu-add",
            Self::None => "none",
        }
    }
}

/// One entry of `query-hotpluggable-cpus`. QEMU plugs and unplugs it as a whole.
#[derive(Clone, Debug, PartialEq)]
pub struct HotplugSlot {
    /// Its name within the inventory: the number of its first vCPU.
    pub id: SlotId,
    /// The number of vCPUs in it.
    pub width: u32,
    /// Its position in QEMU's own list, from the end. ACPI calls this the slot.
    pub acpi_slot: u32,
    /// The QOM type, the `driver` of `device_add`.
    pub driver: Text,
    /// The properties that `device_add` needs.
    pub props: Props,
    /// The position of the slot, from `props`.
    pub topology: Topology,
    /// The vCPUs in it. `None`: the slot is free.
    pub presence: Option<Presence>,
}

/// The vCPUs that are plugged into a slot.
#[derive(Clone, Debug, PartialEq)]
pub struct Presence {
    /// The QOM path, by which QEMU unplugs them.
    pub qom_path: Text,
    /// The position in the order in which vCPUs were plugged, from 1; 0 if QEMU did not list them.
    pub order: u32,
    /// The threads that QEMU reports for the vCPUs, in order. QEMU may report fewer.
    pub threads: Vec<Thread>,
}

/// A host thread that runs a vCPU according to QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thread {
    /// The thread id that QEMU reported, in its own PID namespace.
    pub id: Tid,
    /// The thread on the host.
    pub host: HostThread,
}

/// The host's thread for one that QEMU reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostThread {
    /// The tasks of the leader are not read yet.
    #[default]
    Unknown,
    /// It is this thread of the leader, and runs no other vCPU.
    Own(Tid),
    /// It runs several vCPUs, or it is the main thread of the leader: single-threaded TCG.
    Shared,
    /// The leader has no such thread.
    Missing,
}

/// A plugged slot in the persisted state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PresentSlot {
    /// Its name within the inventory.
    #[serde(rename = "first")]
    pub id: SlotId,
    /// The number of vCPUs in it.
    pub width: u32,
    /// Its position in QEMU's own list, from the end.
    #[serde(rename = "slot")]
    pub acpi_slot: u32,
    /// Its QOM path.
    pub qom_path: Text,
    /// The thread ids that QEMU reported for its vCPUs.
    pub threads: Vec<Tid>,
}

/// One vCPU, present or possible.
#[derive(Clone, Copy, Debug)]
pub struct Vcpu<'a> {
    /// Its number, from 0.
    pub id: VcpuId,
    /// The slot that holds it.
    pub slot: &'a HotplugSlot,
    /// Its thread on the host, if it is present and has one of its own.
    pub thread: Option<Tid>,
    /// The thread that QEMU reported for it, if QEMU did.
    pub reported: Option<Thread>,
}

impl HotplugSlot {
    /// Returns its vCPUs, in ascending order.
    pub fn vcpus(&self) -> impl Iterator<Item = VcpuId> + use<> {
        let first = self.id.get();
        (first..first + self.width).map(VcpuId)
    }

    /// Returns the id that it was plugged with: the last part of `/machine/peripheral/ID`.
    pub fn alias(&self) -> Option<&str> {
        let path = self.presence.as_ref()?.qom_path.as_str();
        path.strip_prefix("/machine/peripheral/")
            .filter(|id| !id.is_empty() && !id.contains('/'))
    }
}

impl Presence {
    /// Returns whether `other` is the same CPU, and not another one that was plugged into the slot later.
    pub fn is_same(&self, other: &Self) -> bool {
        let ids = |p: &Self| p.threads.iter().map(|t| t.id).collect::<Vec<_>>();
        // In a torn reply QEMU may report a CPU without its threads. It is the same CPU.
        let unknown = self.threads.is_empty() || other.threads.is_empty();
        self.qom_path == other.qom_path && (unknown || ids(self) == ids(other))
    }
}
