//! cargo-fuzz target of the check `transmission`.

#![no_main]

use tokio::signal::unix::{SignalKind, signal};

libfuzzer_sys::fuzz_target!(
    init: {
        // What the runtime of a Rust program does before its main, which a fuzz target does not have: writing to a
        // socket that is closed is an error, not the end. The handler stays when the runtime goes.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async { signal(SignalKind::pipe()).expect("a handler") });
    },
    |input: &[u8]| fuzz_checks::transmission::check(input, &mut fuzz_checks::Reached::default())
);
