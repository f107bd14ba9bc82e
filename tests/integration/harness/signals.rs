//! Every signal of the service, recorded in order.

use std::collections::HashMap;

use futures_util::StreamExt;
use serde_json::Value as Json;
use tokio::sync::watch;
use zbus::message::{Sequence, Type};
use zbus::{Connection, MatchRule, Message, MessageStream, fdo};
use zbus::{OwnedObjectPath, OwnedVariant};

use super::json::{Dict, dict};
use super::wait::within;

/// One signal.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Signal {
    MachineAdded(String),
    MachineRemoved(String),
    InterfacesAdded(String),
    InterfacesRemoved(String),
    /// `PropertiesChanged` of the object at this path.
    Changed(String, Dict),
    Added(Vcpu),
    Started(Vcpu),
    Removed(Vcpu),
    /// With the text and the code of the reason.
    RemovalFailed(Vcpu, String, String),
}

/// The vCPU in a signal.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Vcpu {
    pub(crate) machine: String,
    pub(crate) id: u32,
    pub(crate) alias: String,
    pub(crate) cause: String,
    pub(crate) uid: Option<u32>,
}

impl Vcpu {
    /// A vCPU that came, went or stayed because user root asked for it.
    pub(crate) fn by_request(machine: &str, id: u32, alias: &str) -> Self {
        Self {
            uid: Some(0),
            ..Self::by_cause(machine, id, alias, "request")
        }
    }

    /// A vCPU that came, went or stayed though nobody asked the service.
    pub(crate) fn by_cause(machine: &str, id: u32, alias: &str, cause: &str) -> Self {
        Self {
            machine: machine.to_owned(),
            id,
            alias: alias.to_owned(),
            cause: cause.to_owned(),
            uid: None,
        }
    }
}

/// The recorder.
#[derive(Clone)]
pub(crate) struct Signals {
    connection: Connection,
    record: watch::Receiver<Vec<Signal>>,
    /// The vCPUs of all `VcpuStarted`. The guest decides when they come, so they are not part of the record.
    started: watch::Receiver<Vec<Vcpu>>,
    /// How far the messages of the connection are read.
    read: watch::Receiver<Sequence>,
}

impl Signals {
    /// Records what comes to `connection` from now on.
    pub(crate) async fn record(connection: &Connection) -> Self {
        let mut messages = MessageStream::from(connection);
        let (recorder, record) = watch::channel(Vec::new());
        let (starts, started) = watch::channel(Vec::new());
        let (reader, read) = watch::channel(Sequence::default());
        tokio::spawn(async move {
            while let Some(Ok(message)) = messages.next().await {
                match decode(&message) {
                    Some(Signal::Started(vcpu)) => starts.send_modify(|all| all.push(vcpu)),
                    // Those that wait for a property read it then.
                    Some(Signal::Changed(_, changed)) if changed.is_empty() => {
                        recorder.send_modify(|_| {});
                    }
                    Some(signal) => recorder.send_modify(|record| record.push(signal)),
                    None => {}
                }
                reader.send_replace(message.recv_position());
            }
        });
        let rule = MatchRule::builder().msg_type(Type::Signal);
        let rule = rule.path_namespace("/org/vcpud1").build().expect("a rule");
        let bus = fdo::DBusProxy::new(connection).await;
        let added = bus.expect("the bus is there").add_match_rule(rule).await;
        added.expect("the bus takes the rule");
        Self {
            connection: connection.clone(),
            record,
            started,
            read,
        }
    }

    /// Waits until `VcpuStarted` came for `count` vCPUs. Returns them.
    #[track_caller]
    pub(crate) fn started(&self, count: usize) -> impl Future<Output = Vec<Vcpu>> {
        let mut started = self.started.clone();
        within(format!("VcpuStarted of {count} vCPUs"), async move {
            let found = started.wait_for(|all| all.len() >= count);
            found.await.expect("the recorder runs").clone()
        })
    }

    /// Returns the vCPUs of all `VcpuStarted`, including everything that the service has sent so far.
    pub(crate) async fn all_started(&self) -> Vec<Vcpu> {
        self.all().await;
        self.started.borrow().clone()
    }

    /// Where the record stands, with all that the service has sent so far.
    pub(crate) async fn mark(&self) -> usize {
        self.all().await.len()
    }

    /// Returns the signals after `mark`, including everything that the service has sent so far.
    pub(crate) async fn since(&self, mark: usize) -> Vec<Signal> {
        self.all().await.split_off(mark)
    }

    /// Returns the signals before the message at `position`.
    pub(crate) async fn all_before(&self, position: Sequence) -> Vec<Signal> {
        let mut reader = self.read.clone();
        let read = reader.wait_for(|read| *read >= position);
        let read = within("the record of the signals", read).await;
        drop(read.expect("the recorder runs"));
        self.record.borrow().clone()
    }

    async fn all(&self) -> Vec<Signal> {
        // The reply of the bus follows all messages that it has passed on.
        let call = self.connection.call_method(
            Some("org.freedesktop.DBus"),
            "/org/freedesktop/DBus",
            Some("org.freedesktop.DBus"),
            "GetId",
            &(),
        );
        let answer = within("the answer of the bus", call).await;
        let answer = answer.expect("the bus answers");
        self.all_before(answer.recv_position()).await
    }

    /// Waits until what was recorded after `mark` fulfils `is_there`; returns it.
    #[track_caller]
    pub(crate) fn wait(
        &self,
        what: impl Into<String>,
        mark: usize,
        is_there: impl Fn(&[Signal]) -> bool,
    ) -> impl Future<Output = Vec<Signal>> {
        let mut record = self.record.clone();
        within(what, async move {
            let found = record.wait_for(|record| is_there(&record[mark..]));
            found.await.expect("the recorder runs")[mark..].to_vec()
        })
    }

    /// Waits for the signal that the machine `name` was added. A call can find the machine before.
    #[track_caller]
    pub(crate) fn addition_of(&self, name: &str, mark: usize) -> impl Future<Output = Vec<Signal>> {
        self.wait_for(Signal::MachineAdded(name.to_owned()), mark)
    }

    /// Waits for the signal that the machine `name` was removed.
    #[track_caller]
    pub(crate) fn removal_of(&self, name: &str, mark: usize) -> impl Future<Output = Vec<Signal>> {
        self.wait_for(Signal::MachineRemoved(name.to_owned()), mark)
    }

    #[track_caller]
    fn wait_for(&self, signal: Signal, mark: usize) -> impl Future<Output = Vec<Signal>> {
        let what = format!("{signal:?}");
        self.wait(what, mark, move |told| told.contains(&signal))
    }

    /// Forgets what came so far for [`Signals::next`].
    pub(crate) fn catch_up(&mut self) {
        self.record.mark_unchanged();
    }

    /// Waits for the next signal of any kind.
    pub(crate) async fn next(&mut self) {
        self.record.changed().await.expect("the recorder runs");
    }
}

/// The vCPUs of all `VcpuAdded`.
pub(crate) fn added(signals: &[Signal]) -> Vec<Vcpu> {
    let vcpu = |signal: &Signal| match signal {
        Signal::Added(vcpu) => Some(vcpu.clone()),
        _ => None,
    };
    signals.iter().filter_map(vcpu).collect()
}

/// The vCPUs of all `VcpuRemoved`.
pub(crate) fn removed(signals: &[Signal]) -> Vec<Vcpu> {
    let vcpu = |signal: &Signal| match signal {
        Signal::Removed(vcpu) => Some(vcpu.clone()),
        _ => None,
    };
    signals.iter().filter_map(vcpu).collect()
}

/// The vCPUs and reasons of all `VcpuRemovalFailed`.
pub(crate) fn removal_failed(signals: &[Signal]) -> Vec<(Vcpu, String)> {
    let vcpu = |signal: &Signal| match signal {
        Signal::RemovalFailed(vcpu, reason, _) => Some((vcpu.clone(), reason.clone())),
        _ => None,
    };
    signals.iter().filter_map(vcpu).collect()
}

/// The numbers of vCPUs, sorted.
pub(crate) fn ids(vcpus: &[Vcpu]) -> Vec<u32> {
    let mut ids: Vec<u32> = vcpus.iter().map(|vcpu| vcpu.id).collect();
    ids.sort_unstable();
    ids
}

/// The values that `property` was said to change to, in order.
pub(crate) fn changes_of(signals: &[Signal], property: &str) -> Vec<Json> {
    let value = |signal: &Signal| match signal {
        Signal::Changed(_, properties) => properties.get(property).cloned(),
        _ => None,
    };
    signals.iter().filter_map(value).collect()
}

fn decode(message: &Message) -> Option<Signal> {
    if message.message_type() != Type::Signal {
        return None;
    }
    let header = message.header();
    let path = header.path()?.to_string();
    if !path.starts_with("/org/vcpud1") {
        return None; // the bus's own
    }
    let machine = || path.rsplit('/').next().unwrap_or_default().to_owned();
    let vcpu = |(id, alias, details): (u32, String, HashMap<String, OwnedVariant>)| {
        let details = dict(&details);
        Vcpu {
            machine: machine(),
            id,
            alias,
            cause: details["cause"].as_str().expect("a word").to_owned(),
            uid: details
                .get("uid")
                .map(|uid| uid.as_u64().expect("u") as u32),
        }
    };
    let body = message.body();
    Some(match header.member()?.as_str() {
        "MachineAdded" => Signal::MachineAdded(name(message)),
        "MachineRemoved" => Signal::MachineRemoved(name(message)),
        "InterfacesAdded" => Signal::InterfacesAdded(object(message)),
        "InterfacesRemoved" => {
            type Body = (OwnedObjectPath, Vec<String>);
            let (path, _): Body = body.deserialize().expect("oas");
            Signal::InterfacesRemoved(path.to_string())
        }
        "PropertiesChanged" => {
            type Body = (String, HashMap<String, OwnedVariant>, Vec<String>);
            let (_, mut changed, _): Body = body.deserialize().expect("sa{sv}as");
            changed.remove("StartedVcpus");
            Signal::Changed(path, dict(&changed))
        }
        "VcpuAdded" => Signal::Added(vcpu(body.deserialize().expect("usa{sv}"))),
        "VcpuStarted" => Signal::Started(vcpu(body.deserialize().expect("usa{sv}"))),
        "VcpuRemoved" => Signal::Removed(vcpu(body.deserialize().expect("usa{sv}"))),
        "VcpuRemovalFailed" => {
            type Body = (u32, String, String, HashMap<String, OwnedVariant>);
            let (id, alias, reason, mut details): Body = body.deserialize().expect("ussa{sv}");
            let code = details.remove("reason-code").expect("each has a code");
            let code = code.try_into().expect("s");
            Signal::RemovalFailed(vcpu((id, alias, details)), reason, code)
        }
        // It only says where to look.
        "VcpuChanged" => return None,
        // A signal of vcpud-autoscale.
        "Decided" => return None,
        other => panic!("a signal of no known kind: {other}"),
    })
}

fn name(message: &Message) -> String {
    let (name, _): (String, OwnedObjectPath) = message.body().deserialize().expect("so");
    name
}

fn object(message: &Message) -> String {
    type Interfaces = HashMap<String, HashMap<String, OwnedVariant>>;
    let (path, _): (OwnedObjectPath, Interfaces) =
        message.body().deserialize().expect("oa{sa{sv}}");
    path.to_string()
}
