//! cargo-fuzz target of the check `settings`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz_checks::settings::check(input, &mut fuzz_checks::Reached::default()));
