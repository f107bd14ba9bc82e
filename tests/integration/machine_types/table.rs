//! The table of machine types names tests, and they exist. Every recording is played by a test.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const PROJECT: &str = env!("CARGO_MANIFEST_DIR");

/// Adds the integration tests by the names that libtest gives them, `MODULE::…::NAME`.
fn tests_in(directory: &Path, module: &str, tests: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).expect("the sources are there") {
        let path = entry.expect("it can be read").path();
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        let stem = stem.expect("names are UTF-8");
        let module = match stem {
            "mod" | "main" => module.to_owned(),
            _ => format!("{module}{stem}::"),
        };
        if path.is_dir() {
            tests_in(&path, &module, tests);
            continue;
        }
        let source = fs::read_to_string(&path).expect("sources are UTF-8");
        for test in source.split("#[tokio::test").skip(1) {
            let (_, name) = test.split_once("async fn ").expect("a test is a function");
            let end = name.find('(').expect("a function has arguments");
            tests.insert(format!("{module}{}", &name[..end]));
        }
    }
}

fn source_of(directory: &Path) -> String {
    let files = fs::read_dir(directory).expect("the sources are there");
    let text = |path| fs::read_to_string(path).expect("sources are UTF-8");
    files
        .map(|file| text(file.expect("it can be read").path()))
        .collect()
}

/// No part but the files.
#[test]
fn every_cell_of_the_table_names_tests_that_exist() {
    let mut tests = BTreeSet::new();
    tests_in(
        &Path::new(PROJECT).join("tests/integration"),
        "",
        &mut tests,
    );
    let page = fs::read_to_string(Path::new(PROJECT).join("doc/machine-types.md"));
    let page = page.expect("the page is there");
    let rows: Vec<Vec<&str>> = page
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| ---"))
        .map(|line| line.trim_matches('|').split('|').collect())
        .collect();
    assert!(rows.len() > 10, "{rows:?}");
    let columns = rows[0].len();
    for row in &rows[1..] {
        assert_eq!(row.len(), columns, "{row:?}");
        for cell in &row[1..] {
            let is_shown = tests_named_in(cell).next().is_some();
            assert!(is_shown, "no test shows{cell}of{}", row[0]);
        }
    }
    for name in tests_named_in(&page) {
        assert!(tests.contains(name), "there is no test {name}");
    }
}

fn tests_named_in(text: &str) -> impl Iterator<Item = &str> {
    let code = text.split('`').skip(1).step_by(2);
    code.filter(|word| word.contains("::"))
}

/// No part but the files.
#[test]
fn every_recorded_conversation_is_played() {
    let players = source_of(&Path::new(PROJECT).join("tests/integration/recorded"));
    let recorded = Path::new(PROJECT).join("tests/fixtures/conversations");
    for file in fs::read_dir(recorded).expect("the recordings are there") {
        let name = file.expect("it can be read").file_name();
        let name = name.to_str().expect("names are UTF-8");
        let name = name.strip_suffix(".jsonl").expect("it is a recording");
        assert!(
            players.contains(&format!("\"{name}\"")),
            "nobody plays {name}"
        );
    }
}
