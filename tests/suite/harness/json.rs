//! D-Bus values as JSON, which is easy to compare.

use std::collections::HashMap;

use serde_json::{Map, Value as Json};
use zvariant::{OwnedValue, Value};

/// A dictionary of the kind `a{sv}`.
pub(crate) type Dict = Map<String, Json>;

/// A dictionary as JSON.
pub(crate) fn dict(values: &HashMap<String, OwnedValue>) -> Dict {
    let entry = |(key, value): (&String, &OwnedValue)| (key.clone(), json(value));
    values.iter().map(entry).collect()
}

/// A value as JSON; only of the types that the service has.
fn json(value: &Value<'_>) -> Json {
    match value {
        Value::Bool(value) => (*value).into(),
        Value::U32(value) => (*value).into(),
        Value::I32(value) => (*value).into(),
        Value::U64(value) => (*value).into(),
        Value::I64(value) => (*value).into(),
        Value::Str(value) => value.as_str().into(),
        Value::Array(values) => values.iter().map(json).collect(),
        other => panic!("a value of no known kind: {other:?}"),
    }
}
