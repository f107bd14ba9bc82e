//! The time limit of all waits. The lab has another one, so shared files use this module.

pub(crate) use fake_qemu::within;
