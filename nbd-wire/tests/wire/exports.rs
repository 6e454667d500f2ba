//! Options that tell of an export or choose it: INFO, GO and EXPORT_NAME.

use nbd_wire::client::{Answer, Info, info_data};
use nbd_wire::consts::handshake_flags::{FIXED_NEWSTYLE, NO_ZEROES};
use nbd_wire::consts::{info, option, option_reply};
use nbd_wire::{Abilities, BlockSize, TransmissionFlags, Violation};

use crate::played::{PAYLOAD_MOST, SIZE, Shelf, Talk, Told, export};

fn infos(replies: &[Told]) -> Vec<Info<'_>> {
    let (last, infos) = replies.split_last().expect("there are replies");
    assert_eq!(last.answer(), Answer::Ack, "the last reply ends it");
    infos
        .iter()
        .map(|told| match told.answer() {
            Answer::Info(info) => info,
            other => panic!("{other:?}"),
        })
        .collect()
}

fn flags(replies: &[Told]) -> TransmissionFlags {
    infos(replies)
        .into_iter()
        .find_map(|info| match info {
            Info::Export { flags, size: SIZE } => Some(flags),
            _ => None,
        })
        .expect("an export is told with its flags")
}

#[test]
fn info_tells_size_flags_name_description_and_block_sizes() {
    let shelf = Shelf::new();
    let replies = Talk::new(&shelf).ask(option::INFO, &info_data("second", &[]));
    let flags = flags(&replies);
    assert_eq!(
        infos(&replies),
        [
            Info::Export { size: SIZE, flags },
            Info::Name("second"),
            Info::Description("the second disk"),
            Info::BlockSize(BlockSize { minimum: 1, preferred: 64 << 10, maximum: PAYLOAD_MOST }),
        ]
    );
}

#[test]
fn go_after_info_with_the_same_data_tells_the_same_and_is_followed_by_nothing() {
    let shelf = Shelf::new();
    for client_flags in [FIXED_NEWSTYLE, FIXED_NEWSTYLE | NO_ZEROES] {
        let mut talk = Talk::with_flags(&shelf, client_flags);
        let data = info_data("first", &[info::NAME, info::BLOCK_SIZE]);
        let told = |replies: Vec<Told>| replies.into_iter().map(|told| (told.kind, told.data)).collect();
        let before: Vec<_> = told(talk.ask(option::INFO, &data));
        let (replies, session) = talk.chosen(option::GO, &data);
        let after: Vec<_> = told(replies);
        assert_eq!(before, after);
        assert_eq!(session.export(), "first");
        assert!(talk.rest.is_empty(), "no padding after GO");
    }
}

#[test]
fn information_that_is_not_understood_is_ignored() {
    let shelf = Shelf::new();
    let (replies, _) = Talk::new(&shelf).chosen(option::GO, &info_data("first", &[77, 0xffff, info::NAME]));
    assert_eq!(infos(&replies).len(), 4);
}

#[test]
fn the_empty_name_is_the_default_export_and_its_own_name_is_told() {
    let shelf = Shelf::new();
    let (replies, session) = Talk::new(&shelf).chosen(option::GO, &info_data("", &[]));
    assert!(infos(&replies).contains(&Info::Name("first")));
    assert_eq!(session.export(), "first");
    let (_, session) = Talk::new(&shelf).chosen(option::EXPORT_NAME, b"");
    assert_eq!(session.export(), "first");
}

#[test]
fn an_unknown_export_is_answered_with_unknown_alone_and_another_can_be_chosen() {
    let shelf = Shelf::new();
    let mut talk = Talk::new(&shelf);
    for number in [option::INFO, option::GO] {
        talk.refused(number, &info_data("third", &[]), option_reply::ERR_UNKNOWN);
        talk.refused(number, &info_data("first\0", &[]), option_reply::ERR_UNKNOWN);
    }
    talk.chosen(option::GO, &info_data("second", &[]));
}

#[test]
fn an_export_that_this_client_may_not_have_is_refused_by_policy_with_the_reason() {
    let shelf = Shelf::new();
    let mut talk = Talk::new(&shelf);
    let replies = talk.ask(option::GO, &info_data("full", &[]));
    let expected = Answer::Error { kind: option_reply::ERR_POLICY, text: "four clients are enough" };
    assert_eq!(replies.iter().map(Told::answer).collect::<Vec<_>>(), [expected]);
}

#[test]
fn malformed_data_of_info_or_go_is_invalid_and_the_stream_stays_in_step() {
    let shelf = Shelf::new();
    let mut talk = Talk::new(&shelf);
    let good = info_data("first", &[1, 2]);
    let mut beyond = good.clone();
    beyond[..4].copy_from_slice(&100_u32.to_be_bytes());
    let huge = [&u32::MAX.to_be_bytes()[..], &good[4..]].concat();
    let no_text = [&[0, 0, 0, 2, 0xff, 0xfe][..], &[0, 0]].concat();
    let long_name = info_data(&"n".repeat(4097), &[]);
    let cuts = (0..good.len()).map(|len| good[..len].to_vec());
    let longer = [&good[..], &[0]].concat();
    for data in cuts.chain([beyond, huge, no_text, long_name, longer]) {
        for number in [option::INFO, option::GO] {
            talk.refused(number, &data, option_reply::ERR_INVALID);
        }
        if talk.ask(option::LIST, &[]).is_empty() {
            panic!("out of step after {data:?}");
        }
        // There are more of these than options in one handshake.
        talk = Talk::new(&shelf);
    }
}

#[test]
fn data_that_is_too_long_to_be_looked_at_is_too_big_and_skipped() {
    let shelf = Shelf::new();
    let mut talk = Talk::new(&shelf);
    for number in [option::INFO, option::GO, option::LIST_META_CONTEXT, option::SET_META_CONTEXT] {
        talk.refused(number, &vec![0; (64 << 10) + 1], option_reply::ERR_TOO_BIG);
    }
    talk.chosen(option::GO, &info_data("first", &[]));
}

#[test]
fn export_name_is_answered_with_size_flags_and_124_zeroes_unless_those_were_waived() {
    let shelf = Shelf::new();
    for (client_flags, zeroes) in [(FIXED_NEWSTYLE, 124), (FIXED_NEWSTYLE | NO_ZEROES, 0)] {
        let mut talk = Talk::with_flags(&shelf, client_flags);
        let (replies, session) = talk.chosen(option::EXPORT_NAME, b"second");
        assert!(replies.is_empty());
        assert_eq!(session.export(), "second");
        let expected = [&SIZE.to_be_bytes()[..], &session.flags().0.to_be_bytes(), &vec![0; zeroes]].concat();
        assert_eq!(talk.rest, expected);
    }
}

#[test]
fn export_name_of_an_export_that_is_not_served_ends_the_connection() {
    let shelf = Shelf::new();
    for name in [&b"third"[..], b"full", b"\xff\xfe"] {
        let (replies, progress) = Talk::new(&shelf).send(option::EXPORT_NAME, name);
        assert!(matches!(progress, Err(Violation::ExportName(_))), "{progress:?}");
        assert!(replies.is_empty());
    }
}

#[test]
fn export_name_after_extended_headers_ends_the_connection() {
    let shelf = Shelf::new();
    let mut talk = Talk::new(&shelf);
    talk.acknowledged(option::EXTENDED_HEADERS, &[]);
    let (_, progress) = talk.send(option::EXPORT_NAME, b"first");
    assert!(matches!(progress, Err(Violation::ExportName(_))), "{progress:?}");
}

#[test]
fn the_flags_always_say_that_there_are_flags_and_that_flush_and_fua_work() {
    let shelf = Shelf::of(nbd_wire::ExportInfo { abilities: Abilities::default(), ..export("bare") });
    let (replies, _) = Talk::new(&shelf).chosen(option::GO, &info_data("", &[]));
    let expected = TransmissionFlags::HAS_FLAGS
        | TransmissionFlags::SEND_FLUSH
        | TransmissionFlags::SEND_FUA
        | TransmissionFlags::SEND_WRITE_ZEROES
        | TransmissionFlags::SEND_CACHE;
    assert_eq!(flags(&replies), TransmissionFlags(expected));
}

#[test]
fn df_is_offered_exactly_when_replies_come_in_chunks() {
    let shelf = Shelf::new();
    for (ask, offered) in
        [(None, false), (Some(option::STRUCTURED_REPLY), true), (Some(option::EXTENDED_HEADERS), true)]
    {
        let mut talk = Talk::new(&shelf);
        if let Some(number) = ask {
            talk.acknowledged(number, &[]);
        }
        let replies = talk.ask(option::INFO, &info_data("first", &[]));
        assert_eq!(flags(&replies).has(TransmissionFlags::SEND_DF), offered);
    }
}

#[test]
fn a_preferred_block_above_the_largest_payload_is_told_as_the_specification_wants_it() {
    let block_size = BlockSize { minimum: 1, preferred: 1 << 20, maximum: 64 << 10 };
    let shelf = Shelf::of(nbd_wire::ExportInfo { block_size, ..export("odd") });
    let replies = Talk::new(&shelf).ask(option::INFO, &info_data("", &[]));
    let lawful = BlockSize { preferred: 64 << 10, ..block_size };
    assert!(infos(&replies).contains(&Info::BlockSize(lawful)), "{:?}", infos(&replies));
}
