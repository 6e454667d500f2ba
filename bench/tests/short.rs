//! The benchmark runs and its report is whole: nothing here says how fast anything is.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

/// The daemon's binary: what DISKCHAIN_BIN says, or the one beside this test.
fn diskchain() -> PathBuf {
    let binary = match std::env::var_os("DISKCHAIN_BIN") {
        Some(path) => PathBuf::from(path),
        None => {
            let test = std::env::current_exe().expect("a test knows its own path");
            test.ancestors().nth(2).expect("a test lies in target/PROFILE/deps").join("diskchain")
        }
    };
    assert!(binary.is_file(), "{} is missing: run `cargo build -p diskchain`", binary.display());
    binary
}

/// Runs the short form, on images of 16 MiB, and returns its folder of results and the report in it.
fn short_form(args: &[&str]) -> (tempfile::TempDir, serde_json::Value) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let output = Command::new(env!("CARGO_BIN_EXE_diskchain-bench"))
        .args(["run", "--short", "--size", "16"])
        .args(args)
        .arg("--diskchain")
        .arg(diskchain())
        .arg("--disk")
        .arg(env!("CARGO_TARGET_TMPDIR"))
        .arg("--output")
        .arg(dir.path())
        .output()
        .expect("the benchmark starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let json = std::fs::read(dir.path().join("results.json")).expect("a report");
    let report = serde_json::from_slice(&json).expect("a report in JSON");
    (dir, report)
}

#[test]
fn a_window_in_which_nothing_is_answered_is_made_longer() {
    // Nothing at all can be answered in the first window: it is 0 ms long.
    let case = ["--only", "raw, tmpfs: write 4 KiB × 64"];
    let (_dir, report) = short_form(&[&["--window", "0", "--peer", "none"], &case[..]].concat());
    assert_eq!(report["cases"].as_array().map(Vec::len), Some(1));
    let sample = &report["cases"][0]["samples"]["diskchain"][0];
    assert!(sample["per_second"].as_f64().expect("a figure") > 0.0, "{sample}");
}

#[test]
fn the_short_form_measures_and_checks_every_case() {
    let (dir, report) = short_form(&["--window", "40", "--peer", "limit", "--peer", "threads"]);
    let cases = report["cases"].as_array().expect("cases");
    assert!(cases.len() >= 20, "{} cases", cases.len());
    let mut peers = BTreeSet::new();
    for case in cases {
        assert!(case["failures"].as_array().is_some_and(Vec::is_empty), "{case}");
        for peer in case["peers"].as_array().expect("peers") {
            peers.insert(peer["peer"].as_str().expect("a name").to_owned());
            assert!(peer["per_second"]["median"].as_f64().expect("a figure") > 0.0, "{peer}");
        }
        let ours = &case["samples"]["diskchain"];
        assert_eq!(ours.as_array().map(Vec::len), Some(1), "diskchain takes part in {}", case["name"]);
    }
    let expected = ["diskchain", "diskchain-one-image", "limit", "qemu-threads"];
    assert!(expected.iter().all(|peer| peers.contains(*peer)), "{peers:?}");
    let page = std::fs::read_to_string(dir.path().join("results.html")).expect("a page");
    assert_eq!(page.matches("<svg").count(), cases.len());
}
