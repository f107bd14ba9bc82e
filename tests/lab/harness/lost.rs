//! The end of the tests in a host that is lost. `tests/lab/check` boots it again, at most four times, for the tests that
//! have not passed, so that a fault of vcpud which has this effect is found nevertheless.

use std::io::{self, Write};
use std::process::{Child, Command, Stdio, exit};
use std::time::Duration;

use super::exit::has_exited;

/// The exit status of the tests if they say nothing about vcpud, as that of `tests/lab/sh`.
const LOST: i32 = 254;

/// The time limit of a program without vcpud, which needs some seconds.
const LIMIT: Duration = Duration::from_secs(60);

/// A Linux without init, which panics, and whose QEMU exits then.
const SHORT_GUEST: &str = "exec qemu-system-x86_64 -machine q35,accel=kvm -cpu host -smp 4 -m 256 \
    -display none -nodefaults -no-user-config -no-reboot -kernel /usr/local/share/guest/vmlinux \
    -initrd /usr/local/share/guest/initrd -append 'quiet rdinit=/none panic=-1'";

/// Ends the tests, and prints why.
pub(super) fn end_tests(reason: &str) -> ! {
    // An exit discards what the macros print, because libtest captures it.
    let _ = io::stderr().write_all(format!("\n{reason}\n").as_bytes());
    exit(LOST);
}

/// Ends the tests if the host hangs: a guest or systemd does not work without vcpud either. `step` is the step of a test
/// that has reached its time limit. Blocks until it is known.
pub(super) fn end_tests_if_host_hangs(step: &str) {
    let programs = ["exec systemctl is-system-running", SHORT_GUEST].map(start);
    for (name, program) in ["systemctl", "a guest without vcpud"].iter().zip(programs) {
        if !has_exited(program.id(), LIMIT) {
            end_tests(&format!(
                "the host hangs: {name} does not end, after a test waited for {step}"
            ));
        }
    }
}

fn start(script: &str) -> Child {
    let mut shell = Command::new("sh");
    shell.args(["-c", script]).stdin(Stdio::null());
    shell.stdout(Stdio::null()).stderr(Stdio::null());
    shell.spawn().expect("it is installed")
}
