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

/// The options of `SetVcpus` and `SetVcpu`: `async` b, `timeout-usec` t.
pub(super) fn wait(options: HashMap<String, OwnedValue>) -> Result<Wait, Error> {
    let mut limit = None;
    let mut is_async = false;
    for (key, value) in options {
        match (key.as_str(), &*value) {
            ("async", Value::Bool(value)) => is_async = *value,
            ("timeout-usec", Value::U64(value)) => limit = Some(Duration::from_micros(*value)),
            ("async", other) => return Err(wrong_type(&key, "b", other)),
            ("timeout-usec", other) => return Err(wrong_type(&key, "t", other)),
            _ => {
                return Err(Error::InvalidArgs(format!(
                    "unknown option {key:?}; the options are \"async\" (b) and \"timeout-usec\" (t)"
                )));
            }
        }
    }
    Ok(if is_async {
        Wait::No
    } else {
        Wait::UpTo(limit)
    })
}

fn wrong_type(key: &str, expected: &str, found: &Value<'_>) -> Error {
    let found = found.value_signature();
    Error::InvalidArgs(format!(
        "option {key:?} is of type {found}, it must be of type {expected}"
    ))
}
