#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vcpud_fuzz::labels(data));
