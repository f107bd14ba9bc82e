//! The share of the host's caches and memory bandwidth of a vCPU, in the syntax of resctrl (the kernel's
//! `resctrl.rst`).

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Lines of a `schemata` file, such as `L3:0=f;1=f`. Resources and domains that are not in it keep the kernel's
/// values.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Schemata(BTreeMap<(String, u32), String>);

/// The reason why a text is not a [`Schemata`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemataError {
    /// The text is empty.
    #[error("the schemata are empty")]
    Empty,
    /// The text is too long.
    #[error("the schemata are longer than {} bytes", Schemata::LIMIT)]
    TooLong,
    /// A line has another syntax.
    #[error("{0:?} is not a line of schemata, such as L3:0=f;1=f")]
    Line(String),
}

impl Schemata {
    /// The maximum length of the text, in bytes.
    pub const LIMIT: usize = 4096;

    /// Returns whether a file with `text` has all values of this.
    pub fn is_in(&self, text: &str) -> bool {
        let given = text.lines().filter_map(line).flatten();
        let given: BTreeMap<_, _> = given.collect();
        self.0
            .iter()
            .all(|(key, value)| given.get(key) == Some(value))
    }
}

/// Returns the values of one line, by resource and domain. `None`: the line has another syntax.
fn line(text: &str) -> Option<Vec<((String, u32), String)>> {
    let (resource, domains) = text.trim().split_once(':')?;
    let named = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    if resource.is_empty() || !resource.bytes().all(named) {
        return None;
    }
    let domain = |part: &str| {
        let (domain, value) = part.split_once('=')?;
        let domain: u32 = domain.trim().parse().ok()?;
        let value = value.trim();
        let valid = !value.is_empty() && value.bytes().all(|b| b.is_ascii_hexdigit());
        // The kernel pads with zeros.
        let value = match value.trim_start_matches('0') {
            "" => "0",
            rest => rest,
        };
        valid.then(|| ((resource.to_owned(), domain), value.to_ascii_lowercase()))
    };
    domains.split(';').map(domain).collect()
}

impl FromStr for Schemata {
    type Err = SchemataError;

    fn from_str(text: &str) -> Result<Self, SchemataError> {
        if text.len() > Self::LIMIT {
            return Err(SchemataError::TooLong);
        }
        let mut values = BTreeMap::new();
        for text in text.lines().filter(|text| !text.trim().is_empty()) {
            let wrong = || SchemataError::Line(text.chars().take(64).collect());
            values.extend(line(text).ok_or_else(wrong)?);
        }
        if values.is_empty() {
            return Err(SchemataError::Empty);
        }
        Ok(Self(values))
    }
}

impl Schemata {
    /// Returns the shares in one line, with semicolons between the resources.
    pub fn line(&self) -> String {
        self.to_string().trim_end().replace('\n', ";")
    }
}

impl fmt::Display for Schemata {
    /// Writes the text of the file: one line for each resource, with a newline at its end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = None;
        for ((resource, domain), value) in &self.0 {
            let separator = if last.is_none() { "" } else { "\n" };
            if last == Some(resource) {
                write!(f, ";{domain}={value}")?;
            } else {
                write!(f, "{separator}{resource}:{domain}={value}")?;
            }
            last = Some(resource);
        }
        writeln!(f)
    }
}

impl TryFrom<String> for Schemata {
    type Error = SchemataError;

    fn try_from(text: String) -> Result<Self, SchemataError> {
        text.parse()
    }
}

impl From<Schemata> for String {
    fn from(schemata: Schemata) -> Self {
        schemata.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compares_with_the_text_of_the_kernel() {
        let schemata: Schemata = "L3:0=0F;1=f\nMB:0=50".parse().unwrap();
        assert_eq!(schemata.to_string(), "L3:0=f;1=f\nMB:0=50\n");
        assert!(schemata.is_in("    L3:0=0000f;1=0000f\n    MB:0=  50;1= 100\n"));
        assert!(!schemata.is_in("    L3:0=0000f;1=fffff\n    MB:0=  50;1= 100\n"));
        assert!(!schemata.is_in("L3:0=f;1=f\n"));
        let json = serde_json::to_string(&schemata).unwrap();
        assert_eq!(serde_json::from_str::<Schemata>(&json).unwrap(), schemata);
    }

    #[test]
    fn an_error_names_the_line() {
        for text in [
            "L3", "L3:", "L3:0", "L3:0=", "L3:x=f", "L3:0=g", ":0=f", "L3:0=f;", "a/b:0=f",
        ] {
            let wrong = SchemataError::Line(text.to_owned());
            assert_eq!(text.parse::<Schemata>(), Err(wrong));
        }
        assert_eq!("\n \n".parse::<Schemata>(), Err(SchemataError::Empty));
        let long = "x".repeat(Schemata::LIMIT + 1);
        assert_eq!(long.parse::<Schemata>(), Err(SchemataError::TooLong));
    }
}
