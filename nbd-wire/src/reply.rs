//! Replies of the transmission phase: simple, structured and extended headers, written without allocation.
//!
//! ```text
//!   simple      magic errno cookie                      then the data of a read that succeeded
//!   structured  magic flags type cookie length          then what the type says; a reply is one or more chunks
//!   extended    magic flags type cookie offset length   the same with 64-bit lengths, for every command
//! ```

use crate::consts::{EXTENDED_REPLY_MAGIC, Errno, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk};
use crate::option::ContextId;

/// Longest text of an error, bytes: no string should be longer than 256.
const TEXT_MOST: usize = 256;

/// A few bytes that go in front of data.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    bytes: [u8; 44],
    len: usize,
}

impl Header {
    fn new() -> Self {
        Header { bytes: [0; 44], len: 0 }
    }

    #[inline]
    fn put<const N: usize>(mut self, bytes: [u8; N]) -> Self {
        self.bytes[self.len..self.len + N].copy_from_slice(&bytes);
        self.len += N;
        self
    }
}

impl std::ops::Deref for Header {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// How replies were negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReplyStyle {
    Simple,
    Structured,
    Extended,
}

/// The reply to one request: it knows what all of its chunks repeat.
#[derive(Debug, Clone, Copy)]
pub struct Reply {
    pub(crate) style: ReplyStyle,
    pub(crate) cookie: u64,
    /// Of the request; extended replies repeat it.
    pub(crate) offset: u64,
}

impl Reply {
    /// Whether a read is answered in chunks, so that holes can be told.
    #[inline]
    pub fn is_chunked(&self) -> bool {
        self.style != ReplyStyle::Simple
    }

    /// Success of a request that brings no data.
    #[inline]
    pub fn done(&self) -> Header {
        match self.style {
            ReplyStyle::Simple | ReplyStyle::Structured => self.simple(0),
            ReplyStyle::Extended => self.chunk(chunk::NONE, true, 0),
        }
    }

    /// The end of a chunked reply without data.
    pub fn none(&self) -> Header {
        self.chunk(chunk::NONE, true, 0)
    }

    /// Success of a read whose data follows in one piece of `len` bytes.
    #[inline]
    pub fn data(&self, len: u64) -> Header {
        if self.is_chunked() { self.data_chunk(self.offset, len, true) } else { self.simple(0) }
    }

    /// A part of a read: `len` bytes from `at` of the disk follow.
    #[inline]
    pub fn data_chunk(&self, at: u64, len: u64, last: bool) -> Header {
        self.chunk(chunk::OFFSET_DATA, last, len + 8).put(at.to_be_bytes())
    }

    /// A part of a read: `len` zeroes from `at` of the disk, of which nothing follows.
    pub fn hole_chunk(&self, at: u64, len: u32, last: bool) -> Header {
        self.chunk(chunk::OFFSET_HOLE, last, 12).put(at.to_be_bytes()).put_len(len)
    }

    /// The status of a range in one context: `count` descriptors follow.
    pub fn status_chunk(&self, context: ContextId, count: usize, last: bool) -> Header {
        let count = count as u32;
        match self.style {
            ReplyStyle::Extended => {
                let header = self.chunk(chunk::BLOCK_STATUS_EXT, last, 8 + 16 * u64::from(count));
                header.put_len(context.0).put_len(count)
            }
            _ => self.chunk(chunk::BLOCK_STATUS, last, 4 + 8 * u64::from(count)).put_len(context.0),
        }
    }

    /// Appends a descriptor of a status chunk.
    pub fn descriptor(&self, descriptor: Descriptor, out: &mut Vec<u8>) {
        match self.style {
            ReplyStyle::Extended => {
                out.extend_from_slice(&descriptor.len.to_be_bytes());
                out.extend_from_slice(&u64::from(descriptor.flags).to_be_bytes());
            }
            _ => {
                // Never longer than a compact request asked for, so it fits.
                let len = u32::try_from(descriptor.len).unwrap_or(u32::MAX);
                out.extend_from_slice(&len.to_be_bytes());
                out.extend_from_slice(&descriptor.flags.to_be_bytes());
            }
        }
    }

    /// Failure, with a text for those who can take one. The whole of it, nothing follows.
    pub fn error(&self, errno: Errno, text: &str) -> Vec<u8> {
        match self.style {
            ReplyStyle::Simple => self.simple(errno as u32).to_vec(),
            _ => self.error_chunk(chunk::ERROR, errno, text, &[]),
        }
    }

    /// Failure at one byte of the disk, which lies inside the request: what came before it is valid.
    pub fn error_at(&self, errno: Errno, text: &str, at: u64) -> Vec<u8> {
        match self.style {
            ReplyStyle::Simple => self.simple(errno as u32).to_vec(),
            _ => self.error_chunk(chunk::ERROR_OFFSET, errno, text, &at.to_be_bytes()),
        }
    }

    fn error_chunk(&self, kind: u16, errno: Errno, text: &str, tail: &[u8]) -> Vec<u8> {
        let text = cut(text).as_bytes();
        let header = self.chunk(kind, true, (6 + text.len() + tail.len()) as u64).put_len(errno as u32);
        let header = header.put((text.len() as u16).to_be_bytes());
        [&*header, text, tail].concat()
    }

    #[inline]
    fn simple(&self, errno: u32) -> Header {
        Header::new().put_len(SIMPLE_REPLY_MAGIC).put_len(errno).put(self.cookie.to_be_bytes())
    }

    #[inline]
    fn chunk(&self, kind: u16, last: bool, len: u64) -> Header {
        let flags = if last { chunk::DONE } else { 0 };
        let magic = match self.style {
            ReplyStyle::Extended => EXTENDED_REPLY_MAGIC,
            _ => STRUCTURED_REPLY_MAGIC,
        };
        let header = Header::new().put_len(magic).put(flags.to_be_bytes()).put(kind.to_be_bytes());
        let header = header.put(self.cookie.to_be_bytes());
        match self.style {
            ReplyStyle::Extended => header.put(self.offset.to_be_bytes()).put(len.to_be_bytes()),
            _ => header.put_len(u32::try_from(len).expect("chunks are shorter than the largest payload")),
        }
    }
}

impl Header {
    #[inline]
    fn put_len(self, number: u32) -> Self {
        self.put(number.to_be_bytes())
    }
}

/// A part of a range that is alike in one context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// Bytes.
    pub len: u64,
    /// What the context says of them.
    pub flags: u32,
}

/// As much of a text as goes out.
pub(crate) fn cut(text: &str) -> &str {
    let end = (0..=TEXT_MOST.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}
