//! The journal of a machine: log lines, with fields and message ids for journald, and records of the
//! kernel's audit log. It receives what the model emits and logs, and decides nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use tracing::{debug, info, warn};

use super::model::effect::LogEntry;
use super::model::event::{MachineEvent, VcpuChange};
use super::model::input::Missing;
use super::model::snapshot::Snapshot;
use super::quota::Quota;
use crate::audit::{Audit, AuditRecord};
use crate::ids::{Uid, VcpuId};
use crate::names::{MachineName, message_id};
use crate::placement::{Report, Step, StepError};

/// How many log lines, and how many audit records, a machine may cause in a second by changes that no
/// caller asked for.
const RECORDS_PER_SECOND: u32 = 50;
/// How many log lines it may cause at once.
const LOG_BURST: u32 = 1000;
/// How many audit records it may cause at once. One record is about all vCPUs that change together.
const AUDIT_BURST: u32 = 100;

/// The journal of one machine.
#[derive(Debug)]
pub(super) struct Journal {
    name: MachineName,
    /// The text of the endpoint.
    endpoint: String,
    audit: Arc<Audit>,
    /// The last published snapshot.
    snapshot: Arc<Snapshot>,
    log_quota: Quota,
    audit_quota: Quota,
    /// The failures of the last placement pass.
    failed: BTreeMap<(VcpuId, Step), StepError>,
    /// The reason why not all other threads were in the emulator's group then.
    emulator: Option<StepError>,
    /// Whether the process was in another unit then.
    is_elsewhere: bool,
    /// The drift that was logged.
    drifted: BTreeSet<(VcpuId, Step)>,
}

impl Journal {
    pub(super) fn new(name: MachineName, endpoint: String, audit: Arc<Audit>) -> Self {
        Self {
            name,
            endpoint,
            audit,
            snapshot: Arc::default(),
            log_quota: Quota::new(RECORDS_PER_SECOND, LOG_BURST),
            audit_quota: Quota::new(RECORDS_PER_SECOND, AUDIT_BURST),
            failed: BTreeMap::new(),
            emulator: None,
            is_elsewhere: false,
            drifted: BTreeSet::new(),
        }
    }

    /// Notes what is published. Later lines are about it.
    pub(super) fn publish(&mut self, snapshot: Arc<Snapshot>) {
        self.snapshot = snapshot;
    }

    /// Forgets the process of the machine.
    pub(super) fn forget_process(&mut self) {
        self.failed.clear();
        self.emulator = None;
        self.is_elsewhere = false;
        self.drifted.clear();
    }

    /// Logs an event. A machine that changes without requests has a limited number of lines.
    pub(super) fn event(&mut self, now: Instant, event: &MachineEvent) {
        if let Some(vcpu) = event.vcpu()
            && (vcpu.uid.is_some() || self.log_quota.take(now))
        {
            self.vcpu_event(event, vcpu);
        }
    }

    fn vcpu_event(&self, event: &MachineEvent, vcpu: &VcpuChange) {
        let (vm_name, vm_uuid) = (self.name.as_str(), self.snapshot.uuid.as_str());
        let (id, alias, cause) = (vcpu.id.get(), &vcpu.alias, vcpu.cause.as_str());
        let request_uid = vcpu.uid.map(Uid::get);
        match event {
            MachineEvent::VcpuRemovalFailed { reason, .. } => warn!(
                message_id = message_id::VCPU_REMOVAL_FAILED,
                vm_name,
                vm_uuid,
                vcpu = id,
                alias,
                cause,
                request_uid,
                reason = reason.text,
                reason_code = reason.code.as_str(),
                "{vm_name}: vCPU {id} not removed: {}",
                reason.text
            ),
            event => {
                let (message_id, change) = match event {
                    MachineEvent::VcpuAdded(_) => (message_id::VCPU_ADDED, "added"),
                    MachineEvent::VcpuStarted(_) => {
                        (message_id::VCPU_STARTED, "started by the guest")
                    }
                    _ => (message_id::VCPU_REMOVED, "removed"),
                };
                info!(
                    message_id,
                    vm_name,
                    vm_uuid,
                    vcpu = id,
                    alias,
                    cause,
                    request_uid,
                    "{vm_name}: vCPU {id} {change}"
                );
            }
        }
    }

    /// Logs an entry.
    pub(super) fn entry(&mut self, now: Instant, entry: LogEntry) {
        let vm_name = self.name.as_str();
        match entry {
            LogEntry::Started(count) => self.write_audit(true, 0, count, None, true),
            LogEntry::Count {
                old,
                new,
                uid,
                success,
            } => {
                if uid.is_some() || self.audit_quota.take(now) {
                    self.write_audit(false, old, new, uid, success);
                }
            }
            LogEntry::StillPending { uid, vcpus } => {
                let vcpus: Vec<u32> = vcpus.into_iter().map(VcpuId::get).collect();
                info!(
                    message_id = message_id::VCPU_REMOVAL_PENDING,
                    vm_name,
                    vm_uuid = self.snapshot.uuid.as_str(),
                    ?vcpus,
                    request_uid = uid.get(),
                    "{vm_name}: vCPUs {vcpus:?} not removed in time, and still pending"
                );
            }
            other => self.state_entry(other),
        }
    }

    /// Logs an entry about the connection or the state file.
    fn state_entry(&self, entry: LogEntry) {
        let (vm_name, endpoint) = (&self.name, &self.endpoint);
        match entry {
            LogEntry::Restored(removals) => {
                info!(%vm_name, removals, "{vm_name}: restored the state of the previous instance")
            }
            LogEntry::NotRestored(error) => {
                warn!(%vm_name, error, "{vm_name}: cannot read the persisted state: {error}")
            }
            LogEntry::Connected(qemu, vcpus, max) => {
                info!(%vm_name, %qemu, vcpus, max, "{vm_name}: connected to QEMU {qemu}, {vcpus} of {max} vCPUs present")
            }
            LogEntry::Disconnected(reason) => {
                warn!(%vm_name, reason, "{vm_name}: disconnected: {reason}")
            }
            LogEntry::NotConnected(reason, true) => {
                debug!(%vm_name, endpoint, reason, "{vm_name}: no machine at {endpoint}: {reason}")
            }
            LogEntry::NotConnected(reason, false) => {
                warn!(%vm_name, endpoint, reason, "{vm_name}: cannot connect to {endpoint}: {reason}")
            }
            LogEntry::Unresponsive(text) => warn!(%vm_name, "{vm_name}: {text}"),
            LogEntry::Gone(reason) => info!(%vm_name, reason, "{vm_name}: gone: {reason}"),
            LogEntry::NotSaved(error) => {
                warn!(%vm_name, error, "{vm_name}: cannot save the state: {error}; until it can be saved, requests are refused, and a restart of the service may emit signals again")
            }
            LogEntry::SavedAgain => info!(%vm_name, "{vm_name}: the state is saved again"),
            LogEntry::NoGroups(Missing {
                reason,
                is_error: true,
            }) => {
                warn!(%vm_name, reason, "{vm_name}: no control groups, only affinity and schedulers: {reason}")
            }
            LogEntry::NoGroups(Missing { reason, .. }) => {
                info!(%vm_name, reason, "{vm_name}: no control groups, only affinity and schedulers: {reason}")
            }
            LogEntry::GuestNotRestored(cpus, error) => {
                warn!(%vm_name, ?cpus, error, "{vm_name}: cannot bring the CPUs {cpus:?} of the guest online again: {error}")
            }
            LogEntry::Started(_) | LogEntry::Count { .. } | LogEntry::StillPending { .. } => {}
        }
    }

    /// Logs the failures and the drift of a placement pass that were not logged before.
    pub(super) fn placement(&mut self, now: Instant, report: &Report) {
        let vm_name = self.name.as_str();
        let failures = report.failures();
        let failed: BTreeMap<(VcpuId, Step), StepError> = failures
            .map(|(vcpu, error)| ((vcpu, error.step), error.clone()))
            .collect();
        for (of, error) in &failed {
            let (vcpu, is_new) = (of.0, self.failed.get(of) != Some(error));
            if is_new && self.log_quota.take(now) {
                let message_id = message_id::VCPU_NOT_PLACED;
                let id = vcpu.get();
                warn!(message_id, vm_name, vcpu = id, %error, "{vm_name}: vCPU {vcpu} not placed as wanted: {error}");
            }
        }
        for (vcpu, outcome) in &report.vcpus {
            for step in &outcome.drifted {
                if self.drifted.insert((*vcpu, *step)) && self.log_quota.take(now) {
                    warn!(vm_name, vcpu = vcpu.get(), %step, "{vm_name}: vCPU {vcpu} was changed by another program, and is placed again ({step})");
                }
            }
        }
        if let Some(error) = &report.emulator
            && self.emulator.as_ref() != Some(error)
            && self.log_quota.take(now)
        {
            info!(vm_name, %error, "{vm_name}: not all other threads are in the emulator's group: {error}");
        }
        if report.is_elsewhere && !self.is_elsewhere && self.log_quota.take(now) {
            warn!(
                vm_name,
                "{vm_name}: another program moved QEMU to another unit: searching its unit again"
            );
        }
        self.is_elsewhere = report.is_elsewhere;
        self.failed = failed;
        self.emulator.clone_from(&report.emulator);
    }

    /// Logs how many lines and records were dropped, if that is due.
    pub(super) fn report_dropped(&mut self, now: Instant) {
        let vm_name = self.name.as_str();
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

    fn write_audit(&self, is_start: bool, old: u32, new: u32, uid: Option<Uid>, success: bool) {
        self.audit.write(&AuditRecord {
            machine: self.name.as_str(),
            uuid: self.snapshot.uuid.as_str(),
            kvm: self.snapshot.accelerator.as_str() == "kvm",
            is_start,
            old,
            new,
            uid,
            success,
        });
    }
}
