//! What a request costs in instructions is no more than recorded in instructions.json.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A release build of the daemon, no other is counted: what DISKCHAIN_RELEASE_BIN says, or the one in this test's target
/// folder.
fn diskchain() -> PathBuf {
    let binary = match std::env::var_os("DISKCHAIN_RELEASE_BIN") {
        Some(path) => PathBuf::from(path),
        None => {
            let test = std::env::current_exe().expect("a test knows its own path");
            test.ancestors().nth(3).expect("a test lies in target/PROFILE/deps").join("release/diskchain")
        }
    };
    assert!(binary.is_file(), "{} is missing: run `cargo build --release -p diskchain`", binary.display());
    binary
}

#[test]
fn a_request_takes_no_more_instructions_than_recorded() {
    let output = Command::new(env!("CARGO_BIN_EXE_diskchain-bench"))
        .arg("instructions")
        .arg("--diskchain")
        .arg(diskchain())
        .arg("--baseline")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("instructions.json"))
        .output()
        .expect("the benchmark starts");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(told.matches("instructions a request, recorded").count(), 6, "{told}");
}
