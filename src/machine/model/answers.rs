//! The answers to requests that add vCPUs, and the texts of QEMU's refusals.

use super::effect::{LogEntry, Output};
use super::error::{Error, Report};
use super::operation::Add;
use super::process::Process;
use super::refusal::{Refusal, RefusalReason};
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
            let of_qemu = error.map(|(_, error)| RefusalReason::from_qemu(error));
            Refusal {
                vcpus: slot.vcpus().collect(),
                reason: of_qemu.unwrap_or_else(RefusalReason::not_listed),
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
