//! Requests of the transmission phase: compact (28 bytes) and extended (32 bytes).

use crate::consts::{Command, CommandFlags, EXTENDED_REQUEST_MAGIC, REQUEST_MAGIC};
use crate::error::Violation;

/// Which of the two forms of request and reply headers was negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HeaderStyle {
    /// 32-bit lengths; simple and structured replies.
    #[default]
    Compact,
    /// 64-bit lengths; extended replies.
    Extended,
}

impl HeaderStyle {
    /// Bytes of a request's header.
    pub fn request_len(self) -> usize {
        match self {
            HeaderStyle::Compact => 28,
            HeaderStyle::Extended => 32,
        }
    }

    fn magic(self) -> u32 {
        match self {
            HeaderStyle::Compact => REQUEST_MAGIC,
            HeaderStyle::Extended => EXTENDED_REQUEST_MAGIC,
        }
    }
}

/// A request as it stands on the wire; nothing about it is checked yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Flags.
    pub flags: CommandFlags,
    /// What it asks for.
    pub command: Command,
    /// The client's name for it, echoed in the reply.
    pub cookie: u64,
    /// First byte of the disk that it is about.
    pub offset: u64,
    /// Bytes that it is about; those of its payload if [`CommandFlags::PAYLOAD_LEN`] says so.
    pub length: u64,
}

impl Request {
    /// The request at the start of `bytes` and the length of its header; `None` if more bytes are needed.
    ///
    /// # Errors
    /// If the bytes are no request: the stream is out of step.
    #[inline]
    pub fn parse(bytes: &[u8], style: HeaderStyle) -> Result<Option<(Request, usize)>, Violation> {
        let Some((magic, rest)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
        let found = u32::from_be_bytes(*magic);
        if found != style.magic() {
            return Err(Violation::RequestMagic { expected: style.magic(), found });
        }
        let Some((fields, rest)) = rest.split_first_chunk::<20>() else { return Ok(None) };
        let length = match style {
            HeaderStyle::Compact => rest.first_chunk::<4>().map(|len| u32::from_be_bytes(*len).into()),
            HeaderStyle::Extended => rest.first_chunk::<8>().map(|len| u64::from_be_bytes(*len)),
        };
        let Some(length) = length else { return Ok(None) };
        let [f0, f1, t0, t1, c0, c1, c2, c3, c4, c5, c6, c7, o0, o1, o2, o3, o4, o5, o6, o7] = *fields;
        let request = Request {
            flags: CommandFlags(u16::from_be_bytes([f0, f1])),
            command: u16::from_be_bytes([t0, t1]).into(),
            cookie: u64::from_be_bytes([c0, c1, c2, c3, c4, c5, c6, c7]),
            offset: u64::from_be_bytes([o0, o1, o2, o3, o4, o5, o6, o7]),
            length,
        };
        Ok(Some((request, style.request_len())))
    }

    /// Appends the request to `out`, as a client sends it.
    ///
    /// # Panics
    /// If a compact request is longer than 2³² − 1 bytes.
    pub fn encode(&self, style: HeaderStyle, out: &mut Vec<u8>) {
        out.extend_from_slice(&style.magic().to_be_bytes());
        out.extend_from_slice(&self.flags.0.to_be_bytes());
        out.extend_from_slice(&u16::from(self.command).to_be_bytes());
        out.extend_from_slice(&self.cookie.to_be_bytes());
        out.extend_from_slice(&self.offset.to_be_bytes());
        match style {
            HeaderStyle::Compact => {
                let length = u32::try_from(self.length).expect("compact requests have 32-bit lengths");
                out.extend_from_slice(&length.to_be_bytes());
            }
            HeaderStyle::Extended => out.extend_from_slice(&self.length.to_be_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn styles() -> impl Strategy<Value = HeaderStyle> {
        prop_oneof![Just(HeaderStyle::Compact), Just(HeaderStyle::Extended)]
    }

    proptest! {
        #[test]
        fn a_request_reads_as_it_was_written(
            style in styles(), flags: u16, command: u16, cookie: u64, offset: u64, length: u32, more: Vec<u8>
        ) {
            let request = Request {
                flags: CommandFlags(flags), command: command.into(), cookie, offset, length: length.into(),
            };
            let mut bytes = Vec::new();
            request.encode(style, &mut bytes);
            for cut in 0..bytes.len() {
                prop_assert_eq!(Request::parse(&bytes[..cut], style), Ok(None));
            }
            bytes.extend(more);
            prop_assert_eq!(Request::parse(&bytes, style), Ok(Some((request, style.request_len()))));
        }

        #[test]
        fn any_bytes_are_a_request_or_a_violation_or_too_few(style in styles(), bytes: Vec<u8>) {
            let _ = Request::parse(&bytes, style);
        }
    }

    #[test]
    fn a_compact_request_where_extended_ones_were_agreed_is_a_violation() {
        let bytes = REQUEST_MAGIC.to_be_bytes();
        assert!(Request::parse(&bytes, HeaderStyle::Extended).is_err());
        assert!(Request::parse(&bytes, HeaderStyle::Compact).is_ok());
    }
}
