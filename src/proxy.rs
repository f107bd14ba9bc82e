//! The client side of the bus interface, for `vcpuctl` and other Rust programs.
//!
//! `dbus/org.vcpud1.xml` and `dbus/org.vcpud1.Autoscale.xml` describe all members.
#![allow(missing_docs, reason = "the manual is dbus/org.vcpud1.xml")]

use std::collections::{BTreeMap, HashMap};

use zbus::{DBusError, proxy};
use zbus::{Fd, OwnedObjectPath, OwnedVariant, Variant};

/// Returns the name and the text of the error reply that `error` is.
///
/// Returns `None` for an error that is not a reply, such as a lost connection. zbus reports the
/// standard errors of the D-Bus specification as a separate variant.
pub fn error_reply(error: &zbus::Error) -> Option<(String, String)> {
    match error {
        zbus::Error::MethodError(name, text, _) => {
            let text = text.clone().unwrap_or_else(|| name.to_string());
            Some((name.to_string(), text))
        }
        zbus::Error::FDO(error) => match &**error {
            zbus::fdo::Error::ZBus(error) => error_reply(error),
            error => {
                let name = error.name().to_string();
                let text = error.description().unwrap_or(&name).to_owned();
                Some((name, text))
            }
        },
        _ => None,
    }
}

/// The vCPUs that a call added, that it removed, and whose removal is pending.
pub type Changed = (Vec<u32>, Vec<u32>, Vec<u32>);

/// The statistics of a machine, and of its vCPUs.
pub type Statistics = (
    HashMap<String, OwnedVariant>,
    Vec<HashMap<String, OwnedVariant>>,
);

/// Returns the number that a dictionary of the service has for `key`.
pub fn number(values: &HashMap<String, OwnedVariant>, key: &str) -> Option<u64> {
    match &**values.get(key)? {
        Variant::U32(number) => Some((*number).into()),
        Variant::U64(number) => Some(*number),
        _ => None,
    }
}

#[proxy(
    interface = "org.vcpud1.Manager",
    default_service = "org.vcpud1",
    default_path = "/org/vcpud1"
)]
pub trait Manager {
    #[zbus(allow_interactive_auth)]
    fn register_machine(
        &self,
        name: &str,
        qmp_address: &str,
        options: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<OwnedObjectPath>;
    #[zbus(allow_interactive_auth)]
    fn register_machine_with_fd(
        &self,
        name: &str,
        qmp: Fd<'_>,
        options: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<OwnedObjectPath>;
    #[zbus(allow_interactive_auth)]
    fn unregister_machine(&self, name: &str) -> zbus::Result<()>;
    #[zbus(allow_interactive_auth)]
    fn reload(&self) -> zbus::Result<()>;
    fn get_statistics(
        &self,
        options: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<HashMap<OwnedObjectPath, Statistics>>;
    fn list_machines(&self) -> zbus::Result<Vec<(String, OwnedObjectPath, u32)>>;
    fn get_machine(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
    #[zbus(name = "GetMachineByPID")]
    fn get_machine_by_pid(&self, pid: u32) -> zbus::Result<OwnedObjectPath>;

    #[zbus(property(emits_changed_signal = "const"))]
    fn features(&self) -> zbus::Result<Vec<String>>;

    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> zbus::Result<String>;

    #[zbus(property)]
    fn configuration_errors(&self) -> zbus::Result<Vec<String>>;

    #[zbus(signal)]
    fn machine_added(&self, name: String, machine: OwnedObjectPath) -> zbus::Result<()>;
    #[zbus(signal)]
    fn machine_removed(&self, name: String, machine: OwnedObjectPath) -> zbus::Result<()>;
}

#[proxy(interface = "org.vcpud1.Machine", default_service = "org.vcpud1")]
pub trait Machine {
    #[zbus(allow_interactive_auth)]
    fn set_vcpus(&self, count: u32, options: HashMap<&str, Variant<'_>>) -> zbus::Result<Changed>;
    #[zbus(allow_interactive_auth)]
    fn set_vcpu(
        &self,
        vcpus: &[u32],
        present: bool,
        options: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<Changed>;
    #[zbus(allow_interactive_auth)]
    fn pin_vcpus(
        &self,
        vcpus: &[u32],
        cpus: &str,
        options: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<()>;
    #[zbus(allow_interactive_auth)]
    fn set_bandwidth(
        &self,
        period_usec: u64,
        quota_usec: i64,
        options: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<()>;
    #[zbus(allow_interactive_auth)]
    fn set_scheduler(
        &self,
        vcpus: &[u32],
        policy: &str,
        priority: i32,
        options: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<()>;
    #[zbus(allow_interactive_auth)]
    fn set_cache_allocation(
        &self,
        vcpus: &[u32],
        schemata: &str,
        options: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<()>;
    fn plan(
        &self,
        count: u32,
        options: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<HashMap<String, OwnedVariant>>;
    fn can_set_vcpus(&self, count: u32) -> zbus::Result<String>;
    fn can_tune(&self, operation: &str) -> zbus::Result<String>;
    fn get_tuning(&self) -> zbus::Result<HashMap<String, OwnedVariant>>;
    fn list_vcpus(&self) -> zbus::Result<Vec<HashMap<String, OwnedVariant>>>;
    fn get_statistics(&self, options: HashMap<&str, Variant<'_>>) -> zbus::Result<Statistics>;

    #[zbus(property(emits_changed_signal = "const"))]
    fn name(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn uuid(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn leader(&self) -> zbus::Result<u32>;
    #[zbus(property)]
    fn owner(&self) -> zbus::Result<u32>;
    #[zbus(property(emits_changed_signal = "const"))]
    fn registrant(&self) -> zbus::Result<u32>;
    #[zbus(property(emits_changed_signal = "const"))]
    fn origin(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn since(&self) -> zbus::Result<u64>;
    #[zbus(property)]
    fn state(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn qemu_version(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn architecture(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn accelerator(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn hotplug_method(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn vcpus(&self) -> zbus::Result<u32>;
    #[zbus(property)]
    fn started_vcpus(&self) -> zbus::Result<u32>;
    #[zbus(property)]
    fn max_vcpus(&self) -> zbus::Result<u32>;
    #[zbus(property)]
    fn vcpus_per_slot(&self) -> zbus::Result<u32>;
    #[zbus(property)]
    fn unit(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn control_group(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn placement(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn placement_errors(&self) -> zbus::Result<Vec<String>>;
    #[zbus(property)]
    fn affinity(&self) -> zbus::Result<String>;
    #[zbus(property, name = "BandwidthPeriodUSec")]
    fn bandwidth_period_usec(&self) -> zbus::Result<u64>;
    #[zbus(property, name = "BandwidthQuotaUSec")]
    fn bandwidth_quota_usec(&self) -> zbus::Result<i64>;
    #[zbus(property)]
    fn effective_affinity(&self) -> zbus::Result<String>;
    #[zbus(property, name = "EffectiveBandwidthPeriodUSec")]
    fn effective_bandwidth_period_usec(&self) -> zbus::Result<u64>;
    #[zbus(property, name = "EffectiveBandwidthQuotaUSec")]
    fn effective_bandwidth_quota_usec(&self) -> zbus::Result<i64>;
    #[zbus(property)]
    fn pending_removals(&self) -> zbus::Result<Vec<u32>>;

    #[zbus(signal)]
    fn vcpu_added(
        &self,
        vcpu: u32,
        alias: String,
        details: HashMap<String, OwnedVariant>,
    ) -> zbus::Result<()>;
    #[zbus(signal)]
    fn vcpu_changed(&self, vcpus: Vec<u32>) -> zbus::Result<()>;
    #[zbus(signal)]
    fn vcpu_started(
        &self,
        vcpu: u32,
        alias: String,
        details: HashMap<String, OwnedVariant>,
    ) -> zbus::Result<()>;
    #[zbus(signal)]
    fn vcpu_removed(
        &self,
        vcpu: u32,
        alias: String,
        details: HashMap<String, OwnedVariant>,
    ) -> zbus::Result<()>;
    #[zbus(signal)]
    fn vcpu_removal_failed(
        &self,
        vcpu: u32,
        alias: String,
        reason: String,
        details: HashMap<String, OwnedVariant>,
    ) -> zbus::Result<()>;
}

/// `org.vcpud1.Autoscale`, which `vcpud-autoscale` serves.
#[proxy(
    interface = "org.vcpud1.Autoscale",
    default_service = "org.vcpud1.Autoscale",
    default_path = "/org/vcpud1/autoscale"
)]
pub trait Autoscale {
    #[zbus(allow_interactive_auth)]
    fn enable(&self, machine: &str, options: HashMap<&str, Variant<'_>>) -> zbus::Result<()>;
    #[zbus(allow_interactive_auth)]
    fn disable(&self, machine: &str) -> zbus::Result<()>;
    fn can_manage(&self, machine: &str, operation: &str) -> zbus::Result<String>;
    fn list(&self) -> zbus::Result<BTreeMap<String, HashMap<String, OwnedVariant>>>;
    fn explain(&self, machine: &str) -> zbus::Result<HashMap<String, OwnedVariant>>;

    #[zbus(property(emits_changed_signal = "const"))]
    fn features(&self) -> zbus::Result<Vec<String>>;

    #[zbus(property(emits_changed_signal = "false"))]
    fn configuration_errors(&self) -> zbus::Result<Vec<String>>;

    #[zbus(signal)]
    fn decided(
        &self,
        machine: String,
        from: u32,
        to: u32,
        reason: String,
        details: HashMap<String, OwnedVariant>,
    ) -> zbus::Result<()>;
}
