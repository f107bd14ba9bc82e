//! The commands that register and unregister machines, and reload the configuration. They print nothing
//! on success.

use std::collections::HashMap;
use std::path::Path;

use vcpud::proxy::ManagerProxy;
use zbus::Connection;
use zbus::Variant;
use zbus::proxy::CacheProperties;

use crate::cli::Register;
use crate::failure::Failure;

/// Returns the proxy of the root object.
pub(crate) async fn manager(bus: &Connection) -> Result<ManagerProxy<'static>, Failure> {
    let builder = ManagerProxy::builder(bus).cache_properties(CacheProperties::No);
    Ok(builder.build().await?)
}

pub(crate) async fn register(bus: &Connection, register: &Register) -> Result<(), Failure> {
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
    let manager = manager(bus).await?;
    let call = manager.register_machine(&register.name, &socket, options);
    call.await?;
    Ok(())
}

pub(crate) async fn unregister(bus: &Connection, name: &str) -> Result<(), Failure> {
    Ok(manager(bus).await?.unregister_machine(name).await?)
}

pub(crate) async fn reload(bus: &Connection) -> Result<(), Failure> {
    let manager = manager(bus).await?;
    manager.reload().await?;
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
