//! The commands that register and unregister machines, and reload the configuration. They print nothing
//! on success.

use std::collections::HashMap;
use std::path::Path;

use zbus::{OwnedObjectPath, Variant};

use crate::cli::{Manage, Register};
use crate::client::Client;
use crate::failure::Failure;

/// Runs a command.
pub(crate) async fn manage(client: &Client, command: &Manage) -> Result<(), Failure> {
    match command {
        Manage::Register(machine) => register(client, machine).await,
        Manage::Unregister { names } => {
            let manager = client.manager().await?;
            for name in names {
                let arguments = (name,);
                let call = client.call(manager.inner(), "UnregisterMachine", &arguments);
                let () = call.await?;
            }
            Ok(())
        }
        Manage::Reload => reload(client).await,
    }
}

async fn register(client: &Client, register: &Register) -> Result<(), Failure> {
    let mut options: HashMap<&str, Variant<'_>> = HashMap::new();
    for (key, value) in &register.settings {
        // All keys except this one take text.
        let value = match value.parse::<i32>() {
            Ok(number) if key == "priority" => number.into(),
            _ => value.as_str().into(),
        };
        options.insert(key, value);
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
    let arguments = (&register.name, &socket, options);
    let call = client.call(manager.inner(), "RegisterMachine", &arguments);
    let _: OwnedObjectPath = call.await?;
    Ok(())
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
    let path = resolved.or_else(|_| std::path::absolute(path))?;
    let path = path.into_os_string().into_string();
    path.map_err(|path| Failure::NotText(path.display().to_string()))
}
