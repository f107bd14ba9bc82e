//! QMP, the QEMU Machine Protocol (`docs/interop/qmp-spec.rst` of QEMU), as a client that
//! believes nothing.
//!
//! [`codec`] turns bytes into [`Message`]s, [`Client`] carries many commands at once over one
//! connection, [`Event`] is what vcpud cares to be woken by. What the answers mean is not known
//! here.

mod client;
mod codec;
mod event;
mod session;

pub use client::{Client, Closed, Error, Events, Reply};
pub use codec::{Codec, CommandError, Malformed, Message};
pub use event::{AcpiOst, Event};
pub use session::{Commands, Identity, Version, negotiate};
