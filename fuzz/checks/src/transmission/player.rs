//! A client of a session: sends what the script says, reads every reply, and knows which answers it may expect.
//!
//! Invariant: an answer is looked at by the rules of the protocol alone; what is lawful is decided here anew, from the
//! specification, for requests where it leaves no choice.

use std::collections::BTreeMap;
use std::io;

use nbd_wire::client::{self, Chunk, Connected, ReplyHeader};
use nbd_wire::consts::{allocation, chunk};
use nbd_wire::{Command, CommandFlags, ContextId, ExportInfo, HeaderStyle, Request, TransmissionFlags};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;

use super::disk::PAYLOAD_MOST;
use super::model::{Asked, Effect, Fate, stamp};
use super::script::{Ask, Hello, Send, What};

/// Longest payload that is really sent. A longer one is announced, and then the connection breaks off.
const SENT_MOST: u64 = PAYLOAD_MOST as u64;
/// Requests of a flood at most.
const FLOOD_MOST: u8 = 40;

pub struct Player {
    /// `None` when it is over.
    stream: Option<UnixStream>,
    connected: Connected,
    out: Vec<u8>,
    input: Vec<u8>,
    waiting: BTreeMap<u64, Waiting>,
    asked: Vec<Asked>,
    last_cookie: u64,
    end: End,
}

/// How the connection goes on after what was prepared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    /// The server ends it: goodbye was said, or garbage.
    Server,
    /// The client breaks it off.
    Client,
}

/// A request in flight.
struct Waiting {
    request: Request,
    /// Whether it must succeed or must not, where the specification says.
    verdict: Option<bool>,
    /// Where it stands among those asked in this round.
    index: usize,
    /// What chunks have brought so far, and which bytes of it.
    data: Vec<u8>,
    there: Vec<bool>,
    contexts: Vec<ContextId>,
    failed: bool,
}

impl Player {
    /// Negotiates over `stream`.
    pub async fn connect(mut stream: UnixStream, hello: &Hello) -> Player {
        let mut handshake = client::Handshake::new(hello.wish());
        let mut input = Vec::new();
        let connected = loop {
            let mut out = Vec::new();
            let (taken, connected) = handshake.feed(&input, &mut out).expect("a lawful server");
            input.drain(..taken);
            stream.write_all(&out).await.expect("the server listens");
            match connected {
                Some(connected) => break connected,
                None => assert_ne!(stream.read_buf(&mut input).await.expect("answers"), 0, "an early end"),
            }
        };
        assert!(input.is_empty(), "nothing comes before the first request");
        Player {
            stream: Some(stream),
            connected,
            out: Vec::new(),
            input,
            waiting: BTreeMap::new(),
            asked: Vec::new(),
            last_cookie: 0,
            end: End::Open,
        }
    }

    pub fn is_over(&self) -> bool {
        self.stream.is_none()
    }

    /// The requests of the round that is over. Only those of a connection that ended may be open.
    pub fn take_asked(&mut self) -> Vec<Asked> {
        std::mem::take(&mut self.asked)
    }

    /// Queues what the script says.
    pub fn prepare(&mut self, send: &Send, export: &ExportInfo) {
        if self.stream.is_none() || self.end != End::Open {
            return;
        }
        match &send.what {
            What::Ask(ask) => self.ask(ask, export, None),
            What::Flood(ask, times) => {
                for _ in 0..*times % FLOOD_MOST {
                    self.ask(ask, export, None);
                }
            }
            What::Cut(ask, at) => self.ask(ask, export, Some((*at).into())),
            What::Garbage(bytes) => {
                // No request begins with it.
                self.out.extend_from_slice(&[0xff; 4]);
                self.out.extend_from_slice(bytes);
                self.end = End::Server;
            }
            What::Goodbye => {
                let request = Request {
                    flags: CommandFlags(0),
                    command: Command::Disconnect,
                    cookie: 0,
                    offset: 0,
                    length: 0,
                };
                request.encode(self.connected.style, &mut self.out);
                self.end = End::Server;
            }
            What::Vanish => self.end = End::Client,
        }
    }

    /// Queues a request, or so many bytes of it and the end of the connection.
    fn ask(&mut self, ask: &Ask, export: &ExportInfo, cut: Option<usize>) {
        if self.end != End::Open {
            return;
        }
        self.last_cookie += 1;
        let offset = ask.offset.at(export.size);
        let extended = self.connected.style == HeaderStyle::Extended;
        let mut length = ask.length.from(offset, export.size);
        if !extended {
            length &= u64::from(u32::MAX);
        }
        let request = Request {
            flags: CommandFlags(ask.flags.bits()),
            command: ask.command.number().into(),
            cookie: self.last_cookie.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            offset,
            length,
        };
        let number = self.last_cookie as u8;
        let start = self.out.len();
        request.encode(self.connected.style, &mut self.out);
        let brings = match request.command {
            Command::Write => true,
            _ => extended && request.flags.has(CommandFlags::PAYLOAD_LEN),
        };
        let mut whole = true;
        if brings {
            let sent = length.min(SENT_MOST);
            self.out.extend((0..sent).map(|at| stamp(number, offset.wrapping_add(at))));
            whole = sent == length;
        }
        if let Some(cut) = cut
            && cut < self.out.len() - start
        {
            self.out.truncate(start + cut);
            whole = false;
        }
        if !whole {
            self.end = End::Client;
        }
        self.asked.push(Asked {
            offset,
            length,
            effect: effect(&request, number),
            fate: if whole { Fate::Open } else { Fate::Refused },
        });
        let verdict = self.verdict(&request, export);
        let waiting = Waiting {
            request,
            verdict,
            index: self.asked.len() - 1,
            data: Vec::new(),
            there: Vec::new(),
            contexts: Vec::new(),
            failed: false,
        };
        self.waiting.insert(request.cookie, waiting);
    }

    /// Whether a request must succeed (`true`), must be refused (`false`), or may be either.
    fn verdict(&self, request: &Request, export: &ExportInfo) -> Option<bool> {
        let Request { offset, length, .. } = *request;
        let inside = offset.checked_add(length).is_some_and(|end| end <= export.size);
        let flags = request.flags.0;
        let changes = matches!(request.command, Command::Write | Command::WriteZeroes | Command::Trim);
        if matches!(request.command, Command::Unknown(_))
            || flags > 0x3f
            || (changes && export.abilities.read_only)
        {
            return Some(false);
        }
        let minimum = self.connected.block_size.map_or(1, |sizes| u64::from(sizes.minimum));
        let aligned = (offset | length).is_multiple_of(minimum);
        match request.command {
            Command::Flush => (flags | (offset | length) as u16 == 0).then_some(true),
            _ if !inside => Some(false),
            Command::Read | Command::Write if length > PAYLOAD_MOST.into() => Some(false),
            Command::BlockStatus if self.connected.contexts.is_empty() || length == 0 => Some(false),
            Command::Trim if !self.connected.flags.has(TransmissionFlags::SEND_TRIM) => Some(false),
            _ if flags == 0 && aligned && length > 0 => Some(true),
            _ => None,
        }
    }

    /// Sends all that is queued and reads until everything is answered or the connection has ended.
    pub async fn drive(&mut self) {
        if self.end == End::Client {
            // All that the socket takes, and gone: without a look at any answer.
            if let Some(stream) = self.stream.take() {
                let _ = stream.try_write(&self.out);
            }
            return self.over();
        }
        while let Some(stream) = &self.stream {
            if self.out.is_empty() && self.waiting.is_empty() && self.end == End::Open {
                return;
            }
            let sends = !self.out.is_empty();
            let interest = if sends { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
            let ready = stream.ready(interest).await.expect("a socket");
            if ready.is_writable() && sends {
                match stream.try_write(&self.out) {
                    Ok(len) => drop(self.out.drain(..len)),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    // The server may end it before it has read all.
                    Err(_) => self.out.clear(),
                }
            }
            if ready.is_readable() && self.receive() {
                assert!(self.end == End::Server, "the server ended a lawful connection");
                return self.over();
            }
        }
    }

    /// Takes in what has come. Returns whether the connection has ended.
    fn receive(&mut self) -> bool {
        let Some(stream) = &self.stream else { return true };
        let mut buffer = [0; 16 << 10];
        match stream.try_read(&mut buffer) {
            Ok(0) => return true,
            Ok(len) => self.input.extend_from_slice(&buffer[..len]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
                return true;
            }
        }
        let mut taken = 0;
        while let Some(len) = self.reply(taken) {
            taken += len;
        }
        self.input.drain(..taken);
        false
    }

    /// One reply or chunk of one at `start` of the input; its length if all of it is there.
    fn reply(&mut self, start: usize) -> Option<usize> {
        let bytes = &self.input[start..];
        let (header, len) = ReplyHeader::parse(bytes).expect("replies are lawful")?;
        match header {
            ReplyHeader::Simple { errno, cookie } => {
                let waiting = self.waiting.get(&cookie).expect("only what was asked is answered");
                assert!(self.connected.style == HeaderStyle::Compact);
                let is_read = waiting.request.command == Command::Read;
                assert!(!(is_read && self.connected.structured), "reads are answered in chunks");
                let data = if is_read && errno == 0 { waiting.request.length as usize } else { 0 };
                let data = bytes.get(len..len + data)?.to_vec();
                let total = len + data.len();
                self.finish(cookie, errno == 0, data);
                Some(total)
            }
            ReplyHeader::Chunk { flags, kind, cookie, offset, len: payload } => {
                assert!(self.connected.structured);
                let payload = bytes.get(len..len + usize::try_from(payload).expect("a bearable chunk"))?;
                let waiting = self.waiting.get_mut(&cookie).expect("only what was asked is answered");
                let echoed =
                    (self.connected.style == HeaderStyle::Extended).then_some(waiting.request.offset);
                assert_eq!(offset, echoed);
                waiting.chunk(Chunk::parse(kind, payload).expect("a lawful chunk"));
                let total = len + payload.len();
                if flags & chunk::DONE != 0 {
                    waiting.check_whole();
                    let (done, data) = (!waiting.failed, std::mem::take(&mut waiting.data));
                    self.finish(cookie, done, data);
                }
                Some(total)
            }
        }
    }

    /// A request has its answer.
    fn finish(&mut self, cookie: u64, done: bool, data: Vec<u8>) {
        let waiting = self.waiting.remove(&cookie).expect("it was there just now");
        let request = waiting.request;
        assert!(waiting.verdict.is_none_or(|verdict| verdict == done), "done: {done}, {request:?}");
        let asked = &mut self.asked[waiting.index];
        assert_eq!(asked.fate, Fate::Open, "a request that never arrived whole was answered");
        asked.fate = if done { Fate::Done } else { Fate::Refused };
        if done && request.command == Command::Read {
            asked.effect = Effect::Read(data);
        }
    }

    fn over(&mut self) {
        self.stream = None;
        self.waiting.clear();
        self.out.clear();
    }

    /// Ends the connection, or waits until the server does if it `stops`.
    pub async fn leave(&mut self, stops: bool) {
        let Some(stream) = &mut self.stream else { return };
        if stops {
            let mut rest = Vec::new();
            match stream.read_to_end(&mut rest).await {
                // The payload of a refused write may still be on its way.
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
                Ok(len) => assert_eq!(len, 0, "answers to nothing"),
            }
        }
        self.over();
    }
}

/// What a request does to the disk if it is carried out.
fn effect(request: &Request, number: u8) -> Effect {
    match request.command {
        Command::Write => Effect::Write(number),
        Command::WriteZeroes => Effect::Zero,
        Command::Trim => Effect::Discard,
        _ => Effect::Nothing,
    }
}

impl Waiting {
    /// Takes in one chunk.
    fn chunk(&mut self, chunk: Chunk<'_>) {
        let Request { command, offset, length, flags, .. } = self.request;
        match chunk {
            Chunk::None => {}
            Chunk::Error { .. } => self.failed = true,
            Chunk::Data { offset: at, data } => {
                self.put(at, data.len() as u64, |into| into.copy_from_slice(data))
            }
            Chunk::Hole { offset: at, len } => self.put(at, len.into(), |into| into.fill(0)),
            Chunk::Status { context, descriptors } => {
                assert_eq!(command, Command::BlockStatus);
                assert!(!self.contexts.contains(&context), "a context twice");
                self.contexts.push(context);
                if flags.has(CommandFlags::PAYLOAD_LEN) {
                    return;
                }
                let told: u64 = descriptors.iter().map(|descriptor| descriptor.len).sum();
                assert!(told <= length, "status of {told} bytes from {offset}, asked was {length}");
                assert!(!flags.has(CommandFlags::REQ_ONE) || descriptors.len() == 1);
                let known = allocation::HOLE | allocation::ZERO;
                assert!(context != ContextId(0) || descriptors.iter().all(|one| one.flags & !known == 0));
            }
        }
    }

    /// Bytes of a read have come.
    fn put(&mut self, at: u64, len: u64, fill: impl FnOnce(&mut [u8])) {
        let Request { command, offset, length, .. } = self.request;
        assert_eq!(command, Command::Read);
        assert!(
            at >= offset && len <= length && at - offset <= length - len,
            "bytes that were not asked for"
        );
        let range = (at - offset) as usize..(at - offset + len) as usize;
        self.data.resize(length as usize, 0);
        self.there.resize(length as usize, false);
        assert!(self.there[range.clone()].iter().all(|there| !there), "a byte twice");
        self.there[range.clone()].fill(true);
        fill(&mut self.data[range]);
    }

    /// The last chunk is there.
    fn check_whole(&self) {
        if self.request.command == Command::Read && !self.failed {
            let there = self.there.iter().filter(|there| **there).count() as u64;
            assert_eq!(there, self.request.length, "a read without all of its bytes");
        }
    }
}
