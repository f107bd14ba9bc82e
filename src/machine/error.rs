//! Why a request to a machine has no success, with what did happen.

use std::fmt;
use std::time::Duration;

use crate::guest_agent;
use crate::ids::VcpuId;
use crate::inventory::{PlanError, Target, numbers};
use crate::placement::{StepError, Unavailable};
use crate::qmp;
use crate::text::Text;

/// A request failed. The texts say what was found and what the caller can do; who shows them
/// says which machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It cannot be; QEMU was not asked.
    #[error("asked for {asked}, but {denial}{}", qemu.as_ref().map(|text| format!(" (QEMU: {text})")).unwrap_or_default())]
    Denied {
        /// What was asked for.
        asked: Target,
        /// Why.
        denial: PlanError,
        /// Why, in QEMU's words, where it has some.
        qemu: Option<Text>,
    },
    /// There is no connection to QEMU.
    #[error(
        "there is no QMP connection: {0}; the service keeps trying, ask again when State says so"
    )]
    Disconnected(String),
    /// The connection broke while the request was carried out.
    #[error(
        "the QMP connection broke in the middle of the request: {0}; ListVcpus tells what came of it once the machine is connected again"
    )]
    Interrupted(qmp::Closed),
    /// QEMU refused a part of it or all.
    #[error("QEMU refused: {}; {_0}", list(&_0.refused))]
    QmpFailed(Box<Report>),
    /// The guest refused to give up a vCPU.
    #[error("the guest refused: {}; {_0}; free the vCPUs in the guest and ask again", list(&_0.refused))]
    GuestRefused(Box<Report>),
    /// The time for waiting ran out.
    #[error(
        "the guest did not give up every vCPU within {} s{}; {report}; the request stands: VcpuRemoved or VcpuRemovalFailed follows",
        waited.as_secs_f64(),
        also_refused(&report.refused)
    )]
    RemovalPending {
        /// What came of it so far.
        report: Box<Report>,
        /// How long the call waited.
        waited: Duration,
    },
    /// The guest agent does not help, so nothing was done.
    #[error(
        "{0}; nothing was changed, ask without the option \"guest-online\" to do without the agent"
    )]
    GuestAgent(guest_agent::Error),
    /// All vCPUs are there, and the guest does not use all of them.
    #[error(
        "asked for {asked}, {}but the guest does not use all of its vCPUs: {reason}; ask again when the guest agent is well",
        came(added)
    )]
    NotOnline {
        /// What was asked for.
        asked: Target,
        /// vCPUs that came.
        added: Vec<VcpuId>,
        /// Why.
        reason: guest_agent::Error,
    },
    /// All vCPUs are there, and some do not run where they should.
    #[error(
        "asked for {asked}, {}but not all could be placed on the host: {}; they are there, and run as ListVcpus shows",
        came(added),
        steps(failures)
    )]
    PlacementFailed {
        /// What was asked for.
        asked: Target,
        /// vCPUs that came.
        added: Vec<VcpuId>,
        /// The step that failed, by vCPU.
        failures: Vec<(VcpuId, StepError)>,
    },
    /// What was wanted for the vCPUs cannot be had; all is as it was.
    #[error("{0}; nothing was changed")]
    Tuning(TuningError),
    /// What was authorized is not what would happen now.
    #[error(
        "asked for {asked}, which would now make {count} vCPUs and not {told}: another request was faster; ask again"
    )]
    Conflict {
        /// What was asked for.
        asked: Target,
        /// The number of vCPUs that would come of it.
        count: u32,
        /// The number that the caller was authorized for.
        told: u32,
    },
    /// The machine has another QEMU than when the caller was authorized.
    #[error(
        "its QEMU process or its UUID changed while the caller was authorized; nothing was changed, try again"
    )]
    Replaced,
    /// A restart of the service could not go on with it, so it was not begun.
    #[error(
        "what a restart of the service must know cannot be written: {0}; nothing was changed, make room in the runtime directory and ask again"
    )]
    NotRemembered(String),
    /// The machine went away.
    #[error("the machine is gone")]
    Gone,
}

/// Why vCPUs cannot be placed as somebody wants.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TuningError {
    /// A vCPU that the machine does not have.
    #[error("there is no vCPU {vcpu}; {}", numbers(*max))]
    NoSuchVcpu {
        /// The number asked for.
        vcpu: VcpuId,
        /// How many vCPUs the machine can have.
        max: u32,
    },
    /// The machine's processes cannot be placed.
    #[error("it is not known where the machine is on this host")]
    NoHome,
    /// A vCPU has no thread of its own, as with single-threaded emulation.
    #[error(
        "vCPU {vcpu} has no thread of its own that could be placed (as with -accel tcg,thread=single)"
    )]
    NoThread {
        /// Which.
        vcpu: VcpuId,
    },
    /// The host has not what is wanted.
    #[error(transparent)]
    Unavailable(Unavailable),
    /// This cannot be had here, or the kernel does not tell.
    #[error("{0}")]
    Refused(StepError),
    /// The kernel refused, and all was put back.
    #[error("{}", steps(_0))]
    Failed(Vec<(VcpuId, StepError)>),
}

/// What came of a request that did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What was asked for.
    pub asked: Target,
    /// vCPUs that came all the same.
    pub added: Vec<VcpuId>,
    /// vCPUs that went all the same.
    pub removed: Vec<VcpuId>,
    /// vCPUs that may still go.
    pub pending: Vec<VcpuId>,
    /// What was refused.
    pub refused: Vec<Refusal>,
}

/// vCPUs that did not come or go, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The vCPUs of one entity.
    pub vcpus: Vec<VcpuId>,
    /// Why, in words.
    pub reason: String,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "asked for {}", self.asked)?;
        let parts = [
            ("added", &self.added),
            ("removed", &self.removed),
            ("still pending", &self.pending),
        ];
        if parts.iter().all(|(_, numbers)| numbers.is_empty()) {
            return write!(f, ", nothing changed");
        }
        for (what, numbers) in parts.iter().filter(|(_, numbers)| !numbers.is_empty()) {
            write!(f, ", {what}: {}", vcpus(numbers))?;
        }
        Ok(())
    }
}

fn list(refusals: &[Refusal]) -> String {
    let line = |r: &Refusal| format!("{}: {}", vcpus(&r.vcpus), r.reason);
    refusals.iter().map(line).collect::<Vec<_>>().join("; ")
}

fn steps(failures: &[(VcpuId, StepError)]) -> String {
    let line = |(vcpu, error): &(VcpuId, StepError)| format!("vCPU {vcpu}: {error}");
    failures.iter().map(line).collect::<Vec<_>>().join("; ")
}

fn came(added: &[VcpuId]) -> String {
    match added {
        [] => String::new(),
        some => format!("added: {}, ", vcpus(some)),
    }
}

fn also_refused(refusals: &[Refusal]) -> String {
    match refusals {
        [] => String::new(),
        some => format!(" and refused some ({})", list(some)),
    }
}

fn vcpus(numbers: &[VcpuId]) -> String {
    let list: Vec<String> = numbers.iter().map(VcpuId::to_string).collect();
    match numbers {
        [_] => format!("vCPU {}", list[0]),
        _ => format!("vCPUs {}", list.join(", ")),
    }
}
