//! The common part of the methods that change the tuning: the authorization, and the request.

use zbus::message::Header;

use super::MachineObject;
use crate::bus::arguments::shown;
use crate::bus::authority::Action;
use crate::bus::error::Error;
use crate::bus::guarded_call::GuardedCall;
use crate::bus::options::{self, Options};
use crate::machine::TuningChange;
use crate::placement::{CpuList, Scheduler, Schemata};

impl MachineObject {
    /// Changes where and how the vCPUs run if the caller is authorized.
    pub(super) async fn tune(
        &self,
        header: &Header<'_>,
        options: Options,
        change: TuningChange,
    ) -> Result<(), Error> {
        options::none(options)?;
        let subject = self.machine.snapshot().subject();
        let call = self.tuning(&change);
        call.authorize(header, &self.authority).await?;
        let result = self.machine.tune(change, subject).await;
        result.map_err(|error| self.failed(error))
    }

    /// Returns the call that asks for `change`, with its details.
    fn tuning(&self, change: &TuningChange) -> GuardedCall {
        let on = |name| GuardedCall::on(&self.machine, Action::TuneVcpus, name);
        match change {
            TuningChange::Pin(vcpus, cpus) => on("pin").with("vcpus", shown(vcpus)).with(
                "cpus",
                cpus.as_ref().map_or_else(String::new, CpuList::to_string),
            ),
            TuningChange::Bandwidth(bandwidth) => on("bandwidth")
                .with("period", bandwidth.period())
                .with("quota", bandwidth.signed_quota()),
            TuningChange::Scheduler(vcpus, scheduler) => on("scheduler")
                .with("vcpus", shown(vcpus))
                .with("policy", scheduler.map_or("", Scheduler::policy))
                .with("priority", scheduler.map_or(0, Scheduler::priority)),
            TuningChange::Cache(vcpus, schemata) => on("cache").with("vcpus", shown(vcpus)).with(
                "schemata",
                schemata.as_ref().map_or_else(String::new, Schemata::line),
            ),
        }
    }
}
