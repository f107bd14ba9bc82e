//! Owns the signals of the services: which ones, and what event each of them is. It must not call methods.

use std::collections::HashMap;
use std::future::ready;
use std::num::NonZero;

use futures_util::stream::{Stream, StreamExt, once, select_all};
use zbus::message::{Body, Type};
use zbus::{Connection, MatchRule, Message, MessageStream, OwnedObjectPath};

use super::{AUTOSCALE, AUTOSCALE_PATH, MACHINE, ROOT, SERVICE};
use crate::model::dict::{Dict, text};
use crate::model::message::{Event, Loss};

/// The number of signals that can wait.
const QUEUE: NonZero<usize> = NonZero::<usize>::MIN.saturating_add(4095);

/// The meaning of a signal.
pub(super) enum Signal {
    Event(Event),
    /// The service has a new owner, so that all is to be read again.
    ServiceStarted,
}

/// Returns the signals of both services, and those of the bus about them. The end of the stream is the end of the
/// connection.
pub(super) async fn follow(
    bus: &Connection,
) -> zbus::Result<impl Stream<Item = zbus::Result<Message>> + Unpin + use<>> {
    let signals = || MatchRule::builder().msg_type(Type::Signal);
    let own = signals().sender(SERVICE).path_namespace(ROOT);
    let owners = signals().sender("org.freedesktop.DBus");
    let owners = owners.member("NameOwnerChanged").arg(0, SERVICE);
    let autoscale = signals().sender(AUTOSCALE).path(AUTOSCALE_PATH);
    let mut streams = Vec::new();
    for rule in [own, owners, autoscale] {
        let stream = MessageStream::for_match_rule(rule.build()?, bus, Some(QUEUE)).await?;
        // The end of one stream ends all.
        streams.push(Box::pin(stream.map(Some).chain(once(ready(None)))));
    }
    let open = select_all(streams).take_while(|signal| ready(signal.is_some()));
    Ok(open.filter_map(ready))
}

/// Returns what a signal means, or `None` if it means nothing to the application.
pub(super) fn read(signal: &Message) -> Option<Signal> {
    let header = signal.header();
    let path = header.path()?.to_string();
    let body = signal.body();
    let event = match header.member()?.as_str() {
        "NameOwnerChanged" => {
            let (_, _, owner): (String, String, String) = body.deserialize().ok()?;
            if !owner.is_empty() {
                return Some(Signal::ServiceStarted);
            }
            Event::Lost(Loss::Service("The service has ended.".to_owned()))
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
