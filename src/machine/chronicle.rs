//! What is written down of a machine's vCPUs: the log, with fields and message ids for journald,
//! and the kernel's audit log. One record an outcome.

use tokio::time::Instant;
use tracing::{info, warn};

use super::actor::Actor;
use super::error::Error;
use super::notice::MachineEvent;
use super::removal::Due;
use crate::audit::AuditRecord;
use crate::ids::Uid;
use crate::names::message_id;

impl Actor {
    /// Logs `news` and emits it. A machine that changes by itself has a limited number of log lines.
    pub(super) async fn tell(&mut self, news: MachineEvent) {
        let vcpu = match &news {
            MachineEvent::VcpuAdded(vcpu) | MachineEvent::VcpuRemoved(vcpu) => Some(vcpu),
            MachineEvent::VcpuRemovalFailed { vcpu, .. } => Some(vcpu),
            _ => None,
        };
        if vcpu.is_some_and(|vcpu| vcpu.uid.is_some() || self.log_quota.take(Instant::now())) {
            self.log(&news);
        }
        self.outbox.tell(&self.source.name, news).await;
    }

    fn log(&self, news: &MachineEvent) {
        let snapshot = self.snapshot();
        let (vm_name, vm_uuid) = (self.source.name.as_str(), snapshot.uuid.as_str());
        match news {
            MachineEvent::VcpuAdded(vcpu) => info!(
                message_id = message_id::VCPU_ADDED,
                vm_name,
                vm_uuid,
                vcpu = vcpu.id.get(),
                alias = vcpu.alias,
                cause = vcpu.cause.as_str(),
                request_uid = vcpu.uid.map(Uid::get),
                "vCPU added"
            ),
            MachineEvent::VcpuRemoved(vcpu) => info!(
                message_id = message_id::VCPU_REMOVED,
                vm_name,
                vm_uuid,
                vcpu = vcpu.id.get(),
                alias = vcpu.alias,
                cause = vcpu.cause.as_str(),
                request_uid = vcpu.uid.map(Uid::get),
                "vCPU removed"
            ),
            MachineEvent::VcpuRemovalFailed { vcpu, reason } => warn!(
                message_id = message_id::VCPU_REMOVAL_FAILED,
                vm_name,
                vm_uuid,
                vcpu = vcpu.id.get(),
                alias = vcpu.alias,
                cause = vcpu.cause.as_str(),
                request_uid = vcpu.uid.map(Uid::get),
                reason,
                "vCPU not removed"
            ),
            _ => {}
        }
    }

    /// Logs how many log lines and audit records were dropped, if that is due.
    pub(super) fn log_dropped(&mut self) {
        let now = Instant::now();
        let vm_name = self.source.name.as_str();
        if let Some(dropped) = self.log_quota.report(now) {
            warn!(
                vm_name,
                dropped, "{vm_name}: dropped {dropped} log lines, because vCPUs change too often"
            );
        }
        if let Some(dropped) = self.audit_quota.report(now) {
            warn!(
                vm_name,
                dropped,
                "{vm_name}: dropped {dropped} audit records, because vCPUs change too often"
            );
        }
    }

    /// Gives the answers that are due, and writes down who waited in vain.
    pub(super) fn answer_due(&mut self) {
        let due = self.removals.take_due(Instant::now());
        self.note_late(&due);
        due.give();
    }

    fn note_late(&self, due: &Due) {
        let snapshot = self.snapshot();
        let (vm_name, vm_uuid) = (self.source.name.as_str(), snapshot.uuid.as_str());
        let current = snapshot.inventory.vcpu_count();
        for (uid, result) in due.results() {
            let Err(Error::RemovalPending { report, .. }) = result else {
                continue;
            };
            info!(
                message_id = message_id::VCPU_REMOVAL_PENDING,
                vm_name,
                vm_uuid,
                vcpus = ?report.pending,
                request_uid = uid.get(),
                "vCPUs not removed in time, and still pending"
            );
            let wanted = current.saturating_sub(report.pending.len() as u32);
            self.audit(current, wanted, Some(uid), false);
        }
    }

    /// Writes down that the machine was seen for the first time.
    pub(super) fn audit_start(&self) {
        let count = self.snapshot().inventory.vcpu_count();
        self.write_audit(true, 0, count, None, true);
    }

    /// Audits how the number of vCPUs changed with `news`, and what was refused. A machine that
    /// changes by itself has a limited number of records.
    pub(super) fn audit_news(&mut self, old: u32, new: u32, news: &[MachineEvent]) {
        let mut asked: Option<Uid> = None;
        let mut refused = 0;
        let mut refused_uid = None;
        for news in news {
            match news {
                MachineEvent::VcpuAdded(vcpu) | MachineEvent::VcpuRemoved(vcpu) => {
                    asked = asked.or(vcpu.uid)
                }
                MachineEvent::VcpuRemovalFailed { vcpu, .. } => {
                    refused += 1;
                    refused_uid = refused_uid.or(vcpu.uid);
                }
                _ => {}
            }
        }
        let now = Instant::now();
        if old != new && (asked.is_some() || self.audit_quota.take(now)) {
            self.audit(old, new, asked, true);
        }
        if refused > 0 && (refused_uid.is_some() || self.audit_quota.take(now)) {
            self.audit(new, new.saturating_sub(refused), refused_uid, false);
        }
    }

    /// Writes down that the number of vCPUs went from `old` to `new`, or was to.
    pub(super) fn audit(&self, old: u32, new: u32, uid: Option<Uid>, success: bool) {
        self.write_audit(false, old, new, uid, success);
    }

    fn write_audit(&self, is_start: bool, old: u32, new: u32, uid: Option<Uid>, success: bool) {
        let snapshot = self.snapshot();
        self.site.audit.write(&AuditRecord {
            machine: self.source.name.as_str(),
            uuid: snapshot.uuid.as_str(),
            kvm: snapshot.accelerator.as_str() == "kvm",
            is_start,
            old,
            new,
            uid,
            success,
        });
    }
}
