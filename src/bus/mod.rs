//! The D-Bus side: objects, errors, authorization. The module decides only whether a caller is
//! authorized.
//!
//! Methods parse, authorize and call a machine's handle. Getters read its snapshot. Events of machines
//! come through one [`Publisher`]; only it puts objects and signals on the bus.

mod arguments;
mod authority;
mod describe;
mod directory;
mod edge;
mod error;
mod guarded_call;
mod link;
mod machine;
mod manager;
mod objects;
mod options;
mod published;
mod publisher;
mod queue;
mod statistics;

pub use authority::{Action, Authority};
pub use directory::Directory;
pub use error::Error;
pub use link::{Link, NameError, connect};
pub use machine::MachineObject;
pub use manager::Manager;
pub use publisher::Publisher;
