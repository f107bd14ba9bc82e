//! Values as text and as JSON, and tables.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Write, stdout};

use comfy_table::presets::NOTHING;
use comfy_table::{Cell, Color, ColumnConstraint, ContentArrangement, Row};
use jiff::ZonedDateTime;
use serde_json::{Map, Number, Value as Json};
use vcpud::placement::VcpuList;
use vcpud::text::is_unprintable;
use zbus::{OwnedVariant, Variant};

/// The spaces between columns.
const GAP: u16 = 2;

/// A table without lines, in the style of systemctl(1). On a terminal, it fits the width, and has colours.
pub(crate) struct Table(comfy_table::Table);

impl Table {
    /// A table with `headings`, which are not printed without `legend`.
    pub(crate) fn new<'a>(legend: bool, headings: impl IntoIterator<Item = &'a str>) -> Self {
        let mut table = comfy_table::Table::new();
        table
            .load_style(NOTHING)
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_truncation_indicator("…");
        if legend {
            let mut headings = Row::from(headings.into_iter().collect::<Vec<_>>());
            headings.max_height(1);
            table.set_header(headings);
        }
        let mut table = Self(table);
        table.pad();
        table
    }

    fn pad(&mut self) {
        for column in self.0.column_iter_mut() {
            column.set_padding((0, GAP));
        }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let mut row = Row::from(cells.into_iter().map(cell).collect::<Vec<_>>());
        row.max_height(1);
        self.0.add_row(row);
        self.pad();
    }

    /// Hides the last columns that do not fit into the terminal: a part of a number would be a wrong number.
    pub(crate) fn hide_columns(&mut self) {
        let Some(room) = self.0.width() else {
            return;
        };
        let widths = self.0.column_max_content_widths();
        let ends = widths.iter().scan(0_u16, |end, width| {
            *end = end.saturating_add(*width).saturating_add(GAP);
            Some(*end)
        });
        let shown = ends.take_while(|end| *end <= room).count().max(1);
        for column in self.0.column_iter_mut().skip(shown) {
            column.set_constraint(ColumnConstraint::Hidden);
        }
    }

    /// Prints the table. One without headings and rows has no line.
    pub(crate) fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let text = self.to_string();
        if text.is_empty() {
            return Ok(());
        }
        writeln!(out, "{text}")
    }
}

/// Returns a cell, whose colour shows a state that needs attention.
fn cell(text: String) -> Cell {
    let colour = match text.as_str() {
        "running" => Some(Color::Green),
        "pending" | "paused" | "suspended" => Some(Color::Yellow),
        "disconnected" | "guest-panicked" | "internal-error" | "io-error" | "shutdown" => {
            Some(Color::Red)
        }
        _ => None,
    };
    let cell = Cell::new(text);
    match colour {
        Some(colour) if !has_no_colours() => cell.fg(colour),
        _ => cell,
    }
}

/// Returns whether the variable `NO_COLOR` is set. Otherwise, a cell without its colour would have escape sequences.
fn has_no_colours() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.trim_fmt())
    }
}

/// Returns the local time.
pub(crate) fn local_time() -> String {
    ZonedDateTime::now()
        .strftime("%Y-%m-%d %H:%M:%S%.3f")
        .to_string()
}

/// Prints a JSON document.
pub(crate) fn document(json: &Json) -> io::Result<()> {
    writeln!(stdout(), "{json:#}")
}

/// Prints the JSON document about one machine, or an array about several.
pub(crate) fn one_or_all(mut machines: Vec<Json>) -> io::Result<()> {
    if machines.len() == 1 {
        document(&machines.remove(0))
    } else {
        document(&Json::Array(machines))
    }
}

/// Returns a list of vCPUs with its noun.
pub(crate) fn name_vcpus(vcpus: &VcpuList) -> String {
    let plural = if vcpus.iter().count() == 1 { "" } else { "s" };
    format!("vCPU{plural} {vcpus}")
}

/// Prints the JSON document of a command that has no other result than its success.
pub(crate) fn done(json: bool) -> io::Result<()> {
    if json {
        document(&Json::Object(Map::new()))?;
    }
    Ok(())
}

/// Returns the text of a service without the characters that control a terminal.
pub(crate) fn printable(text: &str) -> String {
    let clean = |c: char| if is_unprintable(c) { '\u{fffd}' } else { c };
    text.chars().map(clean).collect()
}

/// Returns a value as text; `-` for an empty or missing value.
pub(crate) fn text(value: Option<&OwnedVariant>) -> String {
    let text = match value.map(|value| &**value) {
        None => String::new(),
        Some(Variant::Array(array)) => numbers(array.iter().map(json)),
        Some(Variant::Bool(is_true)) => if *is_true { "yes" } else { "no" }.to_owned(),
        Some(value) => match json(value) {
            Json::String(text) => printable(&text),
            other => other.to_string(),
        },
    };
    if text.is_empty() {
        "-".to_owned()
    } else {
        text
    }
}

/// Returns the number that a value is.
pub(crate) fn number(value: Option<&OwnedVariant>) -> Option<u64> {
    json(value?).as_u64()
}

fn numbers(values: impl Iterator<Item = Json>) -> String {
    let numbers = values.filter_map(|value| u32::try_from(value.as_u64()?).ok());
    numbers.collect::<VcpuList>().to_string()
}

/// Returns a dictionary as a JSON object.
pub(crate) fn json_dict(dict: &HashMap<String, OwnedVariant>) -> Json {
    let members = dict.iter().map(|(key, value)| (key.clone(), json(value)));
    Json::Object(members.collect::<Map<_, _>>())
}

/// Returns a D-Bus value as JSON.
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
        // The service sends no signatures and no file descriptors.
        _ => Json::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the lines of a table of so many columns.
    fn lines(width: u16, rows: &[[&str; 3]]) -> Vec<String> {
        let mut table = Table::new(true, ["VCPU", "TID", "ALIAS"]);
        table.0.set_width(width);
        for row in rows {
            table.row(row.map(str::to_owned));
        }
        table.hide_columns();
        let mut out = Vec::new();
        table.print(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_table_has_only_whole_columns() {
        assert_eq!(lines(80, &[]), ["VCPU  TID  ALIAS"]);
        let row = ["0", "1234567", "vcpu0"];
        assert_eq!(
            lines(22, &[row]),
            ["VCPU  TID      ALIAS", "0     1234567  vcpu0"]
        );
        assert_eq!(lines(21, &[row]), ["VCPU  TID", "0     1234567"]);
        assert_eq!(lines(6, &[row]), ["VCPU", "0"]);
    }

    #[test]
    fn a_table_without_headings_and_rows_prints_nothing() {
        let mut out = Vec::new();
        Table::new(false, ["VCPU"]).print(&mut out).unwrap();
        assert_eq!(out, b"");
    }

    #[test]
    fn shows_an_empty_value_as_a_dash() {
        assert_eq!(text(None), "-");
        let value = |v: Variant<'static>| OwnedVariant::try_from(v).unwrap();
        assert_eq!(text(Some(&value("".into()))), "-");
        assert_eq!(text(Some(&value(7u32.into()))), "7");
        assert_eq!(text(Some(&value(vec![3u32, 1, 2, 8].into()))), "1-3,8");
    }
}
