//! Tests of an installed vcpud in a virtualization host: systemd as PID 1, the system bus and polkit of that
//! host, and QEMUs with KVM.
//!
//! `tests/lab/check` builds the tests, and runs them in the host, as root and one after the other. A test does
//! not sleep: it waits for a signal, a property, a line, an event or the end of a process, within one time
//! limit. A test restores the host, except that vcpud may continue to run.

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
mod autoscale;
mod bus;
mod disk;
mod exporter;
mod growth;
mod interaction;
mod kills;
mod many;
mod package;
mod parking;
mod placement;
mod records;
mod sandbox;
mod starts;
mod statistics;
mod store;
