//! Values of files and calls, before they are interpreted.

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A text.
    Text(String),
    /// An integer.
    Integer(i64),
    /// True or false.
    Boolean(bool),
    /// A list.
    List(Vec<Item>),
    /// A table.
    Table(Vec<Entry>),
    /// A value that no key accepts, by the name of its kind.
    Other(&'static str),
}

/// An element of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The line in the file, from 1; 0 for a value that was not read from a file.
    pub line: usize,
    /// The value.
    pub value: Value,
}

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The line of the key in the file, from 1; 0 for a value that was not read from a file.
    pub line: usize,
    /// The value.
    pub value: Value,
}

impl Value {
    /// Returns the kind of the value, for error texts.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a text",
            Self::Integer(_) => "an integer",
            Self::Boolean(_) => "true or false",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
            Self::Other(kind) => kind,
        }
    }
}

/// Returns the entries of a document, sorted by line.
pub(super) fn entries(text: &str, table: &DeTable<'_>) -> Vec<Entry> {
    let entry = |(key, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| Entry {
        key: <_ as AsRef<str>>::as_ref(key.get_ref()).to_owned(),
        line: line(text, key.span().start),
        value: convert(text, value.get_ref()),
    };
    let mut entries: Vec<Entry> = table.iter().map(entry).collect();
    entries.sort_by_key(|entry| entry.line);
    entries
}

/// Returns the number of the line that contains byte `at`.
pub(super) fn line(text: &str, at: usize) -> usize {
    let before = text.bytes().take(at);
    1 + before.filter(|byte| *byte == b'\n').count()
}

fn convert(text: &str, value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(value) => Value::Text(value.to_string()),
        DeValue::Integer(value) => match i64::from_str_radix(value.as_str(), value.radix()) {
            Ok(value) => Value::Integer(value),
            Err(_) => Value::Other("an integer outside the range of 64 bits"),
        },
        DeValue::Float(_) => Value::Other("a number with a fraction"),
        DeValue::Boolean(value) => Value::Boolean(*value),
        DeValue::Datetime(_) => Value::Other("a date or time of day"),
        DeValue::Array(array) => Value::List(items(text, array)),
        DeValue::Table(table) => Value::Table(entries(text, table)),
    }
}

fn items(text: &str, array: &DeArray<'_>) -> Vec<Item> {
    let item = |item: &Spanned<DeValue<'_>>| Item {
        line: line(text, item.span().start),
        value: convert(text, item.get_ref()),
    };
    array.iter().map(item).collect()
}

/// Returns the beginning of a text in quotes, for errors.
pub(super) fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(64).collect::<String>())
}
