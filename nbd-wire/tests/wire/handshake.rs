//! The handshake: greeting, flags and the options that do not choose an export.

use nbd_wire::client::{self, Answer};
use nbd_wire::consts::handshake_flags::{FIXED_NEWSTYLE, NO_ZEROES};
use nbd_wire::consts::{option, option_reply};
use nbd_wire::{Handshake, Progress, Violation};

use crate::played::{Shelf, Talk};

#[test]
fn the_greeting_offers_fixed_newstyle_and_no_zeroes_and_nothing_else() {
    assert_eq!(client::greeting(&Handshake::greeting()), Ok(FIXED_NEWSTYLE | NO_ZEROES));
}

#[test]
fn an_unknown_client_flag_ends_the_connection() {
    for flag in 2..32 {
        let flags = 1_u32 << flag | u32::from(FIXED_NEWSTYLE);
        let fed = Handshake::default().feed(&flags.to_be_bytes(), &Shelf::new(), &mut Vec::new());
        assert_eq!(fed, Err(Violation::ClientFlags(flags)));
    }
}

#[test]
fn a_client_that_does_not_know_fixed_newstyle_is_refused() {
    for flags in [0, u32::from(NO_ZEROES)] {
        let fed = Handshake::default().feed(&flags.to_be_bytes(), &Shelf::new(), &mut Vec::new());
        assert_eq!(fed, Err(Violation::NotFixedNewstyle));
    }
}

#[test]
fn an_option_without_its_magic_ends_the_connection_as_soon_as_that_is_seen() {
    let shelf = Shelf::new();
    for bytes in [&b"GET / HTTP/1.1\r\n"[..], b"GET / HT"] {
        let fed = Talk::new(&shelf).server.feed(bytes, &shelf, &mut Vec::new());
        assert!(matches!(fed, Err(Violation::OptionMagic(_))), "{fed:?}");
    }
    let fed = Talk::new(&shelf).server.feed(b"IHAVEOP", &shelf, &mut Vec::new());
    assert_eq!(fed, Ok((0, Progress::More)));
}

#[test]
fn an_unknown_option_is_answered_with_unsup_and_the_stream_stays_in_step() {
    let shelf = Shelf::new();
    let mut talk = Talk::new(&shelf);
    for (number, len) in
        [(option::PEEK_EXPORT, 0), (12, 3), (0xffff_ffff, 5000), (0, 64 << 10), (77, 1 << 20)]
    {
        talk.refused(number, &vec![0xee; len], option_reply::ERR_UNSUP);
        assert_eq!(talk.ask(option::LIST, &[]).len(), 3, "two exports and the end");
    }
}

#[test]
fn abort_is_acknowledged_whatever_data_it_has() {
    let shelf = Shelf::new();
    for len in [0, 1, 4096, 1 << 20] {
        let (replies, progress) = Talk::new(&shelf).send(option::ABORT, &vec![1; len]);
        assert_eq!(progress, Ok(Progress::Aborted));
        assert_eq!(replies.iter().map(|told| told.kind).collect::<Vec<_>>(), [option_reply::ACK]);
    }
}

#[test]
fn list_names_every_export_and_ends_with_ack() {
    let replies = Talk::new(&Shelf::new()).ask(option::LIST, &[]);
    assert_eq!(
        replies.iter().map(|told| told.answer()).collect::<Vec<_>>(),
        [
            Answer::Server { name: "first", description: "the first disk" },
            Answer::Server { name: "second", description: "the second disk" },
            Answer::Ack,
        ]
    );
}

#[test]
fn list_without_any_export_is_just_acknowledged() {
    let shelf = Shelf { exports: Vec::new(), ..Shelf::new() };
    Talk::new(&shelf).acknowledged(option::LIST, &[]);
}

#[test]
fn a_list_that_the_configuration_forbids_is_refused_by_policy() {
    let shelf = Shelf { listed: false, ..Shelf::new() };
    Talk::new(&shelf).refused(option::LIST, &[], option_reply::ERR_POLICY);
}

#[test]
fn options_that_take_no_data_are_invalid_with_data_and_change_nothing() {
    let shelf = Shelf::new();
    let mut talk = Talk::new(&shelf);
    for len in [1, 16, 100 << 10] {
        for number in [option::LIST, option::STARTTLS, option::STRUCTURED_REPLY, option::EXTENDED_HEADERS] {
            talk.refused(number, &vec![0; len], option_reply::ERR_INVALID);
        }
    }
    let (_, session) = talk.chosen(option::EXPORT_NAME, b"first");
    assert!(!session.reply(0, 0).is_chunked(), "neither form of chunks was negotiated");
}

#[test]
fn without_tls_starttls_is_refused_by_policy_and_keeps_what_was_negotiated() {
    let shelf = Shelf::new();
    let mut talk = Talk::new(&shelf);
    talk.acknowledged(option::STRUCTURED_REPLY, &[]);
    talk.refused(option::STARTTLS, &[], option_reply::ERR_POLICY);
    let (_, session) = talk.chosen(option::GO, &client::info_data("first", &[]));
    assert!(session.reply(0, 0).is_chunked());
}

#[test]
fn structured_replies_after_extended_headers_are_refused_as_a_step_back() {
    let shelf = Shelf::new();
    let mut talk = Talk::new(&shelf);
    talk.acknowledged(option::EXTENDED_HEADERS, &[]);
    talk.refused(option::STRUCTURED_REPLY, &[], option_reply::ERR_EXT_HEADER_REQD);
    let (_, session) = talk.chosen(option::GO, &client::info_data("first", &[]));
    assert_eq!(session.header_style(), nbd_wire::HeaderStyle::Extended);
}

#[test]
fn extended_headers_may_follow_structured_replies_or_come_alone_or_twice() {
    for before in [&[option::STRUCTURED_REPLY][..], &[], &[option::EXTENDED_HEADERS]] {
        let shelf = Shelf::new();
        let mut talk = Talk::new(&shelf);
        for number in before {
            talk.acknowledged(*number, &[]);
        }
        talk.acknowledged(option::EXTENDED_HEADERS, &[]);
        let (_, session) = talk.chosen(option::GO, &client::info_data("first", &[]));
        assert_eq!(session.header_style(), nbd_wire::HeaderStyle::Extended);
    }
}

#[test]
fn a_stopping_server_refuses_every_option_but_abort() {
    let shelf = Shelf { stopping: true, ..Shelf::new() };
    let mut talk = Talk::new(&shelf);
    for number in [
        option::LIST,
        option::STARTTLS,
        option::INFO,
        option::GO,
        option::STRUCTURED_REPLY,
        option::LIST_META_CONTEXT,
        option::SET_META_CONTEXT,
        option::EXTENDED_HEADERS,
        77,
    ] {
        talk.refused(number, &[], option_reply::ERR_SHUTDOWN);
    }
    assert_eq!(talk.send(option::ABORT, &[]).1, Ok(Progress::Aborted));
    let (replies, progress) = Talk::new(&shelf).send(option::EXPORT_NAME, b"first");
    assert!(matches!(progress, Err(Violation::ExportName(_))), "it cannot be answered otherwise");
    assert!(replies.is_empty());
}

#[test]
fn without_tls_no_option_is_answered_with_tls_reqd() {
    let shelf = Shelf::new();
    let mut talk = Talk::new(&shelf);
    for number in (2..20).filter(|number| *number != option::ABORT) {
        for data in [&[][..], &[0; 6], &[0; 8]] {
            let (replies, progress) = talk.send(number, data);
            assert!(replies.iter().all(|told| told.kind != option_reply::ERR_TLS_REQD));
            if progress != Ok(Progress::More) {
                talk = Talk::new(&shelf);
            }
        }
    }
}
