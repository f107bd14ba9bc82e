//! Parses text to settings. Pure. It finds all errors of a text at once.

use std::time::Duration;

use toml::de::DeTable;

use super::Service;
use super::error::ConfigError;
use super::nearest::unknown;
use super::settings::{KEYS, MACHINE_KEYS, MachineSettings, Settings, WEEK, boolean, time};
use super::value::{Entry, Value, entries, line};

/// The keys of `[service]`.
const SERVICE_KEYS: [&str; 2] = ["idle-exit", "defaults-for-users"];

/// Parses a `vcpud.toml`. Returns its settings without those that have errors, and the errors, sorted by
/// line.
pub fn parse_service(text: &str) -> (Service, Settings, Vec<ConfigError>) {
    let (mut service, mut settings) = (Service::default(), Settings::default());
    let errors = add_service(text, &mut service, &mut settings);
    (service, settings, errors)
}

/// Parses a `vcpud.toml` over the settings of previous files.
pub(super) fn add_service(
    text: &str,
    service: &mut Service,
    settings: &mut Settings,
) -> Vec<ConfigError> {
    let tables = match document(text) {
        Ok(tables) => tables,
        Err(errors) => return errors,
    };
    let mut errors = Vec::new();
    for table in &tables {
        let Entry { key, value, .. } = table;
        let Value::Table(entries) = value else {
            let text = if KEYS.contains(&key.as_str()) {
                "it belongs below [defaults]".to_owned()
            } else if SERVICE_KEYS.contains(&key.as_str()) {
                "it belongs below [service]".to_owned()
            } else {
                unknown("key", key, &["defaults", "service"])
            };
            errors.push(ConfigError::at(table, text));
            continue;
        };
        match key.as_str() {
            "defaults" => {
                errors.extend(take_all(entries, &KEYS, |entry| {
                    settings.take(entry, entries)
                }));
            }
            "service" => errors.extend(take_all(entries, &SERVICE_KEYS, |entry| {
                take_service(service, entry)
            })),
            _ => {
                let text = unknown("table", key, &["defaults", "service"]);
                errors.push(ConfigError::at(table, text));
            }
        }
    }
    errors.sort();
    errors
}

/// Parses the file of a machine.
///
/// # Errors
/// Returns all errors of the text, sorted by line; at least one.
pub fn parse_machine(text: &str) -> Result<MachineSettings, Vec<ConfigError>> {
    let entries = document(text)?;
    let mut machine = MachineSettings::default();
    let known = [&MACHINE_KEYS[..], &KEYS].concat();
    let errors = take_all(&entries, &known, |entry| machine.take(entry, &entries));
    if errors.is_empty() {
        Ok(machine)
    } else {
        Err(errors)
    }
}

/// Parses the options of a registration: the keys of a machine's file, except the socket.
///
/// # Errors
/// Returns all errors of the options; at least one. They have no file and no line.
pub fn options(entries: &[Entry]) -> Result<MachineSettings, Vec<ConfigError>> {
    let mut machine = MachineSettings::default();
    let known = [&MACHINE_KEYS[1..], &["leader"], &KEYS].concat();
    let errors = take_all(entries, &known, |entry| match entry.key.as_str() {
        "qmp" => None,
        _ => machine.take(entry, entries),
    });
    if errors.is_empty() {
        Ok(machine)
    } else {
        Err(errors)
    }
}

/// Sets the key of `[service]` that `entry` names. Returns `None` for an unknown
/// key.
fn take_service(service: &mut Service, entry: &Entry) -> Option<Result<(), ConfigError>> {
    let value = &entry.value;
    let result = match entry.key.as_str() {
        "idle-exit" => {
            time(value, Duration::from_secs(1)..=WEEK).map(|time| service.idle_exit = time)
        }
        "defaults-for-users" => boolean(value).map(|on| service.defaults_for_users = on),
        _ => return None,
    };
    Some(result.map_err(|text| ConfigError::at(entry, text)))
}

/// Takes all `entries` with `take`. Returns the errors.
fn take_all(
    entries: &[Entry],
    known: &[&str],
    mut take: impl FnMut(&Entry) -> Option<Result<(), ConfigError>>,
) -> Vec<ConfigError> {
    let error = |entry: &Entry| match take(entry) {
        Some(result) => result.err(),
        None => Some(ConfigError::at(entry, unknown("key", &entry.key, known))),
    };
    let mut errors: Vec<ConfigError> = entries.iter().filter_map(error).collect();
    errors.sort();
    errors
}

fn document(text: &str) -> Result<Vec<Entry>, Vec<ConfigError>> {
    let (table, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Ok(entries(text, table.get_ref()));
    }
    let error = |error: &toml::de::Error| {
        let line = error.span().map_or(0, |span| line(text, span.start));
        ConfigError::in_line(line, "", error.message().trim().replace('\n', ", "))
    };
    let mut errors: Vec<ConfigError> = errors.iter().map(error).collect();
    // The parser appends errors that it finds late.
    errors.sort();
    errors.dedup_by_key(|error| error.location.line);
    Err(errors)
}
