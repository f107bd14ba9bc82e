//! The machine and the service that a command is about, for the texts of failures.

use super::{Command, Manage, Tune};

/// The machine and the service that a command is about.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    /// `None` if the command is about several machines, or about none.
    pub machine: Option<String>,
    /// The name of the program that serves the call.
    pub service: &'static str,
}

impl Default for Subject {
    fn default() -> Self {
        Self {
            machine: None,
            service: "vcpud",
        }
    }
}

impl Command {
    /// Returns what the command is about.
    pub(crate) fn subject(&self) -> Subject {
        let machine = match self {
            Self::Status { names }
            | Self::Show { names, .. }
            | Self::Wait { names, .. }
            | Self::Manage(Manage::Unregister { names }) => match &names[..] {
                [name] => Some(name),
                _ => None,
            },
            Self::Stats { name, .. } | Self::Monitor { name } => name.as_ref(),
            Self::Autoscale(request) => request.name.as_ref(),
            Self::Set(request) => Some(&request.name),
            Self::Plug(these) | Self::Unplug(these) => Some(&these.name),
            Self::Manage(Manage::Register(register)) => Some(&register.name),
            Self::Vcpus { name, .. }
            | Self::Tuning { name }
            | Self::Explain { name }
            | Self::Tune(
                Tune::Pin { name, .. }
                | Tune::Bandwidth { name, .. }
                | Tune::Scheduler { name, .. }
                | Tune::Cache { name, .. },
            ) => Some(name),
            Self::List | Self::Top(_) | Self::Completions { .. } | Self::Manage(Manage::Reload) => {
                None
            }
        };
        let service = match self {
            Self::Autoscale(_) | Self::Explain { .. } => "vcpud-autoscale",
            _ => "vcpud",
        };
        Subject {
            machine: machine.cloned(),
            service,
        }
    }
}
