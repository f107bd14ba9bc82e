//! Owns what the application knows of one machine: its properties, its vCPUs, their use and its scaling. It must not
//! know other machines.

use std::collections::BTreeMap;

use super::bandwidth::Bandwidth;
use super::choice::Question;
use super::dict::{Dict, get, text};
use super::failure::Refusal;
use super::identity::Process;
use super::plan::Plan;
use super::scaling::Scaling;
use super::usage::Usage;
use super::vcpu::{State, Vcpu};

/// A machine on the bus.
#[derive(Default)]
pub(crate) struct Machine {
    properties: Dict,
    /// The last known process of QEMU. The service does not know it without a connection.
    process: Option<Process>,
    /// The rows of `ListVcpus`; empty until they are read.
    pub(crate) vcpus: Vec<Vcpu>,
    pub(crate) usage: Usage,
    pub(crate) scaling: Scaling,
    /// The last plan, and its question.
    pub(crate) plan: Option<(Question, Plan)>,
    /// A number that changes with each change of the machine that a plan can depend on.
    pub(crate) version: u64,
    /// The host CPUs of vCPUs without a pin of their own, if they are set; else empty.
    pub(crate) default_pin: String,
    /// The host CPUs of vCPUs with a pin of their own.
    pins: BTreeMap<u32, String>,
    /// The refused removals since the last request. A vCPU that is free or has a new request has no refusal.
    pub(crate) refusals: Vec<Refusal>,
    /// Whether a request of this application is in progress.
    pub(crate) is_busy: bool,
}

/// Run states of QEMU, and the texts for users.
const STATES: [(&str, &str); 12] = [
    ("running", "Running"),
    ("paused", "Paused"),
    ("prelaunch", "Not started"),
    ("internal-error", "Error of QEMU"),
    ("suspended", "Suspended"),
    ("shutdown", "Shut down"),
    ("disconnected", "Not connected"),
    ("inmigrate", "Incoming migration"),
    ("finish-migrate", "Migrating"),
    ("postmigrate", "Migrated"),
    ("guest-panicked", "Guest crashed"),
    ("io-error", "Input/output error"),
];

impl Machine {
    /// Returns a machine with the properties of `InterfacesAdded`.
    pub(crate) fn new(properties: Dict) -> Self {
        Self {
            process: Process::of(&properties, &Dict::new()),
            properties,
            ..Self::default()
        }
    }

    /// Returns whether these properties are those of the same QEMU process. Another machine can have the same name later.
    pub(crate) fn is_same(&self, properties: &Dict) -> bool {
        let now = Process::of(properties, &self.properties);
        let is_other = |(old, new): (Process, Process)| !old.is_same(new);
        !self.process.zip(now).is_some_and(is_other)
    }

    /// Forgets all but the properties.
    pub(crate) fn forget(&mut self) {
        *self = Self {
            version: self.version,
            ..Self::new(std::mem::take(&mut self.properties))
        };
    }

    /// Takes the properties of `PropertiesChanged`.
    pub(crate) fn change(&mut self, properties: Dict) {
        let before = self.pending();
        self.properties.extend(properties);
        self.process = Process::of(&self.properties, &Dict::new()).or(self.process);
        let now = self.pending();
        let is_new = |id: &u32| now.contains(id) && !before.contains(id);
        self.refusals.retain(|refusal| !is_new(&refusal.vcpu));
    }

    /// Takes the answer to a question for a plan, unless a later one has an answer.
    pub(crate) fn take_plan(&mut self, question: Question, plan: Plan) {
        let old = self.plan.as_ref().map_or(0, |(old, _)| old.serial);
        if question.serial >= old {
            self.plan = Some((question, plan));
        }
    }

    /// Takes the rows of `ListVcpus`.
    pub(crate) fn list(&mut self, rows: &[Dict]) {
        self.vcpus = rows.iter().filter_map(Vcpu::new).collect();
        let is_present = |id| {
            self.vcpus
                .iter()
                .any(|vcpu| vcpu.id == id && vcpu.is_present())
        };
        self.refusals.retain(|refusal| is_present(refusal.vcpu));
        self.show_pins();
    }

    /// Takes the reply of `GetTuning`.
    pub(crate) fn tune(&mut self, tuning: &Dict) {
        self.default_pin = text(tuning, "affinity");
        let pins: Vec<(u32, String)> = get(tuning, "pins").unwrap_or_default();
        self.pins = pins.into_iter().collect();
        self.show_pins();
    }

    fn show_pins(&mut self) {
        for vcpu in &mut self.vcpus {
            vcpu.pin = self.pins.get(&vcpu.id).cloned().unwrap_or_default();
        }
    }

    pub(crate) fn name(&self) -> String {
        text(&self.properties, "Name")
    }

    /// Returns the run state as text for users.
    pub(crate) fn state(&self) -> String {
        let state = text(&self.properties, "State");
        let known = STATES.iter().find(|(known, _)| *known == state);
        known.map_or(state.clone(), |(_, text)| (*text).to_owned())
    }

    /// Returns whether the service has a connection to QEMU.
    pub(crate) fn is_connected(&self) -> bool {
        text(&self.properties, "State") != "disconnected"
    }

    /// Returns whether the number of vCPUs can change at all.
    pub(crate) fn is_hotpluggable(&self) -> bool {
        text(&self.properties, "HotplugMethod") != "none"
    }

    /// Returns whether the service can change the number of vCPUs now.
    pub(crate) fn can_change(&self) -> bool {
        self.is_connected() && self.is_hotpluggable()
    }

    /// Returns the number of present vCPUs.
    pub(crate) fn present(&self) -> u32 {
        self.number("Vcpus")
    }

    pub(crate) fn started(&self) -> u32 {
        self.number("StartedVcpus")
    }

    /// Returns the maximum number of vCPUs, at least 1.
    pub(crate) fn max(&self) -> u32 {
        self.number("MaxVcpus").max(1)
    }

    /// Returns the number of vCPUs of a slot, at least 1.
    pub(crate) fn per_slot(&self) -> u32 {
        self.number("VcpusPerSlot").max(1)
    }

    /// Returns the smallest number of vCPUs that the spin button offers: one slot.
    pub(crate) fn min(&self) -> u32 {
        self.per_slot().min(self.max())
    }

    /// Returns the possible numbers of vCPUs as text, or why the number cannot change.
    pub(crate) fn range(&self) -> String {
        let (min, max, step) = (self.min(), self.max(), self.per_slot());
        match (self.is_connected(), self.is_hotpluggable(), step) {
            // The service can know the method only with a connection.
            (false, ..) => {
                "vcpud has no connection to QEMU, and connects again by itself".to_owned()
            }
            (_, false, _) => "QEMU cannot change the number of vCPUs of this machine".to_owned(),
            (_, _, 1) => format!("{min} to {max}"),
            _ => format!("{min} to {max}, in steps of {step}"),
        }
    }

    /// Returns the vCPUs whose removal is pending.
    pub(crate) fn pending(&self) -> Vec<u32> {
        get(&self.properties, "PendingRemovals").unwrap_or_default()
    }

    /// Returns the host CPUs that vCPUs without a pin of their own are to use, which are all if none are set.
    pub(crate) fn affinity(&self) -> String {
        text(&self.properties, "Affinity")
    }

    /// Returns the host CPUs in force for these vCPUs.
    pub(crate) fn effective_affinity(&self) -> String {
        text(&self.properties, "EffectiveAffinity")
    }

    /// Returns the desired limit of CPU time.
    pub(crate) fn bandwidth(&self) -> Bandwidth {
        Bandwidth {
            period: get(&self.properties, "BandwidthPeriodUSec").unwrap_or(0),
            quota: get(&self.properties, "BandwidthQuotaUSec").unwrap_or(-1),
        }
    }

    /// Returns whether the service can limit the CPU time of the vCPUs.
    pub(crate) fn has_control_groups(&self) -> bool {
        !["none", ""].contains(&text(&self.properties, "Placement").as_str())
    }

    /// Returns the missing parts of the placement.
    pub(crate) fn placement_errors(&self) -> Vec<String> {
        get(&self.properties, "PlacementErrors").unwrap_or_default()
    }

    /// Returns what QEMU is, such as `QEMU 10.0.2, x86_64, kvm`.
    pub(crate) fn qemu(&self) -> String {
        let parts = ["QemuVersion", "Architecture", "Accelerator"];
        let parts = parts.map(|key| text(&self.properties, key));
        let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        format!("QEMU {}", parts.join(", "))
    }

    /// Returns the process of QEMU and its unit.
    pub(crate) fn process(&self) -> String {
        let unit = text(&self.properties, "Unit");
        let process = match self.number("Leader") {
            0 => "Process not known".to_owned(),
            leader => format!("Process {leader}"),
        };
        if unit.is_empty() {
            process
        } else {
            format!("{process}, unit {unit}")
        }
    }

    /// Returns whether a vCPU can start without a signal: the service then looks only when it is asked.
    pub(crate) fn is_starting(&self) -> bool {
        self.vcpus
            .iter()
            .any(|vcpu| vcpu.state == State::NotStarted)
    }

    /// Returns the line below the name: the state and the numbers of vCPUs.
    pub(crate) fn summary(&self) -> String {
        let mut parts = vec![self.state()];
        let missing = self.present().saturating_sub(self.started());
        if missing > 0 && self.is_connected() && self.has_evidence() {
            parts.push(format!("{missing} not started"));
        }
        let pending = self.pending().len();
        if pending > 0 {
            parts.push(format!("{pending} removing"));
        }
        parts.join(" · ")
    }

    /// Returns whether the guest is known to run on a vCPU. Without evidence, no number is shown.
    fn has_evidence(&self) -> bool {
        self.started() > 0
    }

    fn number(&self, key: &str) -> u32 {
        get(&self.properties, key).unwrap_or(0)
    }
}

/// Returns a machine for a test.
#[cfg(test)]
pub(crate) fn machine(name: &str, present: u32, max: u32) -> Machine {
    let properties = super::dict::dict([
        ("Name", name.into()),
        ("State", "running".into()),
        ("Vcpus", present.into()),
        ("StartedVcpus", present.into()),
        ("MaxVcpus", max.into()),
        ("VcpusPerSlot", 1_u32.into()),
        ("PendingRemovals", Vec::<u32>::new().into()),
    ]);
    Machine::new(properties)
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
