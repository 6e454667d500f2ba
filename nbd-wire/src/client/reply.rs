//! Replies to requests as a client reads them.

use super::Reader;
use crate::consts::{EXTENDED_REPLY_MAGIC, Errno, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk};
use crate::error::Violation;
use crate::option::ContextId;
use crate::reply::Descriptor;

/// The header of a reply to a request, of any style.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyHeader {
    /// A simple reply; after a read that succeeded its data follows.
    Simple {
        /// 0, or the error's number.
        errno: u32,
        /// Of the request.
        cookie: u64,
    },
    /// A chunk of a structured or extended reply.
    Chunk {
        /// `chunk::DONE` or nothing.
        flags: u16,
        /// One of `chunk`.
        kind: u16,
        /// Of the request.
        cookie: u64,
        /// Of the request; structured replies do not repeat it.
        offset: Option<u64>,
        /// Bytes that follow.
        len: u64,
    },
}

impl ReplyHeader {
    /// The reply at the start of `bytes` and the length of its header; `None` if more bytes are needed.
    ///
    /// # Errors
    /// If the bytes are no reply.
    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, Violation> {
        let Some(magic) = bytes.first_chunk::<4>() else { return Ok(None) };
        let magic = u32::from_be_bytes(*magic);
        let len = match magic {
            SIMPLE_REPLY_MAGIC => 16,
            STRUCTURED_REPLY_MAGIC => 20,
            EXTENDED_REPLY_MAGIC => 32,
            other => return Err(Violation::ReplyMagic(other)),
        };
        let Some(header) = bytes.get(4..len) else { return Ok(None) };
        Ok(Self::read(magic, Reader(header)).map(|header| (header, len)))
    }

    #[inline]
    fn read(magic: u32, mut header: Reader<'_>) -> Option<Self> {
        if magic == SIMPLE_REPLY_MAGIC {
            return Some(ReplyHeader::Simple { errno: header.u32()?, cookie: header.u64()? });
        }
        let (flags, kind, cookie) = (header.u16()?, header.u16()?, header.u64()?);
        let (offset, len) = match magic {
            EXTENDED_REPLY_MAGIC => (Some(header.u64()?), header.u64()?),
            _ => (None, header.u32()?.into()),
        };
        Some(ReplyHeader::Chunk { flags, kind, cookie, offset, len })
    }
}

/// What a chunk says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chunk<'a> {
    /// Nothing: all that there was to say is said.
    None,
    /// Data of a read.
    Data {
        /// Where on the disk it begins.
        offset: u64,
        /// The bytes.
        data: &'a [u8],
    },
    /// A part of a read that is zeroes.
    Hole {
        /// Where on the disk it begins.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// What a context says of a range.
    Status {
        /// The context.
        context: ContextId,
        /// Consecutive extents, at least one, none of them empty.
        descriptors: Vec<Descriptor>,
    },
    /// The request failed.
    Error {
        /// The kind of failure.
        errno: Errno,
        /// The reason; may be empty.
        text: &'a str,
        /// Where on the disk, if the server said that.
        at: Option<u64>,
    },
}

impl<'a> Chunk<'a> {
    /// Reads the payload of a chunk of a `kind`.
    ///
    /// # Errors
    /// If the payload does not fit the kind, or the kind is unknown and no error.
    pub fn parse(kind: u16, payload: &'a [u8]) -> Result<Self, Violation> {
        Self::read(kind, Reader(payload)).ok_or(Violation::MalformedReply("a chunk"))
    }

    fn read(kind: u16, mut payload: Reader<'a>) -> Option<Self> {
        let chunk = match kind {
            chunk::NONE => Chunk::None,
            chunk::OFFSET_DATA => {
                let offset = payload.u64()?;
                let data = std::mem::take(&mut payload.0);
                (!data.is_empty()).then_some(Chunk::Data { offset, data })?
            }
            chunk::OFFSET_HOLE => {
                let (offset, len) = (payload.u64()?, payload.u32()?);
                (len > 0).then_some(Chunk::Hole { offset, len })?
            }
            chunk::BLOCK_STATUS => {
                let context = ContextId(payload.u32()?);
                let (descriptors, []) = payload.0.as_chunks::<8>() else { return None };
                let read = |bytes: &[u8; 8]| {
                    let mut fields = Reader(bytes);
                    Some(Descriptor { len: fields.u32()?.into(), flags: fields.u32()? })
                };
                payload.0 = &[];
                status(context, descriptors.iter().map(read).collect::<Option<_>>()?)?
            }
            chunk::BLOCK_STATUS_EXT => {
                let (context, count) = (ContextId(payload.u32()?), payload.u32()?);
                let (descriptors, []) = payload.0.as_chunks::<16>() else { return None };
                if descriptors.len() != count as usize {
                    return None;
                }
                let read = |bytes: &[u8; 16]| {
                    let mut fields = Reader(bytes);
                    // No context that this client knows has more than 32 bits.
                    Some(Descriptor { len: fields.u64()?, flags: fields.u64()?.try_into().ok()? })
                };
                payload.0 = &[];
                status(context, descriptors.iter().map(read).collect::<Option<_>>()?)?
            }
            error if error & chunk::ERROR_BIT != 0 => {
                let errno = Errno::received(payload.u32()?)?;
                let len = payload.u16()?;
                let text = payload.text(len.into())?;
                let at = if error == chunk::ERROR_OFFSET { Some(payload.u64()?) } else { None };
                // Newer errors may say more.
                payload.0 = &[];
                Chunk::Error { errno, text, at }
            }
            _ => return None,
        };
        payload.end()?;
        Some(chunk)
    }
}

fn status<'a>(context: ContextId, descriptors: Vec<Descriptor>) -> Option<Chunk<'a>> {
    let lawful = !descriptors.is_empty() && descriptors.iter().all(|descriptor| descriptor.len > 0);
    lawful.then_some(Chunk::Status { context, descriptors })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consts::STRUCTURED_REPLY_MAGIC;
    use crate::reply::{Reply, ReplyStyle};
    use proptest::prelude::*;

    const STYLES: [ReplyStyle; 2] = [ReplyStyle::Structured, ReplyStyle::Extended];

    fn reply(style: ReplyStyle) -> Reply {
        Reply { style, cookie: 0x0102_0304_0506_0708, offset: 0x1112_1314_1516_1718 }
    }

    /// What a client reads from a chunk, with its flags; the header has to be right.
    #[track_caller]
    fn read_back(style: ReplyStyle, bytes: &[u8]) -> (u16, Chunk<'_>) {
        let (header, len) = ReplyHeader::parse(bytes).expect("a reply").expect("all of it");
        let ReplyHeader::Chunk { flags, kind, cookie, offset, len: payload } = header else {
            panic!("{header:?}")
        };
        assert_eq!(cookie, 0x0102_0304_0506_0708);
        assert_eq!(offset, (style == ReplyStyle::Extended).then_some(0x1112_1314_1516_1718));
        assert_eq!(len, if style == ReplyStyle::Extended { 32 } else { 20 });
        assert_eq!(bytes.len() - len, payload as usize, "the length is that of the payload");
        (flags, Chunk::parse(kind, &bytes[len..]).expect("a payload of that kind"))
    }

    #[test]
    fn a_simple_reply_is_sixteen_bytes_and_reads_as_it_was_written() {
        let reply = reply(ReplyStyle::Simple);
        let cookie = 0x0102_0304_0506_0708;
        for (bytes, errno) in [
            (reply.done().to_vec(), 0),
            (reply.data(4096).to_vec(), 0),
            (reply.error(Errno::ENOSPC, "full"), 28),
            (reply.error_at(Errno::EIO, "broken", 9), 5),
        ] {
            assert_eq!(bytes.len(), 16);
            assert_eq!(ReplyHeader::parse(&bytes), Ok(Some((ReplyHeader::Simple { errno, cookie }, 16))));
        }
    }

    #[test]
    fn chunks_read_as_they_were_written() {
        for style in STYLES {
            let reply = reply(style);
            assert_eq!(read_back(style, &reply.none()), (chunk::DONE, Chunk::None));

            let whole = [&*reply.data(4), b"data"].concat();
            let expected = Chunk::Data { offset: reply.offset, data: b"data" };
            assert_eq!(read_back(style, &whole), (chunk::DONE, expected));
            let part = [&*reply.data_chunk(99, 4, false), b"more"].concat();
            assert_eq!(read_back(style, &part), (0, Chunk::Data { offset: 99, data: b"more" }));
            let hole = reply.hole_chunk(1 << 40, 512, true);
            assert_eq!(read_back(style, &hole), (chunk::DONE, Chunk::Hole { offset: 1 << 40, len: 512 }));

            let error = reply.error(Errno::EOVERFLOW, "too much");
            let expected = Chunk::Error { errno: Errno::EOVERFLOW, text: "too much", at: None };
            assert_eq!(read_back(style, &error), (chunk::DONE, expected));
            let error = reply.error_at(Errno::EIO, "", 1 << 50);
            let expected = Chunk::Error { errno: Errno::EIO, text: "", at: Some(1 << 50) };
            assert_eq!(read_back(style, &error), (chunk::DONE, expected));
        }
    }

    #[test]
    fn a_status_chunk_has_32_bits_in_a_structured_reply_and_64_in_an_extended_one() {
        let descriptors = vec![Descriptor { len: 4096, flags: 3 }, Descriptor { len: 65536, flags: 0 }];
        for (style, len) in
            [(ReplyStyle::Structured, 20 + 4 + 2 * 8), (ReplyStyle::Extended, 32 + 8 + 2 * 16)]
        {
            let reply = reply(style);
            let mut bytes = reply.status_chunk(ContextId(5), descriptors.len(), false).to_vec();
            for descriptor in &descriptors {
                reply.descriptor(*descriptor, &mut bytes);
            }
            assert_eq!(bytes.len(), len);
            let expected = Chunk::Status { context: ContextId(5), descriptors: descriptors.clone() };
            assert_eq!(read_back(style, &bytes), (0, expected));
        }
        let reply = reply(ReplyStyle::Extended);
        let mut bytes = reply.status_chunk(ContextId(0), 1, true).to_vec();
        reply.descriptor(Descriptor { len: 1 << 41, flags: 0 }, &mut bytes);
        let (_, chunk) = read_back(ReplyStyle::Extended, &bytes);
        let descriptors = vec![Descriptor { len: 1 << 41, flags: 0 }];
        assert_eq!(chunk, Chunk::Status { context: ContextId(0), descriptors });
    }

    #[test]
    fn only_an_extended_reply_is_never_simple() {
        let magic = |style| reply(style).done().first_chunk::<4>().copied().map(u32::from_be_bytes);
        assert_eq!(magic(ReplyStyle::Simple), Some(SIMPLE_REPLY_MAGIC));
        assert_eq!(magic(ReplyStyle::Structured), Some(SIMPLE_REPLY_MAGIC));
        assert_eq!(magic(ReplyStyle::Extended), Some(EXTENDED_REPLY_MAGIC));
        // An error may be the answer to a read, which is never simple once there are chunks.
        let error = reply(ReplyStyle::Structured).error(Errno::EINVAL, "");
        assert_eq!(error[..4], STRUCTURED_REPLY_MAGIC.to_be_bytes());
    }

    #[test]
    fn chunks_that_break_their_rules_are_violations() {
        let malformed: [(u16, &[u8]); 10] = [
            (chunk::NONE, &[0]),
            (chunk::OFFSET_DATA, &[0; 8]),
            (chunk::OFFSET_HOLE, &[0; 11]),
            (chunk::OFFSET_HOLE, &[0; 12]),
            (chunk::BLOCK_STATUS, &[0; 4]),
            (chunk::BLOCK_STATUS, &[0; 12]),
            (chunk::BLOCK_STATUS_EXT, &[1; 24]),
            (chunk::ERROR, &[0, 0, 0, 0, 0, 0]),
            (chunk::ERROR, &[0, 0, 0, 5, 0, 1]),
            (77, &[]),
        ];
        for (kind, payload) in malformed {
            assert!(Chunk::parse(kind, payload).is_err(), "{kind} {payload:?}");
        }
        let newer = [0, 0, 0, 122, 0, 1, b'!', 9, 9];
        let expected = Chunk::Error { errno: Errno::EINVAL, text: "!", at: None };
        assert_eq!(Chunk::parse(0x8077, &newer), Ok(expected), "an unknown error is an error still");
    }

    proptest! {
        #[test]
        fn any_chunk_is_understood_or_refused(kind in 0u16..8, error: bool, payload: Vec<u8>) {
            let _ = Chunk::parse(kind | if error { chunk::ERROR_BIT } else { 0 }, &payload);
        }

        #[test]
        fn any_bytes_are_a_reply_or_a_violation_or_too_few(
            magic in prop_oneof![
                Just(SIMPLE_REPLY_MAGIC), Just(STRUCTURED_REPLY_MAGIC), Just(EXTENDED_REPLY_MAGIC), any::<u32>(),
            ],
            bytes: Vec<u8>,
        ) {
            let bytes = [&magic.to_be_bytes()[..], &bytes].concat();
            let _ = ReplyHeader::parse(&bytes);
        }
    }
}
