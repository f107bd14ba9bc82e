//! Errors of requests to a machine, with what was done nevertheless.

use std::fmt;
use std::time::Duration;

use super::error_text::{
    added_part, after_loss, also_refused, join_failures, join_refusals, name_cpus, not_running,
    retry_part, seconds, start_advice,
};
use super::refusal::{Refusal, RefusalCode};
use crate::guest_agent;
use crate::ids::{Tid, VcpuId};
use crate::inventory::{PlanError, Target, count_vcpus, name_vcpus, numbers};
use crate::placement::{StepError, Unavailable};
use crate::qmp;
use crate::text::Text;

/// An error of a request. The texts say what was found and what the caller can do. They do not name
/// the machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The target cannot be reached. QEMU was not asked.
    #[error("cannot {asked}: {denial}{}", qemu.as_ref().map(|text| format!(" (QEMU: {text})")).unwrap_or_default())]
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
        "no QMP connection: {0}; the service tries to connect again; repeat the request when the property State is not \"disconnected\""
    )]
    Disconnected(String),
    /// The connection was lost during the request.
    #[error(
        "the QMP connection was lost during the request: {closed}; {}",
        after_loss(*is_last)
    )]
    Interrupted {
        /// Why it was lost.
        closed: qmp::Closed,
        /// The service cannot make another connection, so the machine ends.
        is_last: bool,
    },
    /// QEMU owed replies to an earlier request until the caller's time ran out. Nothing was changed.
    #[error(
        "QEMU did not finish an earlier request within {} s; nothing was changed; try again when QEMU responds",
        seconds(*waited)
    )]
    NotStarted {
        /// How long the call waited.
        waited: Duration,
    },
    /// The caller's time ran out after QEMU was asked to add vCPUs.
    #[error(
        "QEMU did not complete the request within {} s; requested: {asked}; QEMU may still add {}; VcpuAdded reports each added vCPU, and ListVcpus shows the result",
        seconds(*waited),
        name_vcpus(vcpus)
    )]
    AdditionPending {
        /// The wanted vCPUs.
        asked: Target,
        /// The vCPUs that QEMU was asked to add.
        vcpus: Vec<VcpuId>,
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
        "the guest did not release all vCPUs within {} s{}; {report}; {}the removal stays pending; the same request waits again, and VcpuRemoved or VcpuRemovalFailed reports the end",
        seconds(*waited),
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
    /// The vCPUs are present, and the guest did not start all of them in the time that the caller waits.
    #[error(
        "the guest did not start {} within {} s; requested: {asked}{}; all vCPUs are present; {}{}; VcpuStarted reports each added vCPU that the guest starts later",
        name_vcpus(vcpus),
        seconds(*waited),
        added_part(added),
        not_running(stopped.as_ref()),
        start_advice(stopped.is_some())
    )]
    DidNotStart {
        /// The wanted vCPUs.
        asked: Target,
        /// The vCPUs that were added.
        added: Vec<VcpuId>,
        /// The vCPUs that the guest did not start.
        vcpus: Vec<VcpuId>,
        /// How long the call waited.
        waited: Duration,
        /// QEMU's run state, if the guest does not run in it.
        stopped: Option<Text>,
    },
    /// The service cannot know whether the guest starts a vCPU.
    #[error(
        "cannot {asked} and wait until the guest has started the vCPUs: QEMU runs all vCPUs in one thread, as with -accel tcg,thread=single, so there is no evidence; nothing was changed; omit the option \"until\", or use the guest agent with the option \"guest-online\""
    )]
    NoEvidence {
        /// The wanted vCPUs.
        asked: Target,
    },
    /// QEMU would exit: it cannot add vCPUs to a guest whose memory and registers it cannot read.
    #[error(
        "cannot {asked}: the guest is confidential (SEV, TDX), and QEMU exits if a vCPU is added to such a guest; start the VM with the desired number of vCPUs"
    )]
    Confidential {
        /// The wanted vCPUs.
        asked: Target,
    },
    /// QEMU would abort: with TCG it can create a number of vCPUs in its life, and removed ones count.
    #[error(
        "cannot {asked}: QEMU with the accelerator tcg adds at most {max} vCPUs in its life, including those at its start and removed ones, and has added {created}; it would abort at the next one; restart the VM with a larger maxcpus, or use KVM"
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
        "{0}; nothing was changed; omit the option \"guest-online\" to change vCPUs without the guest agent"
    )]
    GuestAgent(guest_agent::Error),
    /// The guest agent could take the CPU of another vCPU offline. Nothing was changed.
    #[error(
        "cannot {asked} with the guest agent: the guest may have other numbers for {}, so the guest agent could take other CPUs offline; nothing was changed; omit the option \"guest-online\", and take CPUs offline in the guest first if it does not release them without that",
        name_vcpus(vcpus)
    )]
    UnknownGuestCpu {
        /// The wanted vCPUs.
        asked: Target,
        /// The vCPUs.
        vcpus: Vec<VcpuId>,
    },
    /// The guest agent failed while it took CPUs of the guest offline. QEMU was not asked.
    #[error(
        "{reason}; no vCPU was removed; {} of the guest may be offline; the service brings such CPUs online when the guest agent answers",
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
        "the guest does not use all of its vCPUs: {reason}; requested: {asked}{}{}",
        added_part(added),
        retry_part(reason)
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
        "not all vCPUs could be placed on the host: {}; requested: {asked}{}; all vCPUs are present, and ListVcpus shows where they run",
        join_failures(failures),
        added_part(added)
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
        "cannot {asked}: another request changed the machine first; the result would be {}, and not {told} as authorized; try again",
        count_vcpus(*count)
    )]
    Conflict {
        /// The wanted vCPUs.
        asked: Target,
        /// The resulting number of vCPUs now.
        count: u32,
        /// The number that was authorized.
        told: u32,
    },
    /// The machine has another number of vCPUs than the caller expects.
    #[error(
        "cannot {asked}: {} present, and not {expected} as the option \"current\" requires; nothing was changed; read the property Vcpus and try again",
        count_vcpus(*present)
    )]
    Unexpected {
        /// The wanted vCPUs.
        asked: Target,
        /// The number of present vCPUs.
        present: u32,
        /// The number that the caller expects.
        expected: u32,
    },
    /// The QEMU process or the VM is another one than the caller was authorized for.
    #[error(
        "its QEMU process or its UUID changed during the authorization; nothing was changed; try again"
    )]
    Replaced,
    /// The state cannot be saved, so that a restart would lose the request. It was not begun.
    #[error(
        "the state for a restart of the service cannot be written: {0}; nothing was changed; free space in the runtime directory and try again"
    )]
    NotSaved(String),
    /// The machine is gone.
    #[error("the QEMU process has exited, or the machine was unregistered")]
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
    #[error(
        "the systemd unit of the machine is not known; the property PlacementErrors has the reason"
    )]
    NoUnit,
    /// A vCPU has no thread of its own: single-threaded TCG.
    #[error(
        "vCPU {vcpu} has no thread of its own, as with -accel tcg,thread=single; use -accel tcg,thread=multi or KVM"
    )]
    SharedThread {
        /// The vCPU.
        vcpu: VcpuId,
    },
    /// QEMU reports a thread that its process does not have.
    #[error(
        "QEMU reports thread {thread} for vCPU {vcpu}, but its process has no such thread, also not in its PID namespace"
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

impl Report {
    /// Returns whether QEMU refused because the machine has no hot-plugging at all, which it reports only
    /// when it is asked (`hw/i386/pc.c`, `-machine acpi=off`).
    pub fn is_unsupported(&self) -> bool {
        let is_unsupported = |r: &Refusal| r.reason.code == RefusalCode::NotSupported;
        !self.refused.is_empty() && self.refused.iter().all(is_unsupported)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "requested: {}", self.asked)?;
        let parts = [
            ("added", &self.added),
            ("removed", &self.removed),
            ("still pending", &self.pending),
        ];
        if parts.iter().all(|(_, numbers)| numbers.is_empty()) {
            return write!(f, "; nothing was changed");
        }
        for (what, numbers) in parts.iter().filter(|(_, numbers)| !numbers.is_empty()) {
            write!(f, "; {what}: {}", name_vcpus(*numbers))?;
        }
        Ok(())
    }
}
