//! The command "show": properties for programs.

use std::io::{Write, stdout};

use serde_json::Value as Json;
use vcpud::names::{MACHINE_INTERFACE, MANAGER_INTERFACE, ROOT_PATH};

use crate::client::Client;
use crate::failure::Failure;
use crate::query::properties;
use crate::render;

/// Prints the chosen properties of the machines, or of the service. An empty choice is all properties.
pub(crate) async fn show(
    client: &Client,
    names: &[String],
    chosen: &[String],
    only_values: bool,
) -> Result<(), Failure> {
    let mut objects = Vec::new();
    for name in names {
        let path = client.find(name).await?;
        objects.push(properties(client, &path, MACHINE_INTERFACE).await?);
    }
    if names.is_empty() {
        objects.push(properties(client, ROOT_PATH, MANAGER_INTERFACE).await?);
    }
    let mut shown = Vec::new();
    for mut object in objects {
        for name in chosen {
            if !object.contains_key(name) {
                return Err(Failure::NoProperty(name.clone()));
            }
        }
        object.retain(|name, _| chosen.is_empty() || chosen.contains(name));
        shown.push(object);
    }
    if client.json {
        let shown = shown.iter().map(render::json_dict);
        return Ok(render::one_or_all(shown.collect())?);
    }
    let mut out = stdout().lock();
    for (n, object) in shown.iter().enumerate() {
        if n > 0 && !only_values {
            writeln!(out)?;
        }
        let mut names: Vec<&String> = object.keys().collect();
        names.sort();
        // The order of the choice.
        names.sort_by_key(|name| chosen.iter().position(|chosen| chosen == *name));
        for name in names {
            let value = text(&render::json(&object[name]));
            let label = if only_values {
                String::new()
            } else {
                format!("{name}=")
            };
            writeln!(out, "{label}{value}")?;
        }
    }
    Ok(())
}

/// Returns a value as text for programs: the elements of a list with spaces, or each text in a line of its own.
fn text(value: &Json) -> String {
    match value {
        Json::String(text) => text.clone(),
        Json::Array(list) => {
            let separator = if list.iter().any(Json::is_string) {
                "\n"
            } else {
                " "
            };
            list.iter().map(text).collect::<Vec<_>>().join(separator)
        }
        other => other.to_string(),
    }
}
