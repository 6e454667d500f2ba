//! Every check on seeded inputs and on the kept corpus: a short hunt, the same on every machine.
//!
//! `DISKCHAIN_TEST_SEED` (1 if not set) chooses the inputs, `DISKCHAIN_TEST_EFFORT` (1) multiplies their number.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use disk_core::testing::model::campaign;
use fuzz_checks::{CHECKS, Check, Reached};

/// Longest input, bytes: some hundred steps of a conversation.
const LEN_MOST: u64 = 4096;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn input(&mut self) -> Vec<u8> {
        let len = self.next() % LEN_MOST;
        (0..len).map(|_| self.next() as u8).collect()
    }
}

fn corpus(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../corpus").join(name)
}

fn find(name: &str) -> Check {
    CHECKS.iter().find(|(known, _)| *known == name).expect("a check of that name").1
}

/// Runs one input; a panic names it in a way that can be kept.
fn run(check: Check, name: &str, from: &str, input: &[u8], reached: &mut Reached) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| check(input, reached))) {
        let path = std::env::temp_dir().join(format!("diskchain-fuzz-{name}-{from}"));
        let kept = std::fs::write(&path, input)
            .map_or_else(|error| error.to_string(), |()| path.display().to_string());
        eprintln!("{name}: input {from} breaks a promise; it is kept in {kept}");
        std::panic::resume_unwind(panic);
    }
}

/// Runs `inputs` inputs, and expects to come to each of `goals` in one of so many of them.
fn hunt(name: &str, inputs: u64, goals: &[(&str, u64)]) {
    let (check, seed) = (find(name), campaign::seed());
    let inputs = inputs * campaign::effort();
    let (mut random, mut reached) = (Random(seed), Reached::default());
    for number in 0..inputs {
        let input = random.input();
        run(check, name, &format!("{seed}-{number}"), &input, &mut reached);
    }
    println!("{name}: {inputs} inputs of seed {seed}, {:?}, 0 broken promises", reached.0);
    for (goal, one_in) in goals {
        let times = reached.0.get(goal).copied().unwrap_or_default();
        assert!(times >= inputs / one_in, "{goal}: {times} times in {inputs} inputs");
    }
}

#[test]
fn any_options_in_any_pieces_are_answered_in_step() {
    hunt("options", 4000, &[("options answered", 1), ("exports chosen", 20), ("connections dropped", 20)]);
}

#[test]
fn any_requests_of_several_clients_are_answered_once_and_only_what_was_written_is_there() {
    hunt(
        "transmission",
        300,
        &[("requests done", 1), ("requests refused or cut short", 1), ("requests never answered", 10)],
    );
}

#[test]
fn any_image_is_refused_or_read_repaired_and_written_in_order() {
    hunt(
        "image",
        400,
        &[("images refused", 10), ("images read", 10), ("images repaired", 20), ("images written", 20)],
    );
}

#[test]
fn any_configuration_is_a_sound_plan_or_findings_that_can_be_shown() {
    hunt("settings", 3000, &[("plans", 50), ("disks", 100), ("findings", 1)]);
}

#[test]
fn any_header_map_request_or_quantity_means_what_its_bytes_say_or_is_refused() {
    hunt(
        "parsers",
        3000,
        &[
            ("headers accepted", 80),
            ("headers refused", 30),
            ("images made", 120),
            ("images not made", 50),
            ("maps accepted for writing", 120),
            ("maps refused for writing", 50),
            ("maps cut off", 100),
            ("requests admitted", 300),
            ("requests refused", 50),
            ("options understood", 150),
            ("options malformed", 50),
            ("replies written", 20),
            ("chunks read", 1000),
            ("answers read", 200),
            ("quantities understood", 100),
            ("quantities refused", 50),
            ("addresses understood", 50),
            ("addresses refused", 50),
        ],
    );
}

#[test]
fn every_kept_input_keeps_its_promise() {
    for (name, check) in CHECKS {
        let entries = std::fs::read_dir(corpus(name)).expect("every check has a corpus");
        let paths: Vec<PathBuf> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
        assert!(!paths.is_empty(), "the corpus of {name} is empty");
        for path in paths {
            let input = std::fs::read(&path).expect("a readable file");
            let from = path.file_name().expect("a file").to_string_lossy().into_owned();
            run(check, name, &from, &input, &mut Reached::default());
        }
    }
}

/// The memory that hostile images take is bounded; asked of the whole process, so this file has a process of its own.
#[test]
fn no_image_takes_more_than_64_mib() {
    let before = peak_kib();
    hunt("image", 200, &[("images read", 10)]);
    let grown = peak_kib() - before;
    assert!(grown < 64 << 10, "{grown} KiB more than before");
}

/// Most memory that this process had so far.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
