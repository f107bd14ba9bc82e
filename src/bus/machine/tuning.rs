//! The common part of the methods that change the tuning: the authorization, and the request.

use zbus::message::Header;

use super::MachineObject;
use crate::bus::arguments::{invalid, shown};
use crate::bus::authority::Action;
use crate::bus::error::Error;
use crate::bus::guarded_call::GuardedCall;
use crate::bus::options::{self, Options};
use crate::machine::{TuningChange, TuningKind};
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

    /// Returns whether the caller may make a change of the kind `operation`, in the words of logind.
    pub(super) async fn may_tune(
        &self,
        header: &Header<'_>,
        operation: &str,
    ) -> Result<&'static str, Error> {
        let Some(kind) = TuningKind::parse(operation) else {
            let words = TuningKind::ALL.map(TuningKind::as_str).join(", ");
            return Err(invalid(format!("the operation is not one of {words}")));
        };
        if !self.machine.can_tune(kind).await {
            return Ok("na");
        }
        let call = GuardedCall::on(&self.machine, Action::TuneVcpus, kind.as_str());
        call.permission(header, &self.authority).await
    }

    /// Returns the call that asks for `change`, with its details.
    fn tuning(&self, change: &TuningChange) -> GuardedCall {
        let call = GuardedCall::on(&self.machine, Action::TuneVcpus, change.kind().as_str());
        match change {
            TuningChange::Pin(vcpus, cpus) => call.with("vcpus", shown(vcpus)).with(
                "cpus",
                cpus.as_ref().map_or_else(String::new, CpuList::to_string),
            ),
            TuningChange::Bandwidth(bandwidth) => call
                .with("period", bandwidth.period())
                .with("quota", bandwidth.signed_quota()),
            TuningChange::Scheduler(vcpus, scheduler) => call
                .with("vcpus", shown(vcpus))
                .with("policy", scheduler.map_or("", Scheduler::policy))
                .with("priority", scheduler.map_or(0, Scheduler::priority)),
            TuningChange::Cache(vcpus, schemata) => call.with("vcpus", shown(vcpus)).with(
                "schemata",
                schemata.as_ref().map_or_else(String::new, Schemata::line),
            ),
        }
    }
}
