//! Orders of events in the tracker and between clients that come and leave: turns are as defined, nobody's wake-up is
//! lost, draining ends when all have gone, and what a client had asked for before it left never comes late.

use std::cell::Cell;

use disk_core::testing::model::campaign;
use disk_core::testing::trials::leaving::{self, Left};
use disk_core::testing::trials::turns;

#[test]
fn turns_are_as_defined_in_every_order_of_events_of_three_requests() {
    let figures = turns::every_order(3).unwrap_or_else(|wrong| panic!("{wrong}"));
    println!("turns, every order of three: {figures}, 0 wrong");
    assert!(figures.schedules > 10_000, "{figures}");
}

#[test]
fn turns_are_as_defined_in_random_orders_of_events_of_crowds() {
    let figures = campaign::run("turns", 20_000, &turns::cases(), |case| turns::trial(&case));
    assert!(figures.schedules >= 20_000, "{figures}");
}

#[test]
fn what_a_client_had_asked_for_before_it_left_never_overwrites_what_its_next_connection_wrote() {
    let left = Cell::new(Left::default());
    let figures = campaign::run("leaving", 150, &leaving::cases(), |case| leaving::trial(&case, &left));
    let left = left.get();
    println!("leaving: {} dropped, {} carried out", left.dropped, left.done);
    assert!(left.dropped > 500 && left.done > 500 && figures.schedules >= 150, "{left:?}, {figures}");
}
