//! The direction of dependencies, as `ARCHITECTURE.md` draws it. Reads the sources only.

#![expect(clippy::unwrap_used, reason = "a failed step ends the test")]

mod documents;
mod files;
mod prose;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Which modules of the crate each module may name.
const ARROWS: &[(&str, &[&str])] = &[
    ("arguments", &[]),
    ("audit", &["ids"]),
    ("autoscale", &["names"]),
    ("blocking", &[]),
    (
        "bus",
        &[
            "audit",
            "config",
            "guest_agent",
            "idle",
            "ids",
            "inventory",
            "machine",
            "names",
            "placement",
            "placer",
            "process",
            "qmp",
            "registry",
            "statistics",
        ],
    ),
    ("config", &["ids", "names", "placement"]),
    (
        "daemon",
        &[
            "audit", "blocking", "bus", "config", "idle", "machine", "names", "placer", "registry",
            "systemd",
        ],
    ),
    ("fd_store", &[]),
    (
        "guest_agent",
        &["ids", "inventory", "limited", "process", "text"],
    ),
    ("idle", &[]),
    ("ids", &[]),
    ("inventory", &["ids", "text"]),
    ("limited", &[]),
    ("log", &[]),
    (
        "machine",
        &[
            "audit",
            "blocking",
            "config",
            "fd_store",
            "guest_agent",
            "ids",
            "inventory",
            "limited",
            "names",
            "placement",
            "placer",
            "process",
            "qmp",
            "state_file",
            "statistics",
            "text",
        ],
    ),
    ("names", &[]),
    ("placement", &["ids"]),
    (
        "placer",
        &["blocking", "ids", "placement", "process", "statistics"],
    ),
    ("process", &["blocking", "ids"]),
    ("proxy", &[]),
    ("qmp", &["limited", "text"]),
    (
        "registry",
        &[
            "blocking",
            "config",
            "ids",
            "machine",
            "names",
            "placement",
            "placer",
            "process",
            "state_file",
        ],
    ),
    ("signals", &["names"]),
    ("state_file", &[]),
    ("statistics", &["ids", "inventory", "limited", "text"]),
    ("systemd", &["fd_store", "placement", "process", "proxy"]),
    ("text", &[]),
];

/// The only modules that may know D-Bus.
const KNOW_DBUS: &[&str] = &["bus", "daemon", "proxy", "signals", "systemd"];

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
    assert_eq!(text("src/process/sys.rs").matches(allowed).count(), 1);
    assert_eq!(mentions(&root.join("src"), "unsafe_code"), 1);
    let here = text("tests/architecture/main.rs");
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

/// Words of code that accesses files, `/proc`, control groups or netlink, or that sleeps.
const BLOCKING: &[&str] = &[
    "fs::",
    "use std::fs",
    "use rustix::fs",
    "use nix::fcntl",
    "Dir::open",
    "OpenOptions",
    "sendto",
    "rustix::net::connect",
    "UnixStream::connect",
    "thread::sleep",
];

/// The only files that may contain that: they run on the blocking pool, or pass it there.
const ON_BLOCKING_POOL: &[&str] = &[
    "config/files.rs",
    "audit/log.rs",
    "placer/cgroup/mod.rs",
    "placer/cgroup/survey.rs",
    "placer/cgroup/v1.rs",
    "placer/cgroup/v2.rs",
    "placer/cpus.rs",
    "process/dir.rs",
    "process/identity.rs",
    "process/leader.rs",
    "process/namespace.rs",
    "state_file.rs",
    "placer/host.rs",
    "placer/observe.rs",
    "placer/placer.rs",
    "placer/resctrl.rs",
    "placer/sample.rs",
    "process/clock.rs",
    "process/socket.rs",
    "process/task.rs",
    "machine/state_file.rs",
    "registry/registrations.rs",
    "registry/sockets.rs",
];

/// Calls that block, of the files above.
const BLOCKING_CALLS: &[&str] = &[
    "Configuration::read",
    "Host::this",
    "Masks::read",
    "Placer::create",
    "host.cpus()",
    "host.read_default_cpus()",
    ".dismantle(",
    ".has_task(",
    ".reconcile(",
    ".supports(",
    ".tasks_by_own_number(",
    " memberships(",
    " observe(thread",
    " sample(leader",
    " host_cpus(&self.system",
    "identity::read(",
    "state_file::write_new(",
    "state_file::load(",
];

/// Calls that pass work to the blocking pool. The work follows within `REACH` lines.
const PASSES_WORK: &[&str] = &["blocking(", "on_host(", ".run("];
const REACH: usize = 10;

#[test]
fn the_async_runtime_does_no_blocking_work() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    let mut left: Vec<&str> = ON_BLOCKING_POOL.to_vec();
    for (file, code) in code_of(&src, &src) {
        let blocks = BLOCKING.iter().find(|word| code.contains(**word));
        let is_listed = ON_BLOCKING_POOL.contains(&file.as_str());
        let blocks = blocks.copied().into_iter().chain(direct_calls(&code));
        let found: Vec<String> = blocks.map(|word| format!("{file}: {word}")).collect();
        if !is_listed {
            wrong.extend(found);
        } else if !found.is_empty() {
            left.retain(|listed| *listed != file);
        }
    }
    assert!(wrong.is_empty(), "on the async runtime: {wrong:#?}");
    assert!(left.is_empty(), "these files do not block: {left:?}");
}

/// Returns the calls in `code` that block and are not passed to the blocking pool.
fn direct_calls(code: &str) -> impl Iterator<Item = &'static str> {
    let is_direct = |call: &str| {
        let mut places = code.match_indices(call);
        places.any(|(place, _)| {
            let mut before = code[..place].lines().rev().take(REACH);
            !before.any(|line| PASSES_WORK.iter().any(|passes| line.contains(passes)))
        })
    };
    BLOCKING_CALLS
        .iter()
        .copied()
        .filter(move |call| is_direct(call))
}

/// Returns the code of each file of the library below `path`, by its path below `src`: without tests
/// and comments.
fn code_of(path: &Path, src: &Path) -> Vec<(String, String)> {
    if path.is_dir() {
        let entries = fs::read_dir(path).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        let paths = paths.filter(|path| !path.ends_with("bin") && !path.ends_with("tests.rs"));
        return paths.flat_map(|path| code_of(&path, src)).collect();
    }
    let text = fs::read_to_string(path).unwrap();
    let (code, _) = text.split_once("#[cfg(test)]").unwrap_or((&text, ""));
    let is_code = |line: &&str| !line.trim_start().starts_with("//");
    let code = code.lines().filter(is_code).collect::<Vec<_>>().join("\n");
    let file = path.strip_prefix(src).unwrap().display().to_string();
    vec![(file, code)]
}
