//! The modules for the tests in the lab: those of the host, and some of the integration tests.

// The integration tests use all of these modules, and the lab a part.
#[allow(dead_code)]
#[path = "../../integration/harness/http.rs"]
mod http;
#[allow(dead_code)]
#[path = "../../integration/harness/json.rs"]
mod json;
#[allow(dead_code)]
#[path = "../../integration/harness/machine.rs"]
mod machine;
#[allow(dead_code)]
#[path = "../../integration/harness/process.rs"]
mod process;
#[allow(dead_code)]
#[path = "../../integration/harness/signals.rs"]
mod signals;

mod console;
mod exit;
mod groups;
mod guest;
mod host;
mod lost;
mod place;
mod qmp;
mod user;
mod wait;

pub(crate) use groups::{Groups, list_of, scheduling_of};
pub(crate) use guest::Guest;
pub(crate) use host::{Host, output};
pub(crate) use http::request;
pub(crate) use json::Dict;
pub(crate) use machine::{Failure, Machine, Outcome};
pub(crate) use place::Place;
pub(crate) use process::{Process, command};
pub(crate) use signals::{Signal, Vcpu, added, ids, removed};
pub(crate) use user::User;
pub(crate) use wait::{until, within};
