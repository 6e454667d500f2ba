//! What was negotiated, and so what is allowed: [`Session::admit`] is the only check of a request.
//!
//! Invariant: an admitted request lies inside the disk, brings no more payload than the largest allowed, and asks for
//! nothing that was not offered.

use crate::consts::{Command, CommandFlags, Errno, PAYLOAD_MOST, TransmissionFlags};
use crate::error::Violation;
use crate::export::ExportInfo;
use crate::option::{Context, ContextId};
use crate::reply::{Reply, ReplyStyle};
use crate::request::{HeaderStyle, Request};

/// The outcome of a handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    pub(crate) name: String,
    pub(crate) flags: TransmissionFlags,
    pub(crate) size: u64,
    pub(crate) payload_most: u32,
    /// Every offset and length is a multiple of this power of two.
    pub(crate) alignment: u32,
    pub(crate) style: HeaderStyle,
    pub(crate) structured: bool,
    pub(crate) contexts: Vec<(ContextId, Context)>,
}

/// A request that may be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admitted {
    /// What it asks for; never [`Command::Unknown`].
    pub command: Command,
    /// Flags that go with it.
    pub flags: CommandFlags,
    /// The client's name for it.
    pub cookie: u64,
    /// First byte of the disk that it is about.
    pub offset: u64,
    /// Bytes of the disk that it is about; for a status request with a payload those of the payload.
    pub length: u64,
    payload: u32,
}

impl Admitted {
    /// Bytes that follow the header.
    #[inline]
    pub fn payload_len(&self) -> u64 {
        self.payload.into()
    }

    /// Bytes of buffer that it takes: its payload, or the data that it brings.
    #[inline]
    pub fn buffer_len(&self) -> usize {
        if self.command == Command::Read { self.length as usize } else { self.payload as usize }
    }

    /// Whether the client wants to leave.
    #[inline]
    pub fn is_disconnect(&self) -> bool {
        self.command == Command::Disconnect
    }

    /// Whether durability was asked for.
    #[inline]
    pub fn fua(&self) -> bool {
        self.flags.has(CommandFlags::FUA)
    }
}

/// A request that is answered with an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The number for the client.
    pub errno: Errno,
    /// The reason.
    pub text: &'static str,
    /// Bytes of payload that follow and are to be dropped.
    pub skip: u64,
}

/// A request that is not carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// It is answered, and the connection goes on.
    Reply(Refusal),
    /// The connection ends.
    Drop(Violation),
}

/// Why a request is refused: for the client's program, and for people.
type Reason = (Errno, &'static str);

impl Session {
    /// `sized` says that the client asked for the block sizes, and so promised to keep to them. Others are served at any
    /// byte, as nobody told them otherwise.
    pub(crate) fn new(
        export: &ExportInfo,
        style: HeaderStyle,
        structured: bool,
        contexts: Vec<(ContextId, Context)>,
        sized: bool,
    ) -> Self {
        let block = export.block_size.lawful();
        assert!(block.minimum.is_power_of_two(), "the smallest block is a power of two");
        let status_payload = style == HeaderStyle::Extended && !contexts.is_empty();
        Session {
            name: export.name.clone(),
            flags: TransmissionFlags::new(&export.abilities, structured, status_payload),
            size: export.size,
            payload_most: block.maximum,
            alignment: if sized { block.minimum } else { 1 },
            style,
            structured,
            contexts,
        }
    }

    /// The export's own name.
    pub fn export(&self) -> &str {
        &self.name
    }

    /// The flags that the client was given.
    pub fn flags(&self) -> TransmissionFlags {
        self.flags
    }

    /// The form of headers.
    #[inline]
    pub fn header_style(&self) -> HeaderStyle {
        self.style
    }

    /// The contexts that were selected, in the order of their numbers.
    pub fn contexts(&self) -> &[(ContextId, Context)] {
        &self.contexts
    }

    /// The reply to a request.
    #[inline]
    pub fn reply(&self, cookie: u64, offset: u64) -> Reply {
        let style = match (self.style, self.structured) {
            (HeaderStyle::Extended, _) => ReplyStyle::Extended,
            (HeaderStyle::Compact, true) => ReplyStyle::Structured,
            (HeaderStyle::Compact, false) => ReplyStyle::Simple,
        };
        Reply { style, cookie, offset }
    }

    /// Checks a request against everything that was agreed.
    ///
    /// # Errors
    /// What it is refused with, and how many bytes of payload follow nevertheless.
    #[inline]
    pub fn admit(&self, request: &Request) -> Result<Admitted, Refused> {
        let payload = self.payload_of(request);
        if payload > self.skip_most() {
            return Err(Refused::Drop(Violation::PayloadTooLong(payload)));
        }
        match self.judge(request, payload) {
            Ok(()) => Ok(Admitted {
                command: request.command,
                flags: request.flags,
                cookie: request.cookie,
                offset: request.offset,
                length: request.length,
                payload: payload as u32,
            }),
            Err((errno, text)) => Err(Refused::Reply(Refusal { errno, text, skip: payload })),
        }
    }

    /// Bytes that follow a request's header, be it allowed or not.
    #[inline]
    fn payload_of(&self, request: &Request) -> u64 {
        let follows = match self.style {
            // Nothing comes after it, and nothing is answered.
            _ if request.command == Command::Disconnect => false,
            HeaderStyle::Compact => request.command == Command::Write,
            // QEMU 10 leaves the flag off its writes, and sends their data all the same.
            HeaderStyle::Extended => {
                request.command == Command::Write || request.flags.has(CommandFlags::PAYLOAD_LEN)
            }
        };
        if follows { request.length } else { 0 }
    }

    /// Payload of a refused request that is still read and dropped so that the stream stays in step; nothing is kept of
    /// it. A compact one is at most 4 GiB, an extended one could go on for years, and the specification wants a client
    /// gone that announces more than it may.
    #[inline]
    fn skip_most(&self) -> u64 {
        match self.style {
            HeaderStyle::Compact => u32::MAX.into(),
            HeaderStyle::Extended => self.payload_most.max(PAYLOAD_MOST).into(),
        }
    }

    #[inline]
    fn judge(&self, request: &Request, payload: u64) -> Result<(), Reason> {
        let refused = |errno, text| Err((errno, text));
        match request.command {
            Command::Disconnect => return Ok(()),
            Command::Unknown(_) => return refused(Errno::EINVAL, "an unknown command"),
            Command::Write | Command::WriteZeroes | Command::Trim
                if self.flags.has(TransmissionFlags::READ_ONLY) =>
            {
                return refused(Errno::EPERM, "the export is read-only");
            }
            Command::Trim if !self.flags.has(TransmissionFlags::SEND_TRIM) => {
                return refused(Errno::EINVAL, "the export did not offer trim");
            }
            _ => {}
        }
        if request.flags.0 & !self.flags_for(request.command) != 0 {
            return refused(Errno::EINVAL, "a flag that does not go with this command or was not negotiated");
        }
        match request.command {
            Command::Read => {
                self.within(request.offset, request.length, Errno::EINVAL)?;
                self.judge_read_length(request.length)
            }
            Command::Write => self.judge_write(request),
            Command::WriteZeroes => self.within(request.offset, request.length, Errno::ENOSPC),
            Command::Flush if (request.offset, request.length) != (0, 0) => {
                refused(Errno::EINVAL, "a flush has no offset and no length")
            }
            Command::BlockStatus => self.judge_status(request, payload),
            Command::Flush | Command::Disconnect | Command::Unknown(_) => Ok(()),
            Command::Trim | Command::Cache => self.within(request.offset, request.length, Errno::EINVAL),
        }
    }

    /// Whether a range lies inside the disk, else `errno`, and is aligned as the client promised.
    #[inline]
    fn within(&self, offset: u64, length: u64, errno: Errno) -> Result<(), Reason> {
        if offset.checked_add(length).is_none_or(|end| end > self.size) {
            return Err((errno, "past the end of the disk"));
        }
        if (offset | length) & (u64::from(self.alignment) - 1) != 0 {
            return Err((Errno::EINVAL, "not a multiple of the smallest block"));
        }
        Ok(())
    }

    #[inline]
    fn judge_read_length(&self, length: u64) -> Result<(), Reason> {
        match length > self.payload_most.into() {
            false => Ok(()),
            // EOVERFLOW is for clients that know of chunks.
            true if self.structured => Err((Errno::EOVERFLOW, "a read larger than the largest payload")),
            true => Err((Errno::EINVAL, "a read larger than the largest payload")),
        }
    }

    #[inline]
    fn judge_write(&self, request: &Request) -> Result<(), Reason> {
        self.within(request.offset, request.length, Errno::ENOSPC)?;
        match request.length > self.payload_most.into() {
            true => Err((Errno::EINVAL, "a write larger than the largest payload")),
            false => Ok(()),
        }
    }

    fn judge_status(&self, request: &Request, payload: u64) -> Result<(), Reason> {
        if self.contexts.is_empty() {
            return Err((Errno::EINVAL, "no metadata context was negotiated for this export"));
        }
        if request.flags.has(CommandFlags::PAYLOAD_LEN) {
            // The range is in the payload; it is checked when that is there.
            let whole = (1..=self.contexts.len() as u64).any(|count| payload == 8 + 4 * count);
            return if whole { Ok(()) } else { Err((Errno::EINVAL, "a malformed list of contexts")) };
        }
        self.judge_status_range(request.offset, request.length)
    }

    fn judge_status_range(&self, offset: u64, length: u64) -> Result<(), Reason> {
        if length == 0 {
            return Err((Errno::EINVAL, "the status of nothing"));
        }
        self.within(offset, length, Errno::EINVAL)
    }

    /// The length of the range and the contexts that the payload of a status request selects.
    ///
    /// # Errors
    /// A context that was not negotiated or is named twice, or a range outside of the disk.
    pub fn status_payload(
        &self,
        request: &Admitted,
        payload: &[u8],
    ) -> Result<(u64, Vec<ContextId>), Refusal> {
        let refuse = |(errno, text): Reason| Refusal { errno, text, skip: 0 };
        let malformed = || refuse((Errno::EINVAL, "a malformed list of contexts"));
        let (length, numbers) = payload.split_first_chunk::<8>().ok_or_else(malformed)?;
        let (numbers, []) = numbers.as_chunks::<4>() else { return Err(malformed()) };
        let length = u64::from_be_bytes(*length);
        self.judge_status_range(request.offset, length).map_err(refuse)?;
        let mut chosen = Vec::with_capacity(self.contexts.len());
        for number in numbers {
            let id = ContextId(u32::from_be_bytes(*number));
            if chosen.contains(&id) || self.contexts.iter().all(|(known, _)| *known != id) {
                return Err(refuse((Errno::EINVAL, "a context that was not negotiated, or one twice")));
            }
            chosen.push(id);
        }
        Ok((length, chosen))
    }

    /// Flags that may stand on a command here.
    #[inline]
    fn flags_for(&self, command: Command) -> u16 {
        let extended = self.style == HeaderStyle::Extended;
        let when = |offered: bool, flag: u16| if offered { flag } else { 0 };
        CommandFlags::FUA
            | match command {
                Command::Read => when(self.flags.has(TransmissionFlags::SEND_DF), CommandFlags::DF),
                Command::Write => when(extended, CommandFlags::PAYLOAD_LEN),
                Command::WriteZeroes => {
                    let fast = self.flags.has(TransmissionFlags::SEND_FAST_ZERO);
                    CommandFlags::NO_HOLE | when(fast, CommandFlags::FAST_ZERO)
                }
                Command::BlockStatus => CommandFlags::REQ_ONE | when(extended, CommandFlags::PAYLOAD_LEN),
                Command::Trim
                | Command::Flush
                | Command::Cache
                | Command::Disconnect
                | Command::Unknown(_) => 0,
            }
    }
}
