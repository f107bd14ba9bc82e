//! The `a{sv}` options of methods: every key is known and of its type, or the call fails.

use std::collections::HashMap;
use std::time::Duration;

use zbus::{OwnedVariant, Variant};

use super::error::Error;
use crate::config::{self, ConfigError, Entry, Item, MachineSettings};
use crate::ids::Pid;
use crate::machine::{Until, Wait};

/// The maximum number of options of a call.
const MAX_OPTIONS: usize = 16;
/// The maximum number of characters of a value that an error quotes.
const MAX_QUOTED: usize = 80;
/// The maximum length of the key of an option, in bytes.
const MAX_KEY: usize = 64;

/// The options of a call, as they came.
pub(super) type Options = HashMap<String, OwnedVariant>;

/// Checks how many options there are and how long their keys are.
fn check_size(options: &Options) -> Result<(), Error> {
    if options.len() > MAX_OPTIONS {
        return Err(Error::InvalidArgs(format!(
            "{} options in one call; the limit is {MAX_OPTIONS}",
            options.len()
        )));
    }
    match options.keys().find(|key| key.len() > MAX_KEY) {
        Some(key) => Err(Error::InvalidArgs(format!(
            "the key of an option has {} bytes; the limit is {MAX_KEY}",
            key.len()
        ))),
        None => Ok(()),
    }
}

/// The options of a method that has none yet.
pub(super) fn none(options: Options) -> Result<(), Error> {
    check_size(&options)?;
    match options.into_keys().next() {
        Some(key) => Err(Error::InvalidArgs(format!(
            "unknown option {key:?}; the method has no options"
        ))),
        None => Ok(()),
    }
}

/// The options of `SetVcpus` and `SetVcpu`.
#[derive(Clone, Copy, Debug)]
pub(super) struct SetOptions {
    /// `current` u.
    pub(super) expected_count: Option<u32>,
    /// `async` b, `timeout-usec` t.
    pub(super) wait: Wait,
    /// `guest-online` b.
    pub(super) guest_online: bool,
    /// `until` s.
    pub(super) until: Until,
}

impl Default for SetOptions {
    fn default() -> Self {
        Self {
            expected_count: None,
            wait: Wait::UpTo(None),
            guest_online: false,
            until: Until::default(),
        }
    }
}

/// The options of `SetVcpus` and `SetVcpu`.
pub(super) fn set(options: Options) -> Result<SetOptions, Error> {
    check_size(&options)?;
    let mut expected_count = None;
    let mut limit = None;
    let mut is_async = false;
    let mut guest_online = false;
    let mut until = Until::Present;
    for (key, value) in options {
        match (key.as_str(), &*value) {
            ("async", Variant::Bool(value)) => is_async = *value,
            ("guest-online", Variant::Bool(value)) => guest_online = *value,
            ("current", value) => expected_count = Some(number(&key, value)?),
            ("timeout-usec", value) => limit = Some(Duration::from_micros(number(&key, value)?)),
            ("until", Variant::Str(value)) => until = end_of_addition(value)?,
            ("until", other) => return Err(wrong_type(&key, "of type s", other)),
            ("async" | "guest-online", other) => return Err(wrong_type(&key, "of type b", other)),
            _ => {
                return Err(Error::InvalidArgs(format!(
                    "unknown option {key:?}; the options are \"async\" (b), \"current\" (any integer type), \"timeout-usec\" (any integer type), \"guest-online\" (b) and \"until\" (s)"
                )));
            }
        }
    }
    if is_async && until == Until::Started {
        return Err(Error::InvalidArgs(
            "the option \"async\" does not wait for the guest, and \"until\" with the value \"started\" does; omit one of them".to_owned(),
        ));
    }
    let wait = if is_async {
        Wait::No
    } else {
        Wait::UpTo(limit)
    };
    Ok(SetOptions {
        expected_count,
        wait,
        guest_online,
        until,
    })
}

fn end_of_addition(value: &str) -> Result<Until, Error> {
    let known = [Until::Present, Until::Started];
    let found = known.into_iter().find(|until| until.as_str() == value);
    found.ok_or_else(|| {
        let value: String = value.chars().take(MAX_QUOTED).collect();
        Error::InvalidArgs(format!(
            "option \"until\" has the value {value:?}, it must be \"present\" or \"started\""
        ))
    })
}

/// The options of `GetStatistics`. Returns whether KVM's counters are wanted.
pub(super) fn statistics(options: Options) -> Result<bool, Error> {
    check_size(&options)?;
    let mut kvm = false;
    for (key, value) in options {
        match (key.as_str(), &*value) {
            ("kvm", Variant::Bool(value)) => kvm = *value,
            ("kvm", other) => return Err(wrong_type(&key, "of type b", other)),
            _ => {
                return Err(Error::InvalidArgs(format!(
                    "unknown option {key:?}; the option is \"kvm\" (b)"
                )));
            }
        }
    }
    Ok(kvm)
}

/// The options of `RegisterMachine` and `RegisterMachineWithFd`: the keys of a machine's file, and the
/// PID of its QEMU.
pub(super) fn register(mut options: Options) -> Result<(MachineSettings, Option<Pid>), Error> {
    check_size(&options)?;
    let leader = options.remove("leader");
    let leader = leader
        .map(|pid| number("leader", &pid))
        .transpose()?
        .map(Pid);
    let mut entries: Vec<Entry> = options
        .iter()
        .map(|(key, value)| entry(key, value))
        .collect();
    entries.sort_by(|a, b| a.key.cmp(&b.key));
    let settings = config::options(&entries).map_err(|errors| {
        let text = |error: ConfigError| format!("option {:?}: {}", error.key, error.text);
        let texts: Vec<String> = errors.into_iter().map(text).collect();
        Error::InvalidArgs(texts.join("; "))
    })?;
    Ok((settings, leader))
}

fn entry(key: &str, value: &Variant<'_>) -> Entry {
    Entry {
        key: key.to_owned(),
        line: 0,
        value: setting(value),
    }
}

/// A value as the configuration has it.
fn setting(value: &Variant<'_>) -> config::Value {
    if let Some(number) = integer(value) {
        return match i64::try_from(number) {
            Ok(number) => config::Value::Integer(number),
            Err(_) => config::Value::Other("an integer outside the range of 64 bits"),
        };
    }
    match value {
        Variant::Str(text) => config::Value::Text(text.to_string()),
        Variant::Variant(inner) => setting(inner),
        Variant::Array(items) => {
            let item = |value| Item {
                line: 0,
                value: setting(value),
            };
            config::Value::List(items.iter().map(item).collect())
        }
        Variant::Dict(dict) => {
            let entry = |(key, value): (&Variant<'_>, &Variant<'_>)| match key {
                Variant::Str(key) => entry(key, value),
                _ => entry("", value),
            };
            config::Value::Table(dict.iter().map(entry).collect())
        }
        _ => config::Value::Other("a value of a type that no option has"),
    }
}

/// Returns the value of an option that is a number. Languages differ in the type that they give it.
fn number<T: TryFrom<i128>>(key: &str, value: &Variant<'_>) -> Result<T, Error> {
    let Some(number) = integer(value) else {
        return Err(wrong_type(key, "an integer", value));
    };
    let out_of_range = |_| Error::InvalidArgs(format!("option {key:?} is out of range: {number}"));
    T::try_from(number).map_err(out_of_range)
}

/// Returns the number, if `value` is of one of D-Bus's integer types.
fn integer(value: &Variant<'_>) -> Option<i128> {
    Some(match value {
        Variant::U8(number) => (*number).into(),
        Variant::I16(number) => (*number).into(),
        Variant::U16(number) => (*number).into(),
        Variant::I32(number) => (*number).into(),
        Variant::U32(number) => (*number).into(),
        Variant::I64(number) => (*number).into(),
        Variant::U64(number) => (*number).into(),
        Variant::Variant(inner) => return integer(inner),
        _ => return None,
    })
}

fn wrong_type(key: &str, expected: &str, found: &Variant<'_>) -> Error {
    let found = found.value_signature();
    Error::InvalidArgs(format!(
        "option {key:?} is of type {found}, it must be {expected}"
    ))
}
