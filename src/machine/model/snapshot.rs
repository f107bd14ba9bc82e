//! The state of a machine at one moment. Readers get it as a whole.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::error::Error;
use super::numbering::Numbering;
use super::plan_code::{Warning, WarningCode};
use super::tuning::TuningKind;
use crate::ids::{Pid, SlotId, VcpuId};
use crate::inventory::{
    HotplugMethod, Inventory, Plan, Target, Vcpu, count_after, name_vcpus, nearest, plan,
};
use crate::placement::{Bandwidth, Tuning, UnitPlacement};
use crate::process::ProcessId;
use crate::qmp::Version;
use crate::text::Text;

/// The state of a machine whose QMP connection is lost or was never answered.
pub const DISCONNECTED: &str = "disconnected";

/// The state of a machine, as QEMU reported it last.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// QEMU's version; `None` until QEMU has answered once, and the other fields are empty until then.
    pub version: Option<Version>,
    /// The UUID of the VM, or empty.
    pub uuid: Text,
    /// The accelerator: `kvm`, `tcg`, ….
    pub accelerator: Text,
    /// QEMU's name of the target.
    pub architecture: Text,
    /// The QEMU process; `None` if it is not known.
    pub process: Option<ProcessId>,
    /// QEMU's word for the run state. Clients see [`Snapshot::state`].
    pub run_state: Text,
    /// Why the machine is disconnected, if it is.
    pub disconnected: Option<String>,
    /// The vCPUs.
    pub inventory: Arc<Inventory>,
    /// Why QEMU does not hot-plug CPUs, in its words.
    pub no_hotplug: Option<Text>,
    /// The unit and control group of the machine; `None` until they are known.
    pub unit: Option<UnitPlacement>,
    /// The missing parts of the placement, with the reasons.
    pub placement_errors: Vec<String>,
    /// Whether vCPUs can be placed on the host at all.
    pub can_place: bool,
    /// Whether the control groups in force can limit the CPU time of vCPUs.
    pub can_limit: bool,
    /// The desired tuning of the vCPUs.
    pub tuning: Arc<Tuning>,
    /// The desired host CPUs of vCPUs that have no others of their own, as a list.
    pub affinity: String,
    /// The values in force.
    pub effective: Effective,
    /// The vCPUs with a pending removal, in ascending order.
    pub pending: Vec<VcpuId>,
    /// The present vCPUs without evidence that the guest has started them, in ascending order.
    pub awaited: Vec<VcpuId>,
    /// The vCPUs whose number in the guest is known.
    pub numbering: Numbering,
    /// How many vCPUs QEMU created in its life, as far as it is known.
    pub created: u32,
    /// Whether the memory of the guest is encrypted (SEV, TDX).
    pub is_confidential: bool,
}

/// The values of the placement that are in force, as the kernel had them after the last pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    /// The host CPUs of present vCPUs that have no others of their own, as a list. Empty if no such vCPU
    /// has a thread.
    pub affinity: String,
    /// The limit of CPU time that no vCPU exceeds.
    pub bandwidth: Bandwidth,
}

impl Default for Effective {
    fn default() -> Self {
        Self {
            affinity: String::new(),
            bandwidth: Bandwidth::UNLIMITED,
        }
    }
}

/// The QEMU process and the VM that a caller was authorized for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    process: Option<ProcessId>,
    uuid: Text,
}

impl Snapshot {
    /// Returns the QEMU process and the VM that the snapshot is about.
    pub fn subject(&self) -> Subject {
        Subject {
            process: self.process,
            uuid: self.uuid.clone(),
        }
    }

    /// Checks that the snapshot is about `subject`.
    ///
    /// # Errors
    /// [`Error::Replaced`] if it is about another process or VM.
    pub(in crate::machine) fn check(&self, subject: &Subject) -> Result<(), Error> {
        if self.subject() == *subject {
            Ok(())
        } else {
            Err(Error::Replaced)
        }
    }

    /// Returns the PID of the QEMU process; 0 if it is not known.
    pub fn leader(&self) -> Pid {
        self.process.map_or(Pid(0), |process| process.pid)
    }

    /// Returns the run state in QEMU's words, or [`DISCONNECTED`].
    pub fn state(&self) -> &str {
        match self.disconnected {
            Some(_) => DISCONNECTED,
            None => self.run_state.as_str(),
        }
    }

    /// Returns whether QEMU leaves its run state without an event (`runstate_set()` in migration and
    /// snapshots).
    pub(super) fn is_passing(&self) -> bool {
        let passing = ["finish-migrate", "inmigrate", "restore-vm", "save-vm"];
        passing.contains(&self.run_state.as_str())
    }

    /// Returns QEMU's run state if the guest does not run in it.
    pub(super) fn stopped(&self) -> Option<Text> {
        (self.run_state.as_str() != "running").then(|| self.run_state.clone())
    }

    /// Returns whether the guest has started `vcpu`. The result is `None` if it is free, or if there can be no
    /// evidence: threads that run several vCPUs show nothing about one of them.
    pub fn is_started(&self, vcpu: &Vcpu<'_>) -> Option<bool> {
        vcpu.slot.presence.as_ref()?;
        match self.awaited.binary_search(&vcpu.id) {
            Ok(_) => self.has_evidence(vcpu).then_some(false),
            Err(_) => Some(true),
        }
    }

    fn has_evidence(&self, vcpu: &Vcpu<'_>) -> bool {
        vcpu.thread.is_some() || self.accelerator.as_str() == "kvm"
    }

    /// Returns the number of vCPUs that the guest has started, as far as there is evidence.
    pub fn started_count(&self) -> u32 {
        let awaited = u32::try_from(self.awaited.len()).unwrap_or(u32::MAX);
        self.inventory.vcpu_count().saturating_sub(awaited)
    }

    /// Returns the number of vCPUs that the guest has started; `None` if there can be no evidence about any vCPU.
    pub fn counts_started(&self) -> Option<u32> {
        let can_be =
            self.started_count() > 0 || self.inventory.vcpus().any(|vcpu| self.has_evidence(&vcpu));
        can_be.then(|| self.started_count())
    }

    /// Checks that there can be evidence that the guest starts the vCPUs of `asked`.
    ///
    /// # Errors
    /// [`Error::NoEvidence`] if there can be none about any vCPU.
    pub(in crate::machine) fn check_evidence(&self, asked: &Target) -> Result<(), Error> {
        if self.inventory.vcpus().any(|vcpu| self.has_evidence(&vcpu)) {
            return Ok(());
        }
        let asked = asked.clone();
        Err(Error::NoEvidence { asked })
    }

    /// Returns what a caller should know before it adds vCPUs.
    pub fn warnings(&self) -> Vec<Warning> {
        let vcpus = self.inventory.vcpus();
        let awaited = vcpus.filter(|vcpu| self.is_started(vcpu) == Some(false));
        let awaited: Vec<VcpuId> = awaited.map(|vcpu| vcpu.id).collect();
        if awaited.is_empty() {
            return Vec::new();
        }
        let vcpus = name_vcpus(&awaited);
        let warning = match self.stopped() {
            Some(state) => Warning {
                code: WarningCode::NotRunning,
                text: format!(
                    "the guest has not started {vcpus}, and does not run (QEMU is in the state \"{state}\"); it may not notice a vCPU that is added now"
                ),
            },
            None => Warning {
                code: WarningCode::NotStarted,
                text: format!(
                    "the guest has not started {vcpus}: it may be booting, and may not notice a vCPU that is added now"
                ),
            },
        };
        vec![warning]
    }

    /// Returns whether a change of `kind` is possible now. The support of the host is not checked.
    pub fn can_tune(&self, kind: TuningKind) -> bool {
        let vcpus = self.inventory.vcpus();
        let mut present = vcpus.filter(|vcpu| vcpu.slot.presence.is_some());
        let has_thread = |vcpu: Vcpu<'_>| vcpu.thread.is_some();
        let is_possible = match kind {
            TuningKind::Bandwidth => self.can_limit && present.all(has_thread),
            TuningKind::Pin | TuningKind::Scheduler | TuningKind::Cache => present.any(has_thread),
        };
        self.disconnected.is_none() && self.can_place && is_possible
    }

    /// Returns the vCPUs about which something changed since `before`, in ascending order.
    pub fn changed_vcpus(&self, before: &Self) -> Vec<VcpuId> {
        let is_same = Arc::ptr_eq(&self.inventory, &before.inventory)
            && Arc::ptr_eq(&self.tuning, &before.tuning)
            && (&self.pending, &self.awaited) == (&before.pending, &before.awaited);
        if is_same {
            return Vec::new();
        }
        if self.inventory.max_vcpus() != before.inventory.max_vcpus() {
            return self.inventory.vcpus().map(|vcpu| vcpu.id).collect();
        }
        let vcpus = self.inventory.vcpus().zip(before.inventory.vcpus());
        let changed = vcpus.filter(|(now, then)| self.facts(now) != before.facts(then));
        changed.map(|(vcpu, _)| vcpu.id).collect()
    }

    /// Returns all that is known about `vcpu`.
    fn facts<'a>(&'a self, vcpu: &Vcpu<'a>) -> impl PartialEq + use<'a> {
        (
            vcpu.slot,
            vcpu.thread,
            self.inventory.is_removable(vcpu.slot),
            self.pending.binary_search(&vcpu.id).is_ok(),
            self.is_started(vcpu),
            self.tuning.of(vcpu.id),
        )
    }

    /// Returns QEMU's version as text; empty until QEMU has answered once.
    pub fn qemu_version(&self) -> String {
        let version = self.version.map(|version| version.to_string());
        version.unwrap_or_default()
    }

    /// Returns the slots with a pending removal.
    pub fn leaving(&self) -> BTreeSet<SlotId> {
        let slots = self.pending.iter().map(|vcpu| SlotId(vcpu.get()));
        let is_slot = |slot: &SlotId| self.inventory.slot(*slot).is_some();
        slots.filter(is_slot).collect()
    }

    /// Returns the plan to reach `target` now, and the resulting number of vCPUs.
    ///
    /// # Errors
    /// [`Error::Denied`] if the target cannot be reached, [`Error::TcgExhausted`] or [`Error::Confidential`] if
    /// QEMU would exit, and [`Error::Disconnected`].
    pub fn plan(&self, target: &Target) -> Result<(Plan, u32), Error> {
        if let Some(reason) = &self.disconnected {
            return Err(Error::Disconnected(reason.clone()));
        }
        let leaving = self.leaving();
        match plan(&self.inventory, &leaving, target) {
            Ok(plan) => {
                self.check_creation(target, &plan)?;
                let count = count_after(&self.inventory, &leaving, &plan);
                Ok((plan, count))
            }
            Err(denial) => Err(Error::Denied {
                asked: target.clone(),
                denial,
                qemu: self.no_hotplug.clone(),
            }),
        }
    }

    /// Checks that QEMU can create the vCPUs of `plan`. With TCG in several threads it aborts if it creates
    /// more than the maximum in its life (`tcg_register_thread()` in `tcg/tcg.c`). It exits if KVM creates no more
    /// vCPUs for a guest whose initial state is measured (`kvm_init_vcpu()` in `accel/kvm/kvm-all.c`).
    fn check_creation(&self, asked: &Target, plan: &Plan) -> Result<(), Error> {
        let slots = plan.add.iter().filter_map(|id| self.inventory.slot(*id));
        let wanted: u32 = slots.map(|slot| slot.width).sum();
        if wanted <= self.creatable() {
            return Ok(());
        }
        if self.is_confidential {
            let asked = asked.clone();
            return Err(Error::Confidential { asked });
        }
        Err(Error::TcgExhausted {
            asked: asked.clone(),
            max: self.inventory.max_vcpus(),
            created: self.created,
        })
    }

    /// Returns how many vCPUs QEMU can create before it exits.
    fn creatable(&self) -> u32 {
        let has_threads = self.inventory.vcpus().any(|vcpu| vcpu.thread.is_some());
        if self.is_confidential {
            0
        } else if self.accelerator.as_str() == "tcg" && has_threads {
            self.inventory.max_vcpus().saturating_sub(self.created)
        } else {
            u32::MAX
        }
    }

    /// Returns the numbers of vCPUs nearest to `count` that can be reached now.
    pub fn nearest(&self, count: u32) -> Vec<u32> {
        let leaving = self.leaving();
        let current = count_after(&self.inventory, &leaving, &Plan::default());
        let most = current.saturating_add(self.creatable());
        let mut nearest = nearest(&self.inventory, &leaving, count.min(most.saturating_add(1)));
        nearest.retain(|number| *number <= most);
        nearest
    }

    /// Returns the text that follows the denial of a `count` above the maximum, if QEMU cannot add vCPUs up to the
    /// maximum. It is empty otherwise.
    pub fn lower_limit(&self, count: u32) -> String {
        let (max, creatable) = (self.inventory.max_vcpus(), self.creatable());
        let current = count_after(&self.inventory, &self.leaving(), &Plan::default());
        let most = current.saturating_add(creatable);
        let reason = if self.is_confidential {
            "QEMU adds no vCPU to a confidential guest".to_owned()
        } else {
            format!(
                "QEMU with the accelerator tcg adds at most {max} vCPUs in its life, and removed ones count"
            )
        };
        if count > max && most < max {
            format!("; at present at most {most}, because {reason}")
        } else {
            String::new()
        }
    }

    /// Returns how vCPUs are added.
    pub fn hotplug_method(&self) -> HotplugMethod {
        self.inventory.method()
    }
}
