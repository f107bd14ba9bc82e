//! A client of QMP, the QEMU Machine Protocol (`docs/interop/qmp-spec.rst` of QEMU). It does not trust
//! QEMU.
//!
//! [`codec`] turns bytes into [`Message`]s, [`Client`] sends many commands at a time over one connection,
//! and [`Event`] is an event that vcpud reacts to. This module does not interpret the replies.

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
