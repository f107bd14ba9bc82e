//! A machine as a client of the service sees it.

use std::collections::HashMap;
use std::ops::Deref;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::interval;
use vcpud::proxy::{Changed, MachineProxy, error_reply};
use zbus::Connection;
use zbus::proxy::CacheProperties;
use zbus::{OwnedObjectPath, Variant};

use super::json::{Dict, dict};
use super::signals::Signals;
use super::wait::within;

/// A machine; all of the proxy's methods, and a few more.
#[derive(Clone)]
pub(crate) struct Machine {
    proxy: MachineProxy<'static>,
    signals: Signals,
}

/// The option that lets the guest agent help.
pub(crate) const WITH_GUEST: [(&str, Variant<'static>); 1] =
    [("guest-online", Variant::Bool(true))];

/// The error of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) name: String,
    pub(crate) text: String,
}

/// The vCPUs that a successful call changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) added: Vec<u32>,
    pub(crate) removed: Vec<u32>,
    pub(crate) pending: Vec<u32>,
}

impl Outcome {
    /// Returns the outcome of a call that only added `vcpus`.
    pub(crate) fn added(vcpus: impl IntoIterator<Item = u32>) -> Self {
        Self {
            added: Vec::from_iter(vcpus),
            ..Self::default()
        }
    }

    /// Returns the outcome of a call that only removed `vcpus`.
    pub(crate) fn removed(vcpus: impl IntoIterator<Item = u32>) -> Self {
        Self {
            removed: Vec::from_iter(vcpus),
            ..Self::default()
        }
    }

    /// Returns the outcome of a call after which the removal of `vcpus` is pending.
    pub(crate) fn pending(vcpus: impl IntoIterator<Item = u32>) -> Self {
        Self {
            pending: Vec::from_iter(vcpus),
            ..Self::default()
        }
    }
}

impl From<Changed> for Outcome {
    fn from((added, removed, pending): Changed) -> Self {
        Self {
            added,
            removed,
            pending,
        }
    }
}

impl Deref for Machine {
    type Target = MachineProxy<'static>;

    fn deref(&self) -> &Self::Target {
        &self.proxy
    }
}

impl Machine {
    /// The machine at `path`.
    pub(crate) async fn new(
        connection: &Connection,
        path: OwnedObjectPath,
        signals: Signals,
    ) -> Self {
        let builder = MachineProxy::builder(connection).path(path);
        let proxy = builder.cache_properties(CacheProperties::No).build().await;
        let proxy = proxy.expect("the bus is there");
        Self { proxy, signals }
    }

    /// Its object path.
    pub(crate) fn path(&self) -> &str {
        self.proxy.inner().path().as_str()
    }

    /// `SetVcpus` without options.
    pub(crate) async fn set(&self, count: u32) -> Result<Outcome, Failure> {
        self.set_with(count, &[]).await
    }

    /// `SetVcpus` with options.
    pub(crate) async fn set_with(
        &self,
        count: u32,
        options: &[(&str, Variant<'_>)],
    ) -> Result<Outcome, Failure> {
        let call = self.proxy.set_vcpus(count, as_dict(options));
        let result = within(format!("the answer to SetVcpus({count})"), call).await;
        result.map(Outcome::from).map_err(Failure::of)
    }

    /// `SetVcpu` without options.
    pub(crate) async fn set_these(&self, vcpus: &[u32], online: bool) -> Result<Outcome, Failure> {
        self.set_these_with(vcpus, online, &[]).await
    }

    /// `SetVcpu` with options.
    pub(crate) async fn set_these_with(
        &self,
        vcpus: &[u32],
        online: bool,
        options: &[(&str, Variant<'_>)],
    ) -> Result<Outcome, Failure> {
        let call = self.proxy.set_vcpu(vcpus, online, as_dict(options));
        let result = within(format!("the answer to SetVcpu({vcpus:?})"), call).await;
        result.map(Outcome::from).map_err(Failure::of)
    }

    /// `SetVcpus` that does not wait for removals.
    pub(crate) async fn set_async(&self, count: u32) -> Result<Outcome, Failure> {
        self.set_with(count, &[("async", true.into())]).await
    }

    /// `SetVcpus` that waits for removals as long as it takes.
    pub(crate) async fn set_patiently(&self, count: u32) -> Result<Outcome, Failure> {
        let limit = Duration::from_secs(600).as_micros() as u64;
        self.set_with(count, &[("timeout-usec", limit.into())])
            .await
    }

    /// Starts a `SetVcpus` that waits for removals as long as it takes.
    pub(crate) fn start_set(&self, count: u32) -> JoinHandle<Result<Outcome, Failure>> {
        let machine = self.clone();
        tokio::spawn(async move { machine.set_patiently(count).await })
    }

    /// `ListVcpus`.
    pub(crate) async fn rows(&self) -> Vec<Dict> {
        let rows = within("ListVcpus", self.proxy.list_vcpus()).await;
        let rows = rows.expect("ListVcpus answers");
        rows.iter().map(dict).collect()
    }

    /// `GetStatistics` with options: the dictionaries of the machine and of its vCPUs.
    pub(crate) async fn statistics(
        &self,
        options: &[(&str, Variant<'_>)],
    ) -> Result<(Dict, Vec<Dict>), Failure> {
        let call = self.proxy.get_statistics(as_dict(options));
        let result = within("GetStatistics", call).await;
        let (machine, vcpus) = result.map_err(Failure::of)?;
        Ok((dict(&machine), vcpus.iter().map(dict).collect()))
    }

    /// The numbers of the vCPUs that `ListVcpus` calls present.
    pub(crate) async fn present(&self) -> Vec<u32> {
        let rows = self.rows().await;
        let present = rows.iter().filter(|row| row["present"] == true);
        let ids = present.map(|row| row["id"].as_u64().expect("a number") as u32);
        ids.collect()
    }

    /// Returns the rows of `ListVcpus` with the answer of the guest agent. The service waits for the agent for one
    /// second, and asks it again five seconds after it did not answer.
    pub(crate) async fn rows_with_online(&self) -> Vec<Dict> {
        let mut checks = interval(Duration::from_millis(50));
        let answered = async {
            loop {
                let rows = self.rows().await;
                if rows.iter().any(|row| row.contains_key("online")) {
                    return rows;
                }
                checks.tick().await;
            }
        };
        within("the guest agent to answer", answered).await
    }

    /// Returns the vCPUs with `online` in the answer of the guest agent, and its value.
    pub(crate) async fn online(&self) -> Vec<(u64, bool)> {
        let rows = self.rows_with_online().await;
        let online = rows
            .iter()
            .filter_map(|row| Some((row["id"].as_u64()?, row.get("online")?.as_bool()?)));
        online.collect()
    }

    /// The vCPUs with `started` in `ListVcpus`, and its value.
    pub(crate) async fn started(&self) -> Vec<(u64, bool)> {
        let rows = self.rows().await;
        let started = rows
            .iter()
            .filter_map(|row| Some((row["id"].as_u64()?, row.get("started")?.as_bool()?)));
        started.collect()
    }

    /// `SetVcpus` that waits until the guest has started the vCPUs.
    pub(crate) async fn set_until_started(
        &self,
        count: u32,
        limit: Duration,
    ) -> Result<Outcome, Failure> {
        let limit = limit.as_micros() as u64;
        let options = [("until", "started".into()), ("timeout-usec", limit.into())];
        self.set_with(count, &options).await
    }

    /// `PendingRemovals`.
    pub(crate) async fn pending(&self) -> Vec<u32> {
        let pending = within("PendingRemovals", self.proxy.pending_removals()).await;
        pending.expect("the property is there")
    }

    /// Waits until `property` is `wanted`.
    pub(crate) async fn wait_for(&self, property: &str, wanted: impl Into<Variant<'static>>) {
        let wanted = wanted.into();
        let what = format!("{property} to be {wanted:?}");
        self.wait_until(&what, property, |value| *value == wanted)
            .await;
    }

    /// Waits for `what`, which `is_reached` finds in the value of `property`.
    pub(crate) async fn wait_until(
        &self,
        what: &str,
        property: &str,
        is_reached: impl Fn(&Variant<'_>) -> bool,
    ) {
        let mut signals = self.signals.clone();
        let reached = async {
            loop {
                signals.catch_up();
                let value = self
                    .proxy
                    .inner()
                    .get_property::<zbus::OwnedVariant>(property);
                if is_reached(&value.await.expect("the property is there")) {
                    return;
                }
                signals.next().await;
            }
        };
        within(what.to_owned(), reached).await;
    }
}

fn as_dict<'a>(options: &[(&'a str, Variant<'a>)]) -> HashMap<&'a str, Variant<'a>> {
    let option = |(key, value): &(&'a str, Variant<'a>)| {
        (*key, value.try_clone().expect("no descriptors in it"))
    };
    options.iter().map(option).collect()
}

impl Failure {
    /// The error that a method of the service gave.
    pub(crate) fn of(error: zbus::Error) -> Self {
        match error_reply(&error) {
            Some((name, text)) => Self { name, text },
            None => panic!("not an error of the service: {error}"),
        }
    }

    /// Checks the name of the error, and that its text has all of `parts`.
    #[track_caller]
    pub(crate) fn assert(&self, name: &str, parts: &[&str]) {
        assert_eq!(self.name, name, "{}", self.text);
        for part in parts {
            assert!(self.text.contains(part), "no {part:?} in {:?}", self.text);
        }
    }
}
