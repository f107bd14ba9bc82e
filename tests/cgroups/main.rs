//! Placement of the threads of a real QEMU, with control groups of the real kernel.
//!
//! A host has control groups of one version. A test that needs more than this host has is ignored, with the
//! reason in the output of the test. With `VCPUD_REQUIRE_TESTS` in the environment it fails, unless it needs
//! control groups of version 1 and the host has version 2, or vice versa.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a failed step ends the test"
)]

#[macro_use]
mod parts;

mod bare;
mod counters;
mod reuse;
mod v1;
mod v2;

use std::env;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use parts::{NotRun, Test};

fn main() {
    let is_strict = env::var_os("VCPUD_REQUIRE_TESTS").is_some();
    let tests = [
        bare::tests(),
        counters::tests(),
        reuse::tests(),
        v1::tests(),
        v2::tests(),
    ];
    let trials = tests
        .into_iter()
        .flatten()
        .map(|test| trial(test, is_strict));
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}

fn trial(Test { name, run }: Test, is_strict: bool) -> Trial {
    let (_, name) = name.split_once("::").unwrap_or(("", name));
    Trial::ignorable_test(name, move || match run() {
        Ok(()) => Ok(Completion::Completed),
        Err(NotRun {
            reason,
            is_expected,
        }) if is_strict && !is_expected => {
            Err(Failed::from(format!("the test did not run: {reason}")))
        }
        Err(NotRun { reason, .. }) => Ok(Completion::ignored_with(reason)),
    })
}
