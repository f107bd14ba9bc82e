//! Programs that tests make. They can be executed at once.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

/// Copies the program `from` to `to`.
pub(crate) fn copy_program(from: impl AsRef<OsStr>, to: &Path) {
    // The kernel executes no file that is open for writing. The test must not open it: a process that another test
    // starts has all descriptors of the test until it executes its own program.
    let status = Command::new("cp").arg(from.as_ref()).arg(to).status();
    assert!(status.expect("cp can be run").success());
}

/// Writes a program of the shell.
pub(crate) fn script(path: &Path, text: &str) {
    let draft = path.with_extension("draft");
    fs::write(&draft, format!("#!/bin/sh\n{text}\n")).expect("the directory is writable");
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(&draft, mode).expect("it was written");
    copy_program(&draft, path);
}
