//! The rules for the files of the application. Reads the sources only.

#![expect(clippy::unwrap_used, reason = "a failed step ends the test")]

use std::fs;
use std::path::{Path, PathBuf};

/// The maximum number of lines of a file.
const MAX_FILE: usize = 400;
/// The maximum number of lines of a function.
const MAX_FUNCTION: usize = 50;

/// The words that the files of a folder must not have.
const FORBIDDEN: &[(&str, &[&str])] = &[
    (
        "src/model",
        &[
            "gtk",
            "adw::",
            "Connection",
            "Instant",
            "crate::ui",
            "crate::bus",
        ],
    ),
    ("src/bus", &["gtk", "adw::", "crate::ui"]),
    ("src/ui", &["zbus", "crate::bus"]),
    ("src", &["vcpud::", "unsafe "]),
];

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let files = paths.flat_map(|path| {
        if path.is_dir() {
            files(&path)
        } else {
            vec![path]
        }
    });
    files
        .filter(|path| path.extension().is_some_and(|kind| kind == "rs"))
        .collect()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn each_file_is_short_and_says_what_it_owns() {
    for path in files(&root().join("src")) {
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("//! "), "{}", path.display());
        assert!(text.lines().count() <= MAX_FILE, "{}", path.display());
    }
}

#[test]
fn folders_use_only_what_they_may() {
    for (folder, words) in FORBIDDEN {
        for path in files(&root().join(folder)) {
            let text = fs::read_to_string(&path).unwrap();
            let code = text
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"));
            for line in code {
                let word = words.iter().find(|word| line.contains(**word));
                assert_eq!(word, None, "{}: {line}", path.display());
            }
        }
    }
}

#[test]
fn the_id_is_the_same_everywhere() {
    let text = |path: &str| fs::read_to_string(root().join(path)).unwrap();
    let id = "org.vcpud1.VirtualCpus";
    assert!(text("src/main.rs").contains(&format!("\"{id}\"")));
    assert!(text(&format!("data/{id}.desktop")).contains(&format!("Icon={id}\n")));
    assert!(text(&format!("data/{id}.metainfo.xml")).contains(&format!("<id>{id}</id>")));
    assert!(text("data/vcpud-gtk.1").contains(id));
    for icon in ["scalable/apps/ID.svg", "symbolic/apps/ID-symbolic.svg"] {
        let icon = icon.replace("ID", id);
        assert!(
            root().join("data/icons/hicolor").join(&icon).exists(),
            "{icon}"
        );
    }
}

/// The sources have the form of rustfmt, so that a function ends with a brace below its first letter.
#[test]
fn functions_are_short() {
    for path in files(&root().join("src")) {
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for (start, line) in lines.iter().enumerate() {
            let indent = line.len() - line.trim_start().len();
            if !line.contains("fn ") || line.trim_start().starts_with("//") || line.ends_with(';') {
                continue;
            }
            let end = format!("{}}}", " ".repeat(indent));
            let length = lines[start..].iter().position(|line| *line == end);
            let length = length.map_or(0, |length| length + 1);
            assert!(
                length <= MAX_FUNCTION,
                "{}: {line}: {length}",
                path.display()
            );
        }
    }
}
