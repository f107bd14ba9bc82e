//! Why a request to a machine has no success, with what did happen.

use std::time::Duration;

use crate::inventory::Denial;
use crate::qmp;
use crate::text::Text;

/// A request failed. The texts say what was found and what the caller can do; who shows them
/// says which machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It cannot be; QEMU was not asked.
    #[error("{denial}{}", qemu.as_ref().map(|text| format!(" (QEMU: {text})")).unwrap_or_default())]
    Denied {
        /// Why.
        denial: Denial,
        /// Why, in QEMU's words, where it has some.
        qemu: Option<Text>,
    },
    /// There is no connection to QEMU.
    #[error(
        "there is no QMP connection: {0}; the service keeps trying, ask again when State says so"
    )]
    Disconnected(String),
    /// The connection broke while the request was carried out.
    #[error(
        "the QMP connection broke in the middle of the request: {0}; ListVcpus tells what came of it once the machine is connected again"
    )]
    Interrupted(qmp::Closed),
    /// QEMU refused a part of it or all.
    #[error("QEMU refused: {}; {}", list(refused), came_of_it(*asked, added, removed, pending))]
    QmpFailed {
        /// The number of vCPUs asked for.
        asked: u32,
        /// vCPUs that came all the same.
        added: Vec<u32>,
        /// vCPUs that went all the same.
        removed: Vec<u32>,
        /// vCPUs that may still go.
        pending: Vec<u32>,
        /// What was refused.
        refused: Vec<Refusal>,
    },
    /// The guest refused to give up a vCPU.
    #[error("the guest refused: {}; {}; free the vCPUs in the guest and ask again", list(refused), came_of_it(*asked, &[], removed, &[]))]
    GuestRefused {
        /// The number of vCPUs asked for.
        asked: u32,
        /// vCPUs that went all the same.
        removed: Vec<u32>,
        /// What was refused.
        refused: Vec<Refusal>,
    },
    /// The time for waiting ran out.
    #[error("the guest did not give up every vCPU within {} s{}; {}; the request stands: VcpuRemoved or VcpuRemovalFailed follows", waited.as_secs_f64(), also_refused(refused), came_of_it(*asked, &[], removed, pending))]
    RemovalPending {
        /// The number of vCPUs asked for.
        asked: u32,
        /// vCPUs that are gone.
        removed: Vec<u32>,
        /// What was refused meanwhile.
        refused: Vec<Refusal>,
        /// vCPUs that may still go.
        pending: Vec<u32>,
        /// How long the call waited.
        waited: Duration,
    },
    /// The machine went away.
    #[error("the machine is gone")]
    Gone,
}

/// vCPUs that did not come or go, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The vCPUs of one entity.
    pub vcpus: Vec<u32>,
    /// Why, in words.
    pub reason: String,
}

fn list(refusals: &[Refusal]) -> String {
    let line = |r: &Refusal| format!("{}: {}", vcpus(&r.vcpus), r.reason);
    refusals.iter().map(line).collect::<Vec<_>>().join("; ")
}

fn also_refused(refusals: &[Refusal]) -> String {
    match refusals {
        [] => String::new(),
        some => format!(" and refused some ({})", list(some)),
    }
}

/// What became of a request for `asked` vCPUs.
fn came_of_it(asked: u32, added: &[u32], removed: &[u32], pending: &[u32]) -> String {
    let mut parts = vec![format!("asked for {asked} vCPUs")];
    for (what, numbers) in [
        ("added", added),
        ("removed", removed),
        ("still pending", pending),
    ] {
        if !numbers.is_empty() {
            parts.push(format!("{what}: {}", vcpus(numbers)));
        }
    }
    if parts.len() == 1 {
        parts.push("nothing changed".to_owned());
    }
    parts.join(", ")
}

fn vcpus(numbers: &[u32]) -> String {
    let list: Vec<String> = numbers.iter().map(u32::to_string).collect();
    match numbers {
        [_] => format!("vCPU {}", list[0]),
        _ => format!("vCPUs {}", list.join(", ")),
    }
}
