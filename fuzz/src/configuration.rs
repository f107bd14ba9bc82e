//! The files of the administrator (`vcpud::config`).

use vcpud::config::{ConfigError, Settings, parse_machine, parse_service};

/// Every error has a line of the text. Accepted settings can be used, and survive a
/// serialization.
pub fn configuration(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (service, settings, errors) = parse_service(text);
    check(text, &errors);
    used(&settings);

    // A line before the text moves all errors by one line, and changes nothing else.
    if !text.starts_with('\u{feff}') {
        let moved = format!("\n{text}");
        let (service_moved, settings_moved, errors_moved) = parse_service(&moved);
        assert_eq!((service_moved, settings_moved), (service, settings));
        let down = |error: &ConfigError| {
            let mut error = error.clone();
            error.location.line += usize::from(error.location.line > 0);
            error
        };
        let expected: Vec<ConfigError> = errors.iter().map(down).collect();
        assert_eq!(errors_moved, expected);
    }

    match parse_machine(text) {
        Ok(machine) => {
            used(&machine.settings);
            let written = serde_json::to_string(&machine).expect("it can be serialized");
            assert_eq!(
                serde_json::from_str(&written).ok(),
                Some(machine),
                "{written}"
            );
        }
        Err(errors) => {
            assert!(!errors.is_empty());
            check(text, &errors);
        }
    }
}

fn check(text: &str, errors: &[ConfigError]) {
    let lines = text.bytes().filter(|byte| *byte == b'\n').count() + 1;
    for error in errors {
        assert!(error.location.line <= lines, "{error:?} of {lines} lines");
        assert!(error.key.chars().count() <= 64, "{error:?}");
        assert!(!error.text.is_empty(), "{error:?}");
    }
    assert!(errors.is_sorted(), "{errors:?}");
}

fn used(settings: &Settings) {
    let _ = (settings.limits(), settings.slice());
    let tuning = settings.tuning();
    assert_eq!(tuning.affinity, settings.affinity);
    assert!(
        settings
            .affinity
            .as_ref()
            .is_none_or(|list| !list.is_empty())
    );
    assert!(settings.slice().ends_with(".slice") && !settings.slice().contains('/'));
    let written = serde_json::to_string(settings).expect("it can be serialized");
    assert_eq!(serde_json::from_str(&written).ok().as_ref(), Some(settings));
}
