//! A machine's object, `org.vcpud1.Machine`.

mod tuning;

use std::sync::Arc;

use zbus::interface;
use zbus::message::Header;
use zbus::object_server::SignalEmitter;

use super::arguments::{invalid, invalid_list, list, shown};
use super::authority::{Action, Authority};
use super::describe::{self, Dict};
use super::error::Error;
use super::guarded_call::GuardedCall;
use super::options::{self, Options, SetOptions};
use super::statistics::{self, Numbers};
use crate::ids::VcpuId;
use crate::inventory::{Target, Vcpu};
use crate::machine::{self, Handle, Request, TuningChange, Wait};
use crate::placement::{Bandwidth, CpuList, Kind, Scheduler, Schemata, UnitPlacement};

/// Serves `org.vcpud1.Machine` for one machine.
#[derive(Clone, Debug)]
pub struct MachineObject {
    machine: Handle,
    authority: Authority,
}

/// The vCPUs that were added, that were removed, and whose removal is pending. Methods write the type
/// out, because zbus takes the arguments of a reply from their signatures.
type Changed = (Vec<u32>, Vec<u32>, Vec<u32>);

impl MachineObject {
    /// An object for `machine`, whose callers `authority` authorizes.
    pub fn new(machine: Handle, authority: Authority) -> Self {
        Self { machine, authority }
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

    /// Changes the vCPUs if the caller is authorized.
    async fn set(
        &self,
        header: &Header<'_>,
        target: Target,
        options: Options,
    ) -> Result<Changed, Error> {
        let SetOptions {
            wait,
            guest_online,
            until,
        } = options::set(options)?;
        let snapshot = self.machine.snapshot();
        let current = snapshot.inventory.vcpu_count();
        // A target that cannot be reached is denied after authorization, with the reason.
        let (count, name, list) = match &target {
            Target::Count(count) if *count < current => (*count, "remove", None),
            Target::Count(count) => (*count, "add", None),
            Target::Present(list) => (self.count(&target), "add", Some(list)),
            Target::Absent(list) => (self.count(&target), "remove", Some(list)),
        };
        let call = GuardedCall::on(&self.machine, Action::SetVcpus, name)
            .with("vcpus", count)
            .with("current", current)
            .with_some("list", list.map(shown))
            .with("guest-online", guest_online)
            .with("async", wait == Wait::No)
            .with("until", until.as_str());
        let caller = call.authorize(header, &self.authority).await?;
        let request = Request {
            target,
            subject: snapshot.subject(),
            authorized_count: count,
            wait,
            until,
            guest_online,
            uid: caller.uid(),
        };
        let result = machine::set_vcpus(&self.machine, request).await;
        let outcome = result.map_err(|error| self.failed(error))?;
        let [added, removed, pending] = [outcome.added, outcome.removed, outcome.pending].map(raw);
        Ok((added, removed, pending))
    }

    /// Returns the number of vCPUs after a request for `target`, or now if it cannot be reached.
    fn count(&self, target: &Target) -> u32 {
        let snapshot = self.machine.snapshot();
        let current = snapshot.inventory.vcpu_count();
        snapshot.plan(target).map_or(current, |(_, count)| count)
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
        online: bool,
        options: Options,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(Vec<u32>, Vec<u32>, Vec<u32>), Error> {
        let vcpus = list(vcpus)?;
        let target = if online {
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
        let scheduler = Scheduler::new(policy, priority).map_err(invalid)?;
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
        self.machine.refresh().await;
        let snapshot = self.machine.snapshot();
        Ok(match snapshot.plan(&Target::Count(count)) {
            Ok((plan, _)) => describe::plan(&snapshot, plan),
            Err(error) => {
                let error = self.failed(error);
                Dict::from([
                    ("error", error.dbus_name().into()),
                    ("reason", error.to_string().into()),
                    ("nearest", snapshot.nearest(count).into()),
                ])
            }
        })
    }

    #[zbus(out_args("vcpus"))]
    async fn list_vcpus(&self) -> Vec<Dict> {
        self.machine.refresh().await;
        let online = machine::online(&self.machine).await;
        let places = self.machine.observe().await;
        let snapshot = self.machine.snapshot();
        let row = |vcpu: Vcpu<'_>| {
            let mut dict = describe::vcpu(&snapshot, vcpu);
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
