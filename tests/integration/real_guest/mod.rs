//! What only a real QEMU with a real guest can prove.

mod agent;
mod boot_vcpus;
mod callers;
mod ejection;
mod end;
mod firmware;
mod growth;
mod pending;
mod placement;
mod refusal;
mod single_thread;
mod starts;
mod states;
mod statistics;
