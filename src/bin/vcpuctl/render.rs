//! Values and tables as people and scripts read them.

use std::collections::HashMap;
use std::fmt;

use comfy_table::presets::NOTHING;
use serde_json::{Map, Number, Value as Json};
use zbus::{OwnedVariant, Variant};

/// A table without lines, as systemctl(1) prints them.
pub(crate) struct Table(comfy_table::Table);

impl Table {
    pub(crate) fn new<'a>(headings: impl IntoIterator<Item = &'a str>) -> Self {
        let mut table = comfy_table::Table::new();
        table.load_style(NOTHING).set_header(headings);
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        Self(table)
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.0.add_row(cells);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.trim_fmt())
    }
}

/// A value as text; `-` where there is none.
pub(crate) fn text(value: Option<&OwnedVariant>) -> String {
    let text = match value.map(|value| &**value) {
        None => String::new(),
        Some(Variant::Array(array)) => numbers(array.iter().map(json)),
        Some(value) => match json(value) {
            Json::String(text) => text,
            other => other.to_string(),
        },
    };
    if text.is_empty() {
        "-".to_owned()
    } else {
        text
    }
}

/// A list of vCPU numbers as a list of ranges: `1-3,8`.
pub(crate) fn ranges(numbers: &[u32]) -> String {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable();
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for number in sorted {
        match runs.last_mut() {
            Some((_, last)) if number <= last.saturating_add(1) => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let run = |(first, last): &(u32, u32)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    runs.iter().map(run).collect::<Vec<_>>().join(",")
}

fn numbers(values: impl Iterator<Item = Json>) -> String {
    let numbers = values.filter_map(|v| u32::try_from(v.as_u64()?).ok());
    ranges(&numbers.collect::<Vec<_>>())
}

/// A dictionary as a JSON object.
pub(crate) fn json_dict(dict: &HashMap<String, OwnedVariant>) -> Json {
    let members = dict.iter().map(|(key, value)| (key.clone(), json(value)));
    Json::Object(members.collect::<Map<_, _>>())
}

/// A D-Bus value as JSON.
pub(crate) fn json(value: &Variant<'_>) -> Json {
    match value {
        Variant::Bool(b) => Json::Bool(*b),
        Variant::U8(n) => Json::from(*n),
        Variant::U16(n) => Json::from(*n),
        Variant::U32(n) => Json::from(*n),
        Variant::U64(n) => Json::from(*n),
        Variant::I16(n) => Json::from(*n),
        Variant::I32(n) => Json::from(*n),
        Variant::I64(n) => Json::from(*n),
        Variant::F64(n) => Number::from_f64(*n).map_or(Json::Null, Json::Number),
        Variant::Str(s) => Json::from(s.as_str()),
        Variant::ObjectPath(path) => Json::from(path.as_str()),
        Variant::Variant(inner) => json(inner),
        Variant::Array(array) => Json::Array(array.iter().map(json).collect()),
        Variant::Structure(fields) => Json::Array(fields.fields().iter().map(json).collect()),
        Variant::Dict(dict) => {
            let key = |key: &Variant<'_>| match json(key) {
                Json::String(text) => text,
                other => other.to_string(),
            };
            Json::Object(dict.iter().map(|(k, v)| (key(k), json(v))).collect())
        }
        // Signatures and file descriptors: the service sends none.
        _ => Json::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_become_ranges() {
        assert_eq!(ranges(&[]), "");
        assert_eq!(ranges(&[3]), "3");
        assert_eq!(ranges(&[3, 1, 2, 8]), "1-3,8");
        assert_eq!(ranges(&[0, 2, 4, 5]), "0,2,4-5");
    }

    #[test]
    fn what_is_empty_is_a_dash() {
        assert_eq!(text(None), "-");
        let value = |v: Variant<'static>| OwnedVariant::try_from(v).unwrap();
        assert_eq!(text(Some(&value("".into()))), "-");
        assert_eq!(text(Some(&value(7u32.into()))), "7");
        assert_eq!(text(Some(&value(vec![1u32, 2].into()))), "1-2");
    }
}
