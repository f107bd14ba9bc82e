//! Owns the calls that change something: one for each command, and its events. It must not read or wait for signals. No
//! call has a time limit of its own, because polkit waits for the user.

use std::collections::HashMap;

use zbus::proxy::CacheProperties;
use zbus::{Connection, Variant};

use super::errors;
use super::proxies::{AutoscaleProxy, MachineProxy};
use super::{AUTOSCALE, AUTOSCALE_PATH, SERVICE};
use crate::model::bandwidth::Bandwidth;
use crate::model::message::{Command, Event};
use crate::model::numbers;
use crate::model::scaling::Settings;

const GUEST_REFUSED: &str = "org.vcpud1.Error.GuestRefused";

/// Performs a command that changes something, and returns its events.
pub(super) async fn perform(bus: &Connection, command: Command) -> Vec<Event> {
    match change(bus, &command).await {
        Ok(text) => done(&command, text),
        Err(error) => failed(command, &error),
    }
}

/// Returns the events of a command that has succeeded. Without a text, it has changed the scaling.
fn done(command: &Command, text: Option<String>) -> Vec<Event> {
    let Some((path, name)) = command.target() else {
        return Vec::new();
    };
    let event = match text {
        Some(text) => Event::Done(path, name, text),
        None => Event::ScalingChanged(path),
    };
    finished(command, Some(event))
}

/// Returns the events of a command that has failed.
pub(super) fn failed(command: Command, error: &zbus::Error) -> Vec<Event> {
    // VcpuRemovalFailed has named each vCPU and the reason.
    let is_known = errors::name_and_text(error).0 == GUEST_REFUSED;
    let target = match command {
        Command::SetVcpus { .. } if is_known => None,
        _ => command.target(),
    };
    let failure = match command {
        Command::Scale { .. } | Command::StopScaling { .. } => errors::failure_of_autoscaler(error),
        _ => errors::failure(error),
    };
    let event = target.map(|(path, name)| Event::Failed(path, name, failure));
    finished(&command, event)
}

fn finished(command: &Command, event: Option<Event>) -> Vec<Event> {
    let end = match command {
        Command::SetVcpus { path, .. } => Some(Event::Finished(path.clone())),
        _ => None,
    };
    event.into_iter().chain(end).collect()
}

/// Performs a command, and returns what is different, or `None` if a decision of the autoscaler says it.
async fn change(bus: &Connection, command: &Command) -> zbus::Result<Option<String>> {
    let text = match command {
        Command::SetVcpus {
            path,
            count,
            current,
            ..
        } => {
            let current = Variant::from(*current);
            let options = HashMap::from([("current", &current)]);
            let (added, removed, _) = machine(bus, path).await?.set_vcpus(*count, options).await?;
            Some(changed(&added, &removed))
        }
        Command::Pin {
            path, vcpus, cpus, ..
        } => {
            let machine = machine(bus, path).await?;
            machine.pin_vcpus(vcpus, cpus, HashMap::new()).await?;
            Some(pinned(vcpus).to_owned())
        }
        Command::Limit {
            path,
            bandwidth: Bandwidth { period, quota },
            ..
        } => {
            let machine = machine(bus, path).await?;
            machine
                .set_bandwidth(*period, *quota, HashMap::new())
                .await?;
            Some("Limit of CPU time changed".to_owned())
        }
        Command::Scale { name, settings, .. } => {
            let options = options(settings);
            let options = options.iter().map(|(key, value)| (*key, value)).collect();
            autoscale(bus).await?.enable(name, options).await?;
            None
        }
        Command::StopScaling { name, .. } => {
            autoscale(bus).await?.disable(name).await?;
            None
        }
        _ => None,
    };
    Ok(text)
}

async fn machine<'a>(bus: &'a Connection, path: &'a str) -> zbus::Result<MachineProxy<'a>> {
    let proxy = MachineProxy::builder(bus).destination(SERVICE).path(path);
    proxy.cache_properties(CacheProperties::No).build().await
}

async fn autoscale(bus: &Connection) -> zbus::Result<AutoscaleProxy<'_>> {
    let proxy = AutoscaleProxy::builder(bus)
        .destination(AUTOSCALE)
        .path(AUTOSCALE_PATH);
    proxy.cache_properties(CacheProperties::No).build().await
}

/// Returns the options of `Enable`.
fn options(settings: &Settings) -> Vec<(&'static str, Variant<'static>)> {
    let mode = if settings.is_observed {
        "observe"
    } else {
        "on"
    };
    vec![
        ("min", settings.min.into()),
        ("max", settings.max.into()),
        ("mode", mode.into()),
        // The other settings stay.
        ("update", true.into()),
    ]
}

fn pinned(vcpus: &[u32]) -> &'static str {
    match vcpus {
        [] => "Host CPUs changed",
        _ => "Pin changed",
    }
}

fn changed(added: &[u32], removed: &[u32]) -> String {
    match (added, removed) {
        ([], []) => "No change".to_owned(),
        ([], removed) => format!("Removed {}", numbers::named(removed)),
        (added, _) => format!("Added {}", numbers::named(added)),
    }
}
