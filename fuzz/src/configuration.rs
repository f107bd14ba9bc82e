//! The files of the administrator (`vcpud::config`).

use vcpud::config::{ConfigError, Settings, parse_machine, parse_service};

/// Every mistake has its place in the text, whatever is wrong with it; what is taken can be used
/// and survives being written.
pub fn configuration(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (service, settings, mistakes) = parse_service(text);
    check(text, &mistakes);
    used(&settings);

    // A line before it moves everything by one, and changes nothing else.
    if !text.starts_with('\u{feff}') {
        let moved = format!("\n{text}");
        let (service_moved, settings_moved, mistakes_moved) = parse_service(&moved);
        assert_eq!((service_moved, settings_moved), (service, settings));
        let down = |mistake: &ConfigError| ConfigError {
            line: mistake.line + usize::from(mistake.line > 0),
            ..mistake.clone()
        };
        let expected: Vec<ConfigError> = mistakes.iter().map(down).collect();
        assert_eq!(mistakes_moved, expected);
    }

    match parse_machine(text) {
        Ok(machine) => {
            used(&machine.settings);
            let written = serde_json::to_string(&machine).expect("it can be written");
            assert_eq!(
                serde_json::from_str(&written).ok(),
                Some(machine),
                "{written}"
            );
        }
        Err(mistakes) => {
            assert!(!mistakes.is_empty());
            check(text, &mistakes);
        }
    }
}

fn check(text: &str, mistakes: &[ConfigError]) {
    let lines = text.bytes().filter(|byte| *byte == b'\n').count() + 1;
    for mistake in mistakes {
        assert!(mistake.line <= lines, "{mistake:?} of {lines} lines");
        assert!(mistake.key.chars().count() <= 64, "{mistake:?}");
        assert!(!mistake.text.is_empty(), "{mistake:?}");
    }
    assert!(mistakes.is_sorted(), "{mistakes:?}");
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
    let written = serde_json::to_string(settings).expect("it can be written");
    assert_eq!(serde_json::from_str(&written).ok().as_ref(), Some(settings));
}
