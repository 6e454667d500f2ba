//! The wire of NBD, both directions: what was read encodes to the bytes that it was read from, what is written reads as
//! it was meant, and what is admitted is what the terms of the connection allow.
//!
//! Invariant: bytes are put together here field by field, as the protocol's document has them.

use std::sync::LazyLock;

use arbitrary::Arbitrary;
use nbd_wire::client::{self, Answer, Chunk, Info, OptionReplyHeader, ReplyHeader};
use nbd_wire::consts::{chunk, option, option_reply};
use nbd_wire::{
    Abilities, Admitted, BlockSize, Command, CommandFlags, Context, ContextId, Denial, Descriptor, Errno,
    ExportInfo, Exports, Handshake, HeaderStyle, Progress, Refused, Request, Session, Violation,
};

use crate::{Many, Rare, Reached};

/// What was agreed on a connection, and with what export.
#[derive(Debug, Arbitrary)]
struct Terms {
    replies: Replies,
    contexts: u8,
    /// The client asked for the block sizes.
    sized: bool,
    read_only: bool,
    trim: bool,
    fast_zero: bool,
    size: u64,
    minimum: u8,
    maximum: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Arbitrary)]
enum Replies {
    Simple,
    Structured,
    Extended,
}

const CONTEXTS: [Context; 2] = [Context::Allocation, Context::AllocationDepth];

impl Exports for Terms {
    fn list(&self) -> Option<Vec<(String, String)>> {
        None
    }

    fn find(&self, name: &str) -> Result<ExportInfo, Denial> {
        let Terms { read_only, trim, fast_zero, .. } = *self;
        if name != "disk" {
            return Err(Denial::Unknown);
        }
        Ok(ExportInfo {
            name: name.to_owned(),
            description: String::new(),
            size: self.size,
            abilities: Abilities { read_only, trim, fast_zero, multi_conn: false },
            block_size: BlockSize { minimum: self.minimum(), preferred: 4096, maximum: self.maximum },
            contexts: CONTEXTS.into(),
        })
    }
}

impl Terms {
    fn minimum(&self) -> u32 {
        [1, 512, 4096, 1 << 16][usize::from(self.minimum % 4)]
    }

    /// Unit of offsets and lengths.
    fn alignment(&self) -> u64 {
        if self.sized { self.minimum().into() } else { 1 }
    }

    /// The largest payload, as it is told.
    fn maximum(&self) -> u64 {
        self.maximum.clamp(512, 1 << 31).into()
    }

    fn style(&self) -> HeaderStyle {
        if self.replies == Replies::Extended { HeaderStyle::Extended } else { HeaderStyle::Compact }
    }

    /// The contexts that were chosen, by number.
    fn contexts(&self) -> Vec<u32> {
        let chosen = |number: &u32| self.replies != Replies::Simple && self.contexts >> number & 1 == 1;
        (0..2).filter(chosen).collect()
    }

    fn session(&self) -> Session {
        let mut bytes = 3u32.to_be_bytes().to_vec();
        match self.replies {
            Replies::Simple => {}
            Replies::Structured => client::option(option::STRUCTURED_REPLY, &[], &mut bytes),
            Replies::Extended => client::option(option::EXTENDED_HEADERS, &[], &mut bytes),
        }
        let chosen = self.contexts();
        if !chosen.is_empty() {
            let names: Vec<&str> = chosen.iter().map(|number| CONTEXTS[*number as usize].name()).collect();
            client::option(option::SET_META_CONTEXT, &client::context_data("disk", &names), &mut bytes);
        }
        let wants: &[u16] = if self.sized { &[3] } else { &[] };
        client::option(option::GO, &client::info_data("disk", wants), &mut bytes);
        match Handshake::default().feed(&bytes, self, &mut Vec::new()) {
            Ok((len, Progress::Chosen(session))) if len == bytes.len() => session,
            other => panic!("a lawful handshake ends with {other:?}"),
        }
    }

    fn flags_of(&self, command: Command) -> u16 {
        let extended = self.replies == Replies::Extended;
        let when = |offered: bool, flag: u16| if offered { flag } else { 0 };
        let special = match command {
            Command::Read => when(self.replies != Replies::Simple, CommandFlags::DF),
            Command::Write => when(extended, CommandFlags::PAYLOAD_LEN),
            Command::WriteZeroes => CommandFlags::NO_HOLE | when(self.fast_zero, CommandFlags::FAST_ZERO),
            Command::BlockStatus => CommandFlags::REQ_ONE | when(extended, CommandFlags::PAYLOAD_LEN),
            _ => 0,
        };
        CommandFlags::FUA | special
    }

    fn holds(&self, offset: u64, length: u64) -> bool {
        u128::from(offset) + u128::from(length) <= self.size.into()
            && offset.is_multiple_of(self.alignment())
            && length.is_multiple_of(self.alignment())
    }

    /// Whether a request, behind which so much payload comes, may be carried out.
    fn allow(&self, request: &Request, payload: u64) -> bool {
        let Request { flags, command, offset, length, .. } = *request;
        let writes = matches!(command, Command::Write | Command::WriteZeroes | Command::Trim);
        let offered = match command {
            Command::Disconnect => return true,
            Command::Unknown(_) => false,
            Command::Trim => self.trim,
            Command::BlockStatus => !self.contexts().is_empty(),
            _ => true,
        };
        if !offered || writes && self.read_only || flags.0 & !self.flags_of(command) != 0 {
            return false;
        }
        match command {
            Command::Read | Command::Write => length <= self.maximum() && self.holds(offset, length),
            Command::Flush => offset == 0 && length == 0,
            Command::BlockStatus if flags.has(CommandFlags::PAYLOAD_LEN) => {
                payload == 12 || payload == 16 && self.contexts().len() == 2
            }
            Command::BlockStatus => length > 0 && self.holds(offset, length),
            _ => self.holds(offset, length),
        }
    }
}

/// Bytes where a request should be.
#[derive(Debug, Arbitrary)]
pub struct Asked {
    terms: Terms,
    magic: Rare<u32>,
    flags: u8,
    odd_flags: Rare<u16>,
    command: u8,
    odd_command: Rare<u16>,
    cookie: u64,
    offset: Offset,
    length: Offset,
    cut: Rare<u8>,
    payload: Vec<u8>,
}

#[derive(Debug, Arbitrary)]
enum Offset {
    Zero,
    Small(u16),
    Sectors(u16),
    /// So far from the end of the disk.
    End(i8),
    EndSectors(i8),
    Any(u64),
}

impl Offset {
    fn value(&self, size: u64) -> u64 {
        match *self {
            Offset::Zero => 0,
            Offset::Small(bytes) => bytes.into(),
            Offset::Sectors(sectors) => u64::from(sectors) * 512,
            Offset::End(bytes) => size.wrapping_add_signed(bytes.into()),
            Offset::EndSectors(sectors) => size.wrapping_add_signed(i64::from(sectors) * 512),
            Offset::Any(value) => value,
        }
    }
}

/// See the module.
pub fn check_request(asked: &Asked, reached: &mut Reached) {
    let Asked { terms, .. } = asked;
    let style = terms.style();
    let extended = style == HeaderStyle::Extended;
    let magic: u32 = if extended { 0x21e4_1c71 } else { 0x2560_9513 };
    let flags = asked
        .odd_flags
        .0
        .unwrap_or_else(|| u16::from(asked.flags) & 0x3f & 1u16.rotate_left(asked.flags.into()));
    let command = asked.odd_command.0.unwrap_or(u16::from(asked.command % 9));
    let (offset, length) = (asked.offset.value(terms.size), asked.length.value(terms.size));
    let mut bytes = asked.magic.0.unwrap_or(magic).to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(asked.cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    let length = if extended { length } else { u64::from(length as u32) };
    bytes.extend(&length.to_be_bytes()[if extended { 0 } else { 4 }..]);
    let whole = bytes.len();
    bytes.extend_from_slice(&asked.payload);
    bytes.truncate(asked.cut.0.map_or(usize::MAX, usize::from));
    let request = match Request::parse(&bytes, style) {
        Err(violation) => {
            let found = u32::from_be_bytes(bytes[..4].try_into().expect("it was looked at"));
            assert_eq!(violation, Violation::RequestMagic { expected: magic, found });
            assert_ne!(found, magic);
            return reached.add("requests out of step", 1);
        }
        Ok(None) => return assert!(bytes.len() < whole, "all of it is there"),
        Ok(Some((request, len))) => {
            assert_eq!(len, whole);
            let mut again = Vec::new();
            request.encode(style, &mut again);
            assert_eq!(again, bytes[..whole]);
            request
        }
    };
    assert_eq!((request.offset, request.length, request.cookie), (offset, length, asked.cookie));
    judge(terms, &request, &bytes[whole..], reached);
}

fn judge(terms: &Terms, request: &Request, rest: &[u8], reached: &mut Reached) {
    let session = terms.session();
    let extended = terms.replies == Replies::Extended;
    let follows = request.command == Command::Write
        || extended && request.flags.has(CommandFlags::PAYLOAD_LEN) && request.command != Command::Disconnect;
    let payload = if follows { request.length } else { 0 };
    let skipped_most = if extended { terms.maximum().max(32 << 20) } else { u32::MAX.into() };
    match session.admit(request) {
        Ok(admitted) => {
            assert!(payload <= skipped_most && terms.allow(request, payload), "{request:?} was admitted");
            let Admitted { command, flags, cookie, offset, length, .. } = admitted;
            assert_eq!(Request { command, flags, cookie, offset, length }, *request);
            assert_eq!(admitted.payload_len(), payload);
            assert!(admitted.buffer_len() as u64 <= terms.maximum(), "more than a buffer holds");
            reached.add("requests admitted", 1);
            if command == Command::BlockStatus && payload > 0 {
                judge_contexts(terms, &session, &admitted, rest, reached);
            }
        }
        Err(Refused::Drop(violation)) => {
            assert_eq!(violation, Violation::PayloadTooLong(payload));
            assert!(payload > skipped_most, "dropped for {payload} bytes");
        }
        Err(Refused::Reply(refusal)) => {
            assert!(payload <= skipped_most && !terms.allow(request, payload), "{request:?}: {refusal:?}");
            assert_eq!(refusal.skip, payload, "the stream stays in step");
            assert!(!refusal.text.is_empty());
            reached.add("requests refused", 1);
        }
    }
}

/// The payload of a status request: a length, and the contexts it is for.
fn judge_contexts(terms: &Terms, session: &Session, admitted: &Admitted, rest: &[u8], reached: &mut Reached) {
    let payload = &rest[..rest.len().min(admitted.payload_len() as usize)];
    let outcome = session.status_payload(admitted, payload);
    let (length, numbers) = payload.split_at(payload.len().min(8));
    let numbers: Vec<&[u8]> = numbers.chunks(4).collect();
    let known: Vec<[u8; 4]> = terms.contexts().into_iter().map(u32::to_be_bytes).collect();
    let once = |nth: usize| !numbers[..nth].contains(&numbers[nth]);
    let mut lawful = (0..numbers.len()).all(|nth| once(nth) && known.iter().any(|id| id == numbers[nth]));
    let length = length.try_into().map_or(0, u64::from_be_bytes);
    lawful &= length > 0 && terms.holds(admitted.offset, length);
    match outcome {
        Ok((told, chosen)) => {
            assert!(lawful, "{payload:?} was taken for {chosen:?}");
            assert_eq!(told, length);
            let chosen: Vec<[u8; 4]> = chosen.iter().map(|id| id.0.to_be_bytes()).collect();
            assert!(chosen.iter().eq(numbers.iter().copied()), "{payload:?} was taken for {chosen:?}");
            reached.add("lists of contexts", 1);
        }
        Err(refusal) => assert!(!lawful && refusal.skip == 0, "{payload:?}: {refusal:?}"),
    }
}

/// Data of an option that has a structure.
#[derive(Debug, Arbitrary)]
pub struct Opted {
    go: bool,
    terms: Terms,
    data: Data,
}

#[derive(Debug, Arbitrary)]
enum Data {
    Raw(Vec<u8>),
    /// Strings with lengths in front, which may lie, and a number.
    Made {
        name: Text,
        count: Rare<u16>,
        strings: Many<Text, 4>,
        words: Vec<u8>,
    },
}

#[derive(Debug, Arbitrary)]
struct Text {
    bytes: TextBytes,
    lie: Rare<u32>,
}

#[derive(Debug, Arbitrary)]
enum TextBytes {
    Disk,
    Allocation,
    Long(u16),
    Any(Vec<u8>),
}

impl Text {
    fn put(&self, out: &mut Vec<u8>) {
        let bytes = match &self.bytes {
            TextBytes::Disk => b"disk".to_vec(),
            TextBytes::Allocation => b"base:allocation".to_vec(),
            TextBytes::Long(len) => vec![b'n'; usize::from(*len) % 5000],
            TextBytes::Any(bytes) => bytes.clone(),
        };
        out.extend(self.lie.0.unwrap_or(bytes.len() as u32).to_be_bytes());
        out.extend(bytes);
    }
}

impl Opted {
    fn data(&self) -> Vec<u8> {
        match &self.data {
            Data::Raw(bytes) => bytes.clone(),
            Data::Made { name, count, strings, words } => {
                let mut data = Vec::new();
                name.put(&mut data);
                if self.go {
                    let many = count.0.unwrap_or((words.len() / 2) as u16);
                    data.extend(many.to_be_bytes());
                    data.extend(words);
                } else {
                    data.extend(u32::from(count.0.unwrap_or(strings.len() as u16)).to_be_bytes());
                    strings.iter().for_each(|text| text.put(&mut data));
                }
                data
            }
        }
    }
}

/// Takes a string with its length in front off the data.
fn take_string<'a>(data: &mut &'a [u8]) -> Option<&'a str> {
    let len = u32::from_be_bytes(data.get(..4)?.try_into().ok()?) as usize;
    let text = data.get(4..len.checked_add(4)?).filter(|text| text.len() <= 4096)?;
    *data = &data[4 + len..];
    std::str::from_utf8(text).ok()
}

/// The name that the data of an option is about, if it has the right form.
fn take_name(go: bool, mut data: &[u8]) -> Option<&str> {
    let name = take_string(&mut data)?;
    if go {
        let count = u16::from_be_bytes(data.get(..2)?.try_into().ok()?);
        return (data.len() == 2 + 2 * usize::from(count)).then_some(name);
    }
    let count = u32::from_be_bytes(data.get(..4)?.try_into().ok()?);
    data = &data[4..];
    for _ in 0..count {
        take_string(&mut data)?;
    }
    data.is_empty().then_some(name)
}

/// An option of any data is answered as its form wants it: understood, unknown, or invalid.
pub fn check_option(opted: &Opted, reached: &mut Reached) {
    let data = opted.data();
    let number = if opted.go { option::INFO } else { option::LIST_META_CONTEXT };
    let mut bytes = 3u32.to_be_bytes().to_vec();
    client::option(option::STRUCTURED_REPLY, &[], &mut bytes);
    client::option(number, &data, &mut bytes);
    let mut out = Vec::new();
    let end = Handshake::default().feed(&bytes, &opted.terms, &mut out);
    assert_eq!(end, Ok((bytes.len(), Progress::More)));
    let mut rest = &out[..];
    let mut last = None;
    while let Some((header, after)) = rest.split_first_chunk::<{ OptionReplyHeader::LEN }>() {
        let read = OptionReplyHeader::parse(header).expect("a reply");
        let (data, after) = after.split_at(read.len as usize);
        let answer = Answer::parse(read.kind, data).expect("data of that kind");
        expect_answer_encodes(read.kind, data, &answer);
        (last, rest) = (Some((read.option, read.kind)), after);
    }
    assert!(rest.is_empty());
    let kind = match take_name(opted.go, &data) {
        Some("disk") => option_reply::ACK,
        Some(_) => option_reply::ERR_UNKNOWN,
        None => option_reply::ERR_INVALID,
    };
    assert_eq!(last, Some((number, kind)), "{data:?}");
    reached
        .add(if kind == option_reply::ERR_INVALID { "options malformed" } else { "options understood" }, 1);
}

/// A reply of the server.
#[derive(Debug, Arbitrary)]
pub struct Answered {
    replies: Replies,
    cookie: u64,
    offset: u64,
    at: u64,
    last: bool,
    what: Told,
}

#[derive(Debug, Arbitrary)]
enum Told {
    Done,
    Data(Vec<u8>),
    Part(Vec<u8>),
    Hole(u32),
    Status(u32, Many<(u32, u32), 8>),
    Error(u8, String, bool),
}

/// What a server writes reads as it was meant.
pub fn check_reply(answered: &Answered, reached: &mut Reached) {
    static SESSIONS: LazyLock<[Session; 3]> = LazyLock::new(|| {
        [Replies::Simple, Replies::Structured, Replies::Extended].map(|replies| {
            let (size, maximum) = (1 << 40, 32 << 20);
            let plain = (false, false, false, false);
            let (sized, read_only, trim, fast_zero) = plain;
            Terms { replies, contexts: 0, sized, read_only, trim, fast_zero, size, minimum: 0, maximum }
                .session()
        })
    });
    let Answered { replies, cookie, offset, at, last, .. } = *answered;
    let reply = SESSIONS[replies as usize].reply(cookie, offset);
    assert_eq!(reply.is_chunked(), replies != Replies::Simple);
    // Errno, and what the chunk says with its data.
    let (bytes, errno, told): (Vec<u8>, u32, Option<(bool, Chunk<'_>)>) = match &answered.what {
        Told::Done => {
            (reply.done().to_vec(), 0, (replies == Replies::Extended).then_some((true, Chunk::None)))
        }
        Told::Data(data) if !data.is_empty() => {
            let bytes = [&*reply.data(data.len() as u64), data].concat();
            (bytes, 0, reply.is_chunked().then_some((true, Chunk::Data { offset, data })))
        }
        Told::Part(data) if reply.is_chunked() && !data.is_empty() => {
            let bytes = [&*reply.data_chunk(at, data.len() as u64, last), data].concat();
            (bytes, 0, Some((last, Chunk::Data { offset: at, data })))
        }
        Told::Hole(len) if reply.is_chunked() && *len > 0 => (
            reply.hole_chunk(at, *len, last).to_vec(),
            0,
            Some((last, Chunk::Hole { offset: at, len: *len })),
        ),
        Told::Status(context, extents) if reply.is_chunked() && !extents.is_empty() => {
            let context = ContextId(*context);
            let descriptors: Vec<Descriptor> = extents
                .iter()
                .map(|&(len, flags)| Descriptor { len: u64::from(len).max(1), flags })
                .collect();
            let mut bytes = reply.status_chunk(context, descriptors.len(), last).to_vec();
            descriptors.iter().for_each(|descriptor| reply.descriptor(*descriptor, &mut bytes));
            (bytes, 0, Some((last, Chunk::Status { context, descriptors })))
        }
        Told::Error(number, text, placed) => {
            let errno = Errno::received(u32::from(*number).max(1)).expect("not success");
            let bytes = if *placed { reply.error_at(errno, text, at) } else { reply.error(errno, text) };
            let most = (0..=256.min(text.len())).rfind(|end| text.is_char_boundary(*end)).unwrap_or(0);
            let at = placed.then_some(at);
            let chunk = Chunk::Error { errno, text: &text[..most], at };
            (bytes, errno as u32, reply.is_chunked().then_some((true, chunk)))
        }
        _ => return,
    };
    let (header, len) = ReplyHeader::parse(&bytes).expect("a reply").expect("all of it");
    for cut in [0, 3, 4, len - 1] {
        assert_eq!(ReplyHeader::parse(&bytes[..cut]), Ok(None));
    }
    let payload = &bytes[len..];
    match (header, told) {
        (ReplyHeader::Simple { errno: number, cookie: echoed }, None) => {
            assert_eq!((number, echoed, len), (errno, cookie, 16));
        }
        (
            ReplyHeader::Chunk { flags, kind, cookie: echoed, offset: repeated, len: told_len },
            Some((last, told)),
        ) => {
            assert_eq!((flags, echoed, told_len), (last.into(), cookie, payload.len() as u64));
            assert_eq!(repeated, (replies == Replies::Extended).then_some(offset));
            assert_eq!(Chunk::parse(kind, payload), Ok(told));
        }
        other => panic!("{other:?}"),
    }
    reached.add("replies written", 1);
}

/// Bytes that a server sent, as a client reads them.
#[derive(Debug, Arbitrary)]
pub enum Read {
    /// A reply to a request; its magic is one of those that there are, or any.
    Header(u8, u32, [u8; 28], u8),
    Chunk(u8, Rare<u16>, Vec<u8>),
    OptionHeader(bool, [u8; 20]),
    Answer(u8, Rare<u32>, Vec<u8>),
    /// Something about an export.
    Info(u8, Vec<u8>),
}

/// What is read of a server's bytes encodes to them.
pub fn check_read(read: &Read, reached: &mut Reached) {
    match read {
        Read::Header(which, any, rest, cut) => {
            let known = [0x6744_6698, 0x668e_33ef, 0x6e8a_278c];
            let magic = known.get(usize::from(*which % 4)).copied().unwrap_or(*any);
            let bytes = [&magic.to_be_bytes()[..], rest].concat();
            expect_header_encodes(magic, &bytes[..bytes.len() - usize::from(*cut % 33)]);
        }
        Read::Chunk(kind, odd, payload) => {
            let kinds = [
                chunk::NONE,
                chunk::OFFSET_DATA,
                chunk::OFFSET_HOLE,
                chunk::BLOCK_STATUS,
                chunk::BLOCK_STATUS_EXT,
                chunk::ERROR,
                chunk::ERROR_OFFSET,
            ];
            let kind = odd.0.unwrap_or(kinds[usize::from(*kind) % kinds.len()]);
            if let Ok(read) = Chunk::parse(kind, payload) {
                expect_chunk_encodes(kind, payload, &read);
                reached.add("chunks read", 1);
            }
        }
        Read::OptionHeader(known, bytes) => {
            let mut bytes = *bytes;
            if *known {
                bytes[..8].copy_from_slice(&0x0003_e889_0455_65a9u64.to_be_bytes());
                bytes[16..18].fill(0);
            }
            let Ok(header) = OptionReplyHeader::parse(&bytes) else { return };
            let words = [0x0003_e889, 0x0455_65a9, header.option, header.kind, header.len];
            assert_eq!(words.map(u32::to_be_bytes).as_flattened(), bytes);
            assert!(header.len <= 32 << 10, "{header:?}");
        }
        Read::Answer(kind, odd, data) => {
            let kinds = [1, 2, 4, option_reply::ERR_POLICY];
            let kind = odd.0.unwrap_or(kinds[usize::from(*kind) % kinds.len()]);
            if let Ok(answer) = Answer::parse(kind, data) {
                expect_answer_encodes(kind, data, &answer);
                reached.add("answers read", 1);
            }
        }
        Read::Info(kind, data) => {
            let data = [&u16::from(*kind % 5).to_be_bytes()[..], data].concat();
            if let Ok(answer) = Answer::parse(option_reply::INFO, &data) {
                expect_answer_encodes(option_reply::INFO, &data, &answer);
                reached.add("answers read", 1);
            }
        }
    }
}

fn expect_header_encodes(magic: u32, bytes: &[u8]) {
    let mut again = magic.to_be_bytes().to_vec();
    match ReplyHeader::parse(bytes) {
        Ok(Some((header, len))) => {
            match header {
                ReplyHeader::Simple { errno, cookie } => {
                    again.extend(errno.to_be_bytes());
                    again.extend(cookie.to_be_bytes());
                }
                ReplyHeader::Chunk { flags, kind, cookie, offset, len } => {
                    again.extend([flags.to_be_bytes(), kind.to_be_bytes()].as_flattened());
                    again.extend(cookie.to_be_bytes());
                    match offset {
                        Some(offset) => {
                            again.extend([offset.to_be_bytes(), len.to_be_bytes()].as_flattened())
                        }
                        None => again.extend(u32::try_from(len).expect("32 bits").to_be_bytes()),
                    }
                }
            }
            assert_eq!(again, bytes[..len]);
        }
        Ok(None) => assert!(bytes.len() < 32),
        Err(violation) => assert_eq!(violation, Violation::ReplyMagic(magic)),
    }
}

fn expect_chunk_encodes(kind: u16, payload: &[u8], read: &Chunk<'_>) {
    let mut again = Vec::new();
    match read {
        Chunk::None => {}
        Chunk::Data { offset, data } => {
            again.extend(offset.to_be_bytes());
            again.extend_from_slice(data);
        }
        Chunk::Hole { offset, len } => {
            assert!(*len > 0);
            again.extend(offset.to_be_bytes());
            again.extend(len.to_be_bytes());
        }
        Chunk::Status { context, descriptors } => {
            assert!(!descriptors.is_empty());
            again.extend(context.0.to_be_bytes());
            if kind == chunk::BLOCK_STATUS_EXT {
                again.extend((descriptors.len() as u32).to_be_bytes());
            }
            for Descriptor { len, flags } in descriptors {
                assert!(*len > 0, "an extent of nothing");
                if kind == chunk::BLOCK_STATUS_EXT {
                    again.extend([*len, u64::from(*flags)].map(u64::to_be_bytes).as_flattened());
                } else {
                    let len = u32::try_from(*len).expect("32 bits");
                    again.extend([len, *flags].map(u32::to_be_bytes).as_flattened());
                }
            }
        }
        Chunk::Error { errno, text, at } => {
            let number = u32::from_be_bytes(payload[..4].try_into().expect("an error has a number"));
            assert_eq!(Errno::received(number), Some(*errno));
            again.extend(number.to_be_bytes());
            again.extend((text.len() as u16).to_be_bytes());
            again.extend_from_slice(text.as_bytes());
            again.extend(at.iter().flat_map(|at| at.to_be_bytes()));
            // Newer errors may say more.
            assert!(payload.starts_with(&again));
            return;
        }
    }
    assert_eq!(again, payload);
}

fn expect_answer_encodes(kind: u32, data: &[u8], read: &Answer<'_>) {
    let mut again = Vec::new();
    match read {
        Answer::Ack => {}
        Answer::Server { name, description } => {
            again.extend((name.len() as u32).to_be_bytes());
            again.extend_from_slice(name.as_bytes());
            again.extend_from_slice(description.as_bytes());
        }
        Answer::Context { id, name } => {
            again.extend(id.0.to_be_bytes());
            again.extend_from_slice(name.as_bytes());
        }
        Answer::Error { kind: told, text } => {
            assert_eq!(*told, kind);
            again.extend_from_slice(text.as_bytes());
        }
        Answer::Unknown(told) => return assert_eq!(*told, kind),
        Answer::Info(info) => {
            again.extend_from_slice(&data[..2]);
            match info {
                Info::Export { size, flags } => {
                    again.extend(size.to_be_bytes());
                    again.extend(flags.0.to_be_bytes());
                }
                Info::Name(text) | Info::Description(text) => again.extend_from_slice(text.as_bytes()),
                Info::BlockSize(BlockSize { minimum, preferred, maximum }) => {
                    again.extend([*minimum, *preferred, *maximum].map(u32::to_be_bytes).as_flattened());
                }
                Info::Unknown(told) => return assert_eq!(told.to_be_bytes(), data[..2]),
            }
        }
    }
    assert_eq!(again, data, "{read:?}");
}
