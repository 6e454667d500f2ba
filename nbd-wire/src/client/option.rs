//! Options as a client sends them, and what servers answer.

use super::Reader;
use crate::consts::{IHAVEOPT, OPTION_REPLY_MAGIC, TransmissionFlags, info, option_reply};
use crate::error::Violation;
use crate::export::BlockSize;
use crate::option::ContextId;

/// Bytes of a reply to an option: some strings of 4096 bytes and a few numbers.
const DATA_MOST: u32 = 32 << 10;

/// Appends an option with its data.
///
/// # Panics
/// If the data is longer than 2³² − 1 bytes.
pub fn option(number: u32, data: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&IHAVEOPT.to_be_bytes());
    out.extend_from_slice(&number.to_be_bytes());
    out.extend_from_slice(&length(data).to_be_bytes());
    out.extend_from_slice(data);
}

/// The data of INFO and GO.
///
/// # Panics
/// If more than 65535 pieces of information are wanted.
pub fn info_data(export: &str, wants: &[u16]) -> Vec<u8> {
    let mut data = Vec::new();
    put_string(export, &mut data);
    let count = u16::try_from(wants.len()).expect("there are only so many kinds of information");
    data.extend_from_slice(&count.to_be_bytes());
    data.extend(wants.iter().flat_map(|want| want.to_be_bytes()));
    data
}

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
pub fn context_data(export: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = Vec::new();
    put_string(export, &mut data);
    data.extend_from_slice(&(queries.len() as u32).to_be_bytes());
    for query in queries {
        put_string(query, &mut data);
    }
    data
}

fn put_string(text: &str, data: &mut Vec<u8>) {
    data.extend_from_slice(&length(text.as_bytes()).to_be_bytes());
    data.extend_from_slice(text.as_bytes());
}

fn length(data: &[u8]) -> u32 {
    u32::try_from(data.len()).expect("what is sent is shorter than 4 GiB")
}

/// The header of a reply to an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionReplyHeader {
    /// The option that it answers.
    pub option: u32,
    /// One of `option_reply`.
    pub kind: u32,
    /// Bytes of data that follow.
    pub len: u32,
}

impl OptionReplyHeader {
    /// Bytes of the header.
    pub const LEN: usize = 20;

    /// Reads it.
    ///
    /// # Errors
    /// If the bytes are no reply to an option, or announce more data than any reply has.
    pub fn parse(bytes: &[u8; Self::LEN]) -> Result<Self, Violation> {
        let mut reader = Reader(bytes);
        let mut word = || reader.u32().unwrap_or_default();
        let magic = u64::from(word()) << 32 | u64::from(word());
        let header = OptionReplyHeader { option: word(), kind: word(), len: word() };
        match magic {
            OPTION_REPLY_MAGIC if header.len <= DATA_MOST => Ok(header),
            OPTION_REPLY_MAGIC => Err(Violation::MalformedReply("too long an answer to an option")),
            other => Err(Violation::OptionReplyMagic(other)),
        }
    }
}

/// A server's answer to an option, or one of several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer<'a> {
    /// Yes, or the end of the answers.
    Ack,
    /// An export that is there.
    Server {
        /// The name to ask for it.
        name: &'a str,
        /// Some words on it; may be empty.
        description: &'a str,
    },
    /// Something about an export.
    Info(Info<'a>),
    /// A metadata context.
    Context {
        /// Its number, if it was selected.
        id: ContextId,
        /// Its name.
        name: &'a str,
    },
    /// No.
    Error {
        /// One of `option_reply::ERR_*`.
        kind: u32,
        /// The reason; may be empty.
        text: &'a str,
    },
    /// Something newer than this client.
    Unknown(u32),
}

/// Something about an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Info<'a> {
    /// What no client can do without.
    Export {
        /// Bytes of the disk.
        size: u64,
        /// What it can do.
        flags: TransmissionFlags,
    },
    /// Its own name.
    Name(&'a str),
    /// Some words on it.
    Description(&'a str),
    /// Its block sizes.
    BlockSize(BlockSize),
    /// Something newer than this client.
    Unknown(u16),
}

impl<'a> Answer<'a> {
    /// Reads the data of a reply of a `kind`.
    ///
    /// # Errors
    /// If the data does not fit the kind.
    pub fn parse(kind: u32, data: &'a [u8]) -> Result<Self, Violation> {
        Self::read(kind, Reader(data)).ok_or(Violation::MalformedReply("an answer to an option"))
    }

    fn read(kind: u32, mut data: Reader<'a>) -> Option<Self> {
        let answer = match kind {
            option_reply::ACK => Answer::Ack,
            option_reply::SERVER => {
                let len = data.u32()?;
                let name = data.text(len as usize)?;
                Answer::Server { name, description: data.text(data.0.len())? }
            }
            option_reply::INFO => Answer::Info(Info::read(&mut data)?),
            option_reply::META_CONTEXT => {
                Answer::Context { id: ContextId(data.u32()?), name: data.text(data.0.len())? }
            }
            error if error & option_reply::ERROR_BIT != 0 => {
                Answer::Error { kind: error, text: data.text(data.0.len())? }
            }
            other => return Some(Answer::Unknown(other)),
        };
        data.end()?;
        Some(answer)
    }
}

impl<'a> Info<'a> {
    fn read(data: &mut Reader<'a>) -> Option<Self> {
        Some(match data.u16()? {
            info::EXPORT => Info::Export { size: data.u64()?, flags: TransmissionFlags(data.u16()?) },
            info::NAME => Info::Name(data.text(data.0.len())?),
            info::DESCRIPTION => Info::Description(data.text(data.0.len())?),
            info::BLOCK_SIZE => Info::BlockSize(BlockSize {
                minimum: data.u32()?,
                preferred: data.u32()?,
                maximum: data.u32()?,
            }),
            other => {
                data.0 = &[];
                Info::Unknown(other)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consts::{Abilities, option};
    use crate::export::ExportInfo;
    use crate::option::{Context, ContextRequest, InfoRequest, OptionReply};
    use proptest::prelude::*;

    /// What a client reads from replies that a server writes with `write`.
    fn read_back(bytes: &[u8]) -> Vec<Answer<'_>> {
        let mut answers = Vec::new();
        let mut rest = bytes;
        while let Some((header, after)) = rest.split_first_chunk() {
            let header = OptionReplyHeader::parse(header).expect("a reply");
            let (data, after) = after.split_at(header.len as usize);
            answers.push(Answer::parse(header.kind, data).expect("data of that kind"));
            rest = after;
        }
        assert!(rest.is_empty());
        answers
    }

    #[test]
    fn replies_to_options_read_as_they_were_written() {
        let export = ExportInfo {
            name: "näme".to_owned(),
            description: "words".to_owned(),
            size: 1 << 40,
            abilities: Abilities::default(),
            block_size: BlockSize { minimum: 1, preferred: 4096, maximum: 32 << 20 },
            contexts: vec![Context::Allocation],
        };
        let mut out = Vec::new();
        let mut reply = OptionReply { option: option::GO, out: &mut out };
        reply.server("a", "b c");
        reply.server("a", "");
        reply.export(&export, 0x1234);
        reply.context(Context::AllocationDepth, ContextId(7));
        reply.error(option_reply::ERR_POLICY, "no");
        reply.ack();
        assert_eq!(
            read_back(&out),
            [
                Answer::Server { name: "a", description: "b c" },
                Answer::Server { name: "a", description: "" },
                Answer::Info(Info::Export { size: 1 << 40, flags: TransmissionFlags(0x1234) }),
                Answer::Info(Info::Name("näme")),
                Answer::Info(Info::Description("words")),
                Answer::Info(Info::BlockSize(export.block_size)),
                Answer::Context { id: ContextId(7), name: "qemu:allocation-depth" },
                Answer::Error { kind: option_reply::ERR_POLICY, text: "no" },
                Answer::Ack,
            ]
        );
    }

    #[test]
    fn an_error_text_is_cut_at_256_bytes_between_two_letters() {
        let mut out = Vec::new();
        OptionReply { option: 1, out: &mut out }.error(option_reply::ERR_UNKNOWN, &"ä€".repeat(100));
        let answers = read_back(&out);
        let Answer::Error { text, .. } = answers[0] else { panic!("{answers:?}") };
        assert!((253..=256).contains(&text.len()), "{}", text.len());
    }

    #[test]
    fn what_is_newer_than_this_client_is_passed_by() {
        assert_eq!(Answer::parse(99, b"whatever"), Ok(Answer::Unknown(99)));
        let info = Answer::parse(option_reply::INFO, b"\0\x09whatever");
        assert_eq!(info, Ok(Answer::Info(Info::Unknown(9))));
        let error = Answer::parse(0x8000_0077, b"why");
        assert_eq!(error, Ok(Answer::Error { kind: 0x8000_0077, text: "why" }));
    }

    proptest! {
        #[test]
        fn data_of_info_and_go_reads_as_it_was_written(name in "\\PC{0,300}", wants: Vec<u16>) {
            let data = info_data(&name, &wants);
            prop_assert_eq!(InfoRequest::parse(&data), Some(InfoRequest { name: &name, wants }));
        }

        #[test]
        fn data_of_context_options_reads_as_it_was_written(name in "\\PC{0,99}", queries in prop::collection::vec("\\PC{0,20}", 0..5)) {
            let queries: Vec<&str> = queries.iter().map(String::as_str).collect();
            let data = context_data(&name, &queries);
            prop_assert_eq!(ContextRequest::parse(&data), Some(ContextRequest { name: &name, queries }));
        }

        #[test]
        fn any_answer_to_an_option_is_understood_or_refused(kind in 0u32..6, error: bool, data: Vec<u8>) {
            let _ = Answer::parse(kind | if error { option_reply::ERROR_BIT } else { 0 }, &data);
        }
    }
}
