//! A machine's object, `org.vcpud1.Machine`.

mod tuning;
mod vcpus;

use std::sync::Arc;
use std::time::Duration;

use zbus::interface;
use zbus::message::Header;
use zbus::object_server::SignalEmitter;

use super::arguments::{invalid, invalid_list, list};
use super::authority::Authority;
use super::describe::{self, Dict};
use super::error::Error;
use super::options::{self, Options};
use super::statistics::{self, Numbers};
use crate::ids::{Uid, VcpuId};
use crate::inventory::{Target, Vcpu};
use crate::machine::{self, Handle, Snapshot, TuningChange};
use crate::placement::{Bandwidth, CpuList, Kind, Scheduler, Schemata, UnitPlacement};
use crate::process::start_of;

/// Serves `org.vcpud1.Machine` for one machine.
#[derive(Clone, Debug)]
pub struct MachineObject {
    machine: Handle,
    authority: Authority,
}

/// The value of a property if there is no user.
const UNKNOWN_USER: u32 = u32::MAX;

/// The vCPUs that were added, that were removed, and whose removal is pending. Methods write the type
/// out, because zbus takes the arguments of a reply from their signatures.
type Changed = (Vec<u32>, Vec<u32>, Vec<u32>);

impl MachineObject {
    /// An object for `machine`, whose callers `authority` authorizes.
    pub fn new(machine: Handle, authority: Authority) -> Self {
        Self { machine, authority }
    }

    /// Returns the current state of the machine.
    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        self.machine.snapshot()
    }

    fn failed(&self, error: machine::Error) -> Error {
        Error::Machine {
            name: self.machine.name().clone(),
            error: Box::new(error),
        }
    }

    fn of_unit(&self, look: impl FnOnce(&UnitPlacement) -> String) -> String {
        let snapshot = self.machine.snapshot();
        snapshot.unit.as_ref().map(look).unwrap_or_default()
    }
}

#[interface(name = "org.vcpud1.Machine")]
impl MachineObject {
    #[zbus(out_args("added", "removed", "pending"))]
    async fn set_vcpus(
        &self,
        count: u32,
        options: Options,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(Vec<u32>, Vec<u32>, Vec<u32>), Error> {
        self.set(&header, Target::Count(count), options).await
    }

    #[zbus(out_args("added", "removed", "pending"))]
    async fn set_vcpu(
        &self,
        vcpus: Vec<u32>,
        present: bool,
        options: Options,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(Vec<u32>, Vec<u32>, Vec<u32>), Error> {
        let vcpus = list(vcpus)?;
        let target = if present {
            Target::Present(vcpus)
        } else {
            Target::Absent(vcpus)
        };
        self.set(&header, target, options).await
    }

    async fn pin_vcpus(
        &self,
        vcpus: Vec<u32>,
        cpus: &str,
        options: Options,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(), Error> {
        let cpus = match cpus {
            "" => None,
            list => Some(list.parse::<CpuList>().map_err(invalid_list)?),
        };
        let change = TuningChange::Pin(list(vcpus)?, cpus);
        self.tune(&header, options, change).await
    }

    async fn set_bandwidth(
        &self,
        period_usec: u64,
        quota_usec: i64,
        options: Options,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(), Error> {
        let bandwidth = Bandwidth::new(period_usec, quota_usec).map_err(invalid)?;
        let change = TuningChange::Bandwidth(bandwidth);
        self.tune(&header, options, change).await
    }

    async fn set_scheduler(
        &self,
        vcpus: Vec<u32>,
        policy: &str,
        priority: i32,
        options: Options,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(), Error> {
        let scheduler = match (policy, priority) {
            ("", 0) => None,
            ("", _) => return Err(invalid("a default policy takes no priority but 0")),
            _ => Some(Scheduler::new(policy, priority).map_err(invalid)?),
        };
        let change = TuningChange::Scheduler(list(vcpus)?, scheduler);
        self.tune(&header, options, change).await
    }

    async fn set_cache_allocation(
        &self,
        vcpus: Vec<u32>,
        schemata: &str,
        options: Options,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(), Error> {
        let schemata = match schemata {
            "" => None,
            text => Some(text.parse::<Schemata>().map_err(invalid)?),
        };
        let change = TuningChange::Cache(list(vcpus)?, schemata);
        self.tune(&header, options, change).await
    }

    #[zbus(out_args("plan"))]
    async fn plan(&self, count: u32, options: Options) -> Result<Dict, Error> {
        options::none(options)?;
        Ok(self.planned(count).await)
    }

    #[zbus(name = "CanSetVcpus", out_args("result"))]
    async fn can_set_vcpus(
        &self,
        count: u32,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<&'static str, Error> {
        self.can_set(&header, count).await
    }

    #[zbus(out_args("result"))]
    async fn can_tune(
        &self,
        operation: &str,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<&'static str, Error> {
        self.may_tune(&header, operation).await
    }

    #[zbus(out_args("tuning"))]
    fn get_tuning(&self) -> Dict {
        describe::tuning(&self.machine.snapshot().tuning)
    }

    #[zbus(out_args("vcpus"))]
    async fn list_vcpus(&self) -> Vec<Dict> {
        self.machine.refresh().await;
        let online = machine::online(&self.machine).await;
        let places = self.machine.observe().await;
        let snapshot = self.machine.snapshot();
        let row = |vcpu: Vcpu<'_>| {
            let mut dict = describe::vcpu(&snapshot, vcpu);
            dict.extend(describe::desired(snapshot.tuning.of(vcpu.id)));
            dict.extend(places.get(&vcpu.id).into_iter().flat_map(describe::place));
            if let Some(online) = online.get(&vcpu.id) {
                dict.insert("online", (*online).into());
                if *online {
                    dict.insert("started", true.into());
                }
            }
            dict
        };
        snapshot.inventory.vcpus().map(row).collect()
    }

    #[zbus(out_args("machine", "vcpus"))]
    async fn get_statistics(&self, options: Options) -> Result<(Numbers, Vec<Numbers>), Error> {
        let kvm = if options::statistics(options)? {
            self.machine.kvm().await
        } else {
            Arc::default()
        };
        Ok(statistics::rows(&self.machine.statistics(&kvm).await))
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn name(&self) -> String {
        self.machine.name().to_string()
    }

    #[zbus(property)]
    fn uuid(&self) -> String {
        self.machine.snapshot().uuid.to_string()
    }

    #[zbus(property)]
    fn leader(&self) -> u32 {
        self.machine.snapshot().leader().get()
    }

    #[zbus(property)]
    fn owner(&self) -> u32 {
        self.machine.owner().map_or(UNKNOWN_USER, Uid::get)
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn registrant(&self) -> u32 {
        self.machine.registrant().map_or(UNKNOWN_USER, Uid::get)
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn origin(&self) -> String {
        self.machine.origin().as_str().to_owned()
    }

    #[zbus(property)]
    fn since(&self) -> u64 {
        let process = self.machine.snapshot().process;
        let start = process.map_or(Duration::ZERO, start_of);
        start.as_micros().try_into().unwrap_or(u64::MAX)
    }

    #[zbus(property)]
    fn state(&self) -> String {
        self.machine.snapshot().state().to_owned()
    }

    #[zbus(property)]
    fn qemu_version(&self) -> String {
        self.machine.snapshot().qemu_version()
    }

    #[zbus(property)]
    fn architecture(&self) -> String {
        self.machine.snapshot().architecture.to_string()
    }

    #[zbus(property)]
    fn accelerator(&self) -> String {
        self.machine.snapshot().accelerator.to_string()
    }

    #[zbus(property)]
    fn hotplug_method(&self) -> String {
        self.machine.snapshot().hotplug_method().as_str().to_owned()
    }

    #[zbus(property)]
    fn vcpus(&self) -> u32 {
        self.machine.snapshot().inventory.vcpu_count()
    }

    #[zbus(property)]
    fn started_vcpus(&self) -> u32 {
        self.machine.snapshot().started_count()
    }

    #[zbus(property)]
    fn max_vcpus(&self) -> u32 {
        self.machine.snapshot().inventory.max_vcpus()
    }

    #[zbus(property)]
    fn vcpus_per_slot(&self) -> u32 {
        self.machine.snapshot().inventory.vcpus_per_slot()
    }

    #[zbus(property)]
    fn unit(&self) -> String {
        self.of_unit(|unit| unit.unit.clone())
    }

    #[zbus(property)]
    fn control_group(&self) -> String {
        self.of_unit(|unit| unit.control_group.clone())
    }

    #[zbus(property)]
    fn placement(&self) -> String {
        let snapshot = self.machine.snapshot();
        let kind = snapshot.unit.as_ref().map_or(Kind::None, |unit| unit.kind);
        kind.to_string()
    }

    #[zbus(property)]
    fn placement_errors(&self) -> Vec<String> {
        self.machine.snapshot().placement_errors.clone()
    }

    #[zbus(property)]
    fn affinity(&self) -> String {
        self.machine.snapshot().affinity.clone()
    }

    #[zbus(property, name = "BandwidthPeriodUSec")]
    fn bandwidth_period_usec(&self) -> u64 {
        self.machine.snapshot().tuning.limit().period()
    }

    #[zbus(property, name = "BandwidthQuotaUSec")]
    fn bandwidth_quota_usec(&self) -> i64 {
        self.machine.snapshot().tuning.limit().signed_quota()
    }

    #[zbus(property)]
    fn effective_affinity(&self) -> String {
        self.machine.snapshot().effective.affinity.clone()
    }

    #[zbus(property, name = "EffectiveBandwidthPeriodUSec")]
    fn effective_bandwidth_period_usec(&self) -> u64 {
        self.machine.snapshot().effective.bandwidth.period()
    }

    #[zbus(property, name = "EffectiveBandwidthQuotaUSec")]
    fn effective_bandwidth_quota_usec(&self) -> i64 {
        self.machine.snapshot().effective.bandwidth.signed_quota()
    }

    #[zbus(property)]
    fn pending_removals(&self) -> Vec<u32> {
        raw(self.machine.snapshot().pending.clone())
    }

    #[zbus(signal)]
    pub(super) async fn vcpu_changed(
        emitter: &SignalEmitter<'_>,
        vcpus: Vec<u32>,
    ) -> zbus::Result<()>;

    #[zbus(signal)]
    pub(super) async fn vcpu_added(
        emitter: &SignalEmitter<'_>,
        vcpu: u32,
        alias: &str,
        details: Dict,
    ) -> zbus::Result<()>;

    #[zbus(signal)]
    pub(super) async fn vcpu_started(
        emitter: &SignalEmitter<'_>,
        vcpu: u32,
        alias: &str,
        details: Dict,
    ) -> zbus::Result<()>;

    #[zbus(signal)]
    pub(super) async fn vcpu_removed(
        emitter: &SignalEmitter<'_>,
        vcpu: u32,
        alias: &str,
        details: Dict,
    ) -> zbus::Result<()>;

    #[zbus(signal)]
    pub(super) async fn vcpu_removal_failed(
        emitter: &SignalEmitter<'_>,
        vcpu: u32,
        alias: &str,
        reason: &str,
        details: Dict,
    ) -> zbus::Result<()>;
}

/// Returns the numbers of `vcpus`, as D-Bus has them.
fn raw(vcpus: Vec<VcpuId>) -> Vec<u32> {
    vcpus.into_iter().map(VcpuId::get).collect()
}
