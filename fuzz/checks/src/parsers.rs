//! The parsers by themselves: whatever takes bytes or words from outside and makes values of them, without the disks,
//! sockets and connections behind it. A hundred times faster than the checks that run those.
//!
//! ```text
//!   header   VDI headers of all versions    accepted or refused as a second reading says; encodes to the same bytes
//!   map      VDI block maps                 looks up, counts and refuses as its entries say
//!   wire     NBD requests, options, replies encodes to the same bytes; admitted is what the terms allow
//!   words    sizes, rates, durations,       means one exact number or place, and is written back as that
//!            addresses of the configuration
//! ```
//! Invariant: what is expected comes from the specification of the format, not from the product's code.

mod header;
mod map;
mod wire;
mod words;

use arbitrary::{Arbitrary, Unstructured};

use crate::Reached;

/// One input.
#[derive(Debug, Arbitrary)]
enum Input {
    Header(header::Input),
    Created(header::Wish),
    Map(map::Input),
    Request(wire::Asked),
    Option(wire::Opted),
    Reply(wire::Answered),
    Read(wire::Read),
    Quantity(words::Quantity),
    Address(words::Address),
}

/// See the module.
pub fn check(input: &[u8], reached: &mut Reached) {
    let Ok(input) = Input::arbitrary(&mut Unstructured::new(input)) else { return };
    match input {
        Input::Header(input) => header::check(&input, reached),
        Input::Created(wish) => header::check_created(&wish, reached),
        Input::Map(input) => map::check(&input, reached),
        Input::Request(asked) => wire::check_request(&asked, reached),
        Input::Option(opted) => wire::check_option(&opted, reached),
        Input::Reply(answered) => wire::check_reply(&answered, reached),
        Input::Read(read) => wire::check_read(&read, reached),
        Input::Quantity(quantity) => words::check_quantity(&quantity, reached),
        Input::Address(address) => words::check_address(&address, reached),
    }
}
