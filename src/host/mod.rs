//! The host's kernel: processes, threads and sockets, each looked at so that nobody can swap
//! what is behind a name or a number between the check and the use.

mod leader;
mod socket;

pub use leader::{Leader, LeaderError, ProcessId};
pub use socket::{ConnectError, connect};
