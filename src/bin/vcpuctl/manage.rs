//! The commands that register and unregister machines, and reload the configuration. They print nothing
//! on success.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::timeout;
use zbus::{Fd, OwnedObjectPath, Variant};

use crate::cli::{Manage, Register};
use crate::client::Client;
use crate::failure::Failure;

/// The longest time that QEMU has to accept a connection.
const CONNECT_TIME: Duration = Duration::from_secs(5);

/// Runs a command.
pub(crate) async fn manage(client: &Client, command: &Manage) -> Result<(), Failure> {
    match command {
        Manage::Register(machine) => register(client, machine).await,
        Manage::Unregister { names } => {
            let manager = client.manager().await?;
            let mut result = Ok(());
            for name in names {
                let arguments = (name,);
                let call = client.call(manager.inner(), "UnregisterMachine", &arguments);
                // The first error is the result.
                result = result.and(call.await);
            }
            result
        }
        Manage::Reload => reload(client).await,
    }
}

async fn register(client: &Client, register: &Register) -> Result<(), Failure> {
    let mut options: HashMap<&str, Variant<'_>> = HashMap::new();
    let mut shares: Vec<HashMap<&str, &str>> = Vec::new();
    for (key, value) in &register.settings {
        if let ("cache", Some((vcpus, schemata))) = (key.as_str(), value.split_once(':')) {
            shares.push(HashMap::from([("vcpus", vcpus), ("schemata", schemata)]));
            continue;
        }
        // All other keys except this one take text.
        let value = match value.parse::<i32>() {
            Ok(number) if key == "priority" => number.into(),
            _ => value.as_str().into(),
        };
        options.insert(key, value);
    }
    if !shares.is_empty() {
        options.insert("cache", shares.into());
    }
    let agent = register.guest_agent.as_deref().map(absolute).transpose()?;
    let texts = [
        ("placement", &register.placement),
        ("slice", &register.slice),
        ("uuid", &register.uuid),
        ("guest-agent", &agent),
    ];
    for (key, value) in texts {
        if let Some(value) = value {
            options.insert(key, value.as_str().into());
        }
    }
    if let Some(pid) = register.leader {
        options.insert("leader", pid.into());
    }
    let socket = absolute(&register.socket)?;
    let manager = client.manager().await?;
    let _: OwnedObjectPath = if client.is_local && is_hidden(&socket) {
        let connection = connect(&socket).await?;
        let arguments = (&register.name, Fd::from(connection.as_fd()), options);
        let call = client.call(manager.inner(), "RegisterMachineWithFd", &arguments);
        call.await?
    } else {
        let arguments = (&register.name, &socket, options);
        let call = client.call(manager.inner(), "RegisterMachine", &arguments);
        call.await?
    };
    Ok(())
}

/// Returns whether the service cannot open the path: the sandbox of its unit hides the files of users.
fn is_hidden(socket: &str) -> bool {
    const HIDDEN: [&str; 5] = ["/home/", "/root/", "/run/user/", "/tmp/", "/var/tmp/"];
    HIDDEN.iter().any(|directory| socket.starts_with(directory))
}

/// Connects to the QMP socket as the user of the command.
async fn connect(socket: &str) -> Result<UnixStream, Failure> {
    let is_other = |file: Metadata| !file.file_type().is_socket();
    if fs::metadata(socket).is_ok_and(is_other) {
        return Err(Failure::NotASocket(socket.to_owned()));
    }
    let connected = timeout(CONNECT_TIME, UnixStream::connect(socket)).await;
    let stalled = || io::Error::from(io::ErrorKind::TimedOut);
    let connected = connected.unwrap_or_else(|_| Err(stalled()));
    connected.map_err(|error| Failure::NoSocket(socket.to_owned(), error))
}

async fn reload(client: &Client) -> Result<(), Failure> {
    let manager = client.manager().await?;
    client.call::<()>(manager.inner(), "Reload", &()).await?;
    match manager.configuration_errors().await? {
        errors if errors.is_empty() => Ok(()),
        errors => Err(Failure::Configuration(errors)),
    }
}

/// Returns `path` as the service needs it: absolute, and without links if they can be resolved here.
fn absolute(path: &Path) -> Result<String, Failure> {
    let resolved = path.canonicalize();
    let absolute = resolved.or_else(|_| std::path::absolute(path));
    let path = absolute.map_err(|error| Failure::NoPath(path.display().to_string(), error))?;
    let path = path.into_os_string().into_string();
    path.map_err(|path| Failure::NotText(path.display().to_string()))
}
