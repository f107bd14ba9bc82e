//! The settings of a machine: the keys of the files and the options of `Enable`. Pure: it must not read files.

use std::collections::HashMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vcpud::autoscale::{Limits, LimitsError};
use zbus::{OwnedVariant, Variant};

/// The maximum length of the key and of the text of an option, in bytes.
const MAX_LENGTH: usize = 64;

/// The use of the decisions about a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mode {
    /// It makes the changes.
    #[default]
    On,
    /// It reports them only.
    Observe,
    /// It ignores the machine.
    Off,
}

impl Mode {
    /// Returns the word for it in files and on D-Bus.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Observe => "observe",
            Self::Off => "off",
        }
    }
}

/// The keys of a file. A key that is absent has the value of the file below, or else its default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Settings {
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<Mode>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    step_up: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    step_down: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    weight: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hold: Option<Span>,
    #[serde(skip_serializing_if = "Option::is_none")]
    up_window: Option<Span>,
    #[serde(skip_serializing_if = "Option::is_none")]
    down_window: Option<Span>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keep_pinned: Option<bool>,
}

/// A time such as "5min".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct Span(Duration);

impl TryFrom<String> for Span {
    type Error = humantime::DurationError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        humantime::parse_duration(&text).map(Self)
    }
}

impl From<Span> for String {
    fn from(Span(time): Span) -> Self {
        humantime::format_duration(time).to_string()
    }
}

impl Settings {
    /// Returns the settings of a machine that is ignored.
    pub(crate) fn off() -> Self {
        Self {
            mode: Some(Mode::Off),
            ..Self::default()
        }
    }

    /// Parses the text of a file.
    ///
    /// # Errors
    /// The reason, with the line.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let settings: Self = toml::from_str(text).map_err(|error| with_line(text, &error))?;
        settings.check()?;
        Ok(settings)
    }

    /// Takes the options of a call.
    ///
    /// # Errors
    /// The key and the reason.
    pub(crate) fn from_options(options: HashMap<String, OwnedVariant>) -> Result<Self, String> {
        let mut table = toml::Table::new();
        for (key, value) in options {
            let is_long = matches!(&*value, Variant::Str(text) if text.len() > MAX_LENGTH);
            if key.len() > MAX_LENGTH {
                return Err(format!("a key has more than {MAX_LENGTH} bytes"));
            }
            let wrong = |reason: &str| format!("option {key:?}: {reason}");
            if is_long {
                return Err(wrong(&format!("the text has more than {MAX_LENGTH} bytes")));
            }
            let value = toml_value(&value)
                .ok_or_else(|| wrong("the value is not a number, a text or a boolean"))?;
            table.insert(key, value);
        }
        Self::from_table(table)
    }

    /// Takes the keys of a table.
    ///
    /// # Errors
    /// The key and the reason.
    pub(crate) fn from_table(table: toml::Table) -> Result<Self, String> {
        let mut settings = Self::default();
        for (key, value) in table {
            // The errors of a table with one key are about this key.
            let option: Result<Self, toml::de::Error> =
                toml::Table::from_iter([(key.clone(), value)]).try_into();
            let option = option.map_err(|error| format!("{key:?}: {}", error.message()))?;
            settings = option.over(&settings);
        }
        settings.check()?;
        Ok(settings)
    }

    /// Returns the text of a file with these settings.
    ///
    /// # Errors
    /// The settings have no form in TOML, which does not happen.
    pub(crate) fn to_text(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }

    /// Checks the settings for a machine without limit.
    fn check(&self) -> Result<(), String> {
        self.limits(u32::MAX)
            .map(drop)
            .map_err(|error| error.to_string())
    }

    /// Checks the settings with those of `below` for absent keys, for a machine that can have `max_vcpus`.
    ///
    /// # Errors
    /// The key and the reason.
    pub(crate) fn check_over(&self, below: &Self, max_vcpus: u32) -> Result<(), String> {
        self.check()?;
        let limits = self.over(below).limits(max_vcpus).map(drop);
        limits.map_err(|error| format!("{error}, with the keys of autoscale.toml"))
    }

    /// Checks that a machine with at most `max_vcpus` can have the numbers of vCPUs.
    ///
    /// # Errors
    /// The key and the reason.
    pub(crate) fn fit(&self, max_vcpus: u32) -> Result<(), String> {
        for (key, count) in [("min", self.min), ("max", self.max)] {
            if let Some(count) = count.filter(|count| *count > max_vcpus) {
                let plural = if max_vcpus == 1 { "" } else { "s" };
                return Err(format!(
                    "{key} is {count}, and the machine has at most {max_vcpus} vCPU{plural}"
                ));
            }
        }
        Ok(())
    }

    /// Returns these settings, with those of `below` for absent keys.
    pub(crate) fn over(&self, below: &Self) -> Self {
        Self {
            mode: self.mode.or(below.mode),
            min: self.min.or(below.min),
            max: self.max.or(below.max),
            target: self.target.or(below.target),
            step_up: self.step_up.or(below.step_up),
            step_down: self.step_down.or(below.step_down),
            weight: self.weight.or(below.weight),
            hold: self.hold.or(below.hold),
            up_window: self.up_window.or(below.up_window),
            down_window: self.down_window.or(below.down_window),
            keep_pinned: self.keep_pinned.or(below.keep_pinned),
        }
    }

    /// Returns these settings, with the `present` ones for absent keys. The mode of a machine that was ignored, also
    /// because of the `defaults`, is "on".
    pub(crate) fn updating(&self, present: &Self, defaults: &Self) -> Self {
        let mut updated = self.over(present);
        if updated.over(defaults).mode() == Mode::Off {
            updated.mode = Some(Mode::On);
        }
        updated
    }

    pub(crate) fn mode(&self) -> Mode {
        self.mode.unwrap_or_default()
    }

    /// Returns whether vCPUs with pins of their own stay.
    pub(crate) fn keeps_pinned(&self) -> bool {
        self.keep_pinned.unwrap_or(true)
    }

    /// Returns the limits of a machine that can have `max_vcpus`.
    ///
    /// # Errors
    /// The first key with a value that is not allowed.
    pub(crate) fn limits(&self, max_vcpus: u32) -> Result<Limits, LimitsError> {
        let min = self.min.unwrap_or(1).min(max_vcpus);
        let max = self.max.unwrap_or(max_vcpus).min(max_vcpus);
        let defaults = Limits::new(min, max);
        let limits = Limits {
            target: self.target.unwrap_or(defaults.target),
            step_up: self.step_up.unwrap_or(defaults.step_up),
            step_down: self.step_down.unwrap_or(defaults.step_down),
            weight: self.weight.unwrap_or(defaults.weight),
            hold: self.hold.map_or(defaults.hold, |Span(time)| time),
            up_window: self.up_window.map_or(defaults.up_window, |Span(time)| time),
            down_window: self
                .down_window
                .map_or(defaults.down_window, |Span(time)| time),
            ..defaults
        };
        limits.check()?;
        Ok(limits)
    }
}

/// Returns the text of an error with its line.
pub(crate) fn with_line(text: &str, error: &toml::de::Error) -> String {
    let start = error.span().map_or(0, |span| span.start);
    let line = text
        .bytes()
        .take(start)
        .filter(|byte| *byte == b'\n')
        .count()
        + 1;
    format!("line {line}: {}", error.message())
}

/// Returns a value of D-Bus as a file would have it.
fn toml_value(value: &Variant<'_>) -> Option<toml::Value> {
    Some(match value {
        Variant::Bool(value) => toml::Value::Boolean(*value),
        Variant::U8(value) => i64::from(*value).into(),
        Variant::I16(value) => i64::from(*value).into(),
        Variant::U16(value) => i64::from(*value).into(),
        Variant::I32(value) => i64::from(*value).into(),
        Variant::U32(value) => i64::from(*value).into(),
        Variant::I64(value) => (*value).into(),
        Variant::U64(value) => i64::try_from(*value).ok()?.into(),
        Variant::F64(value) => (*value).into(),
        Variant::Str(value) => value.as_str().into(),
        Variant::Variant(value) => toml_value(value)?,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_options_have_the_same_keys() {
        let text = "mode = \"observe\"\nmin = 2\nmax = 8\ntarget = 0.7\nhold = \"5m\"\n";
        let parsed = Settings::parse(text).unwrap();
        let option = |value: Variant<'static>| OwnedVariant::try_from(value).unwrap();
        let options = HashMap::from([
            ("mode".to_owned(), option("observe".into())),
            ("min".to_owned(), option(2_u32.into())),
            ("max".to_owned(), option(8_i32.into())),
            ("target".to_owned(), option(0.7.into())),
            ("hold".to_owned(), option("5m".into())),
        ]);
        assert_eq!(Settings::from_options(options).unwrap(), parsed);
        assert_eq!(Settings::parse(&parsed.to_text().unwrap()).unwrap(), parsed);
    }

    #[test]
    fn an_error_names_the_key() {
        for (text, part) in [
            ("mim = 1", "unknown field `mim`"),
            ("min = 0", "min must be at least 1"),
            ("min = 4\nmax = 2", "max must be at least min"),
            ("mode = \"auto\"", "`on`, `observe`, `off`"),
            ("hold = \"long\"", "expected number"),
        ] {
            let error = Settings::parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn an_update_keeps_other_settings() {
        let settings = |text| Settings::parse(text).unwrap();
        let present = settings("mode = \"observe\"\nmin = 2\nhold = \"1h\"");
        let updated = settings("mode = \"observe\"\nmin = 3\nhold = \"1h\"");
        let none = Settings::default();
        assert_eq!(settings("min = 3").updating(&present, &none), updated);
        let on = settings("mode = \"on\"");
        assert_eq!(on.updating(&present, &none).mode(), Mode::On);
        // The machine was ignored.
        assert_eq!(none.updating(&Settings::off(), &none), on);
        assert_eq!(none.updating(&none, &Settings::off()), on);
        assert_eq!(none.updating(&none, &none), none);
    }

    #[test]
    fn a_file_has_defaults_below() {
        let below = Settings::parse("min = 2\ntarget = 0.5").unwrap();
        let above = Settings::parse("min = 3").unwrap();
        let limits = above.over(&below).limits(4).unwrap();
        assert_eq!((limits.min, limits.max, limits.target), (3, 4, 0.5));
        // A machine that is smaller than its settings.
        let limits = above.over(&below).limits(2).unwrap();
        assert_eq!((limits.min, limits.max), (2, 2));
    }
}
