#![no_main]

mod sigpipe;

libfuzzer_sys::fuzz_target!(
    init: sigpipe::handle(),
    |data: &[u8]| vcpud_fuzz::agent(data)
);
