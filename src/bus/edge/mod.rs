//! The edge of the service on the bus: what passes between the bus daemon and zbus.
//!
//! ```text
//!   bus daemon ──▶ Reader ──▶ frame (checked) ──▶ Admission ──▶ zbus ──▶ methods
//!                                                     │ refused: an error, by `errands`
//!   bus daemon ◀── Writer ◀── replies, counted ◀──────┴──────── zbus
//! ```
//!
//! zbus reads every message as fast as it arrives, starts a task for each call, and ends the
//! connection for a message that it cannot parse. The edge gives zbus only messages that it
//! parses, and only as many calls as the service answers at a time. It owns the size limits, the
//! limits of calls and reply bytes for each user, and the detection of a bus that does not read.
//! It must not know what a method does: it distinguishes calls by the name of the member only.

mod admission;
mod count;
mod decision;
mod errands;
mod frame;
mod gate;
mod limits;
mod reader;
mod transport;
mod writer;

pub(super) use errands::run_errands;
pub(super) use gate::Gate;
pub(super) use transport::connect;
