//! Places the vCPU threads of a machine on the host: the unit and its control groups, CPU affinity,
//! the scheduler and the caches.
//!
//! The module owns all writes to control groups, resctrl and thread attributes. Its calls block, so
//! they run on the blocking pool. What is wanted is decided elsewhere ([`crate::placement`]).

mod affinity;
mod cgroup;
mod cpus;
mod observe;
mod pass;
#[expect(
    clippy::module_inception,
    reason = "the type that does what the module is about"
)]
mod placer;
mod resctrl;
mod scheduler;
mod unit_lookup;

use crate::ids::Tid;

pub use affinity::{affinity, set_affinity};
pub use cgroup::{Membership, Mount, Mounts};
pub use cpus::host_cpus;
pub use observe::{Observed, memberships, observe};
pub use placer::{Host, Placer};
pub use scheduler::{Scheduling, scheduling, set_scheduler};
pub use unit_lookup::{ScopeRequest, UnitLookupError, find_unit};

/// Returns `thread` as the kernel takes it. 0, which would mean the calling thread, is no thread.
fn thread_id(thread: Tid) -> std::io::Result<libc::pid_t> {
    match libc::pid_t::try_from(thread.get()) {
        Ok(thread) if thread > 0 => Ok(thread),
        _ => Err(std::io::Error::from_raw_os_error(libc::ESRCH)),
    }
}
