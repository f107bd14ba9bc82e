//! Recorded conversations with real QEMUs, played again: what the service makes of each.

mod player;

mod boot_cpus;
mod cycles;
mod detached;
mod inventories;
mod ost;
mod states;
mod targets;
