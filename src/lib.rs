//! vcpud adds and removes virtual CPUs of running QEMU virtual machines, over D-Bus.
//!
//! The library holds all of the service and the client side; the two programs in `src/bin` only
//! start it. Calls and types flow one way: `daemon` → `bus` → `registry` → `machine` →
//! {`qmp`, `host`, `inventory`}, and `host` and `systemd` → `placement`. `ARCHITECTURE.md` draws the map, and a test holds the arrows.

pub mod bus;
pub mod config;
pub mod daemon;
pub mod guest_agent;
pub mod host;
mod idle;
pub mod inventory;
mod limited;
pub mod machine;
pub mod names;
pub mod placement;
pub mod proxy;
pub mod qmp;
pub mod registry;
pub mod systemd;
pub mod text;
