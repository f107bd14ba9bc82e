//! The command "monitor": prints the signals of the service.

use std::collections::HashMap;
use std::io::{Write, stdout};
use std::time::SystemTime;

use futures_util::StreamExt;
use serde_json::{Value as Json, json};
use vcpud::names::{BUS_NAME, MACHINE_INTERFACE, MACHINE_PATH_PREFIX, MANAGER_INTERFACE};
use vcpud::names::{ROOT_PATH, unescape_label};
use zbus::message::Type;
use zbus::{MatchRule, Message, MessageStream};
use zbus::{OwnedObjectPath, OwnedVariant};

use crate::client::Client;
use crate::failure::Failure;
use crate::render;

type Dict = HashMap<String, OwnedVariant>;

pub(crate) async fn monitor(client: &Client, only: Option<&str>) -> Result<(), Failure> {
    let rule = MatchRule::builder()
        .msg_type(Type::Signal)
        .sender(BUS_NAME)
        .path_namespace(ROOT_PATH)
        .build()?;
    let mut signals = MessageStream::for_match_rule(rule, &client.bus, None).await?;
    let mut start = Box::pin(start(client, only));
    let mut is_started = false;
    loop {
        // zbus reads no replies while a stream is full, so signals are read while the reply is awaited.
        tokio::select! {
            started = &mut start, if !is_started => {
                started?;
                is_started = true;
            }
            message = signals.next() => match message {
                Some(message) => show(&message?, only, client.json)?,
                None => return Ok(()),
            },
        }
    }
}

/// Starts the service.
///
/// # Errors
/// Fails if the machine `only` does not exist.
async fn start(client: &Client, only: Option<&str>) -> Result<(), Failure> {
    match only {
        Some(name) => drop(client.find(name).await?),
        None => {
            client.manager().await?.list_machines().await?;
        }
    }
    Ok(())
}

/// Prints a signal, if it is about the machine `only`.
fn show(message: &Message, only: Option<&str>, json: bool) -> Result<(), Failure> {
    let Some(event) = event(message)? else {
        return Ok(());
    };
    if only.is_some_and(|name| event["machine"] != name) {
        return Ok(());
    }
    let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
    if json {
        let mut line = event;
        line["time"] = time.into();
        writeln!(stdout(), "{line}")?;
    } else {
        writeln!(stdout(), "{time}  {}", sentence(&event))?;
    }
    Ok(())
}

/// Returns a signal as a JSON object with `event` and `machine`; `None` for a signal that repeats another.
fn event(message: &Message) -> zbus::Result<Option<Json>> {
    let header = message.header();
    let member = header.member().map(|m| m.to_string()).unwrap_or_default();
    let interface = header
        .interface()
        .map(|i| i.to_string())
        .unwrap_or_default();
    let path = header.path().map(|p| p.to_string()).unwrap_or_default();
    let label = path.strip_prefix(MACHINE_PATH_PREFIX);
    let machine = label.and_then(unescape_label);
    let body = message.body();
    Ok(match (interface.as_str(), member.as_str()) {
        (MANAGER_INTERFACE, "MachineAdded" | "MachineRemoved") => {
            let (name, _): (String, OwnedObjectPath) = body.deserialize()?;
            Some(json!({"event": member, "machine": name}))
        }
        (MACHINE_INTERFACE, "VcpuAdded" | "VcpuStarted" | "VcpuRemoved") => {
            let (vcpu, alias, details): (u32, String, Dict) = body.deserialize()?;
            let details = render::json_dict(&details);
            Some(
                json!({"event": member, "machine": machine, "vcpu": vcpu, "alias": alias, "details": details}),
            )
        }
        (MACHINE_INTERFACE, "VcpuRemovalFailed") => {
            let (vcpu, alias, reason, details): (u32, String, String, Dict) = body.deserialize()?;
            let details = render::json_dict(&details);
            Some(
                json!({"event": member, "machine": machine, "vcpu": vcpu, "alias": alias, "reason": reason, "details": details}),
            )
        }
        ("org.freedesktop.DBus.Properties", "PropertiesChanged") => {
            let (_, changed, _): (String, Dict, Vec<String>) = body.deserialize()?;
            let changed = render::json_dict(&changed);
            Some(json!({"event": member, "machine": machine, "changed": changed}))
        }
        _ => None,
    })
}

fn sentence(event: &Json) -> String {
    let text = |value: &Json| value.as_str().unwrap_or_default().to_owned();
    // A signal of no machine is about the service.
    let machine = event["machine"].as_str().unwrap_or("vcpud").to_owned();
    let because = || {
        let uid = &event["details"]["uid"];
        let by = uid.as_u64().map(|uid| format!(" by uid {uid}"));
        let cause = text(&event["details"]["cause"]);
        format!("({cause}{})", by.unwrap_or_default())
    };
    let vcpu = || format!("{machine}: vCPU {}", event["vcpu"]);
    match text(&event["event"]).as_str() {
        "MachineAdded" => format!("{machine}: added"),
        "MachineRemoved" => format!("{machine}: removed"),
        "VcpuAdded" => format!("{} added {}", vcpu(), because()),
        "VcpuStarted" => format!("{} started by the guest", vcpu()),
        "VcpuRemoved" => format!("{} removed {}", vcpu(), because()),
        "VcpuRemovalFailed" => {
            format!(
                "{} not removed {}: {}",
                vcpu(),
                because(),
                text(&event["reason"])
            )
        }
        _ => {
            let changes = event["changed"].as_object().into_iter().flatten();
            let changes = changes.map(|(name, value)| format!("{name}={value}"));
            format!("{machine}: {}", changes.collect::<Vec<_>>().join(" "))
        }
    }
}
