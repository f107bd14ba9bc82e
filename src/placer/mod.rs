//! Places the vCPU threads of a machine on the host: the unit and its control groups, CPU affinity,
//! the scheduler and the caches.
//!
//! The module owns all writes to control groups, resctrl and thread attributes. Its calls block, so
//! they run on the blocking pool. [`crate::placement`] decides about the wanted values.

mod affinity;
mod cgroup;
mod cpu_events;
mod cpus;
mod create;
mod host;
mod mask;
mod observe;
mod pass;
#[expect(
    clippy::module_inception,
    reason = "the type that does what the module is about"
)]
mod placer;
mod resctrl;
mod sample;
mod scheduler;
mod tunable;
mod unit_lookup;
mod watch;

pub use affinity::{affinity, set_affinity};
pub use cgroup::{Membership, Mount, Mounts};
pub use cpu_events::CpuEvents;
#[cfg(test)]
pub(crate) use cpu_events::request_event;
pub use cpus::host_cpus;
pub use create::Created;
pub use host::Host;
pub use mask::Masks;
pub use observe::{Observed, memberships, observe};
pub use placer::Placer;
pub use sample::sample;
pub use scheduler::{Scheduling, scheduling, set_scheduler};
pub use unit_lookup::{ScopeRequest, UnitLookupError, find_unit, is_still_shared};
pub use watch::{MachineWatch, Watches};
