//! QMP, the QEMU Machine Protocol (`docs/interop/qmp-spec.rst` of QEMU), as a client that
//! believes nothing.
//!
//! [`codec`] turns bytes into [`Message`]s, [`Client`] carries many commands at once over one
//! connection, [`Event`] is what vcpud cares to be woken by. What the answers mean is not known
//! here.

mod client;
mod codec;
mod error;
mod event;
mod events;
mod session;

pub use client::{Client, Reply};
pub use codec::{Codec, CommandError, Malformed, Message};
pub use error::{Closed, Error};
pub use event::{AcpiOst, Event};
pub use events::Events;
pub use session::{Commands, Identity, Version, negotiate};
