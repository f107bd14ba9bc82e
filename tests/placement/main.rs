//! Placement from the outside of its modules: threads and control groups of the real kernel, and
//! systemd on a real bus.

mod machine;
mod units;
