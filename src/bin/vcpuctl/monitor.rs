//! The command "monitor": prints the signals of the service.

use std::collections::HashMap;
use std::io::{Write, stdout};
use std::time::SystemTime;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use serde_json::{Value as Json, json};
use tokio::sync::oneshot;
use vcpud::names::{MACHINE_INTERFACE, MACHINE_PATH_PREFIX, MANAGER_INTERFACE, unescape_label};
use vcpud::signals::Signals;
use zbus::{Message, OwnedObjectPath, OwnedVariant};

use crate::client::Client;
use crate::failure::Failure;
use crate::render;
use crate::sentence::Sentences;

type Dict = HashMap<String, OwnedVariant>;

/// Prints signals until standard output is closed.
pub(crate) async fn monitor(client: &Client, only: Option<&str>) -> Result<(), Failure> {
    let mut signals = Signals::subscribe(&client.bus, None).await?;
    let mut start = Box::pin(start(client, only));
    let mut is_started = false;
    let mut sentences = Sentences::new(client.is_local);
    let mut closed = Box::pin(output_closed());
    loop {
        // zbus reads no replies while a stream is full, so signals are read while the reply is awaited.
        tokio::select! {
            started = &mut start, if !is_started => {
                started?;
                is_started = true;
            }
            message = signals.next() => match message {
                Some(message) => show(&message?, only, client.json, &mut sentences)?,
                None => return Ok(()),
            },
            () = &mut closed => return Ok(()),
        }
    }
}

/// Waits until the reader of standard output has closed it.
async fn output_closed() {
    let (sender, closed) = oneshot::channel();
    // poll(2) reports the end of a pipe or terminal also if nothing is written. The thread ends with the process.
    std::thread::spawn(move || {
        let output = stdout();
        let mut polled = [PollFd::new(&output, PollFlags::empty())];
        while poll(&mut polled, None).is_err_and(|error| error == Errno::INTR) {}
        let _ = sender.send(());
    });
    let _ = closed.await;
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

/// Prints a signal, if it is about the machine `only` or about the start and end of the service.
fn show(
    message: &Message,
    only: Option<&str>,
    json: bool,
    sentences: &mut Sentences,
) -> Result<(), Failure> {
    let Some(mut event) = event(message)? else {
        return Ok(());
    };
    let is_of_service = event["event"] == "ServiceStarted" || event["event"] == "ServiceStopped";
    if only.is_some_and(|name| event["machine"] != name) && !is_of_service {
        return Ok(());
    }
    if json {
        let time = humantime::format_rfc3339_millis(SystemTime::now());
        event["time"] = time.to_string().into();
        writeln!(stdout(), "{event}")?;
    } else {
        for sentence in sentences.of(&event) {
            writeln!(stdout(), "{}  {sentence}", render::local_time())?;
        }
    }
    Ok(())
}

/// Returns a signal as a JSON object with `event` and `machine`; `None` for a signal that this program does not know.
fn event(message: &Message) -> zbus::Result<Option<Json>> {
    let header = message.header();
    let text = |name: Option<&str>| name.unwrap_or_default().to_owned();
    let member = text(header.member().map(|name| name.as_str()));
    let interface = text(header.interface().map(|name| name.as_str()));
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
        (MACHINE_INTERFACE, "VcpuChanged") => {
            let vcpus: Vec<u32> = body.deserialize()?;
            Some(json!({"event": member, "machine": machine, "vcpus": vcpus}))
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
        ("org.freedesktop.DBus", "NameOwnerChanged") => {
            let (_, _, owner): (String, String, String) = body.deserialize()?;
            let event = if owner.is_empty() {
                "ServiceStopped"
            } else {
                "ServiceStarted"
            };
            Some(json!({"event": event, "machine": null}))
        }
        _ => None,
    })
}
