//! D-Bus values as JSON, which is easy to compare.

use std::collections::HashMap;

use serde_json::{Map, Value as Json};
use zbus::{OwnedVariant, Variant};

/// A dictionary of the kind `a{sv}`.
pub(crate) type Dict = Map<String, Json>;

/// A dictionary as JSON.
pub(crate) fn dict(values: &HashMap<String, OwnedVariant>) -> Dict {
    let entry = |(key, value): (&String, &OwnedVariant)| (key.clone(), json(value));
    values.iter().map(entry).collect()
}

/// A value as JSON; only of the types that the service has.
fn json(value: &Variant<'_>) -> Json {
    match value {
        Variant::Bool(value) => (*value).into(),
        Variant::U32(value) => (*value).into(),
        Variant::I32(value) => (*value).into(),
        Variant::U64(value) => (*value).into(),
        Variant::I64(value) => (*value).into(),
        Variant::F64(value) => (*value).into(),
        Variant::Str(value) => value.as_str().into(),
        Variant::Array(values) => values.iter().map(json).collect(),
        other => panic!("a value of no known kind: {other:?}"),
    }
}
