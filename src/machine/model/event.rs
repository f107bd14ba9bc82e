//! Events of a machine, in the order in which they happen.

use serde::{Deserialize, Serialize};

use super::refusal::RefusalReason;
use crate::ids::{Uid, VcpuId};

/// An event of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MachineEvent {
    /// The machine is known. Always the first event.
    Appeared {
        /// Whether a previous instance of the service knew it.
        is_known: bool,
    },
    /// The snapshot changed.
    Changed,
    /// A vCPU was added.
    VcpuAdded(VcpuChange),
    /// The guest has started a vCPU that was added. The cause is that of the addition.
    VcpuStarted(VcpuChange),
    /// A vCPU was removed.
    VcpuRemoved(VcpuChange),
    /// The guest or QEMU refused to remove a vCPU.
    VcpuRemovalFailed {
        /// The vCPU.
        vcpu: VcpuChange,
        /// The reason.
        reason: RefusalReason,
    },
    /// The machine is no longer known. Always the last event.
    Vanished,
}

/// The vCPU that an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuChange {
    /// Its number.
    pub id: VcpuId,
    /// The device id that it was added with; empty if it has none.
    pub alias: String,
    /// The cause of the event.
    pub cause: Cause,
    /// The user who asked for it, if a user did.
    pub uid: Option<Uid>,
}

/// The cause of a change of a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// A call to this service.
    Request,
    /// The guest, without a request.
    Guest,
    /// A reset of the guest.
    Reset,
    /// Another client of QEMU.
    External,
    /// Unknown: it was found after the connection to QEMU had been lost.
    Reconnect,
}

impl Cause {
    /// Returns the word for it on D-Bus.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Guest => "guest",
            Self::Reset => "reset",
            Self::External => "external",
            Self::Reconnect => "reconnect",
        }
    }
}

impl MachineEvent {
    /// Returns one `VcpuRemovalFailed` for each vCPU of a slot.
    pub(super) fn removal_failed(
        vcpus: impl Iterator<Item = VcpuId>,
        alias: &str,
        cause: Cause,
        uid: Option<Uid>,
        reason: &RefusalReason,
    ) -> Vec<Self> {
        let failed = |id| Self::VcpuRemovalFailed {
            vcpu: VcpuChange {
                id,
                alias: alias.to_owned(),
                cause,
                uid,
            },
            reason: reason.clone(),
        };
        vcpus.map(failed).collect()
    }

    /// Returns the vCPU that the event is about, if it is about one. Such an event happens once; the
    /// others are states, which clients can also read.
    pub fn vcpu(&self) -> Option<&VcpuChange> {
        match self {
            Self::VcpuAdded(vcpu)
            | Self::VcpuStarted(vcpu)
            | Self::VcpuRemoved(vcpu)
            | Self::VcpuRemovalFailed { vcpu, .. } => Some(vcpu),
            Self::Appeared { .. } | Self::Changed | Self::Vanished => None,
        }
    }
}
