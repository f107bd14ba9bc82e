//! vcpud from the outside: the real service on a real bus.
//!
//! Wherever it can be had the rest is real too: QEMU with a Linux guest, polkitd, busctl. What a
//! real QEMU cannot be made to do, a scripted one does. Every test says in its first line which
//! parts it uses. Nothing sleeps: what is waited for is a signal, a property, a line or an end,
//! under one time limit, and nothing is skipped: `tests/setup` installs what is missing.

mod harness;

mod authorization;
mod configuration;
mod contract;
mod edge;
mod fake_qemu;
mod lifecycle;
mod machine_types;
mod malformed;
mod real_guest;
mod recipes;
mod recorded;
mod registration;
mod vcpuctl;
