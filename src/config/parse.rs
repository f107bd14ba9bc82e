//! Text to settings. Pure; every mistake is found at once, not one after the other.

use std::fmt;
use std::time::Duration;

use toml::de::DeTable;

use super::Service;
use super::nearest::unknown;
use super::settings::{KEYS, MACHINE_KEYS, MachineSettings, Settings, WEEK, boolean, time};
use super::value::{Entry, Value, entries, line};

/// The keys of `[service]`.
const SERVICE_KEYS: [&str; 2] = ["idle-exit", "defaults-for-users"];

/// A mistake in a text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConfigError {
    /// The line, from 1; 0 where it is the text as a whole.
    pub line: usize,
    /// The key; empty where it is not about one.
    pub key: String,
    /// A description of the mistake.
    pub text: String,
}

impl ConfigError {
    /// A mistake in the value of `entry`.
    pub(super) fn at(entry: &Entry, text: impl fmt::Display) -> Self {
        Self {
            line: entry.line,
            key: entry.key.chars().take(64).collect(),
            text: text.to_string(),
        }
    }
}

/// Parses a `vcpud.toml`. Returns its settings without those that have mistakes, and the mistakes.
pub fn parse_service(text: &str) -> (Service, Settings, Vec<ConfigError>) {
    let (mut service, mut settings) = (Service::default(), Settings::default());
    let mistakes = add_service(text, &mut service, &mut settings);
    (service, settings, mistakes)
}

/// Parses a `vcpud.toml` over the settings of previous files.
pub(super) fn add_service(
    text: &str,
    service: &mut Service,
    settings: &mut Settings,
) -> Vec<ConfigError> {
    let tables = match document(text) {
        Ok(tables) => tables,
        Err(mistakes) => return mistakes,
    };
    let mut mistakes = Vec::new();
    for table in &tables {
        let Entry { key, value, .. } = table;
        let Value::Table(entries) = value else {
            let text = match KEYS.contains(&key.as_str()) {
                true => "it belongs below [defaults]".to_owned(),
                false if SERVICE_KEYS.contains(&key.as_str()) => {
                    "it belongs below [service]".to_owned()
                }
                false => unknown("key", key, &["defaults", "service"]),
            };
            mistakes.push(ConfigError::at(table, text));
            continue;
        };
        match key.as_str() {
            "defaults" => {
                mistakes.extend(take_all(entries, &KEYS, |entry| {
                    settings.take(entry, entries)
                }));
            }
            "service" => mistakes.extend(take_all(entries, &SERVICE_KEYS, |entry| {
                take_service(service, entry)
            })),
            _ => {
                let text = unknown("table", key, &["defaults", "service"]);
                mistakes.push(ConfigError::at(table, text));
            }
        }
    }
    mistakes.sort();
    mistakes
}

/// Reads a machine's file.
pub fn parse_machine(text: &str) -> Result<MachineSettings, Vec<ConfigError>> {
    let entries = document(text)?;
    let mut machine = MachineSettings::default();
    let known = [&MACHINE_KEYS[..], &KEYS].concat();
    let mistakes = take_all(&entries, &known, |entry| machine.take(entry, &entries));
    match mistakes.is_empty() {
        true => Ok(machine),
        false => Err(mistakes),
    }
}

/// Parses the options of a registration: the keys of a machine's file, except the socket.
pub fn options(entries: &[Entry]) -> Result<MachineSettings, Vec<ConfigError>> {
    let mut machine = MachineSettings::default();
    let known = [&MACHINE_KEYS[1..], &["leader"], &KEYS].concat();
    let mistakes = take_all(entries, &known, |entry| match entry.key.as_str() {
        "qmp" => None,
        _ => machine.take(entry, entries),
    });
    match mistakes.is_empty() {
        true => Ok(machine),
        false => Err(mistakes),
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

/// Takes all `entries` with `take`. Returns the mistakes.
fn take_all(
    entries: &[Entry],
    known: &[&str],
    mut take: impl FnMut(&Entry) -> Option<Result<(), ConfigError>>,
) -> Vec<ConfigError> {
    let mistake = |entry: &Entry| match take(entry) {
        Some(result) => result.err(),
        None => Some(ConfigError::at(entry, unknown("key", &entry.key, known))),
    };
    let mut mistakes: Vec<ConfigError> = entries.iter().filter_map(mistake).collect();
    mistakes.sort();
    mistakes
}

fn document(text: &str) -> Result<Vec<Entry>, Vec<ConfigError>> {
    let (table, errors) = DeTable::parse_recoverable(text);
    let mistake = |error: &toml::de::Error| ConfigError {
        line: error.span().map_or(0, |span| line(text, span.start)),
        key: String::new(),
        text: error.message().trim().replace('\n', ", "),
    };
    match errors.is_empty() {
        true => Ok(entries(text, table.get_ref())),
        false => {
            let mut mistakes: Vec<ConfigError> = errors.iter().map(mistake).collect();
            // The parser appends mistakes that it finds late.
            mistakes.sort();
            mistakes.dedup_by_key(|mistake| mistake.line);
            Err(mistakes)
        }
    }
}
