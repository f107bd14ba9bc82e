//! Runs the inputs in `fuzz/corpus` through the fuzz targets, without a fuzzer.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a failed step ends the test"
)]

#[path = "../fuzz/src/lib.rs"]
#[allow(unreachable_pub, reason = "it is a library in fuzz/")]
mod fuzz;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fs, panic};

#[test]
fn the_targets_accept_all_inputs_of_the_corpus() {
    // A panic in another task would not fail the test. A fuzzer ends at every panic.
    static PANICKED: AtomicBool = AtomicBool::new(false);
    let hook = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        PANICKED.store(true, Ordering::Relaxed);
        hook(info);
    }));
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, target) in fuzz::TARGETS {
        let mut tried = 0;
        for file in fs::read_dir(corpus.join(name)).unwrap() {
            let file = file.unwrap().path();
            let input = fs::read(&file).unwrap();
            let result = panic::catch_unwind(|| target(&input));
            let is_well = result.is_ok() && !PANICKED.load(Ordering::Relaxed);
            assert!(is_well, "{} breaks a property", file.display());
            tried += 1;
        }
        assert!(tried > 0, "there are inputs for {name}");
    }
}
