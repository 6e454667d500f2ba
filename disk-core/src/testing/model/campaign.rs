//! Many cases of one property: drawn from a seed, counted, and made smaller when one fails.
//!
//! `DISKCHAIN_TEST_SEED` (1 if not set) chooses the cases, `DISKCHAIN_TEST_EFFORT` (1) multiplies their number.
//!
//! Invariant: the same seed and effort draw the same cases.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

/// The seed that was asked for.
pub fn seed() -> u64 {
    number("DISKCHAIN_TEST_SEED")
}

/// How many times the default number of cases was asked for.
pub fn effort() -> u64 {
    number("DISKCHAIN_TEST_EFFORT")
}

fn number(name: &str) -> u64 {
    std::env::var(name)
        .map_or(1, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// Where random values come from for this seed.
pub fn runner(config: Config, seed: u64) -> TestRunner {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

/// Runs `test` on `cases` values of `strategy` (times the effort). It returns how much it did, which is summed up and
/// printed.
///
/// # Panics
/// If one fails, with the smallest that fails and the seed.
pub fn run<S: Strategy>(
    name: &str,
    cases: u32,
    strategy: &S,
    test: impl Fn(S::Value) -> Result<Figures, String>,
) -> Figures {
    let (seed, began, sum) = (seed(), Instant::now(), Cell::new(Figures::default()));
    let cases = cases * u32::try_from(effort()).expect("a bearable effort");
    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 500,
        max_shrink_time: 20_000,
        ..Config::default()
    };
    println!("{name}: seed {seed}, {cases} cases");
    let outcome = runner(config, seed).run(strategy, |value| {
        let figures = test(value).map_err(TestCaseError::fail)?;
        sum.set(sum.get() + figures);
        Ok(())
    });
    let sum = sum.get();
    match outcome {
        Ok(()) => println!("{name}: {cases} cases, {sum}, 0 wrong, in {:.0?}", began.elapsed()),
        Err(TestError::Fail(reason, value)) => panic!("{name}: seed {seed}: {reason}\n{value:#?}"),
        Err(error) => panic!("{name}: seed {seed}: {error}"),
    }
    sum
}

/// The first of `cases` values that fails, as its number counted from 1 and what was wrong; a panic is a failure too.
/// Nothing is made smaller: it is for failures that are expected.
pub fn find<S: Strategy>(
    cases: u32,
    strategy: &S,
    test: impl Fn(S::Value) -> Result<Figures, String>,
) -> Option<(u32, String)> {
    let mut runner = runner(Config::default(), seed());
    (1..=cases).find_map(|number| {
        let value = strategy.new_tree(&mut runner).expect("a strategy that rejects nothing").current();
        let outcome = catch_unwind(AssertUnwindSafe(|| test(value)));
        outcome.unwrap_or_else(|_| Err("panicked".into())).err().map(|wrong| (number, wrong))
    })
}

/// How much a test did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Requests, and steps that are none.
    pub operations: u64,
    /// Times that a disk was opened anew and used on.
    pub reopens: u64,
    /// Times that a disk was looked at from all sides.
    pub inspections: u64,
    /// Moments at which the power was cut or the process killed.
    pub cuts: u64,
    /// Files that were left by that and looked at.
    pub states: u64,
    /// Faults that struck.
    pub faults: u64,
    /// Bytes of blocks that moved inside their image meanwhile.
    pub moves: u64,
    /// Orders of events that were gone through.
    pub schedules: u64,
}

impl Figures {
    fn named(&self) -> [(u64, &'static str); 8] {
        let Figures { operations, reopens, inspections, cuts, states, faults, moves, schedules } = *self;
        [
            (operations, "operations"),
            (reopens, "reopens"),
            (inspections, "inspections"),
            (cuts, "cuts"),
            (states, "states"),
            (faults, "faults"),
            (moves, "bytes moved"),
            (schedules, "schedules"),
        ]
    }
}

impl std::ops::Add for Figures {
    type Output = Figures;

    fn add(self, other: Figures) -> Figures {
        Figures {
            operations: self.operations + other.operations,
            reopens: self.reopens + other.reopens,
            inspections: self.inspections + other.inspections,
            cuts: self.cuts + other.cuts,
            states: self.states + other.states,
            faults: self.faults + other.faults,
            moves: self.moves + other.moves,
            schedules: self.schedules + other.schedules,
        }
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts: Vec<String> = self
            .named()
            .into_iter()
            .filter(|(number, _)| *number > 0)
            .map(|(number, name)| format!("{number} {name}"))
            .collect();
        f.write_str(&parts.join(", "))
    }
}
