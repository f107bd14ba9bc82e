//! The host's kernel: processes, threads and sockets, each looked at so that nobody can swap
//! what is behind a name or a number between the check and the use.

mod affinity;
mod audit;
mod audit_log;
mod blocking;
mod cgroup;
mod closing;
mod cpus;
mod dir;
mod home;
mod identity;
mod keeper;
mod leader;
pub mod memory;
mod observe;
mod place;
mod placer;
mod resctrl;
mod scheduler;
mod socket;
mod sys;
mod task;

pub use affinity::{affinity, set_affinity};
pub use audit::{AuditRecord, CallRecord};
pub use audit_log::Audit;
pub use blocking::{blocking, broken};
pub use cgroup::{Membership, Mount, Mounts};
pub use closing::PassedFds;
pub use cpus::host_cpus;
pub use dir::Dir;
pub use home::{HomeError, Housing, find_home};
pub use identity::{ProcessId, Users};
pub use keeper::Keeper;
pub use leader::{Leader, LeaderError};
pub use observe::{Observed, memberships, observe};
pub use placer::{Host, Placer};
pub use scheduler::{Scheduling, scheduling, set_scheduler};
pub use socket::{ConnectError, SocketFile, adopt, connect_to_agent, peer_user};
pub use sys::inherited;
pub use task::{Task, Tasks};

/// A thread id as the kernel takes it. 0, which would mean the caller itself, is nobody.
fn thread_id(thread: u32) -> std::io::Result<libc::pid_t> {
    match libc::pid_t::try_from(thread) {
        Ok(thread) if thread > 0 => Ok(thread),
        _ => Err(std::io::Error::from_raw_os_error(libc::ESRCH)),
    }
}
