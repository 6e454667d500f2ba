//! The client's side of the handshake: asks for what is wished, takes what the server can.
//!
//! ```text
//!   greeting ─▶ flags ─▶ EXTENDED_HEADERS ─no─▶ STRUCTURED_REPLY ─▶ SET_META_CONTEXT ─▶ GO ─▶ Connected
//!                              └──────────yes──────────────────────────▲                └─unknown─▶ EXPORT_NAME
//! ```

use super::option::{Answer, Info, OptionReplyHeader, context_data, info_data, option as put_option};
use crate::consts::{IHAVEOPT, NBDMAGIC, TransmissionFlags, handshake_flags::*, info, option, option_reply};
use crate::error::Violation;
use crate::export::BlockSize;
use crate::option::ContextId;
use crate::request::HeaderStyle;

/// Which form of replies is asked for. A server that does not know it is asked for the next lower one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Headers {
    /// Simple replies.
    Simple,
    /// Structured replies.
    #[default]
    Structured,
    /// Extended requests and replies.
    Extended,
}

/// The option by which the export is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// GO, and EXPORT_NAME if the server does not know it.
    #[default]
    Go,
    /// EXPORT_NAME, as old clients do.
    ExportName,
}

/// What a client would like.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wish {
    /// Name of the export; empty for the server's default.
    pub export: String,
    /// Form of replies. EXPORT_NAME cannot go with extended ones.
    pub headers: Headers,
    /// Metadata contexts, by their full names.
    pub contexts: Vec<String>,
    /// How the export is chosen.
    pub choice: Choice,
}

/// What a client got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connected {
    /// The export's own name, if the server told it.
    pub name: Option<String>,
    /// Words on the export, if the server told any.
    pub description: Option<String>,
    /// Bytes of the disk.
    pub size: u64,
    /// What can be done with it.
    pub flags: TransmissionFlags,
    /// Block sizes, if the server told them.
    pub block_size: Option<BlockSize>,
    /// Form of requests.
    pub style: HeaderStyle,
    /// Whether reads are answered in chunks.
    pub structured: bool,
    /// The contexts that were selected.
    pub contexts: Vec<(ContextId, String)>,
}

/// Why a client got nothing. A server that refuses EXPORT_NAME just closes the connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The server broke the protocol.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// The server said no.
    #[error("the server refuses the export: {text} ({kind:#x})")]
    Refused {
        /// One of `option_reply::ERR_*`.
        kind: u32,
        /// The server's reason.
        text: String,
    },
}

/// The flags of a server's greeting.
///
/// # Errors
/// If it is not that of the fixed newstyle handshake.
pub fn greeting(bytes: &[u8; 18]) -> Result<u16, Violation> {
    let expected = [NBDMAGIC.to_be_bytes(), IHAVEOPT.to_be_bytes()];
    let flags = u16::from_be_bytes([bytes[16], bytes[17]]);
    let lawful = bytes[..16] == *expected.as_flattened() && flags & FIXED_NEWSTYLE != 0;
    lawful.then_some(flags).ok_or(Violation::Greeting)
}

/// A client's handshake under way.
#[derive(Debug)]
pub struct Handshake {
    wish: Wish,
    state: State,
    no_zeroes: bool,
    connected: Connected,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Greeting,
    /// An answer to this option.
    Answer(u32),
    /// What follows EXPORT_NAME.
    Export,
    Done,
}

impl Handshake {
    /// A handshake that begins with what the server says first.
    pub fn new(wish: Wish) -> Self {
        let connected = Connected {
            name: None,
            description: None,
            size: 0,
            flags: TransmissionFlags(0),
            block_size: None,
            style: HeaderStyle::Compact,
            structured: false,
            contexts: Vec::new(),
        };
        Handshake { wish, state: State::Greeting, no_zeroes: false, connected }
    }

    /// Takes what can be taken of `input` and appends what is to be sent to `out`. Returns the number of bytes taken,
    /// and what was agreed when all is; bytes behind that belong to the transmission phase.
    ///
    /// # Errors
    /// Why nothing comes of it.
    pub fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(usize, Option<Connected>), Failure> {
        let mut taken = 0;
        while self.state != State::Done {
            match self.step(&input[taken..], out)? {
                0 => return Ok((taken, None)),
                len => taken += len,
            }
        }
        Ok((taken, Some(self.connected.clone())))
    }

    /// The next thing that the server says, if all of it is there. Returns its length.
    fn step(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, Failure> {
        match self.state {
            State::Greeting => {
                let Some(bytes) = input.first_chunk() else { return Ok(0) };
                let flags = greeting(bytes)? & (FIXED_NEWSTYLE | NO_ZEROES);
                self.no_zeroes = flags & NO_ZEROES != 0;
                out.extend_from_slice(&u32::from(flags).to_be_bytes());
                self.ask(self.first(), out);
                Ok(bytes.len())
            }
            State::Answer(option) => {
                let Some((header, rest)) = input.split_first_chunk() else { return Ok(0) };
                let header = OptionReplyHeader::parse(header)?;
                if header.option != option {
                    return Err(Violation::MalformedReply("an answer to another option").into());
                }
                let Some(data) = rest.get(..header.len as usize) else { return Ok(0) };
                self.answered(option, &Answer::parse(header.kind, data)?, out)?;
                Ok(OptionReplyHeader::LEN + data.len())
            }
            State::Export => {
                let len = if self.no_zeroes { 10 } else { 10 + 124 };
                let Some(bytes) = input.get(..len) else { return Ok(0) };
                let [s0, s1, s2, s3, s4, s5, s6, s7, f0, f1, ..] = *bytes else { return Ok(0) };
                self.connected.size = u64::from_be_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
                self.connected.flags = TransmissionFlags(u16::from_be_bytes([f0, f1]));
                self.state = State::Done;
                Ok(len)
            }
            State::Done => Ok(0),
        }
    }

    fn first(&self) -> u32 {
        match self.wish.headers {
            Headers::Extended if self.wish.choice == Choice::Go => option::EXTENDED_HEADERS,
            Headers::Extended | Headers::Structured => option::STRUCTURED_REPLY,
            Headers::Simple => self.choose(),
        }
    }

    fn choose(&self) -> u32 {
        match self.wish.choice {
            Choice::Go => option::GO,
            Choice::ExportName => option::EXPORT_NAME,
        }
    }

    fn after_headers(&self) -> u32 {
        let contexts = self.connected.structured && !self.wish.contexts.is_empty();
        if contexts { option::SET_META_CONTEXT } else { self.choose() }
    }

    fn ask(&mut self, number: u32, out: &mut Vec<u8>) {
        let name = self.wish.export.as_str();
        let data = match number {
            option::GO => info_data(name, &[info::NAME, info::DESCRIPTION, info::BLOCK_SIZE]),
            option::SET_META_CONTEXT => {
                let queries: Vec<&str> = self.wish.contexts.iter().map(String::as_str).collect();
                context_data(name, &queries)
            }
            option::EXPORT_NAME => name.as_bytes().to_vec(),
            _ => Vec::new(),
        };
        put_option(number, &data, out);
        self.state = if number == option::EXPORT_NAME { State::Export } else { State::Answer(number) };
    }

    fn answered(&mut self, number: u32, answer: &Answer<'_>, out: &mut Vec<u8>) -> Result<(), Failure> {
        match (number, answer) {
            (option::EXTENDED_HEADERS, Answer::Ack) => {
                self.connected.style = HeaderStyle::Extended;
                self.connected.structured = true;
                self.ask(self.after_headers(), out);
            }
            (option::EXTENDED_HEADERS, Answer::Error { .. }) => self.ask(option::STRUCTURED_REPLY, out),
            (option::STRUCTURED_REPLY, Answer::Ack | Answer::Error { .. }) => {
                self.connected.structured = *answer == Answer::Ack;
                self.ask(self.after_headers(), out);
            }
            (option::SET_META_CONTEXT, Answer::Context { id, name }) => {
                self.connected.contexts.push((*id, (*name).to_owned()));
            }
            (option::SET_META_CONTEXT, Answer::Error { .. }) => {
                self.connected.contexts.clear();
                self.ask(self.choose(), out);
            }
            (option::SET_META_CONTEXT, Answer::Ack) => self.ask(self.choose(), out),
            (option::GO, Answer::Info(info)) => self.learn(info),
            (option::GO, Answer::Ack) => self.state = State::Done,
            // EXPORT_NAME cannot go with extended headers.
            (option::GO, Answer::Error { kind: option_reply::ERR_UNSUP, .. })
                if self.connected.style == HeaderStyle::Compact =>
            {
                self.ask(option::EXPORT_NAME, out);
            }
            (option::GO, Answer::Error { kind, text }) => {
                return Err(Failure::Refused { kind: *kind, text: (*text).to_owned() });
            }
            (_, Answer::Unknown(_)) => {}
            _ => return Err(Violation::MalformedReply("an answer that does not go with the option").into()),
        }
        Ok(())
    }

    fn learn(&mut self, info: &Info<'_>) {
        let connected = &mut self.connected;
        match info {
            Info::Export { size, flags } => (connected.size, connected.flags) = (*size, *flags),
            Info::Name(name) => connected.name = Some((*name).to_owned()),
            Info::Description(text) => connected.description = Some((*text).to_owned()),
            Info::BlockSize(sizes) => connected.block_size = Some(*sizes),
            Info::Unknown(_) => {}
        }
    }
}
