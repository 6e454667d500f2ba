//! The server's side of the handshake: options in, replies out, until the client has chosen an export or leaves.
//!
//! ```text
//!   greeting ─▶ client flags ─▶ option ─▶ option … ─▶ GO or EXPORT_NAME ─▶ Session
//!                                 └──────────────────▶ ABORT
//! ```
//! Invariant: every option that arrives whole is answered (EXPORT_NAME by the session or the end of the connection), and
//! the stream stays in step whatever the option was.

use crate::consts::{IHAVEOPT, NBDMAGIC, handshake_flags::*, info, option, option_reply};
use crate::error::Violation;
use crate::export::{Denial, ExportInfo, Exports};
use crate::option::{Context, ContextId, ContextRequest, InfoRequest, OptionReply, listed, selected};
use crate::request::HeaderStyle;
use crate::session::Session;

/// Options of one handshake: a client needs about five, a prober that lists every export's contexts some more.
const OPTIONS_MOST: u32 = 128;

/// Bytes of an option's data: two strings of 4096 bytes and their lengths, or the queries of a very curious client.
const DATA_MOST: u32 = 64 << 10;

/// Bytes of an option's header.
const HEADER: usize = 16;

/// Bytes of a longer option that are dropped to stay in step before the client is taken for a hostile one.
const SKIP_MOST: u32 = 1 << 20;

/// Zeroes after the answer to EXPORT_NAME.
const PADDING: [u8; 124] = [0; 124];

/// How far a handshake has come.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// More bytes are needed.
    More,
    /// An export was chosen; the transmission phase begins with the next byte.
    Chosen(Session),
    /// The client said that it leaves.
    Aborted,
}

/// A handshake under way.
#[derive(Debug)]
pub struct Handshake {
    state: State,
    options: u32,
    no_zeroes: bool,
    structured: bool,
    style: HeaderStyle,
    contexts: Option<Selection>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    ClientFlags,
    Option,
    /// The rest of an option that was too long to be looked at.
    Skip(u32),
}

/// The contexts of the last SET_META_CONTEXT, which hold for the export that it named and no other.
#[derive(Debug)]
struct Selection {
    export: String,
    contexts: Vec<(ContextId, Context)>,
}

impl Default for Handshake {
    fn default() -> Self {
        Handshake {
            state: State::ClientFlags,
            options: 0,
            no_zeroes: false,
            structured: false,
            style: HeaderStyle::Compact,
            contexts: None,
        }
    }
}

impl Handshake {
    /// Bytes of input that a caller has to be able to keep, as an option is answered when all of it is there.
    pub const INPUT_MOST: usize = HEADER + DATA_MOST as usize;

    /// What the server says first.
    pub fn greeting() -> [u8; 18] {
        let mut bytes = [0; 18];
        bytes[..8].copy_from_slice(&NBDMAGIC.to_be_bytes());
        bytes[8..16].copy_from_slice(&IHAVEOPT.to_be_bytes());
        bytes[16..].copy_from_slice(&(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
        bytes
    }

    /// Takes what can be taken of `input` and appends the answers to `out`, which are to be sent even if the handshake
    /// fails. Returns the number of bytes taken; the rest comes again with more behind it, or belongs to the
    /// transmission phase.
    ///
    /// # Errors
    /// If the connection must end.
    pub fn feed(
        &mut self,
        input: &[u8],
        exports: &dyn Exports,
        out: &mut Vec<u8>,
    ) -> Result<(usize, Progress), Violation> {
        let mut taken = 0;
        loop {
            let rest = &input[taken..];
            let (len, progress) = match self.state {
                State::ClientFlags => match rest.first_chunk::<4>() {
                    Some(flags) => {
                        self.client_flags(u32::from_be_bytes(*flags))?;
                        (4, Progress::More)
                    }
                    None => (0, Progress::More),
                },
                State::Skip(left) => {
                    let len = rest.len().min(left as usize);
                    self.state = match left - len as u32 {
                        0 => State::Option,
                        left => State::Skip(left),
                    };
                    (len, Progress::More)
                }
                State::Option => self.option(rest, exports, out)?,
            };
            taken += len;
            if len == 0 || progress != Progress::More {
                return Ok((taken, progress));
            }
        }
    }

    fn client_flags(&mut self, flags: u32) -> Result<(), Violation> {
        let known = u32::from(FIXED_NEWSTYLE | NO_ZEROES);
        if flags & !known != 0 {
            return Err(Violation::ClientFlags(flags));
        }
        if flags & u32::from(FIXED_NEWSTYLE) == 0 {
            return Err(Violation::NotFixedNewstyle);
        }
        self.no_zeroes = flags & u32::from(NO_ZEROES) != 0;
        self.state = State::Option;
        Ok(())
    }

    /// One option, if all of it is there.
    fn option(
        &mut self,
        input: &[u8],
        exports: &dyn Exports,
        out: &mut Vec<u8>,
    ) -> Result<(usize, Progress), Violation> {
        let Some((header, rest)) = input.split_first_chunk::<HEADER>() else {
            return match input.first_chunk::<8>() {
                Some(magic) if u64::from_be_bytes(*magic) != IHAVEOPT => {
                    Err(Violation::OptionMagic(u64::from_be_bytes(*magic)))
                }
                _ => Ok((0, Progress::More)),
            };
        };
        let [m0, m1, m2, m3, m4, m5, m6, m7, o0, o1, o2, o3, l0, l1, l2, l3] = *header;
        let magic = u64::from_be_bytes([m0, m1, m2, m3, m4, m5, m6, m7]);
        let number = u32::from_be_bytes([o0, o1, o2, o3]);
        let len = u32::from_be_bytes([l0, l1, l2, l3]);
        if magic != IHAVEOPT {
            return Err(Violation::OptionMagic(magic));
        }
        if len > SKIP_MOST || (len > DATA_MOST && number == option::EXPORT_NAME) {
            return Err(Violation::OptionTooLong { option: number, len });
        }
        let mut reply = OptionReply { option: number, out };
        if len > DATA_MOST {
            self.count()?;
            self.state = State::Skip(len);
            return Ok((HEADER, self.answer_long(number, &mut reply)));
        }
        let Some(data) = rest.get(..len as usize) else { return Ok((0, Progress::More)) };
        self.count()?;
        let progress = if exports.is_stopping() && number != option::ABORT {
            stopping(number, &mut reply)?
        } else {
            self.answer(number, data, exports, &mut reply)?
        };
        Ok((HEADER + data.len(), progress))
    }

    fn count(&mut self) -> Result<(), Violation> {
        self.options += 1;
        if self.options > OPTIONS_MOST { Err(Violation::TooManyOptions(OPTIONS_MOST)) } else { Ok(()) }
    }

    /// Answers an option whose data is longer than would be looked at.
    fn answer_long(&mut self, number: u32, reply: &mut OptionReply<'_>) -> Progress {
        match number {
            option::ABORT => {
                reply.ack();
                return Progress::Aborted;
            }
            option::LIST | option::STARTTLS | option::STRUCTURED_REPLY | option::EXTENDED_HEADERS => {
                no_data(reply);
            }
            option::INFO | option::GO | option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                if number == option::SET_META_CONTEXT {
                    self.contexts = None;
                }
                reply.error(option_reply::ERR_TOO_BIG, "the option's data is too long");
            }
            _ => unknown(reply),
        }
        Progress::More
    }

    fn answer(
        &mut self,
        number: u32,
        data: &[u8],
        exports: &dyn Exports,
        reply: &mut OptionReply<'_>,
    ) -> Result<Progress, Violation> {
        match number {
            option::EXPORT_NAME => return self.export_name(data, exports, reply.out).map(Progress::Chosen),
            option::ABORT => {
                reply.ack();
                return Ok(Progress::Aborted);
            }
            option::LIST => list(data, exports, reply),
            option::INFO | option::GO => {
                if let Some(session) = self.info(data, exports, reply)
                    && number == option::GO
                {
                    return Ok(Progress::Chosen(session));
                }
            }
            option::STARTTLS | option::STRUCTURED_REPLY | option::EXTENDED_HEADERS if !data.is_empty() => {
                no_data(reply);
            }
            // Where TLS begins, once there is any: acknowledge, start over with nothing negotiated, and hand the
            // connection to the TLS library.
            option::STARTTLS => {
                reply.error(option_reply::ERR_POLICY, "this server is not set up for TLS");
            }
            option::STRUCTURED_REPLY if self.style == HeaderStyle::Extended => {
                reply.error(option_reply::ERR_EXT_HEADER_REQD, "extended headers were negotiated already");
            }
            option::STRUCTURED_REPLY => {
                self.structured = true;
                reply.ack();
            }
            option::EXTENDED_HEADERS => {
                self.structured = true;
                self.style = HeaderStyle::Extended;
                reply.ack();
            }
            option::LIST_META_CONTEXT => self.list_contexts(data, exports, reply),
            option::SET_META_CONTEXT => self.set_contexts(data, exports, reply),
            _ => unknown(reply),
        }
        Ok(Progress::More)
    }

    fn export_name(
        &mut self,
        data: &[u8],
        exports: &dyn Exports,
        out: &mut Vec<u8>,
    ) -> Result<Session, Violation> {
        let refuse = |why: &str| Violation::ExportName(why.to_owned());
        if self.style == HeaderStyle::Extended {
            return Err(refuse("not after extended headers"));
        }
        let name = std::str::from_utf8(data).map_err(|_| refuse("a name is UTF-8"))?;
        let export = exports.find(name).map_err(|denial| refuse(denied(&denial).1))?;
        let session = self.session(&export, false);
        out.extend_from_slice(&export.size.to_be_bytes());
        out.extend_from_slice(&session.flags.0.to_be_bytes());
        if !self.no_zeroes {
            out.extend_from_slice(&PADDING);
        }
        Ok(session)
    }

    /// Answers INFO or GO; what GO leads to, if the client gets the export.
    fn info(&self, data: &[u8], exports: &dyn Exports, reply: &mut OptionReply<'_>) -> Option<Session> {
        let Some(request) = InfoRequest::parse(data) else {
            reply.error(option_reply::ERR_INVALID, "malformed request for information");
            return None;
        };
        let export = found(exports.find(request.name), reply)?;
        let session = self.session(&export, request.wants.contains(&info::BLOCK_SIZE));
        reply.export(&export, session.flags.0);
        reply.ack();
        Some(session)
    }

    /// What the transmission phase would be on an export; `sized` if its client asked for the block sizes.
    fn session(&self, export: &ExportInfo, sized: bool) -> Session {
        let contexts = match &self.contexts {
            Some(selection) if selection.export == export.name => selection.contexts.clone(),
            _ => Vec::new(),
        };
        Session::new(export, self.style, self.structured, contexts, sized)
    }

    fn list_contexts(&self, data: &[u8], exports: &dyn Exports, reply: &mut OptionReply<'_>) {
        if let Some((export, request)) = self.context_request(data, exports, reply) {
            for context in listed(&export, &request.queries) {
                reply.context(context, ContextId(0));
            }
            reply.ack();
        }
    }

    fn set_contexts(&mut self, data: &[u8], exports: &dyn Exports, reply: &mut OptionReply<'_>) {
        // Whatever comes of it, the earlier selection is gone.
        self.contexts = None;
        let Some((export, request)) = self.context_request(data, exports, reply) else { return };
        let contexts: Vec<_> =
            selected(&export, &request.queries).into_iter().map(|context| (context.id(), context)).collect();
        for (id, context) in &contexts {
            reply.context(*context, *id);
        }
        reply.ack();
        self.contexts = Some(Selection { export: export.name, contexts });
    }

    fn context_request<'a>(
        &self,
        data: &'a [u8],
        exports: &dyn Exports,
        reply: &mut OptionReply<'_>,
    ) -> Option<(ExportInfo, ContextRequest<'a>)> {
        if !self.structured {
            reply.error(option_reply::ERR_INVALID, "metadata contexts need structured replies");
            return None;
        }
        let Some(request) = ContextRequest::parse(data) else {
            reply.error(option_reply::ERR_INVALID, "malformed request for contexts");
            return None;
        };
        let export = found(exports.find(request.name), reply)?;
        Some((export, request))
    }
}

/// The export, or the client is told why it does not get it.
fn found(outcome: Result<ExportInfo, Denial>, reply: &mut OptionReply<'_>) -> Option<ExportInfo> {
    outcome
        .inspect_err(|denial| {
            let (kind, text) = denied(denial);
            reply.error(kind, text);
        })
        .ok()
}

fn denied(denial: &Denial) -> (u32, &str) {
    match denial {
        Denial::Unknown => (option_reply::ERR_UNKNOWN, "there is no export of that name"),
        Denial::Policy(reason) => (option_reply::ERR_POLICY, reason),
        Denial::Shutdown => (option_reply::ERR_SHUTDOWN, "the server is stopping"),
    }
}

/// Refuses an option because the server stops. EXPORT_NAME has no other refusal than the end of the connection.
fn stopping(number: u32, reply: &mut OptionReply<'_>) -> Result<Progress, Violation> {
    let (kind, text) = denied(&Denial::Shutdown);
    if number == option::EXPORT_NAME {
        return Err(Violation::ExportName(text.to_owned()));
    }
    reply.error(kind, text);
    Ok(Progress::More)
}

fn unknown(reply: &mut OptionReply<'_>) {
    reply.error(option_reply::ERR_UNSUP, "an unknown option");
}

fn no_data(reply: &mut OptionReply<'_>) {
    reply.error(option_reply::ERR_INVALID, "the option takes no data");
}

fn list(data: &[u8], exports: &dyn Exports, reply: &mut OptionReply<'_>) {
    if !data.is_empty() {
        return no_data(reply);
    }
    match exports.list() {
        Some(exports) => {
            for (name, description) in exports {
                reply.server(&name, &description);
            }
            reply.ack();
        }
        None => reply.error(option_reply::ERR_POLICY, "exports are not listed here"),
    }
}
