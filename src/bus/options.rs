//! The `a{sv}` options of methods: every key is known and of its type, or the call fails.

use std::collections::HashMap;
use std::time::Duration;

use zvariant::{OwnedValue, Value};

use super::error::Error;
use crate::machine::Wait;

/// The options of a method that has none yet.
pub(super) fn none(options: HashMap<String, OwnedValue>) -> Result<(), Error> {
    match options.into_keys().next() {
        Some(key) => Err(Error::InvalidArgs(format!(
            "unknown option {key:?}; there are no options"
        ))),
        None => Ok(()),
    }
}

/// The options of `SetVcpus` and `SetVcpu`.
#[derive(Clone, Copy, Debug)]
pub(super) struct SetOptions {
    /// `async` b, `timeout-usec` t.
    pub(super) wait: Wait,
    /// `guest-online` b.
    pub(super) guest_online: bool,
}

/// The options of `SetVcpus` and `SetVcpu`.
pub(super) fn set(options: HashMap<String, OwnedValue>) -> Result<SetOptions, Error> {
    let mut limit = None;
    let mut is_async = false;
    let mut guest_online = false;
    for (key, value) in options {
        match (key.as_str(), &*value) {
            ("async", Value::Bool(value)) => is_async = *value,
            ("guest-online", Value::Bool(value)) => guest_online = *value,
            ("timeout-usec", Value::U64(value)) => limit = Some(Duration::from_micros(*value)),
            ("async" | "guest-online", other) => return Err(wrong_type(&key, "b", other)),
            ("timeout-usec", other) => return Err(wrong_type(&key, "t", other)),
            _ => {
                return Err(Error::InvalidArgs(format!(
                    "unknown option {key:?}; the options are \"async\" (b), \"timeout-usec\" (t) and \"guest-online\" (b)"
                )));
            }
        }
    }
    let wait = match is_async {
        true => Wait::No,
        false => Wait::UpTo(limit),
    };
    Ok(SetOptions { wait, guest_online })
}

fn wrong_type(key: &str, expected: &str, found: &Value<'_>) -> Error {
    let found = found.value_signature();
    Error::InvalidArgs(format!(
        "option {key:?} is of type {found}, it must be of type {expected}"
    ))
}
