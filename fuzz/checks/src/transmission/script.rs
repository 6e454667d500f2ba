//! What the clients of one input do.

use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use diskchain::connection::Terms;
use nbd_wire::client::{Choice, Headers, Wish};

use crate::Many;

/// One input.
#[derive(Debug, Arbitrary)]
pub struct Script {
    pub image: Image,
    /// Sectors that the disk is longer than whole blocks.
    pub odd: u8,
    read_only: u8,
    /// The disk has blocks of 4096 bytes.
    large_sectors: u8,
    /// The storage takes its time.
    slow: u8,
    small_budget: bool,
    most_in_flight: u8,
    stops: bool,
    first: Hello,
    others: Many<Hello, 2>,
    rounds: Many<Round, 6>,
}

/// What the disk is made of.
#[derive(Debug, Arbitrary)]
pub enum Image {
    Raw,
    Dynamic,
    Child,
}

/// How a client introduces itself.
#[derive(Debug, Arbitrary)]
pub struct Hello {
    headers: u8,
    allocation: bool,
    depth: bool,
    export_name: bool,
}

/// Requests that are in flight together.
#[derive(Debug, Arbitrary)]
pub struct Round {
    pub sends: Many<Send, 24>,
}

/// One thing that a client does.
#[derive(Debug, Arbitrary)]
pub struct Send {
    pub client: u8,
    pub what: What,
}

#[derive(Debug)]
pub enum What {
    /// A request.
    Ask(Ask),
    /// A request again and again.
    Flood(Ask, u8),
    /// A request that breaks off after so many bytes, with the connection.
    Cut(Ask, u16),
    /// Bytes that are no request.
    Garbage(Vec<u8>),
    /// The goodbye of the protocol.
    Goodbye,
    /// The connection breaks.
    Vanish,
}

#[derive(Debug, Arbitrary)]
pub struct Ask {
    pub command: Command,
    pub flags: Flags,
    pub offset: Offset,
    pub length: Length,
}

#[derive(Debug)]
pub enum Command {
    Known(u8),
    Write,
    Read,
    Any(u16),
}

#[derive(Debug)]
pub enum Flags {
    None,
    Durable,
    One(u8),
    Any(u16),
}

#[derive(Debug)]
pub enum Offset {
    /// In units of 512.
    Sector(u16),
    Byte(u32),
    /// So far before the end.
    BeforeEnd(u16),
    Any(u64),
}

#[derive(Debug)]
pub enum Length {
    Sectors(u8),
    Bytes(u16),
    /// So much further than the end.
    PastEnd(u8),
    Any(u64),
}

impl<'a> Arbitrary<'a> for What {
    fn arbitrary(input: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(match input.int_in_range(0..=99)? {
            0 => What::Garbage(input.arbitrary()?),
            1 => What::Goodbye,
            2 => What::Vanish,
            3 => What::Cut(input.arbitrary()?, input.arbitrary()?),
            4..=8 => What::Flood(input.arbitrary()?, input.arbitrary()?),
            _ => What::Ask(input.arbitrary()?),
        })
    }
}

impl<'a> Arbitrary<'a> for Command {
    fn arbitrary(input: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(match input.int_in_range(0..=19)? {
            0 => Command::Any(input.arbitrary()?),
            1..=5 => Command::Write,
            6..=9 => Command::Read,
            _ => Command::Known(input.arbitrary()?),
        })
    }
}

impl<'a> Arbitrary<'a> for Flags {
    fn arbitrary(input: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(match input.int_in_range(0..=19)? {
            0 => Flags::Any(input.arbitrary()?),
            1 | 2 => Flags::Durable,
            3 | 4 => Flags::One(input.arbitrary()?),
            _ => Flags::None,
        })
    }
}

impl<'a> Arbitrary<'a> for Offset {
    fn arbitrary(input: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(match input.int_in_range(0..=19)? {
            0 => Offset::Any(input.arbitrary()?),
            1..=3 => Offset::BeforeEnd(input.arbitrary()?),
            4..=8 => Offset::Byte(input.arbitrary()?),
            _ => Offset::Sector(input.arbitrary()?),
        })
    }
}

impl<'a> Arbitrary<'a> for Length {
    fn arbitrary(input: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(match input.int_in_range(0..=39)? {
            // Nobody brings that much: it ends the connection.
            0 => Length::Any(input.arbitrary()?),
            1 => Length::PastEnd(input.arbitrary()?),
            2..=12 => Length::Bytes(input.arbitrary()?),
            _ => Length::Sectors(input.arbitrary()?),
        })
    }
}

impl Script {
    pub fn read_only(&self) -> bool {
        self.read_only.is_multiple_of(8)
    }

    pub fn large_sectors(&self) -> bool {
        self.large_sectors.is_multiple_of(4)
    }

    pub fn is_slow(&self) -> bool {
        self.slow.is_multiple_of(16)
    }

    /// Bytes of memory for the requests of all clients.
    pub fn budget(&self) -> u64 {
        if self.small_budget { 16 << 10 } else { 4 << 20 }
    }

    pub fn terms(&self) -> Terms {
        let most_in_flight = usize::from(self.most_in_flight % 16) + 1;
        Terms { most_in_flight, busy_poll: Duration::from_micros(u64::from(self.most_in_flight) % 64) }
    }

    pub fn stops(&self) -> bool {
        self.stops
    }

    /// Never none.
    pub fn clients(&self) -> impl Iterator<Item = &Hello> {
        std::iter::once(&self.first).chain(self.others.iter())
    }

    pub fn rounds(&self) -> impl Iterator<Item = &Round> {
        self.rounds.iter()
    }
}

impl Hello {
    pub fn wish(&self) -> Wish {
        let contexts = [(self.allocation, "base:allocation"), (self.depth, "qemu:allocation-depth")];
        let headers = match self.headers % 3 {
            0 => Headers::Simple,
            1 => Headers::Structured,
            _ => Headers::Extended,
        };
        // Extended headers cannot go with it.
        let by_name = self.export_name && headers != Headers::Extended;
        Wish {
            export: "disk".to_owned(),
            headers,
            contexts: contexts
                .into_iter()
                .filter(|(wanted, _)| *wanted)
                .map(|(_, name)| name.to_owned())
                .collect(),
            choice: if by_name { Choice::ExportName } else { Choice::Go },
        }
    }
}

impl Command {
    pub fn number(&self) -> u16 {
        match self {
            // Not the goodbye, which is a thing of its own.
            Command::Known(number) => [0, 1, 3, 4, 5, 6, 6, 7][usize::from(number % 8)],
            Command::Write => 1,
            Command::Read => 0,
            Command::Any(2) => 9,
            Command::Any(number) => *number,
        }
    }
}

impl Flags {
    pub fn bits(&self) -> u16 {
        match self {
            Flags::None => 0,
            Flags::Durable => 1,
            Flags::One(bit) => 1 << (bit % 6),
            Flags::Any(bits) => *bits,
        }
    }
}

impl Offset {
    pub fn at(&self, size: u64) -> u64 {
        match self {
            Offset::Sector(sector) => u64::from(*sector) * 512 % size.next_multiple_of(512),
            Offset::Byte(byte) => u64::from(*byte) % size,
            Offset::BeforeEnd(bytes) => size.saturating_sub((*bytes).into()),
            Offset::Any(offset) => *offset,
        }
    }
}

impl Length {
    pub fn from(&self, offset: u64, size: u64) -> u64 {
        match self {
            Length::Sectors(sectors) => u64::from(*sectors) * 512,
            Length::Bytes(bytes) => (*bytes).into(),
            Length::PastEnd(bytes) => size.saturating_sub(offset).saturating_add((*bytes).into()),
            Length::Any(length) => *length,
        }
    }
}
