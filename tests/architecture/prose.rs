//! The wording of sources, manual pages and documents.

use std::fs;
use std::path::{Path, PathBuf};

use super::documents::{markdown, root};

/// Wording that our texts must not contain, and a replacement. `CONTRIBUTING.md` has the rules.
const WORDING: &[(&str, &str)] = &[
    ("is told", "is reported, logs, emits"),
    ("are told", "are reported"),
    ("was told", "was reported"),
    ("tells of", "reports, emits"),
    ("told of", "reported"),
    ("came of", "resulted from"),
    ("comes of", "results from"),
    ("in vain", "after a time-out, without success"),
    ("but for", "except"),
    ("anew", "again"),
    ("passed over", "ignored"),
    ("written down", "saved, persisted"),
    ("over a restart", "across restarts"),
    ("over the restart", "across restarts"),
    ("former run", "previous instance"),
    ("who may", "an authorized caller"),
    ("whom", "name the subject"),
    ("whoever", "the caller, the client"),
    ("somebody", "another process, a user"),
    ("nobody may", "no caller can"),
    ("in peace", "cleanly"),
    ("goes before", "takes precedence over"),
    ("meanwhile", "in the meantime"),
    ("for there is", "because there is"),
    ("ask again", "try again"),
    ("all else", "everything else"),
    ("can be had", "is available"),
    ("laid at", "put in"),
    ("whatever it be", "regardless of"),
];

/// Returns the texts that users and developers read: sources, manual pages and documents.
fn texts() -> Vec<PathBuf> {
    fn add(path: &Path, files: &mut Vec<PathBuf>) {
        if path.is_dir() {
            for entry in fs::read_dir(path).unwrap() {
                add(&entry.unwrap().path(), files);
            }
        } else {
            files.push(path.to_owned());
        }
    }
    let mut files = markdown();
    for folder in [
        "src",
        "man",
        "dbus",
        "doc",
        "polkit",
        "systemd",
        "ansible",
        "clients/gtk/data",
    ] {
        add(&root().join(folder), &mut files);
    }
    files
}

/// Returns whether `line` contains `words` as whole words.
fn has_words(line: &str, words: &str) -> bool {
    let is_letter = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    let mut places = line.match_indices(words);
    places.any(|(at, _)| {
        let (before, after) = (&line[..at], &line[at + words.len()..]);
        !is_letter(before.chars().next_back()) && !is_letter(after.chars().next())
    })
}

#[test]
fn the_texts_are_in_plain_english() {
    let mut found = Vec::new();
    for file in texts() {
        let text = fs::read_to_string(&file).unwrap().to_lowercase();
        for (number, line) in (1..).zip(text.lines()) {
            let wrong = WORDING.iter().filter(|(words, _)| has_words(line, words));
            let file = file.strip_prefix(root()).unwrap().display();
            found.extend(
                wrong.map(|(words, better)| {
                    format!("{file}:{number}: \"{words}\"; write: {better}")
                }),
            );
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn words_are_found_as_a_whole() {
    assert!(has_words("a caller who may ask", "who may"));
    assert!(has_words("anew", "anew"));
    assert!(!has_words("the canew", "anew"));
    assert!(!has_words("who maybe", "who may"));
}
