//! A client of QMP, the QEMU Machine Protocol (`docs/interop/qmp-spec.rst` of QEMU). It does not trust
//! QEMU.
//!
//! [`codec`] turns bytes into [`Message`]s, [`Client`] sends many commands at a time over one connection,
//! and [`Event`] is an event that vcpud reacts to. This module does not interpret the replies.

mod client;
mod codec;
mod event;
mod session;

pub use client::{Client, Closed, Error, Events, Reply};
pub use codec::{Codec, CommandError, Malformed, Message};
pub use event::{AcpiOst, Event};
pub use session::{Commands, Identity, Version, negotiate};
