//! Processes of the host: the QEMU process, its threads, sockets and directories. Each is opened before it is
//! checked, so that no process can replace it between the check and the use.
//!
//! The module must not know control groups, systemd or QMP.

mod clock;
mod closing;
mod dir;
mod identity;
mod leader;
mod namespace;
mod socket;
pub(crate) mod sys;
mod task;

pub use clock::{cpu_time, monotonic, start_of};
pub use closing::PassedFds;
pub use dir::Dir;
pub use identity::{ProcessId, Users};
pub use leader::{Leader, LeaderError};
pub use socket::{SocketError, SocketFile, adopt, connect_to_agent, peer_user};
pub use sys::inherited;
pub use task::{Task, TaskDir, Tasks};
