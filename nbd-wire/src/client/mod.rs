//! The client's side of the wire, for tests, load generators and tools: options and requests out, replies in.
//!
//! ```text
//!   Handshake  greeting and replies to options in, options out ─▶ Connected
//!   Request::encode ─▶ … ─▶ ReplyHeader::parse ─▶ Chunk::parse
//! ```

mod handshake;
mod option;
mod reply;

pub use handshake::{Choice, Connected, Failure, Handshake, Headers, Wish, greeting};
pub use option::{Answer, Info, OptionReplyHeader, context_data, info_data, option};
pub use reply::{Chunk, ReplyHeader};

/// Cuts numbers off the front of what a server sent. `None` where a length does not fit.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn text(&mut self, len: usize) -> Option<&'a str> {
        let (text, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        std::str::from_utf8(text).ok()
    }

    /// Nothing, if nothing is left.
    fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*bytes)
    }
}
