//! Names as labels of object paths and units (`vcpud::names`).

use vcpud::names::{MACHINE_PATH_PREFIX, MachineName, escape_label, unescape_label};
use zbus::ObjectPath;

/// Any text has one label, which is an element of an object path and can be decoded. Names are safe as parts
/// of paths and units.
pub fn labels(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let label = escape_label(&text);
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    assert!(!label.is_empty() && label.bytes().all(is_plain), "{label}");
    assert!(!label.starts_with(|c: char| c.is_ascii_digit()), "{label}");
    assert!(label.len() <= 3 * text.len().max(1));
    let path = format!("{MACHINE_PATH_PREFIX}{label}");
    ObjectPath::try_from(path.as_str()).expect("it is an object path");
    assert_eq!(unescape_label(&label).as_deref(), Some(&*text));

    // In the other direction: a text that can be decoded is a label.
    if let Some(original) = unescape_label(&text) {
        assert_eq!(escape_label(&original), *text);
    }
    if let Ok(name) = text.parse::<MachineName>() {
        assert_eq!(name.as_str(), text);
        check(&name, &label);
    }
}

fn check(name: &MachineName, label: &str) {
    // A file NAME.sock or NAME.toml is in its directory and is not hidden.
    assert!(!name.as_str().contains(['/', '\0']) && !name.as_str().starts_with('.'));
    assert_eq!(name.object_path(), format!("{MACHINE_PATH_PREFIX}{label}"));
    // systemd.unit(5): at most 255 of these characters. A dash has no meaning in the name of a scope, unlike
    // in that of a slice.
    let scope = name.scope();
    assert!(scope.len() <= 255 && scope.ends_with(".scope"), "{scope}");
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || ":-_.\\".contains(c);
    assert!(scope.chars().all(is_allowed), "{scope}");
    assert_eq!(scope.matches(['.', '-']).count(), 2, "{scope}");
}
