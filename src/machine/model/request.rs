//! Requests to a machine and their results.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::error::Error;
use super::snapshot::Subject;
use super::tuning::TuningChange;
use crate::ids::{Uid, VcpuId};
use crate::inventory::{Inventory, Target};

/// Names a request until it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// A request to a machine.
#[derive(Clone, Debug)]
pub enum Command {
    /// Changes the vCPUs.
    SetVcpus(Request),
    /// Changes where and how the vCPUs run on the host. The second is the QEMU that it was authorized
    /// for.
    Tune(TuningChange, Subject),
    /// Applies the configuration that was set last.
    ApplyConfig,
    /// Queries QEMU, unless it was queried a moment ago: another client may have changed the vCPUs.
    Refresh,
    /// Waits until the guest has started vCPUs.
    AwaitStart(AwaitStart),
    /// Notes vCPUs of an inventory that the guest agent reports as online.
    GuestOnline(Arc<Inventory>, Vec<VcpuId>),
    /// Notes CPUs that the guest agent is about to take offline, so that they can be brought online
    /// again after a restart of the service.
    GuestOffline(Vec<OfflineCpu>),
    /// Ends the responsibility of a caller for CPUs that it had taken offline. They are online again,
    /// or else left to the service.
    GuestReleased {
        /// The CPUs by the guest's numbers.
        cpus: Vec<u32>,
        /// Whether they are online again.
        restored: bool,
    },
}

/// A guest CPU that was taken offline for a removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct OfflineCpu {
    /// The vCPU that is to be removed.
    pub vcpu: VcpuId,
    /// The guest's number of the CPU.
    pub cpu: u32,
}

/// A change of the vCPUs that a caller is authorized to make.
#[derive(Clone, Debug)]
pub struct Request {
    /// The wanted vCPUs.
    pub target: Target,
    /// The QEMU that it was authorized for.
    pub subject: Subject,
    /// The resulting number of vCPUs that it was authorized for.
    pub authorized_count: u32,
    /// The number of present vCPUs that the caller expects.
    pub expected_count: Option<u32>,
    /// Whether to wait for removals.
    pub wait: Wait,
    /// The end of an addition.
    pub until: Until,
    /// Whether the guest agent is to bring CPUs online and take them offline.
    pub guest_online: bool,
    /// The requester.
    pub uid: Uid,
}

/// The end of an addition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Until {
    /// QEMU has added the vCPUs.
    #[default]
    Present,
    /// The guest has started them.
    Started,
}

impl Until {
    /// Returns the word for it on D-Bus.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Present => "present",
            Self::Started => "started",
        }
    }
}

/// A request that waits until the guest has started vCPUs.
#[derive(Clone, Debug)]
pub struct AwaitStart {
    /// The wanted vCPUs.
    pub asked: Target,
    /// The vCPUs that the request added.
    pub added: Vec<VcpuId>,
    /// The vCPUs to wait for.
    pub vcpus: BTreeSet<VcpuId>,
    /// How long the request waits from now on.
    pub left: Duration,
    /// How long it waits in all.
    pub patience: Duration,
}

/// Whether a call waits for removals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Only until QEMU accepted the requests.
    No,
    /// At most this long, or as long as the configuration says.
    UpTo(Option<Duration>),
}

/// The result of a successful request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The vCPUs that were added.
    pub added: Vec<VcpuId>,
    /// The vCPUs that were removed.
    pub removed: Vec<VcpuId>,
    /// The vCPUs that QEMU was asked to remove and that the guest still has.
    pub pending: Vec<VcpuId>,
}

/// The answer to a caller. A request that changes no vCPUs has an empty outcome.
pub type Answer = Result<Outcome, Error>;
