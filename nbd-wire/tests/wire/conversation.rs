//! The client's side and the server's side talking to each other.

use nbd_wire::client::{self, Choice, Chunk, Connected, Failure, Headers, ReplyHeader, Wish};
use nbd_wire::consts::{chunk, option, option_reply};
use nbd_wire::{
    BlockSize, Command, CommandFlags, Context, Errno, Handshake, HeaderStyle, Progress, Request, Session,
    TransmissionFlags, Violation,
};

use crate::played::{PAYLOAD_MOST, SIZE, Shelf, connect};

fn wish(export: &str, headers: Headers, choice: Choice) -> Wish {
    let contexts = vec!["base:allocation".to_owned(), "x-nobody:knows".to_owned()];
    Wish { export: export.to_owned(), headers, contexts, choice }
}

#[test]
fn both_sides_agree_on_everything_that_was_negotiated() {
    for headers in [Headers::Simple, Headers::Structured, Headers::Extended] {
        let (session, connected) = connect(&Shelf::new(), wish("second", headers, Choice::Go));
        let chunked = headers != Headers::Simple;
        let style = if headers == Headers::Extended { HeaderStyle::Extended } else { HeaderStyle::Compact };
        assert_eq!(session.header_style(), style);
        assert_eq!(session.export(), "second");
        assert_eq!(session.reply(0, 0).is_chunked(), chunked);
        let contexts = if chunked { vec![Context::Allocation] } else { Vec::new() };
        let selected: Vec<_> = session.contexts().iter().map(|(_, context)| *context).collect();
        assert_eq!(selected, contexts);
        let expected = Connected {
            name: Some("second".to_owned()),
            description: Some("the second disk".to_owned()),
            size: SIZE,
            flags: session.flags(),
            block_size: Some(BlockSize { minimum: 1, preferred: 64 << 10, maximum: PAYLOAD_MOST }),
            style,
            structured: chunked,
            contexts: contexts.iter().map(|context| (context.id(), context.name().to_owned())).collect(),
        };
        assert_eq!(connected, expected);
    }
}

#[test]
fn both_sides_agree_after_export_name_too() {
    // Extended headers cannot be had that way, so that the client asks for structured replies.
    for (headers, chunked) in
        [(Headers::Simple, false), (Headers::Structured, true), (Headers::Extended, true)]
    {
        let (session, connected) = connect(&Shelf::new(), wish("", headers, Choice::ExportName));
        assert_eq!(session.header_style(), HeaderStyle::Compact);
        assert_eq!(session.export(), "first");
        assert_eq!((connected.size, connected.flags), (SIZE, session.flags()));
        assert_eq!(connected.flags.has(TransmissionFlags::SEND_DF), chunked);
        assert_eq!(connected.contexts.len(), usize::from(chunked));
        assert_eq!(connected.name, None, "EXPORT_NAME tells no name");
    }
}

#[test]
fn a_client_learns_why_it_does_not_get_an_export() {
    for (name, kind) in [("third", option_reply::ERR_UNKNOWN), ("full", option_reply::ERR_POLICY)] {
        let (mut server, shelf) = (Handshake::default(), Shelf::new());
        let mut client = client::Handshake::new(wish(name, Headers::Simple, Choice::Go));
        let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
        assert_eq!(client.feed(&Handshake::greeting(), &mut to_server), Ok((18, None)));
        let (taken, _) = server.feed(&to_server, &shelf, &mut to_client).expect("the server understands");
        assert_eq!(taken, to_server.len());
        match client.feed(&to_client, &mut Vec::new()) {
            Err(Failure::Refused { kind: told, text }) => {
                assert_eq!(told, kind);
                assert!(!text.is_empty());
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A server of the year 2012 that knows EXPORT_NAME and LIST, and no GO.
#[test]
fn a_client_falls_back_to_what_an_old_server_knows() {
    let mut client = client::Handshake::new(wish("disk", Headers::Extended, Choice::Go));
    let mut sent = Vec::new();
    let mut asked = Vec::new();
    assert_eq!(client.feed(&Handshake::greeting(), &mut sent), Ok((18, None)));
    let mut rest = sent.split_off(4);
    loop {
        let number = u32::from_be_bytes(*rest[8..].first_chunk().expect("an option"));
        asked.push(number);
        if number == option::EXPORT_NAME {
            break;
        }
        let words = [number, option_reply::ERR_UNSUP, 0].map(u32::to_be_bytes);
        let reply = [&0x0003_e889_0455_65a9_u64.to_be_bytes()[..], words.as_flattened()].concat();
        rest.clear();
        assert_eq!(client.feed(&reply, &mut rest), Ok((20, None)));
    }
    assert_eq!(asked, [option::EXTENDED_HEADERS, option::STRUCTURED_REPLY, option::GO, option::EXPORT_NAME]);
    let answer = [&4096_u64.to_be_bytes()[..], &[0, 1]].concat();
    let (taken, connected) = client.feed(&answer, &mut Vec::new()).expect("an answer");
    let connected = connected.expect("the end of the handshake");
    assert_eq!((taken, connected.size, connected.structured), (10, 4096, false));
}

#[test]
fn a_client_refuses_servers_that_do_not_speak_fixed_newstyle() {
    let oldstyle = [&b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53"[..], &[0; 136]].concat();
    let plain_newstyle = b"NBDMAGICIHAVEOPT\0\0";
    for bytes in [&oldstyle[..], plain_newstyle, b"SSH-2.0-OpenSSH_9.6p1"] {
        let fed = client::Handshake::new(Wish::default()).feed(bytes, &mut Vec::new());
        assert_eq!(fed, Err(Failure::Violation(Violation::Greeting)));
    }
}

#[test]
fn a_client_that_is_fed_byte_by_byte_sends_the_same() {
    let shelf = Shelf::new();
    let (mut server, mut whole) = (Handshake::default(), Vec::new());
    let mut client = client::Handshake::new(wish("first", Headers::Extended, Choice::Go));
    let (mut inbox, mut outbox) = (Handshake::greeting().to_vec(), Vec::new());
    let mut sent = Vec::new();
    // What the server sent, as one client took it.
    let connected = loop {
        whole.extend_from_slice(&inbox);
        let (taken, connected) = client.feed(&inbox, &mut outbox).expect("the client understands");
        assert_eq!(taken, inbox.len());
        inbox.clear();
        if let Some(connected) = connected {
            break connected;
        }
        server.feed(&outbox, &shelf, &mut inbox).expect("the server understands");
        sent.append(&mut outbox);
    };
    let mut slow = client::Handshake::new(wish("first", Headers::Extended, Choice::Go));
    let (mut pending, mut slow_sent, mut end) = (Vec::new(), Vec::new(), None);
    for byte in whole {
        pending.push(byte);
        let (taken, connected) = slow.feed(&pending, &mut slow_sent).expect("the client understands");
        pending.drain(..taken);
        end = end.or(connected);
    }
    assert_eq!((end, slow_sent), (Some(connected), sent));
}

/// Answers a request on a disk whose byte at x is x, cut to 8 bits, and whose first half is a hole.
fn serve(session: &Session, input: &[u8], out: &mut Vec<u8>) -> usize {
    let parsed = Request::parse(input, session.header_style()).expect("a request");
    let (request, len) = parsed.expect("all of it");
    let reply = session.reply(request.cookie, request.offset);
    let admitted = match session.admit(&request) {
        Ok(admitted) => admitted,
        Err(nbd_wire::Refused::Reply(refusal)) => {
            out.extend(reply.error(refusal.errno, refusal.text));
            return len + refusal.skip as usize;
        }
        Err(nbd_wire::Refused::Drop(violation)) => panic!("{violation}"),
    };
    let range = admitted.offset..admitted.offset + admitted.length;
    match admitted.command {
        Command::Read if reply.is_chunked() => {
            let (hole, data) = (SIZE / 2 - range.start, range.end - SIZE / 2);
            out.extend_from_slice(&reply.hole_chunk(range.start, hole as u32, false));
            out.extend_from_slice(&reply.data_chunk(SIZE / 2, data, true));
            out.extend((SIZE / 2..range.end).map(|byte| byte as u8));
        }
        Command::Read => {
            out.extend_from_slice(&reply.data(admitted.length));
            out.extend(range.map(|byte| if byte < SIZE / 2 { 0 } else { byte as u8 }));
        }
        _ => out.extend_from_slice(&reply.done()),
    }
    len + admitted.payload_len() as usize
}

/// Takes the replies to one read, as a client puts them together; an error is an error.
fn take(bytes: &[u8], connected: &Connected, request: &Request) -> Result<Vec<u8>, Errno> {
    let mut data = vec![0xee; request.length as usize];
    let mut rest = bytes;
    loop {
        let (header, len) = ReplyHeader::parse(rest).expect("a reply").expect("all of it");
        rest = &rest[len..];
        match header {
            ReplyHeader::Simple { errno, cookie } => {
                assert_eq!(cookie, request.cookie);
                let read = request.command == Command::Read;
                assert!(!(read && connected.structured), "a read is never answered by a simple reply");
                assert_ne!(connected.style, HeaderStyle::Extended);
                if let Some(errno) = Errno::received(errno) {
                    assert!(rest.is_empty());
                    return Err(errno);
                }
                data.truncate(rest.len());
                data.copy_from_slice(rest);
                return Ok(data);
            }
            ReplyHeader::Chunk { flags, kind, cookie, offset, len } => {
                assert_eq!(cookie, request.cookie);
                assert_eq!(offset, (connected.style == HeaderStyle::Extended).then_some(request.offset));
                let (payload, behind) = rest.split_at(len as usize);
                rest = behind;
                match Chunk::parse(kind, payload).expect("a chunk") {
                    Chunk::None => data.clear(),
                    Chunk::Data { offset, data: bytes } => {
                        data[(offset - request.offset) as usize..][..bytes.len()].copy_from_slice(bytes);
                    }
                    Chunk::Hole { offset, len } => {
                        data[(offset - request.offset) as usize..][..len as usize].fill(0);
                    }
                    Chunk::Error { errno, .. } => return Err(errno),
                    other => panic!("{other:?}"),
                }
                if flags & chunk::DONE != 0 {
                    assert!(rest.is_empty());
                    return Ok(data);
                }
            }
        }
    }
}

#[test]
fn requests_and_replies_go_both_ways_in_every_style() {
    for headers in [Headers::Simple, Headers::Structured, Headers::Extended] {
        let (session, connected) = connect(&Shelf::new(), wish("first", headers, Choice::Go));
        let call = |command, flags: u16, offset, length, payload: &[u8]| {
            let extended = connected.style == HeaderStyle::Extended;
            let payload_flag = if extended && !payload.is_empty() { CommandFlags::PAYLOAD_LEN } else { 0 };
            let flags = CommandFlags(flags | payload_flag);
            let request = Request { flags, command, cookie: u64::MAX - 5, offset, length };
            let (mut bytes, mut answer) = (Vec::new(), Vec::new());
            request.encode(connected.style, &mut bytes);
            bytes.extend_from_slice(payload);
            assert_eq!(serve(&session, &bytes, &mut answer), bytes.len(), "the stream stays in step");
            take(&answer, &connected, &request)
        };
        let expected: Vec<u8> = [0; 100].into_iter().chain((0..).take(200)).collect();
        assert_eq!(call(Command::Read, 0, SIZE / 2 - 100, 300, &[]), Ok(expected));
        assert_eq!(call(Command::Write, CommandFlags::FUA, 0, 512, &[7; 512]), Ok(Vec::new()));
        assert_eq!(call(Command::Flush, 0, 0, 0, &[]), Ok(Vec::new()));
        assert_eq!(call(Command::Write, 0, SIZE, 512, &[7; 512]), Err(Errno::ENOSPC));
        assert_eq!(call(Command::Read, 0x8000, 0, 512, &[]), Err(Errno::EINVAL));
        assert_eq!(call(Command::Unknown(99), 0, 0, 512, &[]), Err(Errno::EINVAL));
    }
}

#[test]
fn bytes_behind_the_choice_of_an_export_are_the_first_request() {
    let shelf = Shelf::new();
    for number in [option::GO, option::EXPORT_NAME] {
        let mut input = 3_u32.to_be_bytes().to_vec();
        let data = if number == option::GO { client::info_data("", &[]) } else { Vec::new() };
        client::option(number, &data, &mut input);
        let handshake_len = input.len();
        input.extend_from_slice(b"the first request");
        let fed = Handshake::default().feed(&input, &shelf, &mut Vec::new());
        let (taken, progress) = fed.expect("a handshake");
        assert_eq!(taken, handshake_len);
        assert!(matches!(progress, Progress::Chosen(_)));
    }
}
