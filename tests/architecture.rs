//! The direction of dependencies, as `ARCHITECTURE.md` draws it. Reads the sources only.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Which modules of the crate each module may name.
const ARROWS: &[(&str, &[&str])] = &[
    (
        "bus",
        &[
            "config",
            "guest_agent",
            "host",
            "idle",
            "inventory",
            "machine",
            "names",
            "placement",
            "qmp",
            "registry",
        ],
    ),
    ("config", &["names", "placement"]),
    (
        "daemon",
        &[
            "bus", "config", "host", "idle", "machine", "names", "registry", "systemd",
        ],
    ),
    ("guest_agent", &["host", "inventory", "limited", "text"]),
    ("host", &["placement"]),
    ("idle", &[]),
    ("inventory", &["text"]),
    ("limited", &[]),
    (
        "machine",
        &[
            "config",
            "guest_agent",
            "host",
            "inventory",
            "limited",
            "names",
            "placement",
            "qmp",
            "text",
        ],
    ),
    ("names", &[]),
    ("placement", &[]),
    ("proxy", &[]),
    ("qmp", &["limited", "text"]),
    (
        "registry",
        &["config", "host", "machine", "names", "placement"],
    ),
    ("systemd", &["host", "placement", "proxy"]),
    ("text", &[]),
];

/// The only modules that may know D-Bus.
const KNOW_DBUS: &[&str] = &["bus", "daemon", "proxy", "systemd"];

/// All source text of each top-level module of the library.
fn modules() -> BTreeMap<String, String> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut modules = BTreeMap::new();
    for entry in fs::read_dir(&src).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if name != "lib" && name != "bin" {
            modules.insert(name, read_all(&path));
        }
    }
    modules
}

fn read_all(path: &Path) -> String {
    if path.is_file() {
        return fs::read_to_string(path).unwrap();
    }
    let files = fs::read_dir(path)
        .unwrap()
        .map(|entry| read_all(&entry.unwrap().path()));
    files.collect()
}

/// The modules that `text` names as `crate::NAME`.
fn named(text: &str) -> Vec<&str> {
    let parts = text.split("crate::").skip(1);
    let name = |part: &str| {
        part.find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(part.len())
    };
    parts.map(|part| &part[..name(part)]).collect()
}

#[test]
fn modules_name_only_those_they_may() {
    let modules = modules();
    let known: Vec<&str> = ARROWS.iter().map(|(name, _)| *name).collect();
    assert_eq!(
        modules.keys().collect::<Vec<_>>(),
        known,
        "ARROWS lists every module"
    );
    for (module, allowed) in ARROWS {
        for name in named(&modules[*module]) {
            assert!(
                name == *module || allowed.contains(&name),
                "{module} must not use {name}"
            );
        }
    }
}

#[test]
fn only_the_edges_know_dbus() {
    for (module, text) in modules() {
        let knows = text
            .lines()
            .any(|line| line.contains("zbus") && !line.trim_start().starts_with("//"));
        assert!(
            !knows || KNOW_DBUS.contains(&module.as_str()),
            "{module} must not know D-Bus"
        );
    }
}

/// Unsafe code is in one file, and nowhere is the lint that forbids it switched off but there: not
/// in the programs either, nor in the tests.
#[test]
fn system_calls_are_in_one_file() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = |path: &str| fs::read_to_string(root.join(path)).unwrap();
    assert!(text("Cargo.toml").contains("unsafe_code = \"deny\""));
    let allowed = "#![allow(unsafe_code)]";
    assert_eq!(text("src/host/sys.rs").matches(allowed).count(), 1);
    assert_eq!(mentions(&root.join("src"), "unsafe_code"), 1);
    let here = text("tests/architecture.rs");
    let here = here.matches("unsafe_code").count();
    assert_eq!(mentions(&root.join("tests"), "unsafe_code"), here);
    assert_eq!(mentions(&root.join("benches"), "unsafe_code"), 0);
    assert_eq!(mentions(&root.join("fuzz/src"), "unsafe"), 0);
    assert_eq!(mentions(&root.join("fuzz/targets"), "unsafe"), 0);
}

/// How often `word` is in the Rust below `path`.
fn mentions(path: &Path, word: &str) -> usize {
    if path.is_dir() {
        let entries = fs::read_dir(path).unwrap();
        return entries.map(|e| mentions(&e.unwrap().path(), word)).sum();
    }
    let is_rust = path.extension().is_some_and(|extension| extension == "rs");
    let text = is_rust.then(|| fs::read_to_string(path).unwrap());
    text.map_or(0, |text| text.matches(word).count())
}
