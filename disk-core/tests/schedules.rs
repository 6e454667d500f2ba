//! Threads in the tracker and the throttle, in orders that a scheduler chooses: turns are as defined, nobody is passed
//! over, no wake-up is lost. Bugs of such orders (`disk_core::planted`), planted one at a time, are found.

use std::cell::Cell;

use disk_core::planted::{Bug, plant};
use disk_core::testing::model::campaign::{self, Figures};
use disk_core::testing::trials::schedules::{throttle, turns};
use proptest::strategy::Strategy;

/// Cases that continuous integration runs.
const CASES: u32 = 250;

#[test]
fn turns_are_as_defined_while_threads_wait_leave_close_and_drain() {
    let reached = Cell::default();
    let figures =
        campaign::run("schedules, turns", CASES, &turns::cases(), |case| turns::trial(&case, &reached));
    let reached = reached.get();
    println!("schedules, turns: {reached:?}");
    assert!(figures.schedules >= 20_000, "{figures}");
    let turns::Reached { listed, waited, cancelled, refused, tried_in_vain, drained } = reached;
    assert!(listed > 50_000 && waited > 10_000 && cancelled > 1000, "{reached:?}");
    assert!(refused > 1000 && tried_in_vain > 1000 && drained > 1000, "{reached:?}");
}

#[test]
fn nobody_who_waits_for_tokens_is_forgotten_or_passed_over_while_others_leave_and_limits_change() {
    let reached = Cell::default();
    let figures = campaign::run("schedules, throttle", CASES, &throttle::cases(), |case| {
        throttle::trial(&case, &reached)
    });
    let reached = reached.get();
    println!("schedules, throttle: {reached:?}");
    assert!(figures.schedules >= 20_000, "{figures}");
    let throttle::Reached { at_once, waited, cancelled, changed, own_line, other_line } = reached;
    assert!(at_once > 1000 && waited > 10_000 && cancelled > 1000 && changed > 1000, "{reached:?}");
    assert!(own_line > 1000 && other_line > 100, "{reached:?}");
}

/// Plants a bug and looks for a case that fails; `message` is part of what it must say.
fn found<S: Strategy>(
    bug: Bug,
    strategy: &S,
    message: &str,
    trial: impl Fn(&S::Value) -> Result<Figures, String>,
) {
    let schedules = Cell::new(0);
    let _planted = plant(bug);
    let found = campaign::find(CASES, strategy, |case| {
        let figures = trial(&case)?;
        schedules.set(schedules.get() + figures.schedules);
        Ok(figures)
    });
    let Some((number, wrong)) = found else {
        panic!("{bug:?} is planted and was not found in {} schedules", schedules.get());
    };
    let schedules = schedules.get();
    println!("{bug:?}: found in case {number} of {CASES}, after {schedules} schedules of others: {wrong}");
    assert!(wrong.contains(message), "{bug:?} was to be found by {message:?}: {wrong}");
}

fn by_turns(bug: Bug, message: &str) {
    let reached = Cell::default();
    found(bug, &turns::cases(), message, |case| turns::trial(case, &reached));
}

fn by_throttle(bug: Bug, message: &str) {
    let reached = Cell::default();
    found(bug, &throttle::cases(), message, |case| throttle::trial(case, &reached));
}

#[test]
fn an_overlap_that_is_off_by_one_is_found_by_threads_too() {
    by_turns(Bug::OverlapOffByOne, "");
}

#[test]
fn a_waker_that_is_left_after_the_look_is_found() {
    by_turns(Bug::WakerAfterLook, "deadlock");
}

#[test]
fn a_dispatcher_that_ends_unseen_is_found() {
    by_throttle(Bug::DispatcherEndsUnseen, "deadlock");
}

#[test]
fn a_newcomer_who_goes_before_those_who_wait_is_found() {
    by_throttle(Bug::NewcomersFirst, "came after");
}
