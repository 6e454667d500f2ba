//! cargo-fuzz target of the check `options`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz_checks::options::check(input, &mut fuzz_checks::Reached::default()));
