//! The one mapping from errors to their names on the bus.

use zbus::message::Header;
use zbus::names::ErrorName;
use zbus::{DBusError, Message};

use super::describe::Dict;
use crate::guest_agent;
use crate::ids::VcpuId;
use crate::inventory::PlanError;
use crate::machine::{self, ConnectError, Refusal, TuningError};
use crate::names::{MachineName, error_name};
use crate::qmp::{self, Closed};
use crate::registry;

/// An error of a method call.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A request to a machine failed.
    #[error("machine {name}: {error}")]
    Machine {
        /// The machine.
        name: MachineName,
        /// What happened.
        #[source]
        error: Box<machine::Error>,
    },
    /// A machine cannot be registered or unregistered.
    #[error("machine {name}: {error}")]
    Registry {
        /// The machine.
        name: MachineName,
        /// What happened.
        #[source]
        error: registry::Error,
    },
    /// The configuration cannot be read again.
    #[error("{0}")]
    Reload(registry::Error),
    /// No machine has this name.
    #[error("no machine is named {0}; call ListMachines to list the machines")]
    NoSuchMachine(String),
    /// An argument or option is not what the method takes.
    #[error("{0}")]
    InvalidArgs(String),
    /// An argument is not a list of host CPUs.
    #[error("{0}")]
    InvalidCpuList(String),
    /// Too much at once.
    #[error("{0}")]
    LimitExceeded(String),
    /// The caller is not authorized.
    #[error("{0}")]
    AccessDenied(String),
    /// polkit needs a password, and the call does not allow to ask for it.
    #[error("{0}")]
    InteractiveAuthorizationRequired(String),
}

impl Error {
    /// The name of the error on the bus.
    pub fn dbus_name(&self) -> &'static str {
        match self {
            Self::Machine { error, .. } => name_of(error),
            Self::Registry { error, .. } | Self::Reload(error) => name_of_registry(error),
            Self::NoSuchMachine(_) => error_name::NO_SUCH_MACHINE,
            Self::InvalidArgs(_) => error_name::INVALID_ARGS,
            Self::InvalidCpuList(_) => error_name::INVALID_CPU_LIST,
            Self::LimitExceeded(_) => error_name::LIMIT_EXCEEDED,
            Self::AccessDenied(_) => error_name::ACCESS_DENIED,
            Self::InteractiveAuthorizationRequired(_) => {
                error_name::INTERACTIVE_AUTHORIZATION_REQUIRED
            }
        }
    }
}

/// Returns the result so far of a request that failed after it changed vCPUs, or that can still change some.
fn partial_result(error: &machine::Error) -> Option<Dict> {
    use machine::Error;
    let (added, removed, pending, refused) = match error {
        Error::QmpFailed(report)
        | Error::GuestRefused(report)
        | Error::RemovalPending { report, .. } => (
            &report.added[..],
            &report.removed[..],
            &report.pending[..],
            &report.refused[..],
        ),
        Error::DidNotStart { added, .. }
        | Error::NotOnline { added, .. }
        | Error::PlacementFailed { added, .. } => (&added[..], &[][..], &[][..], &[][..]),
        _ => return None,
    };
    let numbers = |vcpus: &[VcpuId]| -> Vec<u32> { vcpus.iter().map(|vcpu| vcpu.get()).collect() };
    let refusals = |refusal: &Refusal| -> Vec<(u32, String, String)> {
        let (vcpus, reason) = (refusal.vcpus.iter(), &refusal.reason);
        vcpus
            .map(|vcpu| {
                (
                    vcpu.get(),
                    reason.code.as_str().to_owned(),
                    reason.text.clone(),
                )
            })
            .collect()
    };
    let refused: Vec<(u32, String, String)> = refused.iter().flat_map(refusals).collect();
    Some(Dict::from([
        ("added", numbers(added).into()),
        ("removed", numbers(removed).into()),
        ("pending", numbers(pending).into()),
        ("refused", refused.into()),
    ]))
}

/// The name on the bus of what went wrong with a machine.
fn name_of(error: &machine::Error) -> &'static str {
    use machine::Error;
    match error {
        Error::Denied { denial, .. } => match denial {
            PlanError::OutOfRange { .. } | PlanError::Unreachable { .. } => {
                error_name::OUT_OF_RANGE
            }
            PlanError::NoSuchVcpu { .. } | PlanError::PartOfGroup { .. } => {
                error_name::INVALID_VCPU
            }
            PlanError::Busy { .. } => error_name::BUSY,
            PlanError::NoHotplug { .. } | PlanError::NoUnplug { .. } => error_name::NOT_SUPPORTED,
            PlanError::NotRemovable { .. } => error_name::NOT_REMOVABLE,
        },
        Error::Conflict { .. } | Error::Unexpected { .. } | Error::Replaced => error_name::BUSY,
        Error::Disconnected(_) => error_name::DISCONNECTED,
        Error::Interrupted { closed, .. } => match closed {
            Closed::Timeout { .. } => error_name::QMP_TIMEOUT,
            Closed::Hangup
            | Closed::Malformed(_)
            | Closed::NoGreeting(_)
            | Closed::OtherProcess(_)
            | Closed::TooManyEvents => error_name::DISCONNECTED,
        },
        Error::QmpFailed(report) if report.is_unsupported() => error_name::NOT_SUPPORTED,
        Error::QmpFailed(_) => error_name::QMP_FAILED,
        Error::DidNotStart { .. } => error_name::GUEST_DID_NOT_START,
        Error::TcgExhausted { .. }
        | Error::Confidential { .. }
        | Error::NoEvidence { .. }
        | Error::UnknownGuestCpu { .. }
        | Error::GuestAgent(guest_agent::Error::None) => error_name::NOT_SUPPORTED,
        Error::GuestRefused(_) => error_name::GUEST_REFUSED,
        Error::RemovalPending { .. } => error_name::REMOVAL_PENDING,
        Error::GuestAgent(_) | Error::StillOffline { .. } | Error::NotOnline { .. } => {
            error_name::GUEST_REFUSED
        }
        Error::PlacementFailed { .. } => error_name::PLACEMENT_FAILED,
        Error::Tuning(error) => name_of_tuning(error),
        Error::NotSaved(_) => error_name::IO_ERROR,
        Error::NotStarted { .. } | Error::AdditionPending { .. } => error_name::QMP_TIMEOUT,
        Error::Gone => error_name::NO_SUCH_MACHINE,
    }
}

/// The name on the bus of what went wrong with a change of the tuning.
fn name_of_tuning(error: &TuningError) -> &'static str {
    match error {
        TuningError::NoSuchVcpu { .. } => error_name::INVALID_VCPU,
        TuningError::NoUnit
        | TuningError::SharedThread { .. }
        | TuningError::MissingThread { .. }
        | TuningError::NoThread { .. } => error_name::NOT_SUPPORTED,
        TuningError::Unavailable(_) => error_name::CPU_UNAVAILABLE,
        TuningError::Refused(step) if step.is_unsupported() => error_name::NOT_SUPPORTED,
        TuningError::Refused(_) | TuningError::Failed(_) => error_name::PLACEMENT_FAILED,
    }
}

/// The name on the bus of what went wrong with a registration.
fn name_of_registry(error: &registry::Error) -> &'static str {
    use registry::Error;
    match error {
        Error::Exists(_) | Error::Disabled(_) | Error::OtherMachine(_) => {
            error_name::MACHINE_EXISTS
        }
        Error::NoSuchMachine => error_name::NO_SUCH_MACHINE,
        Error::TooManyOfUser { .. } | Error::TooMany(_) => error_name::LIMIT_EXCEEDED,
        Error::Unavailable(_) => error_name::CPU_UNAVAILABLE,
        Error::Leader { .. } | Error::NotASocket(_) => error_name::INVALID_ARGS,
        Error::ForeignLeader { .. } => error_name::ACCESS_DENIED,
        Error::ConnectError(reason) => match reason {
            ConnectError::OtherUuid { .. } => error_name::INVALID_ARGS,
            ConnectError::Qmp(qmp::Error::Closed(Closed::Timeout { .. })) => {
                error_name::QMP_TIMEOUT
            }
            ConnectError::OtherMachine(_) => error_name::MACHINE_EXISTS,
            ConnectError::Connect(_)
            | ConnectError::Leader(_)
            | ConnectError::Qmp(_)
            | ConnectError::LeftAlone { .. }
            | ConnectError::Gone => error_name::DISCONNECTED,
        },
        Error::NotSaved(_) => error_name::IO_ERROR,
        Error::Ending => error_name::DISCONNECTED,
    }
}

impl DBusError for Error {
    fn create_reply(&self, call: &Header<'_>) -> zbus::Result<Message> {
        tracing::debug!(name = self.dbus_name(), text = %self, "call failed");
        let reply = Message::error(call, self.name());
        let partial = match self {
            Self::Machine { error, .. } => partial_result(error),
            _ => None,
        };
        match partial {
            Some(partial) => reply.build(&(self.to_string(), partial)),
            None => reply.build(&(self.to_string(),)),
        }
    }

    fn name(&self) -> ErrorName<'_> {
        ErrorName::from_static_str_unchecked(self.dbus_name())
    }

    fn description(&self) -> Option<&str> {
        None
    }
}
