//! Owns the calls: one for each command, and its events. It must not wait for signals. No call has a time limit of its
//! own, because polkit waits for the user.

use std::collections::HashMap;

use zbus::fdo::ObjectManagerProxy;
use zbus::proxy::{CacheProperties, MethodFlags};
use zbus::{Connection, Variant};

use super::proxies::{AutoscaleProxy, MachineProxy};
use super::{AUTOSCALE, AUTOSCALE_PATH, MACHINE, ROOT, SERVICE};
use crate::model::bandwidth::Bandwidth;
use crate::model::dict::Dict;
use crate::model::failure::{self, Failure};
use crate::model::message::{Command, Event, Loss};
use crate::model::numbers;
use crate::model::scaling::Scaling;

const GUEST_REFUSED: &str = "org.vcpud1.Error.GuestRefused";

/// Reads all machines.
pub(super) async fn machines(bus: &Connection) -> Event {
    match managed_objects(bus).await {
        Ok(machines) => Event::Machines(machines),
        Err(error) => Event::Lost(loss(&error)),
    }
}

async fn managed_objects(bus: &Connection) -> zbus::Result<Vec<(String, Dict)>> {
    let manager = ObjectManagerProxy::builder(bus)
        .destination(SERVICE)
        .path(ROOT);
    let objects = manager.build().await?.get_managed_objects().await?;
    let mut machines = Vec::new();
    for (path, interfaces) in objects {
        let mut interfaces = interfaces.into_iter();
        if let Some((_, properties)) = interfaces.find(|(name, _)| name.as_str() == MACHINE) {
            machines.push((path.to_string(), properties));
        }
    }
    Ok(machines)
}

fn loss(error: &zbus::Error) -> Loss {
    let (name, text) = reply(error);
    match name.as_str() {
        "org.freedesktop.DBus.Error.AccessDenied" => Loss::Denied,
        "" => Loss::Bus(text),
        _ => Loss::Service(text),
    }
}

/// Returns the name and the text of an error. The name is empty if the error is no reply.
fn reply(error: &zbus::Error) -> (String, String) {
    match error {
        zbus::Error::MethodError(name, text, _) => (
            name.to_string(),
            text.clone().unwrap_or_else(|| name.to_string()),
        ),
        zbus::Error::FDO(error) => match &**error {
            zbus::fdo::Error::ZBus(error) => reply(error),
            error => {
                let name = zbus::DBusError::name(error).to_string();
                let text = zbus::DBusError::description(error)
                    .unwrap_or(&name)
                    .to_owned();
                (name, text)
            }
        },
        error => (String::new(), error.to_string()),
    }
}

fn failure(error: &zbus::Error) -> Failure {
    let (name, text) = reply(error);
    failure::describe(&name, &text)
}

/// Performs a command, and returns its events.
pub(super) async fn perform(bus: &Connection, command: Command) -> Vec<Event> {
    let result = match &command {
        Command::Connect => return vec![machines(bus).await],
        Command::Explain { path, name } => explain(bus, path, name).await,
        Command::Scale {
            path,
            name,
            min,
            max,
            is_observed,
        } => scale(bus, path, name, (*min, *max), *is_observed).await,
        Command::StopScaling { path, name } => stop_scaling(bus, path, name).await,
        Command::List(path)
        | Command::Sample(path)
        | Command::Plan(path, _)
        | Command::SetVcpus { path, .. }
        | Command::Pin { path, .. }
        | Command::Limit { path, .. } => on_machine(bus, path, &command).await,
    };
    let mut events = match result {
        Ok(events) => events,
        Err(error) => match &command {
            // A sample that fails is a gap in the sparkline.
            Command::Sample(path) => vec![Event::Sampled(path.clone(), Dict::new(), Vec::new())],
            // The machine has ended, and a signal follows.
            Command::List(_) => Vec::new(),
            // VcpuRemovalFailed has named each vCPU and the reason.
            Command::SetVcpus { .. } if reply(&error).0 == GUEST_REFUSED => Vec::new(),
            _ => vec![Event::Failed(failure(&error))],
        },
    };
    if let Command::SetVcpus { path, .. } = command {
        events.push(Event::Finished(path));
    }
    events
}

async fn on_machine(bus: &Connection, path: &str, command: &Command) -> zbus::Result<Vec<Event>> {
    let machine = MachineProxy::builder(bus)
        .destination(SERVICE)
        .path(path.to_owned());
    let machine = machine
        .cache_properties(CacheProperties::No)
        .build()
        .await?;
    let path = path.to_owned();
    let event = match command {
        Command::List(_) => Event::Listed(path, machine.list_vcpus().await?),
        Command::Sample(_) => {
            let (own, vcpus) = machine.get_statistics(HashMap::new()).await?;
            Event::Sampled(path, own, vcpus)
        }
        Command::Plan(_, count) => {
            let plan = machine.plan(*count, HashMap::new()).await?;
            Event::Planned(path, *count, plan)
        }
        Command::SetVcpus { count, current, .. } => {
            let current = Variant::from(*current);
            let options = HashMap::from([("current", &current)]);
            let (added, removed, _) = machine.set_vcpus(*count, options).await?;
            Event::Done(changed(&added, &removed))
        }
        Command::Pin { vcpus, cpus, .. } => {
            machine.pin_vcpus(vcpus, cpus, HashMap::new()).await?;
            Event::Done("Host CPUs changed".to_owned())
        }
        Command::Limit {
            bandwidth: Bandwidth { period, quota },
            ..
        } => {
            machine
                .set_bandwidth(*period, *quota, HashMap::new())
                .await?;
            Event::Done("Limit of CPU time changed".to_owned())
        }
        _ => return Ok(Vec::new()),
    };
    Ok(vec![event])
}

fn changed(added: &[u32], removed: &[u32]) -> String {
    match (added, removed) {
        ([], []) => "No change".to_owned(),
        ([], removed) => format!("Removed {}", numbers::named(removed)),
        (added, _) => format!("Added {}", numbers::named(added)),
    }
}

async fn autoscale(bus: &Connection) -> zbus::Result<AutoscaleProxy<'_>> {
    let proxy = AutoscaleProxy::builder(bus)
        .destination(AUTOSCALE)
        .path(AUTOSCALE_PATH);
    proxy.cache_properties(CacheProperties::No).build().await
}

/// Reads the scaling of a machine, without starting a service only for that.
async fn explain(bus: &Connection, path: &str, name: &str) -> zbus::Result<Vec<Event>> {
    let service = autoscale(bus).await?;
    let flags = MethodFlags::NO_AUTO_START;
    let explained: zbus::Result<Option<Dict>> = service
        .inner()
        .call_with_flags("Explain", flags, &(name,))
        .await;
    let scaling = match explained {
        Ok(explanation) => Scaling::new(&explanation.unwrap_or_default()),
        Err(error) => match Scaling::from_error(&reply(&error).0) {
            Some(scaling) => scaling,
            None => return Err(error),
        },
    };
    Ok(vec![Event::Explained(path.to_owned(), scaling)])
}

async fn scale(
    bus: &Connection,
    path: &str,
    name: &str,
    (min, max): (u32, u32),
    is_observed: bool,
) -> zbus::Result<Vec<Event>> {
    let mode = if is_observed { "observe" } else { "on" };
    let (min, max, mode) = (Variant::from(min), Variant::from(max), Variant::from(mode));
    let options = HashMap::from([("min", &min), ("max", &max), ("mode", &mode)]);
    autoscale(bus).await?.enable(name, options).await?;
    explain(bus, path, name).await
}

async fn stop_scaling(bus: &Connection, path: &str, name: &str) -> zbus::Result<Vec<Event>> {
    autoscale(bus).await?.disable(name).await?;
    explain(bus, path, name).await
}
