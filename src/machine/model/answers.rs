//! The answers to requests that add vCPUs, and the texts of QEMU's refusals.

use super::effect::{LogEntry, Output};
use super::error::{Error, Refusal, Report};
use super::operation::Add;
use super::process::Process;
use super::request::{Answer, Outcome, RequestId};
use crate::ids::{SlotId, VcpuId};
use crate::inventory::HotplugSlot;
use crate::qmp::CommandError;

impl Process {
    /// Answers a request that adds vCPUs.
    pub(super) fn answer_add(&self, add: Add, errors: &[(SlotId, CommandError)], out: &mut Output) {
        let inventory = out.snapshot().inventory.clone();
        let slots = add.slots.iter().filter_map(|id| inventory.slot(*id));
        let (came, missing): (Vec<&HotplugSlot>, Vec<&HotplugSlot>) =
            slots.partition(|slot| slot.presence.is_some());
        let added: Vec<VcpuId> = came.iter().flat_map(|slot| slot.vcpus()).collect();
        if missing.is_empty() {
            let failures = self.placement.failures(&added);
            let answer = if failures.is_empty() {
                Ok(Outcome {
                    added,
                    ..Outcome::default()
                })
            } else {
                Err(Error::PlacementFailed {
                    asked: add.target,
                    added,
                    failures,
                })
            };
            reply(add.caller, answer, out);
            return;
        }
        let refusal = |slot: &&HotplugSlot| {
            let error = errors.iter().find(|(of, _)| *of == slot.id);
            let unlisted = "QEMU took the request and does not list the CPU";
            let reason = error.map_or(unlisted.to_owned(), |(_, error)| explain(error));
            Refusal {
                vcpus: slot.vcpus().collect(),
                reason,
            }
        };
        let lacking: u32 = missing.iter().map(|slot| slot.width).sum();
        let old = inventory.vcpu_count();
        out.log(LogEntry::Count {
            old,
            new: old + lacking,
            uid: Some(add.uid),
            success: false,
        });
        let report = Report {
            asked: add.target,
            added,
            removed: Vec::new(),
            pending: Vec::new(),
            refused: missing.iter().map(refusal).collect(),
        };
        reply(add.caller, Err(Error::QmpFailed(Box::new(report))), out);
    }
}

/// Answers `caller`, unless its time ran out.
fn reply(caller: Option<RequestId>, answer: Answer, out: &mut Output) {
    if let Some(id) = caller {
        out.reply(id, answer);
    }
}

/// Returns QEMU's text, with what it means to the caller if QEMU does not say so.
pub(super) fn explain(error: &CommandError) -> String {
    let text = error.desc.as_str();
    let meaning = if text.contains("not allowed while migrating") {
        " (try again when the migration is over)"
    } else if text.contains("unplug request for not supported device type") {
        " (no operating system has taken charge of the CPUs: try again when the guest is up; a guest without ACPI and a machine type of QEMU 2.6 or older never give up CPUs)"
    } else {
        ""
    };
    format!("{error}{meaning}")
}
