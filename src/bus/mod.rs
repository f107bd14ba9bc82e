//! The D-Bus side: objects, errors, authorization. Nothing is decided here but who may.
//!
//! Methods authorize, parse and delegate to a machine's handle; getters read its snapshot; what
//! machines tell comes through one [`Publisher`], which alone puts objects and signals on the
//! bus.

mod arguments;
mod authority;
mod describe;
mod directory;
mod edge;
mod error;
mod link;
mod machine;
mod manager;
mod operation;
mod options;
mod publisher;
mod queue;
mod records;

pub use authority::{Action, Authority};
pub use directory::Directory;
pub use error::Error;
pub use link::{Link, NameError};
pub use machine::MachineObject;
pub use manager::Manager;
pub use publisher::Publisher;
pub use records::Records;
