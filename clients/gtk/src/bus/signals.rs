//! Owns the signals of the services: which ones, and what event each of them is. It must not call
//! methods of them, and must not take signals of other processes.

use std::collections::HashMap;
use std::num::NonZero;

use zbus::fdo::DBusProxy;
use zbus::message::{Body, Type};
use zbus::{Connection, MatchRule, Message, MessageStream, OwnedObjectPath};

use super::owners::{DAEMON, Owners};
use super::{AUTOSCALE, AUTOSCALE_PATH, MACHINE, ROOT, SERVICE};
use crate::model::dict::{Dict, text};
use crate::model::message::{Event, Loss};

/// The number of messages that can wait.
const QUEUE: NonZero<usize> = NonZero::<usize>::MIN.saturating_add(4095);

/// The meaning of a signal.
pub(super) enum Signal {
    Event(Event),
    /// The service has a new owner, so that all is to be read again.
    ServiceStarted,
}

/// Returns all messages that the bus sends, in their order: replies, the signals of both services, and those of the bus
/// about their owners, which are the second value. The end of the stream is the end of the connection. The bus also
/// delivers signals that other users send to this connection.
pub(super) async fn follow(bus: &Connection) -> zbus::Result<(MessageStream, Owners)> {
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
    let owners = Owners::read(&daemon).await?;
    Ok((messages, owners))
}

/// Returns what a message means, or `None` if it is not a signal of the services or of the bus, or means nothing to the
/// application. A new owner of a service changes `owners`.
pub(super) fn read(signal: &Message, owners: &mut Owners) -> Option<Signal> {
    let header = signal.header();
    let member = header.member()?.as_str();
    let sender = match member {
        "NameOwnerChanged" => DAEMON,
        "Decided" => AUTOSCALE,
        _ => SERVICE,
    };
    if !owners.has_sent(sender, signal) {
        return None;
    }
    let path = header.path()?.to_string();
    let body = signal.body();
    let event = match member {
        "NameOwnerChanged" => {
            let (name, _, owner): (String, String, String) = body.deserialize().ok()?;
            owners.change(&name, &owner);
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

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: &str = "/org/vcpud1/machine/web";

    fn owner_changed(sender: &str, name: &str, owner: &str) -> Message {
        let signal = Message::signal("/org/freedesktop/DBus", DAEMON, "NameOwnerChanged");
        let signal = signal.sender(sender);
        signal.build(&(name, "", owner)).unwrap()
    }

    fn vcpu_added(sender: &str) -> Message {
        let signal = Message::signal(WEB, MACHINE, "VcpuAdded").sender(sender);
        signal.build(&1_u32).unwrap()
    }

    fn decided(sender: &str) -> Message {
        let signal = Message::signal(AUTOSCALE_PATH, AUTOSCALE, "Decided").sender(sender);
        let body = ("web", 1_u32, 2_u32, "load", Dict::new());
        signal.build(&body).unwrap()
    }

    #[test]
    fn signals_of_other_processes_have_no_effect() {
        let mut owners = Owners::default();
        assert!(read(&vcpu_added(":1.5"), &mut owners).is_none());
        for (name, owner) in [(SERVICE, ":1.5"), (AUTOSCALE, ":1.6")] {
            let forged = owner_changed(":1.7", name, ":1.7");
            assert!(read(&forged, &mut owners).is_none());
            assert!(read(&owner_changed(DAEMON, name, owner), &mut owners).is_some());
        }
        assert!(read(&vcpu_added(":1.5"), &mut owners).is_some());
        assert!(read(&decided(":1.6"), &mut owners).is_some());
        for sender in [":1.6", ":1.7", DAEMON] {
            assert!(read(&vcpu_added(sender), &mut owners).is_none(), "{sender}");
        }
        for sender in [":1.5", ":1.7", DAEMON] {
            assert!(read(&decided(sender), &mut owners).is_none(), "{sender}");
        }
    }

    #[test]
    fn the_former_owner_has_no_effect() {
        let mut owners = Owners::default();
        read(&owner_changed(DAEMON, SERVICE, ":1.5"), &mut owners);
        read(&owner_changed(DAEMON, SERVICE, ""), &mut owners);
        assert!(read(&vcpu_added(":1.5"), &mut owners).is_none());
        read(&owner_changed(DAEMON, SERVICE, ":1.8"), &mut owners);
        assert!(read(&vcpu_added(":1.5"), &mut owners).is_none());
        assert!(read(&vcpu_added(":1.8"), &mut owners).is_some());
    }
}
