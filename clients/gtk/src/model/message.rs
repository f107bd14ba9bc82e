//! Owns the messages between the widgets and the edge to D-Bus. It must not know how either works.

use super::bandwidth::Bandwidth;
use super::choice::Question;
use super::dict::Dict;
use super::failure::Failure;
use super::plan::Plan;
use super::scaling::{Scaling, Settings};

/// The object path of a machine.
pub(crate) type Path = String;

/// A request of the user or of a widget.
#[derive(Clone, Debug)]
pub(crate) enum Command {
    /// Connect to the bus and the service again now.
    Connect,
    /// Read the vCPUs of a machine.
    List(Path),
    /// Read the desired placement of a machine.
    Tuning(Path),
    /// Read the counters of a machine.
    Sample(Path),
    /// Plan a number of vCPUs.
    Plan(Path, Question),
    /// Set the number of vCPUs from `current` to `count`.
    SetVcpus {
        path: Path,
        name: String,
        count: u32,
        current: u32,
    },
    /// Pin vCPUs to host CPUs. Without vCPUs, the default; without host CPUs, no pin.
    Pin {
        path: Path,
        name: String,
        vcpus: Vec<u32>,
        cpus: String,
    },
    /// Limit the CPU time of each vCPU.
    Limit {
        path: Path,
        name: String,
        bandwidth: Bandwidth,
    },
    /// Read the scaling of the machine with this name.
    Explain { path: Path, name: String },
    /// Read the scaling of the machine with this name before the user changes it. The bus starts the autoscaler.
    Settings { path: Path, name: String },
    /// Begin to scale, or change the settings.
    Scale {
        path: Path,
        name: String,
        settings: Settings,
    },
    /// End the scaling.
    StopScaling { path: Path, name: String },
}

impl Command {
    /// Returns whether the command changes nothing.
    pub(crate) fn is_read(&self) -> bool {
        self.target().is_none()
    }

    /// Returns the path and the name of the machine that the command changes, or `None` if it changes nothing.
    pub(crate) fn target(&self) -> Option<(Path, String)> {
        match self {
            Self::SetVcpus { path, name, .. }
            | Self::Pin { path, name, .. }
            | Self::Limit { path, name, .. }
            | Self::Scale { path, name, .. }
            | Self::StopScaling { path, name } => Some((path.clone(), name.clone())),
            Self::Connect
            | Self::List(_)
            | Self::Tuning(_)
            | Self::Sample(_)
            | Self::Plan(..)
            | Self::Explain { .. }
            | Self::Settings { .. } => None,
        }
    }
}

/// A change that the edge reports.
#[derive(Debug)]
pub(crate) enum Event {
    /// The service has these machines.
    Machines(Vec<(Path, Dict)>),
    /// The application cannot show machines.
    Lost(Loss),
    MachineAdded(Path, Dict),
    MachineRemoved(Path),
    PropertiesChanged(Path, Dict),
    /// vCPUs of the machine have changed, so their rows are old.
    VcpusChanged(Path),
    /// The guest or QEMU has refused the removal of a vCPU.
    RemovalFailed {
        path: Path,
        vcpu: u32,
        code: String,
        reason: String,
    },
    Listed(Path, Vec<Dict>),
    /// The reply of `GetTuning`.
    Tuned(Path, Dict),
    Sampled(Path, Dict, Vec<Dict>),
    /// The plan, or the failure of `Plan`.
    Planned(Path, Question, Plan),
    /// A request of `SetVcpus` has ended.
    Finished(Path),
    Explained(Path, Scaling),
    /// The scaling that the user wants to change.
    SettingsRead(Path, Scaling),
    /// A request has changed the settings of the scaling.
    ScalingChanged(Path),
    /// The autoscaler has started (true) or ended.
    Scaler(bool),
    /// The service does not answer (true), or answers again.
    Silent(bool),
    /// The autoscaler has decided about the machine with this name.
    Decided(String),
    /// A request about the machine with this path and this name has failed. The machine can have ended.
    Failed(Path, String, Failure),
    /// A request has succeeded; the second text says what is different.
    Done(Path, String, String),
}

impl Event {
    /// Returns the path of the machine that the event changes, if it changes one machine of the list.
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Self::PropertiesChanged(path, _)
            | Self::VcpusChanged(path)
            | Self::RemovalFailed { path, .. }
            | Self::Listed(path, _)
            | Self::Tuned(path, _)
            | Self::Sampled(path, ..)
            | Self::Planned(path, ..)
            | Self::Finished(path)
            | Self::ScalingChanged(path)
            | Self::Explained(path, _)
            | Self::SettingsRead(path, _) => Some(path),
            _ => None,
        }
    }
}

/// Why the application cannot show machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// There is no connection to the bus.
    Bus(String),
    /// The service does not run, or could not be started.
    Service(String),
    /// The service runs, and does not list the machines.
    Refused(String),
    /// The service runs, and does not answer.
    Silent,
    /// The policy of the bus does not allow this user to call the service.
    Denied,
}
