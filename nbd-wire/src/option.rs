//! Options of the handshake: their data in, their replies out, and the metadata contexts they select.

use crate::consts::{OPTION_REPLY_MAGIC, STRING_MOST, info, option_reply};
use crate::export::ExportInfo;
use crate::reply::cut;

/// A metadata context that status can be asked in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Context {
    /// `base:allocation`: holes and zeroes.
    Allocation,
    /// `qemu:allocation-depth`: how many layers down the data lies.
    AllocationDepth,
}

/// The number that a context has on one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContextId(pub u32);

impl Context {
    /// Its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Context::Allocation => "base:allocation",
            Context::AllocationDepth => "qemu:allocation-depth",
        }
    }

    /// The same number on every connection, so that captures can be compared.
    pub fn id(self) -> ContextId {
        match self {
            Context::Allocation => ContextId(0),
            Context::AllocationDepth => ContextId(1),
        }
    }

    /// Whether a query of LIST_META_CONTEXT is for it: by its name, or by its namespace alone.
    fn is_listed_by(self, query: &str) -> bool {
        let namespace = &self.name()[..=self.name().find(':').expect("names have a namespace")];
        query == self.name() || query == namespace
    }
}

/// Contexts of an export that `queries` list; all of them without any query.
pub(crate) fn listed(export: &ExportInfo, queries: &[&str]) -> Vec<Context> {
    let wanted = |context: &Context| queries.is_empty() || queries.iter().any(|q| context.is_listed_by(q));
    export.contexts.iter().copied().filter(wanted).collect()
}

/// Contexts of an export that `queries` select. A namespace alone selects nothing, as it names no context.
pub(crate) fn selected(export: &ExportInfo, queries: &[&str]) -> Vec<Context> {
    let wanted = |context: &Context| queries.contains(&context.name());
    export.contexts.iter().copied().filter(wanted).collect()
}

/// The data of INFO and GO.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct InfoRequest<'a> {
    pub name: &'a str,
    pub wants: Vec<u16>,
}

impl<'a> InfoRequest<'a> {
    /// `None` if the data is not as it should be.
    pub fn parse(data: &'a [u8]) -> Option<Self> {
        let (name, rest) = string(data)?;
        let (count, rest) = rest.split_first_chunk::<2>()?;
        let (wants, []) = rest.as_chunks::<2>() else { return None };
        let wants: Vec<u16> = wants.iter().map(|want| u16::from_be_bytes(*want)).collect();
        (wants.len() == usize::from(u16::from_be_bytes(*count))).then_some(InfoRequest { name, wants })
    }
}

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ContextRequest<'a> {
    pub name: &'a str,
    pub queries: Vec<&'a str>,
}

impl<'a> ContextRequest<'a> {
    /// `None` if the data is not as it should be.
    pub fn parse(data: &'a [u8]) -> Option<Self> {
        let (name, rest) = string(data)?;
        let (count, mut rest) = rest.split_first_chunk::<4>()?;
        let mut queries = Vec::new();
        // Each query takes 4 bytes at least, so their number is bounded by the data that is there.
        for _ in 0..u32::from_be_bytes(*count) {
            let (query, after) = string(rest)?;
            queries.push(query);
            rest = after;
        }
        rest.is_empty().then_some(ContextRequest { name, queries })
    }
}

/// A string with its length in front; `None` if it is cut off, too long, or no UTF-8.
fn string(data: &[u8]) -> Option<(&str, &[u8])> {
    let (len, rest) = data.split_first_chunk::<4>()?;
    let len = usize::try_from(u32::from_be_bytes(*len)).ok()?;
    if len > STRING_MOST {
        return None;
    }
    let (text, rest) = rest.split_at_checked(len)?;
    Some((std::str::from_utf8(text).ok()?, rest))
}

/// Writes the replies to one option.
pub(crate) struct OptionReply<'a> {
    pub option: u32,
    pub out: &'a mut Vec<u8>,
}

impl OptionReply<'_> {
    /// One reply with its data in parts.
    pub fn send(&mut self, kind: u32, parts: &[&[u8]]) {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        self.out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
        self.out.extend_from_slice(&self.option.to_be_bytes());
        self.out.extend_from_slice(&kind.to_be_bytes());
        self.out.extend_from_slice(&(len as u32).to_be_bytes());
        for part in parts {
            self.out.extend_from_slice(part);
        }
    }

    pub fn ack(&mut self) {
        self.send(option_reply::ACK, &[]);
    }

    pub fn error(&mut self, kind: u32, text: &str) {
        self.send(kind, &[cut(text).as_bytes()]);
    }

    pub fn server(&mut self, name: &str, description: &str) {
        let len = (name.len() as u32).to_be_bytes();
        self.send(option_reply::SERVER, &[&len, name.as_bytes(), description.as_bytes()]);
    }

    pub fn context(&mut self, context: Context, id: ContextId) {
        self.send(option_reply::META_CONTEXT, &[&id.0.to_be_bytes(), context.name().as_bytes()]);
    }

    /// What INFO and GO tell of an export. All of it, always: clients skip what they did not ask for, and the answers
    /// to INFO and GO cannot differ.
    pub fn export(&mut self, export: &ExportInfo, flags: u16) {
        let mut send = |kind: u16, parts: &[&[u8]]| {
            let kind = kind.to_be_bytes();
            let all: Vec<&[u8]> = std::iter::once(&kind[..]).chain(parts.iter().copied()).collect();
            self.send(option_reply::INFO, &all);
        };
        send(info::EXPORT, &[&export.size.to_be_bytes(), &flags.to_be_bytes()]);
        send(info::NAME, &[export.name.as_bytes()]);
        if !export.description.is_empty() {
            send(info::DESCRIPTION, &[export.description.as_bytes()]);
        }
        let block = export.block_size.lawful();
        let sizes = [block.minimum.to_be_bytes(), block.preferred.to_be_bytes(), block.maximum.to_be_bytes()];
        send(info::BLOCK_SIZE, &[sizes.as_flattened()]);
    }
}
