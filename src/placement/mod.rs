//! The wanted placement of a machine's vCPUs on the host, and the results. Pure: the module does not access the
//! host. `placer` does, and asks systemd through [`Units`].

mod bandwidth;
mod decision;
mod list;
mod report;
mod scheduler;
mod schemata;
mod tuning;
mod unit;

pub use bandwidth::{Bandwidth, BandwidthError, Change};
pub use decision::{Decision, decide, forgotten_scope};
pub use list::{Cpu, CpuList, List, ListError, Node, NodeList, Numbered, VcpuList};
pub use report::{
    ChangedThread, ChangedThreads, Controller, Outcome, Reason, Report, Step, StepError,
};
pub use scheduler::{Scheduler, SchedulerError};
pub use schemata::{Schemata, SchemataError};
pub use tuning::{HostCpus, Tuning, Unavailable, Wanted};
pub use unit::{
    Kind, NewScope, NoCgroupsReason, PlacementMode, Process, Retry, UnitError, UnitFacts,
    UnitPlacement, Units,
};
