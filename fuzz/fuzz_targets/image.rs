//! cargo-fuzz target of the check `image`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz_checks::image::check(input, &mut fuzz_checks::Reached::default()));
