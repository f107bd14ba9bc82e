//! Placement from the outside of its modules: threads of a real QEMU and control groups of the
//! real kernel, and systemd on a real bus.
//!
//! No host has both versions of control groups with all controllers. A test of what this one has
//! not says on standard error that it did not run.

mod bare;
mod parts;
mod reuse;
mod units;
mod v1;
mod v2;
