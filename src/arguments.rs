//! The values of arguments that several programs take. It must not know the programs.

use std::time::Duration;

/// Parses a time in seconds, such as `0.5`, or with units, such as `1min 30s`.
///
/// # Errors
///
/// Returns a text with examples.
pub fn parse_time(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).ok(),
        Err(_) => humantime::parse_duration(text).ok(),
    }
    .ok_or_else(|| {
        "the argument is not a time, such as \"5\", \"500ms\" or \"1min 30s\"".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_seconds_or_have_units() {
        for (text, milliseconds) in [("5", 5_000), ("0.5", 500), ("1min 30s", 90_000)] {
            assert_eq!(parse_time(text), Ok(Duration::from_millis(milliseconds)));
        }
        for bad in ["", "-1", "NaN", "inf", "1e99", "soon"] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
    }
}
