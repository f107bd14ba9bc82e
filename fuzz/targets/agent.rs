#![no_main]

use tokio::signal::unix::{SignalKind, signal};

libfuzzer_sys::fuzz_target!(
    init: {
        // Rust programs ignore SIGPIPE from their start, but this one starts as libFuzzer's. A
        // handler, once there, stays.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let handled = runtime.and_then(|runtime| {
            runtime.block_on(async { signal(SignalKind::pipe()).map(drop) })
        });
        handled.expect("SIGPIPE can be handled");
    },
    |data: &[u8]| vcpud_fuzz::agent(data)
);
