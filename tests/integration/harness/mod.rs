//! The parts of the tests: real ones if possible, and a fake QEMU.

mod ansible;
mod autoscaler;
mod bus;
mod configuration;
mod exporter;
mod guest;
mod http;
mod journal;
mod json;
mod machine;
mod polkit;
mod process;
mod program;
mod raw;
mod service;
mod signals;
mod sshd;
mod systemd;
mod units;
mod wait;
mod world;

pub(crate) use ansible::{Ansible, readme_block};
pub(crate) use autoscaler::Autoscaler;
pub(crate) use bus::{is_owned, owned};
pub(crate) use exporter::ExporterSocket;
pub(crate) use fake_qemu::{
    Call, Command, Fault, Model, Next, Peer, Removal, Replay, Sent, Starts, Threads, UUID, deleted,
    event, ost, until, within,
};
pub(crate) use guest::{Boot, Hardware, MAX_VCPUS, Qemu};
pub(crate) use http::{read_to_end, request};
pub(crate) use journal::{Entry, Journal};
pub(crate) use json::{Dict, dict};
pub(crate) use machine::{Failure, Machine, Outcome, WITH_GUEST};
pub(crate) use process::{Process, command, command_of_nobody, sleeper};
pub(crate) use program::{copy_program, script};
pub(crate) use raw::RawClient;
pub(crate) use service::Service;
pub(crate) use signals::{Signal, Vcpu, added, changes_of, ids, removal_failed, removed};
pub(crate) use sshd::{Keys, Sshd};
pub(crate) use systemd::Systemd;
pub(crate) use units::{At, Trouble, Units};
pub(crate) use world::{Interaction, Lines, World};
