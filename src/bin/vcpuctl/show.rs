//! The command "show": properties for programs.

use std::io::{Write, stdout};

use serde_json::Value as Json;
use vcpud::names::{MACHINE_INTERFACE, MANAGER_INTERFACE, ROOT_PATH};

use crate::client::Client;
use crate::failure::Failure;
use crate::query::{Properties, properties};
use crate::render;

/// Prints the chosen properties of the machines, or of the service. An empty choice is all properties.
pub(crate) async fn show(
    client: &Client,
    names: &[String],
    chosen: &[String],
    only_values: bool,
) -> Result<(), Failure> {
    let is_service = names.is_empty();
    let mut objects = Vec::new();
    for name in names {
        let path = client.find(name).await?;
        objects.push(properties(client, &path, MACHINE_INTERFACE).await?);
    }
    if is_service {
        objects.push(properties(client, ROOT_PATH, MANAGER_INTERFACE).await?);
    }
    let mut shown = Vec::new();
    for mut object in objects {
        for property in chosen {
            if !object.contains_key(property) {
                return Err(no_property(property, &object, is_service));
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

/// Returns the failure about a property that an object does not have.
fn no_property(property: &str, object: &Properties, is_service: bool) -> Failure {
    let mut names = object.keys();
    let similar = names.find(|name| name.eq_ignore_ascii_case(property));
    let (property, similar) = (property.to_owned(), similar.cloned());
    if is_service {
        Failure::NoPropertyOfService { property, similar }
    } else {
        Failure::NoProperty { property, similar }
    }
}

/// Returns a value as text for programs: the elements of a list with spaces, in one line.
fn text(value: &Json) -> String {
    match value {
        Json::String(text) => text.clone(),
        Json::Array(list) => {
            let elements = list.iter().map(|element| quoted(text(element)));
            elements.collect::<Vec<_>>().join(" ")
        }
        other => other.to_string(),
    }
}

/// Returns an element of a list as systemctl(1) prints it: in quotes, if a shell would not read it as one word.
fn quoted(text: String) -> String {
    let is_special = |c: char| c.is_whitespace() || c.is_control() || "\"'\\$`".contains(c);
    if !text.is_empty() && !text.contains(is_special) {
        return text;
    }
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' | '$' | '`' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.extend(c.escape_default()),
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_list_is_one_line() {
        assert_eq!(text(&json!([1, 2])), "1 2");
        assert_eq!(
            text(&json!(["a", "", "two words", "a\n\"b\"", "$c"])),
            r#"a "" "two words" "a\n\"b\"" "\$c""#
        );
    }
}
