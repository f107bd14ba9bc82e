//! The machine types of QEMU: what each can do with its vCPUs, shown on the real ones.
//!
//! `doc/machine-types.md` is the table of it, and names these tests.

mod aarch64;
mod loongarch64;
mod microvm;
mod pc;
mod pseries;
mod riscv64;
mod s390x;
mod table;
mod topology;
