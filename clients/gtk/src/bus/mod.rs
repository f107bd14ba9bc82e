//! Owns the conversation with the service on the bus: its proxies, signals and calls. It must not know widgets, and
//! must not decide what they show.

mod calls;
mod errors;
mod link;
mod owners;
mod reads;
mod signals;

pub(crate) use link::start;

/// The proxies that are generated from the XML files.
mod proxies {
    #![allow(
        clippy::all,
        missing_docs,
        unreachable_pub,
        dead_code,
        reason = "generated code"
    )]

    use zbus::proxy;

    include!(concat!(env!("OUT_DIR"), "/proxies.rs"));
}

const SERVICE: &str = "org.vcpud1";
const ROOT: &str = "/org/vcpud1";
const MACHINE: &str = "org.vcpud1.Machine";
const AUTOSCALE: &str = "org.vcpud1.Autoscale";
const AUTOSCALE_PATH: &str = "/org/vcpud1/autoscale";
