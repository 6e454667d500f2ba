//! Clients that mean no good, and networks that cut everything into pieces.

use nbd_wire::client::{context_data, info_data, option as put_option};
use nbd_wire::consts::option;
use nbd_wire::{Handshake, Progress, Violation};
use proptest::prelude::*;

use crate::played::{Shelf, Talk};

/// What a handshake came to, its answers, and how much of the input it took if it did not fail.
#[derive(Debug, PartialEq, Eq)]
struct Heard {
    out: Vec<u8>,
    outcome: Result<Progress, Violation>,
    taken: usize,
}

/// Feeds `input` in pieces, as a caller does that keeps what is not taken.
fn hear(input: &[u8], piece: usize) -> Heard {
    let (mut handshake, shelf) = (Handshake::default(), Shelf::new());
    let mut heard = Heard { out: Vec::new(), outcome: Ok(Progress::More), taken: 0 };
    let mut pending = Vec::new();
    for bytes in input.chunks(piece) {
        pending.extend_from_slice(bytes);
        match handshake.feed(&pending, &shelf, &mut heard.out) {
            Ok((taken, progress)) => {
                pending.drain(..taken);
                heard.taken += taken;
                assert!(pending.len() < Handshake::INPUT_MOST || progress != Progress::More);
                heard.outcome = Ok(progress);
            }
            Err(violation) => (heard.taken, heard.outcome) = (0, Err(violation)),
        }
        if heard.outcome != Ok(Progress::More) {
            break;
        }
    }
    heard
}

fn data() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof!["first", "second", "", "third", "\\PC{0,9}"];
    let query = prop_oneof!["base:", "base:allocation", "qemu:", "qemu:allocation-depth", "", "\\PC{0,9}"];
    let queries = prop::collection::vec(query, 0..4);
    prop_oneof![
        3 => Just(Vec::new()),
        2 => (name.clone(), prop::collection::vec(0u16..5, 0..4))
            .prop_map(|(name, wants)| info_data(&name, &wants)),
        2 => (name.clone(), queries).prop_map(|(name, queries)| {
            context_data(&name, &queries.iter().map(String::as_str).collect::<Vec<_>>())
        }),
        1 => name.prop_map(String::into_bytes),
        1 => prop::collection::vec(any::<u8>(), 0..40),
        1 => Just(vec![0; 70_000]),
    ]
}

/// Client flags, some options, and some bytes of no meaning.
fn handshakes() -> impl Strategy<Value = Vec<u8>> {
    let flags = prop_oneof![9 => Just(3_u32), 3 => Just(1), 1 => any::<u32>()];
    let number = prop_oneof![20 => 3u32..12, 1 => 0u32..14, 1 => any::<u32>()];
    let options = prop::collection::vec((number, data()), 0..8);
    (flags, options, prop::collection::vec(any::<u8>(), 0..30)).prop_map(|(flags, options, tail)| {
        let mut bytes = flags.to_be_bytes().to_vec();
        for (number, data) in options {
            put_option(number, &data, &mut bytes);
        }
        bytes.extend(tail);
        bytes
    })
}

proptest! {
    #[test]
    fn however_the_network_cuts_a_handshake_it_comes_to_the_same(bytes in handshakes(), piece in 1usize..99) {
        let whole = hear(&bytes, usize::MAX);
        prop_assert_eq!(&hear(&bytes, piece), &whole);
        if bytes.len() < 2000 {
            prop_assert_eq!(&hear(&bytes, 1), &whole);
        }
    }

    #[test]
    fn any_bytes_are_answered_within_bounds(flags in prop_oneof![Just(3_u32), any::<u32>()], bytes: Vec<u8>) {
        let input = [&flags.to_be_bytes()[..], b"IHAVEOPT", &bytes].concat();
        for len in [input.len(), 4, 12] {
            let heard = hear(&input[..len.min(input.len())], 7);
            prop_assert!(heard.out.len() < 1000, "{} bytes of answers", heard.out.len());
        }
    }
}

#[test]
fn options_without_end_end_the_connection() {
    let shelf = Shelf::new();
    let mut talk = Talk::new(&shelf);
    let answered = (0..10_000).take_while(|_| talk.send(option::LIST, &[]).1.is_ok()).count();
    assert!((64..1000).contains(&answered), "{answered} options were answered");
    assert!(matches!(talk.send(option::LIST, &[]).1, Err(Violation::TooManyOptions(_))));
}

#[test]
fn an_option_of_absurd_length_ends_the_connection_before_its_data_comes() {
    let shelf = Shelf::new();
    for number in [option::LIST, option::GO, option::SET_META_CONTEXT, option::ABORT, 77] {
        for len in [(1_u32 << 20) + 1, u32::MAX] {
            let header = [b"IHAVEOPT".as_slice(), &number.to_be_bytes(), &len.to_be_bytes()].concat();
            let fed = Talk::new(&shelf).server.feed(&header, &shelf, &mut Vec::new());
            assert_eq!(fed, Err(Violation::OptionTooLong { option: number, len }));
        }
    }
    let len = 65_u32 << 10;
    let header = [b"IHAVEOPT".as_slice(), &option::EXPORT_NAME.to_be_bytes(), &len.to_be_bytes()].concat();
    let fed = Talk::new(&shelf).server.feed(&header, &shelf, &mut Vec::new());
    assert_eq!(fed, Err(Violation::OptionTooLong { option: option::EXPORT_NAME, len }));
}

#[test]
fn answers_that_came_before_a_violation_are_there_to_be_sent() {
    let mut input = 3_u32.to_be_bytes().to_vec();
    put_option(option::LIST, &[], &mut input);
    input.extend_from_slice(b"not an option at all");
    let heard = hear(&input, usize::MAX);
    assert!(matches!(heard.outcome, Err(Violation::OptionMagic(_))));
    assert!(!heard.out.is_empty());
}
