//! An NBD client that costs little, so that it is the server that is measured: all requests that are due leave in one
//! send, replies come in large receives, data is received and passed by, and nothing is allocated for a request.
//!
//! Invariant: at most `depth` requests are in flight, and a run ends when all that were sent are answered.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::time::Instant;

use hdrhistogram::Histogram;
use nbd_wire::client::{Handshake, Headers, ReplyHeader, Wish};
use nbd_wire::consts::chunk;
use nbd_wire::{Command, CommandFlags, HeaderStyle, Request, TransmissionFlags};

use crate::content::Content;
use crate::server::EXPORT;
use crate::socket::{Address, Socket};
use crate::workload::{Op, Steps, Workload};

/// Bytes of one receive.
const RECEIVE: usize = 256 << 10;

/// Parts of one send; the kernel takes 1024.
const SEND_PARTS: usize = 512;

/// A connection to the export of a server.
pub struct Client {
    pub(crate) socket: Socket,
    /// Bytes of the disk.
    pub size: u64,
    /// What can be done with it.
    pub flags: TransmissionFlags,
}

/// When requests count.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// Answers from here on.
    pub from: Instant,
    /// No further request is sent after this, and no answer counts.
    pub until: Instant,
}

/// What a run brought.
pub struct Outcome {
    /// Requests that were sent, in the order of the steps.
    pub sent: u64,
    /// Requests that were answered inside the window.
    pub counted: u64,
    /// Their latencies, nanoseconds.
    pub latency: Histogram<u64>,
}

impl Client {
    /// Connects to the export that every server has, and negotiates.
    ///
    /// # Errors
    /// If the server cannot be reached or refuses.
    pub fn connect(address: &Address, structured: bool) -> io::Result<Self> {
        Client::connect_to(address, EXPORT, structured)
    }

    /// Connects to the export of that name.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn connect_to(address: &Address, export: &str, structured: bool) -> io::Result<Self> {
        let mut socket = Socket::connect(address)?;
        let headers = if structured { Headers::Structured } else { Headers::Simple };
        let mut handshake = Handshake::new(Wish { export: export.to_owned(), headers, ..Wish::default() });
        let (mut input, mut output) = (Vec::new(), Vec::new());
        loop {
            let start = input.len();
            input.resize(start + 4096, 0);
            let received = socket.receive(&mut input[start..], true)?;
            input.truncate(start + received);
            if received == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let (taken, connected) = handshake.feed(&input, &mut output).map_err(io::Error::other)?;
            input.drain(..taken);
            io::Write::write_all(&mut socket, &output)?;
            output.clear();
            let Some(connected) = connected else { continue };
            if connected.structured != structured {
                return Err(io::Error::other("the server has no structured replies"));
            }
            return Ok(Client { socket, size: connected.size, flags: connected.flags });
        }
    }

    /// Says goodbye.
    ///
    /// # Errors
    /// If the socket broke.
    pub fn leave(mut self) -> io::Result<()> {
        let mut bytes = Vec::new();
        request(Command::Disconnect, 0, 0, 0).encode(HeaderStyle::Compact, &mut bytes);
        io::Write::write_all(&mut self.socket, &bytes)
    }

    /// Sends `steps` until the window closes or, without one, until they end.
    ///
    /// # Errors
    /// If the socket broke, or the server refused a request or sent nonsense.
    pub fn run(
        &self,
        workload: &Workload,
        steps: Steps,
        generation: u32,
        content: &Content,
        window: Option<Window>,
    ) -> io::Result<Outcome> {
        let now = Instant::now();
        let mut run = Run {
            bytes: workload.bytes,
            left: steps.most().unwrap_or(u64::MAX),
            steps,
            generation,
            content,
            window,
            slots: vec![Slot { op: Op::Read, sent: now }; workload.depth],
            free: (0..workload.depth).collect(),
            outgoing: Outgoing::default(),
            incoming: Incoming { buffer: vec![0; RECEIVE], start: 0, end: 0, data_left: 0, closes: None },
            outcome: Outcome {
                sent: 0,
                counted: 0,
                latency: Histogram::new_with_bounds(1, 100_000_000_000, 3).expect("lawful bounds"),
            },
        };
        run.issue(now);
        while run.free.len() < run.slots.len() {
            run.outgoing.send(&self.socket)?;
            let sends = !run.outgoing.is_empty();
            if sends {
                self.socket.wait(true)?;
            }
            match run.incoming.receive(&self.socket, !sends) {
                Ok(()) => {
                    let now = Instant::now();
                    run.take_replies(now)?;
                    run.issue(now);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(run.outcome)
    }
}

/// A compact request.
pub(crate) fn request(command: Command, cookie: u64, offset: u64, length: u64) -> Request {
    Request { flags: CommandFlags::default(), command, cookie, offset, length }
}

/// A run under way.
struct Run<'a> {
    bytes: u64,
    steps: Steps,
    left: u64,
    generation: u32,
    content: &'a Content,
    window: Option<Window>,
    /// Requests in flight, by cookie.
    slots: Vec<Slot>,
    free: Vec<usize>,
    outgoing: Outgoing<'a>,
    incoming: Incoming,
    outcome: Outcome,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    op: Op,
    sent: Instant,
}

impl Run<'_> {
    /// Queues as many requests as may be in flight.
    fn issue(&mut self, now: Instant) {
        if self.window.is_some_and(|window| now >= window.until) {
            self.left = 0;
        }
        while self.left > 0
            && let Some(slot) = self.free.pop()
        {
            self.left -= 1;
            let step = self.steps.next().expect("steps have no end");
            let (command, length) = match step.op {
                Op::Read => (Command::Read, self.bytes),
                Op::Write => (Command::Write, self.bytes),
                Op::Flush => (Command::Flush, 0),
                Op::Trim => (Command::Trim, self.bytes),
            };
            self.slots[slot] = Slot { op: step.op, sent: now };
            self.outgoing.header(&request(command, slot as u64, step.offset, length));
            if step.op == Op::Write {
                self.outgoing.data(self.content.at(self.generation, step.offset, self.bytes as usize));
            }
            self.outcome.sent += 1;
        }
    }

    /// Takes all replies that were received, up to the last whole header.
    fn take_replies(&mut self, now: Instant) -> io::Result<()> {
        loop {
            if !self.incoming.pass_data() {
                return Ok(());
            }
            if let Some(slot) = self.incoming.closes.take() {
                self.answered(slot, now);
            }
            let header = ReplyHeader::parse(self.incoming.bytes()).map_err(io::Error::other)?;
            let Some((header, len)) = header else { return Ok(()) };
            self.incoming.start += len;
            match header {
                ReplyHeader::Simple { errno: 0, cookie } => {
                    let slot = self.slot(cookie)?;
                    self.incoming.closes = Some(slot);
                    if self.slots[slot].op == Op::Read {
                        self.incoming.data_left = self.bytes;
                    }
                }
                ReplyHeader::Chunk { flags, kind, cookie, len, .. } if kind & chunk::ERROR_BIT == 0 => {
                    let slot = self.slot(cookie)?;
                    self.incoming.data_left = len;
                    self.incoming.closes = (flags & chunk::DONE != 0).then_some(slot);
                }
                refused => return Err(io::Error::other(format!("a request failed: {refused:?}"))),
            }
        }
    }

    fn slot(&self, cookie: u64) -> io::Result<usize> {
        let slot = usize::try_from(cookie).ok().filter(|&slot| slot < self.slots.len());
        slot.ok_or_else(|| io::Error::other("a reply to nothing"))
    }

    fn answered(&mut self, slot: usize, now: Instant) {
        self.free.push(slot);
        if self.window.is_none_or(|window| now >= window.from && now < window.until) {
            self.outcome.counted += 1;
            let latency = now.saturating_duration_since(self.slots[slot].sent).as_nanos() as u64;
            self.outcome.latency.saturating_record(latency);
        }
    }
}

/// What is to be sent.
#[derive(Default)]
struct Outgoing<'a> {
    headers: Vec<u8>,
    parts: VecDeque<Part<'a>>,
    /// Bytes of the first part that are sent.
    sent: usize,
}

enum Part<'a> {
    /// Of the headers.
    Headers(Range<usize>),
    Data(&'a [u8]),
}

impl<'a> Outgoing<'a> {
    fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    fn header(&mut self, request: &Request) {
        let start = self.headers.len();
        request.encode(HeaderStyle::Compact, &mut self.headers);
        let end = self.headers.len();
        match self.parts.back_mut() {
            Some(Part::Headers(range)) => range.end = end,
            _ => self.parts.push_back(Part::Headers(start..end)),
        }
    }

    fn data(&mut self, bytes: &'a [u8]) {
        self.parts.push_back(Part::Data(bytes));
    }

    /// Sends what the socket takes.
    fn send(&mut self, socket: &Socket) -> io::Result<()> {
        while !self.parts.is_empty() {
            let mut slices = [IoSlice::new(&[]); SEND_PARTS];
            let mut skip = self.sent;
            let mut count = 0;
            for (part, slice) in self.parts.iter().zip(&mut slices) {
                let bytes = match part {
                    Part::Headers(range) => &self.headers[range.clone()],
                    Part::Data(bytes) => bytes,
                };
                *slice = IoSlice::new(&bytes[skip..]);
                skip = 0;
                count += 1;
            }
            match socket.send(&slices[..count]) {
                Ok(sent) => self.forget(sent),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.headers.clear();
        Ok(())
    }

    fn forget(&mut self, sent: usize) {
        self.sent += sent;
        while let Some(part) = self.parts.front() {
            let len = match part {
                Part::Headers(range) => range.len(),
                Part::Data(bytes) => bytes.len(),
            };
            if self.sent < len {
                return;
            }
            self.sent -= len;
            self.parts.pop_front();
        }
    }
}

/// What was received.
struct Incoming {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes of data that come before the next header.
    data_left: u64,
    /// The request that is answered when they have come.
    closes: Option<usize>,
}

impl Incoming {
    fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    fn receive(&mut self, socket: &Socket, wait: bool) -> io::Result<()> {
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        match socket.receive(&mut self.buffer[self.end..], wait)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            received => {
                self.end += received;
                Ok(())
            }
        }
    }

    /// Passes by the data in front of the next header; whether all of it was there.
    fn pass_data(&mut self) -> bool {
        let passed = self.data_left.min((self.end - self.start) as u64);
        self.start += passed as usize;
        self.data_left -= passed;
        self.data_left == 0
    }
}
