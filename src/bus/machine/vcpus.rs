//! The calls about the number of vCPUs.

use zbus::message::Header;

use super::{Changed, MachineObject, raw};
use crate::bus::arguments::shown;
use crate::bus::authority::Action;
use crate::bus::describe::{self, Dict};
use crate::bus::error::Error;
use crate::bus::guarded_call::GuardedCall;
use crate::bus::options::{self, Options, SetOptions};
use crate::inventory::Target;
use crate::machine::{self, PlanCode, Request, Snapshot, Wait};

impl MachineObject {
    /// Changes the vCPUs if the caller is authorized.
    pub(super) async fn set(
        &self,
        header: &Header<'_>,
        target: Target,
        options: Options,
    ) -> Result<Changed, Error> {
        let options = options::set(options)?;
        let snapshot = self.machine.snapshot();
        let (call, count) = self.setting(&snapshot, &target, options);
        let caller = call.authorize(header, &self.authority).await?;
        let SetOptions {
            expected_count,
            wait,
            guest_online,
            until,
        } = options;
        let request = Request {
            target,
            subject: snapshot.subject(),
            authorized_count: count,
            expected_count,
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

    /// Returns the plan for `count` vCPUs, or the error and its code.
    pub(super) async fn planned(&self, count: u32) -> Dict {
        self.machine.refresh().await;
        let snapshot = self.machine.snapshot();
        let error = match snapshot.plan(&Target::Count(count)) {
            Ok((plan, _)) => return describe::plan(&snapshot, plan),
            Err(error) => error,
        };
        let code = PlanCode::of(&error);
        let error = self.failed(error);
        let reason = error.to_string() + &snapshot.lower_limit(count);
        let mut denied = Dict::from([
            ("error", error.dbus_name().into()),
            ("reason", reason.into()),
            ("nearest", snapshot.nearest(count).into()),
        ]);
        if let Some(code) = code {
            denied.insert("reason-code", code.as_str().into());
        }
        denied
    }

    /// Returns whether the caller may set the number of vCPUs to `count`, in the words of logind.
    pub(super) async fn can_set(
        &self,
        header: &Header<'_>,
        count: u32,
    ) -> Result<&'static str, Error> {
        let (snapshot, target) = (self.machine.snapshot(), Target::Count(count));
        if snapshot.plan(&target).is_err() {
            return Ok("na");
        }
        let (call, _) = self.setting(&snapshot, &target, SetOptions::default());
        call.permission(header, &self.authority).await
    }

    /// Returns the call that sets the vCPUs to `target`, and the resulting number of vCPUs. A target that cannot be
    /// reached is denied after authorization, with the reason; its number is the current one.
    fn setting(
        &self,
        snapshot: &Snapshot,
        target: &Target,
        options: SetOptions,
    ) -> (GuardedCall, u32) {
        let current = snapshot.inventory.vcpu_count();
        let result = || snapshot.plan(target).map_or(current, |(_, count)| count);
        let (count, name, list) = match target {
            Target::Count(count) if *count < current => (*count, "remove", None),
            Target::Count(count) => (*count, "add", None),
            Target::Present(list) => (result(), "add", Some(list)),
            Target::Absent(list) => (result(), "remove", Some(list)),
        };
        let call = GuardedCall::on(&self.machine, Action::SetVcpus, name)
            .with("vcpus", count)
            .with("current", current)
            .with_some("list", list.map(shown))
            .with("guest-online", options.guest_online)
            .with("async", options.wait == Wait::No)
            .with("until", options.until.as_str());
        (call, count)
    }
}
