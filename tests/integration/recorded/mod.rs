//! Recorded conversations with real QEMUs, replayed: the signals and replies of the service.

mod player;

mod boot_cpus;
mod cycles;
mod detached;
mod inventories;
mod ost;
mod states;
mod targets;
