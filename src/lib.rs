//! vcpud adds and removes virtual CPUs of running QEMU virtual machines over D-Bus.
//!
//! The library contains the service and the client side. The programs in `src/bin` use it. Calls and
//! types have one direction: `daemon` → `bus` → `registry` → `machine` → {`qmp`, `guest_agent`, `placer`,
//! `process`, `inventory`}. `ARCHITECTURE.md` describes the modules, and `tests/architecture` enforces
//! their dependencies.

pub mod arguments;
pub mod audit;
pub mod autoscale;
mod blocking;
pub mod bus;
pub mod config;
pub mod daemon;
pub mod fd_store;
pub mod guest_agent;
mod idle;
pub mod ids;
pub mod inventory;
mod limited;
pub mod log;
pub mod machine;
pub mod names;
pub mod placement;
pub mod placer;
pub mod process;
pub mod proxy;
pub mod qmp;
pub mod registry;
pub mod signals;
mod state_file;
pub mod statistics;
pub mod systemd;
pub mod text;
