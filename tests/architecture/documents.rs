//! The documents: the files, tests and crates that they name exist, no crate is missing, and links lead
//! to files.

use std::fs;
use std::path::{Path, PathBuf};

use vcpud::names::error_name;

use super::files::rust_files;

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// Returns the names in backquotes in `text`.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .flat_map(|line| line.split('`').skip(1).step_by(2))
}

/// Returns the source files, as paths of modules such as `tests::integration::edge::sizes`, and their text.
fn modules() -> Vec<(String, String)> {
    let folders = ["src", "tests", "fuzz/src"].map(|folder| rust_files(&root().join(folder)));
    let module = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        let path = path.strip_prefix(root()).unwrap().with_extension("");
        let module = path.display().to_string().replace('/', "::");
        (module.trim_end_matches("::mod").to_owned(), text)
    };
    folders.into_iter().flatten().map(module).collect()
}

/// Returns whether the path of `module` ends with `name`.
fn is_module(module: &str, name: &str) -> bool {
    format!("::{module}").ends_with(&format!("::{name}"))
}

/// The column "shown by" names files, modules with tests, and tests.
#[test]
fn the_tests_that_security_md_names_exist() {
    let modules = modules();
    let is_test = |name: &str| {
        let Some((parent, function)) = name.rsplit_once("::") else {
            return false;
        };
        let mut parents = modules
            .iter()
            .filter(|(module, _)| is_module(module, parent));
        parents.any(|(_, text)| text.contains(&format!("fn {function}(")))
    };
    let exists = |name: &str| {
        if name.contains('/') {
            return root().join(name).exists();
        }
        let is_folder = |module: &str| format!("::{module}").contains(&format!("::{name}::"));
        let mut names = modules.iter().map(|(module, _)| module.as_str());
        names.any(|module| is_module(module, name) || is_folder(module)) || is_test(name)
    };
    let security = text("SECURITY.md");
    let rows = security.lines().filter(|line| line.starts_with("| "));
    let shown_by = rows.filter_map(|row| row.trim_end_matches(" |").rsplit(" | ").next());
    let missing: Vec<&str> = shown_by
        .flat_map(quoted)
        .filter(|name| !exists(name))
        .collect();
    assert!(missing.is_empty(), "SECURITY.md names {missing:#?}");
}

#[test]
fn the_files_that_architecture_md_names_exist() {
    let architecture = text("ARCHITECTURE.md");
    let is_file = |name: &&str| {
        let folders = [
            "src/", "tests/", "fuzz/", "bus/", "machine/", "dbus/", "man/", "systemd/",
        ];
        folders.iter().any(|folder| name.starts_with(folder))
    };
    let exists = |name: &str| root().join(name).exists() || root().join("src").join(name).exists();
    let files = quoted(&architecture).filter(is_file);
    let missing: Vec<&str> = files.filter(|name| !exists(name)).collect();
    assert!(missing.is_empty(), "ARCHITECTURE.md names {missing:#?}");
}

/// The tables of files have each file of the modules that have such a table.
#[test]
fn architecture_md_has_each_file_of_its_tables() {
    let architecture = text("ARCHITECTURE.md");
    let named: Vec<&str> = quoted(&architecture).collect();
    let mut missing = Vec::new();
    for (folder, prefix) in [
        ("bus", "bus/"),
        ("machine", "machine/"),
        ("machine/model", ""),
    ] {
        for entry in fs::read_dir(root().join("src").join(folder)).unwrap() {
            let file = entry.unwrap().file_name().into_string().unwrap();
            let is_source = file.ends_with(".rs");
            let is_other = ["mod.rs", "tests.rs", "testing.rs"].contains(&file.as_str());
            let name = format!("{prefix}{file}");
            if is_source && !is_other && !named.contains(&name.as_str()) {
                missing.push(format!("{folder}/{file}"));
            }
        }
    }
    assert!(missing.is_empty(), "not in ARCHITECTURE.md: {missing:#?}");
}

#[test]
fn architecture_md_has_the_purpose_of_each_dependency() {
    let (manifest, architecture) = (text("Cargo.toml"), text("ARCHITECTURE.md"));
    let (_, table) = architecture.split_once("## Dependencies").unwrap();
    let crates = table.lines().filter_map(|row| row.split('|').nth(1));
    let described: Vec<&str> = crates.flat_map(|names| names.split([' ', ','])).collect();
    let mut is_list = false;
    let mut missing = Vec::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            is_list = ["[dependencies]", "[dev-dependencies]"].contains(&line);
        } else if let Some((name, _)) = line.split_once(" = ").filter(|_| is_list)
            && !described.contains(&name)
        {
            missing.push(name);
        }
    }
    assert!(missing.is_empty(), "without a purpose: {missing:?}");
}

/// Returns the documents in Markdown, except the licence.
pub(crate) fn markdown() -> Vec<PathBuf> {
    let folders = ["", "doc", "tests"].map(|folder| fs::read_dir(root().join(folder)).unwrap());
    let paths = folders
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect()
}

#[test]
fn troubleshooting_md_has_each_name_of_an_error() {
    let document = text("doc/troubleshooting.md");
    let names = error_name::ALL
        .iter()
        .filter_map(|name| name.rsplit('.').next());
    let missing: Vec<&str> = names
        .filter(|name| !document.contains(&format!("`{name}`")))
        .collect();
    assert!(missing.is_empty(), "not in the document: {missing:?}");
}

/// A semicolon ends a statement of Mermaid, also within a text.
#[test]
fn the_diagrams_have_no_semicolons() {
    for document in markdown() {
        let text = fs::read_to_string(&document).unwrap();
        for diagram in text.split("```mermaid").skip(1) {
            let (diagram, _) = diagram.split_once("```").unwrap();
            let line = diagram.lines().find(|line| line.contains(';'));
            assert_eq!(line, None, "{}", document.display());
        }
    }
}

#[test]
fn the_links_between_documents_lead_to_files() {
    let mut missing = Vec::new();
    for document in markdown() {
        let text = fs::read_to_string(&document).unwrap();
        for link in text.split("](").skip(1) {
            let target = link.split([')', '#']).next().unwrap();
            let is_file = !target.is_empty() && !target.contains("://");
            if is_file && !document.with_file_name(target).exists() {
                missing.push(format!("{}: {target}", document.display()));
            }
        }
    }
    assert!(missing.is_empty(), "links to nothing: {missing:#?}");
}
