//! Behaviour that a real QEMU cannot be made to show, or not at the right moment.

mod connection;
mod cores;
mod faults;
mod growth;
mod guest_agent;
mod hostile;
mod keeping;
mod legacy;
mod lists;
mod options;
mod pending;
mod refusals;
mod removals;
mod restart;
mod soak;
mod stalls;
mod starts;
mod statistics;
mod targets;
mod units;
