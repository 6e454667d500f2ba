//! cargo-fuzz target of the check `parsers`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz_checks::parsers::check(input, &mut fuzz_checks::Reached::default()));
