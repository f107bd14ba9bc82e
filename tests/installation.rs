//! `make install` and `make uninstall`, with another prefix, the sample of the configuration, and the packages.

#![expect(clippy::unwrap_used, reason = "a failed step ends the test")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const PREFIX: &str = "/usr/local";

/// Runs `make`, with the programs that the tests use.
fn make(target: &str, destination: &Path) {
    let build = Path::new(env!("CARGO_BIN_EXE_vcpud")).parent().unwrap();
    let output = Command::new("make")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args([target, &format!("PREFIX={PREFIX}")])
        .arg(format!("BUILD={}", build.display()))
        .arg(format!("DESTDIR={}", destination.display()))
        .output();
    succeeded(&output.unwrap());
}

fn succeeded(output: &Output) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
}

/// Returns the paths of the files below a directory, relative to it.
fn files(directory: &Path) -> BTreeSet<PathBuf> {
    fn add(path: &Path, found: &mut Vec<PathBuf>) {
        if path.is_dir() {
            for entry in fs::read_dir(path).unwrap() {
                add(&entry.unwrap().path(), found);
            }
        } else {
            found.push(path.to_owned());
        }
    }
    let mut found = Vec::new();
    add(directory, &mut found);
    let relative = |path: PathBuf| path.strip_prefix(directory).unwrap().to_owned();
    found.into_iter().map(relative).collect()
}

/// Returns whether `path` is below the prefix, or in a directory without which the service has no rights.
fn is_in_place(path: &Path) -> bool {
    let directories = [
        "usr/local",
        "usr/share/dbus-1/system.d",
        "usr/share/polkit-1/actions",
        "usr/share/polkit-1/rules.d",
    ];
    directories
        .iter()
        .any(|directory| path.starts_with(directory))
}

#[test]
fn the_installed_files_follow_the_prefix() {
    let root = tempfile::tempdir().unwrap();
    make("install", root.path());

    for path in files(root.path()) {
        assert!(is_in_place(&path), "{}", path.display());
        let contents = fs::read(root.path().join(&path)).unwrap();
        let is_program = contents.starts_with(b"\x7fELF");
        let mode = fs::metadata(root.path().join(&path)).unwrap().permissions();
        let expected = if is_program { 0o755 } else { 0o644 };
        assert_eq!(mode.mode() & 0o7777, expected, "{}", path.display());
        assert!(!contents.is_empty(), "{}", path.display());
        if is_program {
            continue;
        }
        // Each absolute path of vcpud that a text has exists.
        let text = String::from_utf8(contents).unwrap();
        let words = text.split(|c: char| c.is_whitespace() || "`=:,()\"".contains(c));
        let named = words.filter(|word| word.starts_with("/usr/") && word.contains("vcpu"));
        for name in named.map(|name| name.trim_end_matches('.')) {
            let exists = root.path().join(name.trim_start_matches('/')).exists();
            assert!(exists, "{}: {name}", path.display());
        }
    }

    let units = root.path().join("usr/local/lib/systemd/system");
    for program in ["vcpud", "vcpud-autoscale", "vcpud-exporter"] {
        let unit = fs::read_to_string(units.join(format!("{program}.service"))).unwrap();
        let start = format!("\nExecStart={PREFIX}/sbin/{program}\n");
        assert!(unit.contains(&start), "{unit}");
    }
}

/// systemd finds the units and their programs. It does not find those of the host, which are elsewhere.
#[test]
fn systemd_finds_the_programs_of_the_installed_units() {
    let root = tempfile::tempdir().unwrap();
    make("install", root.path());
    let units = [
        "vcpud.service",
        "vcpud-autoscale.service",
        "vcpud-exporter.service",
    ];
    let verify = || {
        let mut command = Command::new("systemd-analyze");
        command.args(["verify", "--man=no", "--root"]);
        let output = command.arg(root.path()).args(units).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        units.map(|unit| {
            let command = format!("{unit}: Command {PREFIX}/");
            let is_missing = |line: &str| line.starts_with(&command);
            (unit, errors.lines().any(is_missing), errors.clone())
        })
    };
    for (unit, is_missing, errors) in verify() {
        assert!(!is_missing, "{unit}: {errors}");
    }
    fs::remove_dir_all(root.path().join("usr/local/sbin")).unwrap();
    for (unit, is_missing, errors) in verify() {
        assert!(is_missing, "{unit}: {errors}");
    }
}

#[test]
fn uninstall_removes_exactly_what_install_installed() {
    let root = tempfile::tempdir().unwrap();
    let other = root.path().join("usr/local/share/man/man8/other.8");
    fs::create_dir_all(other.parent().unwrap()).unwrap();
    fs::write(&other, "of another program").unwrap();
    make("install", root.path());
    assert!(files(root.path()).len() > 30);

    make("uninstall", root.path());
    let left: Vec<PathBuf> = files(root.path()).into_iter().collect();
    assert_eq!(left, [Path::new("usr/local/share/man/man8/other.8")]);
    let docs = root.path().join("usr/local/share/doc/vcpud");
    assert!(!docs.exists());
    // Nothing is an error if nothing is installed.
    make("uninstall", root.path());
}

/// Returns what `vcpud --check-config` prints about a file.
fn check(file: &str) -> Output {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("vcpud.toml"), file).unwrap();
    Command::new(env!("CARGO_BIN_EXE_vcpud"))
        .arg("--check-config")
        .env("CONFIGURATION_DIRECTORY", directory.path())
        .output()
        .unwrap()
}

/// All keys are in the sample, with valid values, and the sample itself sets none of them.
#[test]
fn the_sample_of_the_configuration_is_valid() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("doc/vcpud.toml");
    let sample = fs::read_to_string(path).unwrap();
    assert!(
        sample
            .lines()
            .all(|line| line.is_empty() || line.starts_with('#'))
    );
    succeeded(&check(&sample));

    let is_text = |line: &&str| line.starts_with("# ");
    let lines = sample.lines().filter(|line| !is_text(line));
    let active: Vec<&str> = lines.map(|line| line.trim_start_matches('#')).collect();
    succeeded(&check(&active.join("\n")));

    let page = include_str!("../man/vcpud.toml.5");
    let (_, keys) = page.split_once("table\n.Sy [service] .").unwrap();
    let (keys, _) = keys.split_once("only in the files of machines").unwrap();
    let keys = keys.lines().filter_map(|line| line.strip_prefix(".It Sy "));
    for key in keys {
        let is_key = |line: &&str| line.starts_with(&format!("{key} = "));
        assert_eq!(
            active.iter().filter(|line| is_key(line)).count(),
            1,
            "{key}"
        );
    }
}

#[test]
fn the_packages_have_the_version_of_the_crate() {
    let version = env!("CARGO_PKG_VERSION");
    let changelog = include_str!("../debian/changelog");
    assert!(changelog.starts_with(&format!("vcpud ({version}-")));
    let spec = include_str!("../rpm/vcpud.spec");
    let mut lines = spec
        .lines()
        .filter_map(|line| line.strip_prefix("Version:"));
    assert_eq!(lines.next().map(str::trim), Some(version));
    let collection = include_str!("../ansible/galaxy.yml");
    assert!(collection.contains(&format!("\nversion: {version}\n")));
}
