//! Errors of requests to a machine, with what was done nevertheless.

use std::fmt;
use std::time::Duration;

use crate::guest_agent;
use crate::ids::{Tid, VcpuId};
use crate::inventory::{PlanError, Target, numbers};
use crate::placement::{StepError, Unavailable};
use crate::qmp;
use crate::text::Text;

/// An error of a request. The texts say what was found and what the caller can do. They do not name
/// the machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The target cannot be reached. QEMU was not asked.
    #[error("asked for {asked}, but {denial}{}", qemu.as_ref().map(|text| format!(" (QEMU: {text})")).unwrap_or_default())]
    Denied {
        /// The wanted vCPUs.
        asked: Target,
        /// The reason.
        denial: PlanError,
        /// The reason in QEMU's words, if it gives one.
        qemu: Option<Text>,
    },
    /// There is no connection to QEMU.
    #[error(
        "no QMP connection: {0}; the service keeps trying, try again when the property State is not \"disconnected\""
    )]
    Disconnected(String),
    /// The connection was lost during the request.
    #[error(
        "the QMP connection was lost during the request: {0}; ListVcpus shows the result when the machine is connected again"
    )]
    Interrupted(qmp::Closed),
    /// QEMU owed replies to an earlier request until the caller's time ran out. Nothing was changed.
    #[error(
        "QEMU did not finish an earlier request within {} s; nothing was changed, try again when QEMU responds",
        waited.as_secs_f64()
    )]
    NotStarted {
        /// How long the call waited.
        waited: Duration,
    },
    /// QEMU refused all or a part of the request.
    #[error("QEMU refused: {}; {_0}", join_refusals(&_0.refused))]
    QmpFailed(Box<Report>),
    /// The guest refused the removal of a vCPU.
    #[error("the guest refused: {}; {_0}; free the vCPUs in the guest and try again", join_refusals(&_0.refused))]
    GuestRefused(Box<Report>),
    /// A removal is still pending at the end of the time that the caller waits.
    #[error(
        "the guest did not give up every vCPU within {} s{}; {report}; {}the removal stays pending: VcpuRemoved or VcpuRemovalFailed follows",
        waited.as_secs_f64(),
        also_refused(&report.refused),
        not_running(stopped.as_ref())
    )]
    RemovalPending {
        /// The result so far.
        report: Box<Report>,
        /// How long the call waited.
        waited: Duration,
        /// QEMU's run state, if the guest does not run in it.
        stopped: Option<Text>,
    },
    /// QEMU would abort: with TCG it has room for a number of vCPUs in its life, and removed ones count.
    #[error(
        "asked for {asked}, but QEMU with the accelerator tcg adds at most {max} vCPUs in its life, and {created} were there; it would abort (tcg_max_ctxs); restart the VM with a greater maximum, or use kvm"
    )]
    TcgExhausted {
        /// The wanted vCPUs.
        asked: Target,
        /// The maximum number of vCPUs.
        max: u32,
        /// How many QEMU created, as far as the service knows.
        created: u32,
    },
    /// The guest agent failed, and nothing was changed.
    #[error(
        "{0}; nothing was changed, ask without the option \"guest-online\" to do without the agent"
    )]
    GuestAgent(guest_agent::Error),
    /// The guest agent failed while it took CPUs of the guest offline. QEMU was not asked.
    #[error(
        "{reason}; no vCPU was removed; {} of the guest may be offline, and the service brings them online when the guest agent answers",
        name_cpus(offline)
    )]
    StillOffline {
        /// The guest's numbers of the CPUs.
        offline: Vec<u32>,
        /// The reason.
        reason: guest_agent::Error,
    },
    /// All vCPUs are present, and the guest does not use all of them.
    #[error(
        "asked for {asked}, {}but the guest does not use all of its vCPUs: {reason}; try again when the guest agent responds",
        added_part(added)
    )]
    NotOnline {
        /// The wanted vCPUs.
        asked: Target,
        /// The vCPUs that were added.
        added: Vec<VcpuId>,
        /// The reason.
        reason: guest_agent::Error,
    },
    /// All vCPUs are present, and the placement of some failed.
    #[error(
        "asked for {asked}, {}but not all could be placed on the host: {}; they are there, and run as ListVcpus shows",
        added_part(added),
        join_failures(failures)
    )]
    PlacementFailed {
        /// The wanted vCPUs.
        asked: Target,
        /// The vCPUs that were added.
        added: Vec<VcpuId>,
        /// The failed step of each such vCPU.
        failures: Vec<(VcpuId, StepError)>,
    },
    /// The tuning is not possible, and nothing was changed.
    #[error("{0}; nothing was changed")]
    Tuning(TuningError),
    /// The request would now have another result than the one that was authorized.
    #[error(
        "asked for {asked}, which would now make {count} vCPUs and not {told}: another request was faster; try again"
    )]
    Conflict {
        /// The wanted vCPUs.
        asked: Target,
        /// The resulting number of vCPUs now.
        count: u32,
        /// The number that was authorized.
        told: u32,
    },
    /// The QEMU process or the VM is another one than the caller was authorized for.
    #[error(
        "its QEMU process or its UUID changed while the caller was authorized; nothing was changed, try again"
    )]
    Replaced,
    /// The state cannot be saved, so that a restart would lose the request. It was not begun.
    #[error(
        "the state for a restart of the service cannot be written: {0}; nothing was changed, make room in the runtime directory and try again"
    )]
    NotSaved(String),
    /// The machine is gone.
    #[error("the machine is gone")]
    Gone,
}

/// Why a tuning is not possible.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TuningError {
    /// The machine cannot have this vCPU.
    #[error("the machine has no vCPU {vcpu}; {}", numbers(*max))]
    NoSuchVcpu {
        /// The vCPU.
        vcpu: VcpuId,
        /// How many vCPUs the machine can have.
        max: u32,
    },
    /// The unit of the machine is not known.
    #[error("it is not known where the machine is on this host")]
    NoUnit,
    /// A vCPU has no thread of its own: single-threaded TCG.
    #[error(
        "vCPU {vcpu} has no thread of its own that could be placed (as with -accel tcg,thread=single)"
    )]
    SharedThread {
        /// The vCPU.
        vcpu: VcpuId,
    },
    /// QEMU reports a thread that its process does not have.
    #[error(
        "QEMU reports thread {thread} for vCPU {vcpu}, and the QEMU process has no such thread, also not in its PID namespace"
    )]
    MissingThread {
        /// The vCPU.
        vcpu: VcpuId,
        /// The number of the thread, as QEMU reported it.
        thread: Tid,
    },
    /// QEMU reports no thread for a vCPU.
    #[error("QEMU reports no thread for vCPU {vcpu}")]
    NoThread {
        /// The vCPU.
        vcpu: VcpuId,
    },
    /// The host does not have these CPUs or memory nodes.
    #[error(transparent)]
    Unavailable(Unavailable),
    /// This host does not support it, or cannot be queried.
    #[error("{0}")]
    Refused(StepError),
    /// The kernel refused, and the placer restored the previous state.
    #[error("{}", join_failures(_0))]
    Failed(Vec<(VcpuId, StepError)>),
}

/// The partial result of a failed request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The wanted vCPUs.
    pub asked: Target,
    /// The vCPUs that were added nevertheless.
    pub added: Vec<VcpuId>,
    /// The vCPUs that were removed nevertheless.
    pub removed: Vec<VcpuId>,
    /// The vCPUs with a pending removal.
    pub pending: Vec<VcpuId>,
    /// The refusals.
    pub refused: Vec<Refusal>,
}

/// A refusal to add or remove vCPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The vCPUs of one slot.
    pub vcpus: Vec<VcpuId>,
    /// The reason, as text.
    pub reason: String,
}

impl Report {
    /// Returns whether QEMU refused because the machine has no hot-plugging at all, which it reports only
    /// when it is asked (`hw/i386/pc.c`, `-machine acpi=off`).
    pub fn is_unsupported(&self) -> bool {
        let is_unsupported = |r: &Refusal| r.reason.contains("not supported without ACPI");
        !self.refused.is_empty() && self.refused.iter().all(is_unsupported)
    }
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
            write!(f, ", {what}: {}", name_vcpus(numbers))?;
        }
        Ok(())
    }
}

fn join_refusals(refusals: &[Refusal]) -> String {
    let line = |r: &Refusal| format!("{}: {}", name_vcpus(&r.vcpus), r.reason);
    refusals.iter().map(line).collect::<Vec<_>>().join("; ")
}

fn join_failures(failures: &[(VcpuId, StepError)]) -> String {
    let line = |(vcpu, error): &(VcpuId, StepError)| format!("vCPU {vcpu}: {error}");
    failures.iter().map(line).collect::<Vec<_>>().join("; ")
}

fn added_part(added: &[VcpuId]) -> String {
    match added {
        [] => String::new(),
        some => format!("added: {}, ", name_vcpus(some)),
    }
}

fn not_running(state: Option<&Text>) -> String {
    let text = |state| format!("the guest does not run (QEMU is in the state \"{state}\"); ");
    state.map(text).unwrap_or_default()
}

fn also_refused(refusals: &[Refusal]) -> String {
    match refusals {
        [] => String::new(),
        some => format!(" and refused some ({})", join_refusals(some)),
    }
}

fn name_cpus(numbers: &[u32]) -> String {
    let list: Vec<String> = numbers.iter().map(u32::to_string).collect();
    let noun = if numbers.len() == 1 { "CPU" } else { "CPUs" };
    format!("{noun} {}", list.join(", "))
}

fn name_vcpus(numbers: &[VcpuId]) -> String {
    let list: Vec<String> = numbers.iter().map(VcpuId::to_string).collect();
    match numbers {
        [_] => format!("vCPU {}", list[0]),
        _ => format!("vCPUs {}", list.join(", ")),
    }
}
