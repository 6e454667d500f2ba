//! The campaigns find what they are there for: each of the known bugs (`disk_core::planted`), planted one at a time, is
//! found by a campaign within the cases that continuous integration runs of it. Those that only threads can see are in
//! `schedules.rs`.

use std::cell::{Cell, RefCell};
use std::time::Instant;

use disk_core::planted::{Bug, plant};
use disk_core::testing::model::campaign::{self, Figures};
use disk_core::testing::model::images;
use disk_core::testing::trials::{crash, device, faults, leaving, turns};
use proptest::strategy::Strategy;

/// Plants a bug and looks for a case of a campaign that fails; `message` is part of what it must say.
fn found<S: Strategy>(
    bug: Bug,
    campaign: &str,
    cases: u32,
    strategy: &S,
    message: &str,
    trial: impl Fn(&S::Value) -> Result<Figures, String>,
) {
    let (seed, began) = (campaign::seed(), Instant::now());
    let _planted = plant(bug);
    let found = campaign::find(cases, strategy, |case| trial(&case));
    let Some((number, wrong)) = found else {
        panic!("{bug:?} is planted and {campaign} has not found it in {cases} cases of seed {seed}");
    };
    let time = began.elapsed();
    println!("{bug:?}: found by {campaign}, seed {seed}, case {number} of {cases}, in {time:.1?}: {wrong}");
    assert!(wrong.contains(message), "{bug:?} was to be found by {message:?}: {wrong}");
}

fn by_power_cuts(bug: Bug, message: &str) {
    found(bug, "power cuts, chain", 80, &crash::cases(images::chain()), message, crash::trial);
}

fn by_faults(bug: Bug, message: &str) {
    let table = RefCell::default();
    found(bug, "faults", 24, &faults::cases(), message, |case| faults::trial(case, &table));
}

#[test]
fn a_barrier_that_a_vdi_skips_is_found() {
    by_power_cuts(Bug::SkipBarrier, "the disk at");
}

#[test]
fn a_barrier_that_a_raw_image_skips_is_found() {
    found(Bug::SkipBarrier, "power cuts, raw", 40, &crash::cases(images::raw()), "the disk at", crash::trial);
}

#[test]
fn a_map_entry_that_is_published_before_its_data_is_found() {
    by_power_cuts(Bug::PublishBeforeData, "");
}

#[test]
fn a_counter_that_is_written_after_the_map_is_found() {
    by_power_cuts(Bug::CounterAfterMap, "counter");
}

#[test]
fn a_map_in_memory_that_changes_before_the_file_is_found() {
    by_faults(Bug::MemoryBeforeDisk, "");
}

#[test]
fn a_slot_that_is_free_before_that_is_durable_is_found() {
    by_power_cuts(Bug::FreeBeforeDurable, "");
}

#[test]
fn a_slot_that_is_punched_after_it_is_used_again_is_found() {
    found(Bug::PunchAfterReuse, "device", 250, &device::cases(), "", device::trial);
}

#[test]
fn a_flush_that_succeeds_after_one_has_failed_is_found() {
    by_faults(Bug::LieAfterFailedSync, "succeeded after a flush had failed");
}

#[test]
fn a_write_of_zeroes_that_drops_fua_is_found() {
    by_power_cuts(Bug::DropFuaOnZeroes, "the disk at");
}

#[test]
fn a_write_that_is_answered_before_its_map_entry_is_written_is_found() {
    by_power_cuts(Bug::AckBeforeEntry, "killed after");
}

#[test]
fn an_overlap_that_is_off_by_one_is_found() {
    found(Bug::OverlapOffByOne, "turns", 20_000, &turns::cases(), "by the definition", turns::trial);
}

#[test]
fn a_request_that_starts_after_its_client_has_left_is_found() {
    let left = Cell::default();
    let trial = |case: &leaving::Case| leaving::trial(case, &left);
    found(Bug::ReconnectZombie, "leaving", 150, &leaving::cases(), "what the new connection wrote", trial);
}

#[test]
fn a_parents_block_that_comes_back_after_zeroes_is_found() {
    by_power_cuts(Bug::StaleParentAfterZero, "");
}

#[test]
fn every_bug_of_the_list_has_its_test() {
    let text = concat!(include_str!("planted_bugs.rs"), include_str!("schedules.rs"));
    for bug in Bug::ALL {
        assert!(text.contains(&format!("(Bug::{bug:?},")), "{bug:?}");
    }
}
