//! vcpud as it is installed in a whole virtualization host: systemd as PID 1, the system bus and
//! polkit of that host, QEMUs whose vCPUs are true KVM ones.
//!
//! `tests/lab/check` builds this, and runs it inside the host, as root and one test after the
//! other. Nothing sleeps: what is waited for is a signal, a property, a line, an event or an end,
//! under one time limit. Each test leaves the host as it found it, but for vcpud, which may run on.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a failed step ends the test"
)]

mod harness;

mod activation;
mod attempts;
mod authorization;
mod bus;
mod disk;
mod growth;
mod interaction;
mod kills;
mod many;
mod parking;
mod placement;
mod records;
mod sandbox;
mod store;
