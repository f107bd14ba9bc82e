//! The options of the program and its manual page. Needs no display.

#![expect(clippy::unwrap_used, reason = "a failed step ends the test")]

use std::process::Command;

const MANUAL: &str = include_str!("../data/vcpud-gtk.1");

fn run(option: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vcpud-gtk"));
    command.env_remove("DISPLAY").env_remove("WAYLAND_DISPLAY");
    let output = command.arg(option).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn prints_its_version() {
    let version = concat!("vcpud-gtk ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(run("--version"), version);
}

#[test]
fn the_manual_page_has_the_options() {
    let help = run("--help");
    let words = help.split_whitespace();
    let options: Vec<&str> = words.filter_map(|word| word.strip_prefix("--")).collect();
    assert!(options.len() >= 3, "{options:?}");
    // The options of GApplication are for the desktop only.
    for option in options
        .iter()
        .filter(|option| !option.ends_with("gapplication"))
    {
        assert!(MANUAL.contains(&format!(" -{option}")), "{option}");
    }
}
