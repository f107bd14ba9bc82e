//! Owns the signals of the services: which ones, and what event each of them is. It must not call
//! methods of them.

use std::collections::HashMap;
use std::num::NonZero;

use zbus::fdo::DBusProxy;
use zbus::message::{Body, Type};
use zbus::{Connection, MatchRule, Message, MessageStream, OwnedObjectPath};

use super::{AUTOSCALE, AUTOSCALE_PATH, MACHINE, ROOT, SERVICE};
use crate::model::dict::{Dict, text};
use crate::model::message::{Event, Loss};

/// The bus itself.
const DAEMON: &str = "org.freedesktop.DBus";
/// The number of messages that can wait.
const QUEUE: NonZero<usize> = NonZero::<usize>::MIN.saturating_add(4095);

/// The meaning of a signal.
pub(super) enum Signal {
    Event(Event),
    /// The service has a new owner, so that all is to be read again.
    ServiceStarted,
}

/// Returns all messages that the bus sends, in their order: replies, the signals of both services, and those of the bus
/// about their owners. The end of the stream is the end of the connection.
pub(super) async fn follow(bus: &Connection) -> zbus::Result<MessageStream> {
    let mut messages = MessageStream::from(bus);
    messages.set_max_queued(QUEUE);
    let daemon = DBusProxy::new(bus).await?;
    let signals = || MatchRule::builder().msg_type(Type::Signal);
    let owners = |name| {
        signals()
            .sender(DAEMON)
            .member("NameOwnerChanged")
            .arg(0, name)
    };
    let rules = [
        signals().sender(SERVICE).path_namespace(ROOT),
        signals().sender(AUTOSCALE).path(AUTOSCALE_PATH),
        owners(SERVICE),
        owners(AUTOSCALE),
    ];
    for rule in rules {
        daemon.add_match_rule(rule.build()?).await?;
    }
    Ok(messages)
}

/// Returns what a message means, or `None` if it is not a signal or means nothing to the application.
pub(super) fn read(signal: &Message) -> Option<Signal> {
    if signal.message_type() != Type::Signal {
        return None;
    }
    let header = signal.header();
    let path = header.path()?.to_string();
    let body = signal.body();
    let event = match header.member()?.as_str() {
        "NameOwnerChanged" => {
            let (name, _, owner): (String, String, String) = body.deserialize().ok()?;
            return read_owner(&name, !owner.is_empty());
        }
        "Decided" => {
            let (machine, ..): (String, u32, u32, String, Dict) = body.deserialize().ok()?;
            Event::Decided(machine)
        }
        "VcpuAdded" | "VcpuChanged" | "VcpuStarted" | "VcpuRemoved" => Event::VcpusChanged(path),
        "VcpuRemovalFailed" => {
            let (vcpu, _, reason, details): (u32, String, String, Dict) =
                body.deserialize().ok()?;
            let code = text(&details, "reason-code");
            Event::RemovalFailed {
                path,
                vcpu,
                code,
                reason,
            }
        }
        member => read_object(member, path, &body)?,
    };
    Some(Signal::Event(event))
}

/// Returns what the start or the end of a service means.
fn read_owner(name: &str, is_running: bool) -> Option<Signal> {
    match (name, is_running) {
        (SERVICE, true) => Some(Signal::ServiceStarted),
        (SERVICE, false) => {
            let loss = Loss::Service("The service has ended.".to_owned());
            Some(Signal::Event(Event::Lost(loss)))
        }
        (AUTOSCALE, _) => Some(Signal::Event(Event::Scaler(is_running))),
        _ => None,
    }
}

/// Returns the event of a signal about objects and their properties.
fn read_object(member: &str, path: String, body: &Body) -> Option<Event> {
    match member {
        "InterfacesAdded" => {
            let (path, mut interfaces): (OwnedObjectPath, HashMap<String, Dict>) =
                body.deserialize().ok()?;
            let properties = interfaces.remove(MACHINE)?;
            Some(Event::MachineAdded(path.to_string(), properties))
        }
        "InterfacesRemoved" => {
            let (path, interfaces): (OwnedObjectPath, Vec<String>) = body.deserialize().ok()?;
            let is_machine = interfaces.iter().any(|name| name == MACHINE);
            is_machine.then(|| Event::MachineRemoved(path.to_string()))
        }
        "PropertiesChanged" => {
            let (interface, properties, _): (String, Dict, Vec<String>) =
                body.deserialize().ok()?;
            (interface == MACHINE).then_some(Event::PropertiesChanged(path, properties))
        }
        _ => None,
    }
}
