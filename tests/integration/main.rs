//! Tests of the service on a private bus, from the view of its clients.
//!
//! The other parts are real too, if possible: QEMU with a Linux guest, polkitd, busctl. A fake QEMU does the
//! things that a test cannot make a real one do. The first line of each test names its parts. A test waits
//! for a signal, a property, a line or the end of a process, within one time limit. No test is ignored:
//! `tests/setup` installs all parts.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a failed step ends the test"
)]

mod harness;

mod ansible;
mod authorization;
mod autoscale;
mod bindings;
mod clients;
mod configuration;
mod contract;
mod edge;
mod exporter;
mod fake_qemu;
mod journal;
mod lifecycle;
mod machine_types;
mod malformed;
mod real_guest;
mod recipes;
mod recorded;
mod registration;
mod top;
mod vcpuctl;
