//! Which requests are carried out, which are refused with what, and which end the connection.

use nbd_wire::client::{Choice, Headers, Wish};
use nbd_wire::{
    Abilities, Admitted, BlockSize, Command, CommandFlags, ContextId, Errno, ExportInfo, Refusal, Refused,
    Request, Session, Violation,
};

use crate::played::{PAYLOAD_MOST, SIZE, Shelf, connect, export};

const MOST: u64 = PAYLOAD_MOST as u64;
const EVERY_COMMAND: [Command; 8] = [
    Command::Read,
    Command::Write,
    Command::Disconnect,
    Command::Flush,
    Command::Trim,
    Command::Cache,
    Command::WriteZeroes,
    Command::BlockStatus,
];
const HEADERS: [Headers; 3] = [Headers::Simple, Headers::Structured, Headers::Extended];

fn session_on(export: ExportInfo, headers: Headers) -> Session {
    let contexts = vec!["base:allocation".to_owned(), "qemu:allocation-depth".to_owned()];
    connect(&Shelf::of(export), Wish { headers, contexts, ..Wish::default() }).0
}

fn session(headers: Headers) -> Session {
    session_on(export("disk"), headers)
}

/// A request; an extended write has the flag that it must have.
fn request(session: &Session, command: Command, flags: u16, offset: u64, length: u64) -> Request {
    let extended = session.header_style() == nbd_wire::HeaderStyle::Extended;
    let payload = if extended && command == Command::Write { CommandFlags::PAYLOAD_LEN } else { 0 };
    Request { flags: CommandFlags(flags | payload), command, cookie: 7, offset, length }
}

#[track_caller]
fn admitted(session: &Session, command: Command, flags: u16, offset: u64, length: u64) -> Admitted {
    let request = request(session, command, flags, offset, length);
    let admitted = session.admit(&request).unwrap_or_else(|refused| panic!("{request:?}: {refused:?}"));
    assert_eq!((admitted.command, admitted.offset, admitted.length), (command, offset, length));
    assert_eq!((admitted.cookie, admitted.flags), (7, request.flags));
    admitted
}

#[track_caller]
fn refused(session: &Session, command: Command, flags: u16, offset: u64, length: u64) -> Refusal {
    let request = request(session, command, flags, offset, length);
    match session.admit(&request) {
        Err(Refused::Reply(refusal)) => {
            assert!(!refusal.text.is_empty(), "a refusal says why");
            refusal
        }
        other => panic!("{request:?}: {other:?}"),
    }
}

#[track_caller]
fn errno(session: &Session, command: Command, offset: u64, length: u64) -> Errno {
    refused(session, command, 0, offset, length).errno
}

#[test]
fn every_command_is_admitted_within_the_disk() {
    for headers in HEADERS {
        let session = session(headers);
        for command in [Command::Read, Command::Write, Command::Trim, Command::Cache, Command::WriteZeroes] {
            admitted(&session, command, 0, 0, 1);
            admitted(&session, command, 0, SIZE - 4096, 4096);
            admitted(&session, command, 0, 12345, MOST);
        }
        admitted(&session, Command::Flush, 0, 0, 0);
        admitted(&session, Command::Disconnect, 0, 0, 0);
    }
}

#[test]
fn only_a_write_has_a_payload_and_only_a_read_brings_one() {
    for headers in HEADERS {
        let session = session(headers);
        let write = admitted(&session, Command::Write, 0, 0, 4096);
        assert_eq!((write.payload_len(), write.buffer_len()), (4096, 4096));
        let read = admitted(&session, Command::Read, 0, 0, 4096);
        assert_eq!((read.payload_len(), read.buffer_len()), (0, 4096));
        let zeroes = admitted(&session, Command::WriteZeroes, 0, 0, 1 << 30);
        assert_eq!((zeroes.payload_len(), zeroes.buffer_len()), (0, 0));
    }
}

#[test]
fn fua_is_accepted_on_every_command() {
    for headers in [Headers::Structured, Headers::Extended] {
        let session = session(headers);
        for command in EVERY_COMMAND {
            let length = if matches!(command, Command::Flush | Command::Disconnect) { 0 } else { 512 };
            assert!(admitted(&session, command, CommandFlags::FUA, 0, length).fua(), "{command:?}");
        }
    }
}

#[test]
fn a_flag_that_does_not_go_with_the_command_is_invalid() {
    for headers in HEADERS {
        let session = session(headers);
        let chunked = headers != Headers::Simple;
        for command in EVERY_COMMAND {
            let mut allowed = CommandFlags::FUA;
            match command {
                Command::Read if chunked => allowed |= CommandFlags::DF,
                Command::WriteZeroes => allowed |= CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO,
                Command::BlockStatus if chunked => allowed |= CommandFlags::REQ_ONE,
                _ => {}
            }
            let length = if matches!(command, Command::Flush | Command::Disconnect) { 0 } else { 512 };
            for flag in (0..16).map(|bit| 1 << bit) {
                let payload = headers == Headers::Extended && flag == CommandFlags::PAYLOAD_LEN;
                if command == Command::Disconnect || payload {
                    continue;
                }
                if allowed & flag != 0 && (command != Command::BlockStatus || chunked) {
                    admitted(&session, command, flag, 0, length);
                } else {
                    let refusal = refused(&session, command, flag, 0, length);
                    assert_eq!(refusal.errno, Errno::EINVAL, "{command:?} {flag:#x}");
                    assert_eq!(refusal.skip, if command == Command::Write { length } else { 0 });
                }
            }
        }
    }
}

#[test]
fn fast_zero_is_invalid_where_it_was_not_offered() {
    let abilities = Abilities { fast_zero: false, ..export("").abilities };
    let session = session_on(ExportInfo { abilities, ..export("disk") }, Headers::Structured);
    let fast = CommandFlags::FAST_ZERO;
    assert_eq!(refused(&session, Command::WriteZeroes, fast, 0, 512).errno, Errno::EINVAL);
    admitted(&session, Command::WriteZeroes, CommandFlags::NO_HOLE, 0, 512);
}

#[test]
fn trim_is_invalid_where_it_was_not_offered() {
    let abilities = Abilities { trim: false, ..export("").abilities };
    let session = session_on(ExportInfo { abilities, ..export("disk") }, Headers::Structured);
    assert_eq!(errno(&session, Command::Trim, 0, 512), Errno::EINVAL);
}

#[test]
fn past_the_end_a_write_lacks_space_and_anything_else_is_invalid() {
    for headers in HEADERS {
        let session = session(headers);
        for (offset, length) in [(SIZE, 1), (SIZE - 1, 2), (SIZE + 1, 0), (u64::MAX, 1), (u64::MAX - 4, 4096)]
        {
            for command in [Command::Write, Command::WriteZeroes] {
                assert_eq!(errno(&session, command, offset, length), Errno::ENOSPC, "{command:?} {offset}");
            }
            for command in [Command::Read, Command::Trim, Command::Cache] {
                assert_eq!(errno(&session, command, offset, length), Errno::EINVAL, "{command:?} {offset}");
            }
        }
    }
    let extended = session(Headers::Extended);
    for command in [Command::Trim, Command::Cache, Command::BlockStatus] {
        assert_eq!(errno(&extended, command, 1, u64::MAX), Errno::EINVAL, "the end would overflow");
    }
    assert_eq!(errno(&extended, Command::WriteZeroes, 1, u64::MAX), Errno::ENOSPC);
}

#[test]
fn a_request_for_nothing_is_no_reason_to_disconnect() {
    for headers in HEADERS {
        let session = session(headers);
        for command in [Command::Read, Command::Write, Command::Trim, Command::Cache, Command::WriteZeroes] {
            admitted(&session, command, 0, 0, 0);
            admitted(&session, command, 0, SIZE, 0);
        }
        assert_eq!(errno(&session, Command::BlockStatus, 0, 0), Errno::EINVAL);
    }
}

#[test]
fn whatever_would_change_a_read_only_export_is_not_permitted() {
    let abilities = Abilities { read_only: true, ..export("").abilities };
    for headers in HEADERS {
        let session = session_on(ExportInfo { abilities, ..export("disk") }, headers);
        for command in [Command::Write, Command::WriteZeroes, Command::Trim] {
            for (offset, length) in [(0, 512), (SIZE, 512)] {
                let refusal = refused(&session, command, 0, offset, length);
                assert_eq!(refusal.errno, Errno::EPERM, "{command:?}");
                assert_eq!(refusal.skip, if command == Command::Write { 512 } else { 0 });
            }
        }
        admitted(&session, Command::Read, 0, 0, 512);
        admitted(&session, Command::Flush, 0, 0, 0);
    }
}

#[test]
fn a_flush_with_an_offset_or_a_length_is_invalid() {
    let session = session(Headers::Simple);
    assert_eq!(errno(&session, Command::Flush, 0, 1), Errno::EINVAL);
    assert_eq!(errno(&session, Command::Flush, 512, 0), Errno::EINVAL);
}

#[test]
fn a_goodbye_is_never_answered_whatever_its_fields_are() {
    for headers in HEADERS {
        let session = session(headers);
        for flags in [0, 0xffff, CommandFlags::PAYLOAD_LEN] {
            let goodbye = admitted(&session, Command::Disconnect, flags, u64::MAX, u64::MAX);
            assert!(goodbye.is_disconnect());
            assert_eq!(goodbye.payload_len(), 0);
        }
    }
}

#[test]
fn an_unknown_command_is_invalid_and_its_announced_payload_is_skipped() {
    for number in [8, 9, 77, 0xffff] {
        for headers in HEADERS {
            let session = session(headers);
            let refusal = refused(&session, Command::Unknown(number), 0, 0, 4096);
            assert_eq!((refusal.errno, refusal.skip), (Errno::EINVAL, 0));
        }
        let extended = session(Headers::Extended);
        let flags = CommandFlags::PAYLOAD_LEN;
        let refusal = refused(&extended, Command::Unknown(number), flags, 0, 4096);
        assert_eq!((refusal.errno, refusal.skip), (Errno::EINVAL, 4096));
    }
}

#[test]
fn a_payload_on_a_command_that_takes_none_is_skipped_and_refused() {
    let session = session(Headers::Extended);
    for command in [Command::Read, Command::Flush, Command::Trim, Command::Cache, Command::WriteZeroes] {
        let refusal = refused(&session, command, CommandFlags::PAYLOAD_LEN, 0, 100);
        assert_eq!((refusal.errno, refusal.skip), (Errno::EINVAL, 100), "{command:?}");
    }
}

#[test]
fn a_payload_of_32_mib_is_no_attack_even_where_less_may_be_sent() {
    let block_size = BlockSize { minimum: 1, preferred: 4096, maximum: 64 << 10 };
    for headers in HEADERS {
        let session = session_on(ExportInfo { block_size, ..export("disk") }, headers);
        let refusal = refused(&session, Command::Write, 0, 0, 32 << 20);
        assert_eq!((refusal.errno, refusal.skip), (Errno::EINVAL, 32 << 20));
        admitted(&session, Command::Write, 0, 0, 64 << 10);
    }
}

#[test]
fn a_compact_write_that_is_too_large_is_skipped_and_refused() {
    let session = session(Headers::Structured);
    for length in [MOST + 1, u32::MAX.into()] {
        let refusal = refused(&session, Command::Write, 0, 0, length);
        assert_eq!((refusal.errno, refusal.skip), (Errno::EINVAL, length));
    }
}

#[test]
fn an_extended_payload_beyond_the_largest_ends_the_connection() {
    let session = session(Headers::Extended);
    for command in EVERY_COMMAND.into_iter().filter(|command| *command != Command::Disconnect) {
        for length in [MOST + 1, u64::MAX] {
            let request = request(&session, command, CommandFlags::PAYLOAD_LEN, 0, length);
            let expected = Refused::Drop(Violation::PayloadTooLong(length));
            assert_eq!(session.admit(&request), Err(expected), "{command:?}");
        }
    }
}

#[test]
fn a_large_request_without_payload_is_no_reason_to_disconnect() {
    for headers in HEADERS {
        let session = session(headers);
        for command in [Command::Trim, Command::Cache, Command::WriteZeroes] {
            admitted(&session, command, 0, 0, u32::MAX.into());
        }
    }
    let extended = session(Headers::Extended);
    for command in [Command::Trim, Command::Cache, Command::WriteZeroes, Command::BlockStatus] {
        admitted(&extended, command, 0, 0, SIZE);
    }
}

#[test]
fn a_read_beyond_the_largest_payload_overflows_only_for_clients_that_know_of_chunks() {
    for (headers, expected) in [
        (Headers::Simple, Errno::EINVAL),
        (Headers::Structured, Errno::EOVERFLOW),
        (Headers::Extended, Errno::EOVERFLOW),
    ] {
        let session = session(headers);
        assert_eq!(errno(&session, Command::Read, 0, MOST + 1), expected);
        assert_eq!(errno(&session, Command::Read, SIZE, MOST + 1), Errno::EINVAL, "past the end counts more");
    }
}

#[test]
fn an_unfragmented_read_of_64_kib_is_always_admitted() {
    let block_size = BlockSize { minimum: 1, preferred: 4096, maximum: 64 << 10 };
    for headers in [Headers::Structured, Headers::Extended] {
        let session = session_on(ExportInfo { block_size, ..export("disk") }, headers);
        admitted(&session, Command::Read, CommandFlags::DF, 0, 65536);
    }
}

/// The specification demands the flag; QEMU's client leaves it off and sends the data all the same.
#[test]
fn an_extended_write_without_the_payload_flag_brings_its_payload_as_qemu_sends_it() {
    let session = session(Headers::Extended);
    let request = Request { flags: CommandFlags(0), ..request(&session, Command::Write, 0, 0, 4096) };
    assert_eq!(session.admit(&request).map(|admitted| admitted.payload_len()), Ok(4096));
}

#[test]
fn a_client_that_asked_for_the_block_sizes_is_held_to_them_and_no_other() {
    let block_size = BlockSize { minimum: 4096, preferred: 4096, maximum: PAYLOAD_MOST };
    let shelf = Shelf::of(ExportInfo { block_size, ..export("disk") });
    let (asked, _) = connect(&shelf, Wish::default());
    let (never_asked, _) = connect(&shelf, Wish { choice: Choice::ExportName, ..Wish::default() });
    for command in [Command::Read, Command::Write, Command::Trim, Command::Cache, Command::WriteZeroes] {
        for (offset, length) in [(512, 4096), (4096, 512), (1, 1)] {
            let refusal = refused(&asked, command, 0, offset, length);
            assert_eq!(refusal.errno, Errno::EINVAL, "{command:?}");
            admitted(&never_asked, command, 0, offset, length);
        }
        admitted(&asked, command, 0, 8192, 4096);
    }
}

#[test]
fn a_status_without_a_negotiated_context_is_invalid() {
    for headers in HEADERS {
        let (session, _) = connect(&Shelf::new(), Wish { headers, ..Wish::default() });
        assert_eq!(errno(&session, Command::BlockStatus, 0, 512), Errno::EINVAL);
    }
}

fn status_payload(length: u64, contexts: &[u32]) -> Vec<u8> {
    let contexts = contexts.iter().flat_map(|id| id.to_be_bytes());
    length.to_be_bytes().into_iter().chain(contexts).collect()
}

#[test]
fn a_status_payload_selects_a_range_and_contexts() {
    let session = session(Headers::Extended);
    for contexts in [&[0][..], &[1], &[1, 0]] {
        let payload = status_payload(1 << 39, contexts);
        let flags = CommandFlags::PAYLOAD_LEN | CommandFlags::REQ_ONE;
        let request = admitted(&session, Command::BlockStatus, flags, 4096, payload.len() as u64);
        assert_eq!(request.payload_len(), payload.len() as u64);
        let ids = contexts.iter().map(|id| ContextId(*id)).collect();
        assert_eq!(session.status_payload(&request, &payload), Ok((1 << 39, ids)));
    }
}

#[test]
fn a_status_payload_of_unknown_or_repeated_contexts_is_taken_and_then_invalid() {
    let session = session(Headers::Extended);
    let bad = [
        status_payload(512, &[2]),
        status_payload(512, &[0, 0]),
        status_payload(512, &[0, 77]),
        status_payload(0, &[0]),
        status_payload(SIZE, &[0]),
        status_payload(u64::MAX, &[0]),
    ];
    for payload in bad {
        let length = payload.len() as u64;
        let request = admitted(&session, Command::BlockStatus, CommandFlags::PAYLOAD_LEN, 4096, length);
        let refusal = session.status_payload(&request, &payload).expect_err("not lawful");
        assert_eq!((refusal.errno, refusal.skip), (Errno::EINVAL, 0), "{payload:?}");
    }
}

#[test]
fn a_status_payload_of_a_wrong_length_is_skipped_and_invalid() {
    let session = session(Headers::Extended);
    for length in [0, 1, 8, 11, 13, 20, 4096, MOST] {
        let refusal = refused(&session, Command::BlockStatus, CommandFlags::PAYLOAD_LEN, 0, length);
        assert_eq!((refusal.errno, refusal.skip), (Errno::EINVAL, length));
    }
}
