//! The handshake: any options in any pieces are answered, one final reply each, and the stream stays in step.
//!
//! Invariant: what is expected is told by a second, far simpler reader of the stream ([`Walk`]), not by the handshake.

use arbitrary::{Arbitrary, Unstructured};
use nbd_wire::client::{self, Answer, OptionReplyHeader};
use nbd_wire::consts::{option, option_reply};
use nbd_wire::{Abilities, BlockSize, Context, Denial, ExportInfo, Exports, Handshake, Progress, Violation};

use crate::{Many, Reached, one_in};

/// Bytes of answers to one option at most, as few exports are played.
const ANSWER_MOST: usize = 4096;
/// An option of more data is skipped, not kept.
const KEPT_MOST: usize = 64 << 10;

/// What a client sends, and how it comes.
#[derive(Debug, Arbitrary)]
struct Conversation {
    flags: Flags,
    stopping: bool,
    listed: bool,
    options: Many<Sent, 16>,
    /// The last option so often once more: a handshake does not take any number.
    again: u8,
    /// Lengths of the pieces that it comes in, used over and over.
    pieces: Many<u16, 16>,
}

#[derive(Debug)]
enum Flags {
    Usual,
    WithPadding,
    Any(u32),
}

#[derive(Debug)]
enum Sent {
    Option(Number, Data),
    /// An option whose length is not that of its data.
    Lying(Number, u32, Data),
    Raw(Vec<u8>),
}

#[derive(Debug)]
enum Number {
    Known(u8),
    Any(u32),
}

#[derive(Debug, Arbitrary)]
enum Data {
    None,
    Name(Name),
    Info(Name, Vec<u16>),
    Contexts(Name, Many<Query, 4>),
    Long(u8),
    Raw(Vec<u8>),
}

#[derive(Debug, Arbitrary)]
enum Name {
    Default,
    First,
    Full,
    Long(u16),
    Any(String),
}

#[derive(Debug, Arbitrary)]
enum Query {
    Allocation,
    Depth,
    Namespace,
    Any(String),
}

impl<'a> Arbitrary<'a> for Flags {
    fn arbitrary(input: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(match input.int_in_range(0..=30)? {
            0 => Flags::Any(input.arbitrary()?),
            1..=8 => Flags::WithPadding,
            _ => Flags::Usual,
        })
    }
}

impl<'a> Arbitrary<'a> for Sent {
    fn arbitrary(input: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        if one_in(30, input)? {
            return Ok(Sent::Raw(input.arbitrary()?));
        }
        if one_in(30, input)? {
            return Ok(Sent::Lying(input.arbitrary()?, input.arbitrary()?, input.arbitrary()?));
        }
        let number: Number = input.arbitrary()?;
        if one_in(4, input)? {
            return Ok(Sent::Option(number, input.arbitrary()?));
        }
        // What goes with it.
        let data = match number.number() {
            option::EXPORT_NAME => Data::Name(input.arbitrary()?),
            option::INFO | option::GO => Data::Info(input.arbitrary()?, input.arbitrary()?),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                Data::Contexts(input.arbitrary()?, input.arbitrary()?)
            }
            _ => Data::None,
        };
        Ok(Sent::Option(number, data))
    }
}

impl<'a> Arbitrary<'a> for Number {
    fn arbitrary(input: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(if one_in(16, input)? {
            Number::Any(input.arbitrary()?)
        } else {
            Number::Known(input.arbitrary()?)
        })
    }
}

impl Number {
    fn number(&self) -> u32 {
        match self {
            Number::Known(number) => u32::from(number % 13),
            Number::Any(number) => *number,
        }
    }
}

impl Name {
    fn text(&self) -> String {
        match self {
            Name::Default => String::new(),
            Name::First => "first".to_owned(),
            Name::Full => "full".to_owned(),
            Name::Long(len) => "n".repeat((*len).into()),
            Name::Any(text) => text.clone(),
        }
    }
}

impl Data {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Data::None => Vec::new(),
            Data::Name(name) => name.text().into_bytes(),
            Data::Info(name, wants) => client::info_data(&name.text(), wants),
            Data::Contexts(name, queries) => {
                let queries: Vec<&str> = queries.iter().map(Query::text).collect();
                client::context_data(&name.text(), &queries)
            }
            Data::Long(kib) => vec![0x5a; usize::from(*kib) << 10],
            Data::Raw(bytes) => bytes.clone(),
        }
    }
}

impl Query {
    fn text(&self) -> &str {
        match self {
            Query::Allocation => "base:allocation",
            Query::Depth => "qemu:allocation-depth",
            Query::Namespace => "base:",
            Query::Any(text) => text,
        }
    }
}

impl Conversation {
    fn bytes(&self) -> Vec<u8> {
        let flags = match self.flags {
            Flags::Usual => 3,
            Flags::WithPadding => 1,
            Flags::Any(flags) => flags,
        };
        let mut bytes = flags.to_be_bytes().to_vec();
        let again =
            self.options.last().into_iter().cycle().take(usize::from(self.again.saturating_sub(200)) * 3);
        for sent in self.options.iter().chain(again) {
            match sent {
                Sent::Option(number, data) => client::option(number.number(), &data.bytes(), &mut bytes),
                Sent::Lying(number, len, data) => {
                    let start = bytes.len();
                    client::option(number.number(), &data.bytes(), &mut bytes);
                    bytes[start + 12..start + 16].copy_from_slice(&len.to_be_bytes());
                }
                Sent::Raw(raw) => bytes.extend_from_slice(raw),
            }
        }
        bytes
    }
}

/// The exports of the played server.
struct Shelf {
    stopping: bool,
    listed: bool,
}

impl Exports for Shelf {
    fn is_stopping(&self) -> bool {
        self.stopping
    }

    fn list(&self) -> Option<Vec<(String, String)>> {
        let named = |name: &str| (name.to_owned(), format!("the {name} disk"));
        self.listed.then(|| ["first", "second"].map(named).into())
    }

    fn find(&self, name: &str) -> Result<ExportInfo, Denial> {
        match name {
            "" | "first" => Ok(ExportInfo {
                name: "first".to_owned(),
                description: "a disk".to_owned(),
                size: 1 << 40,
                abilities: Abilities { trim: true, fast_zero: true, ..Abilities::default() },
                block_size: BlockSize { minimum: 512, preferred: 4096, maximum: 32 << 20 },
                contexts: vec![Context::Allocation, Context::AllocationDepth],
            }),
            "full" => Err(Denial::Policy("four clients are enough".to_owned())),
            _ => Err(Denial::Unknown),
        }
    }
}

/// What came of a conversation.
#[derive(Debug, PartialEq)]
struct Outcome {
    taken: usize,
    answers: Vec<u8>,
    end: Result<Progress, Violation>,
}

/// Plays a conversation that comes in pieces of the given lengths.
fn play(input: &[u8], mut pieces: impl Iterator<Item = usize>, shelf: &Shelf) -> Outcome {
    let (mut handshake, mut answers) = (Handshake::default(), Vec::new());
    let (mut taken, mut there) = (0, 0);
    loop {
        match handshake.feed(&input[taken..there], shelf, &mut answers) {
            Ok((len, Progress::More)) => {
                taken += len;
                assert!(taken <= there);
                assert!(there - taken <= Handshake::INPUT_MOST, "an option is taken when it is there");
                if there == input.len() {
                    return Outcome { taken, answers, end: Ok(Progress::More) };
                }
            }
            Ok((len, end)) => return Outcome { taken: taken + len, answers, end: Ok(end) },
            Err(violation) => return Outcome { taken, answers, end: Err(violation) },
        }
        let piece = pieces.next().unwrap_or(input.len());
        // What waits may be an option of the largest size, not more.
        there = (there + piece.max(1)).min(input.len()).min(taken + Handshake::INPUT_MOST);
    }
}

/// The options of a stream, one after the other, as their headers say.
struct Walk<'a>(&'a [u8]);

impl Iterator for Walk<'_> {
    /// Number, length of the data, and whether all of it is there.
    type Item = (u32, usize, bool);

    fn next(&mut self) -> Option<Self::Item> {
        let (header, rest) = self.0.split_first_chunk::<16>()?;
        if &header[..8] != b"IHAVEOPT" {
            return None;
        }
        let word =
            |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (number, len) = (word(8), word(12) as usize);
        self.0 = rest.get(len..).unwrap_or(&[]);
        Some((number, len, rest.len() >= len))
    }
}

/// The numbers of the options that were answered, in order, each by exactly one final reply.
fn answered(mut answers: &[u8], end: &Result<Progress, Violation>) -> Vec<u32> {
    let mut finals = Vec::new();
    let mut open = None;
    while let Some((header, rest)) = answers.split_first_chunk() {
        let Ok(header) = OptionReplyHeader::parse(header) else { break };
        let (data, rest) = rest.split_at(header.len as usize);
        let answer = Answer::parse(header.kind, data).expect("an answer that clients understand");
        assert!(!matches!(answer, Answer::Unknown(_)));
        assert!(open.is_none_or(|open| open == header.option), "answers of two options are mixed");
        open = Some(header.option);
        if header.kind == option_reply::ACK || header.kind & option_reply::ERROR_BIT != 0 {
            finals.push(header.option);
            open = None;
        }
        answers = rest;
    }
    assert!(open.is_none(), "an answer without its end");
    let export_name = matches!(end, Ok(Progress::Chosen(_))) && [10, 134].contains(&answers.len());
    assert!(answers.is_empty() || export_name, "{} bytes that are no answer", answers.len());
    if export_name {
        finals.push(option::EXPORT_NAME);
    }
    finals
}

/// See the module.
pub fn check(input: &[u8], reached: &mut Reached) {
    let Ok(conversation) = Conversation::arbitrary(&mut Unstructured::new(input)) else { return };
    let shelf = Shelf { stopping: conversation.stopping, listed: conversation.listed };
    let bytes = conversation.bytes();
    let whole = play(&bytes, std::iter::empty(), &shelf);
    let pieces = conversation.pieces.iter().map(|len| usize::from(*len)).cycle();
    let pieces = play(&bytes, pieces.take(100_000), &shelf);
    assert_eq!(pieces.end, whole.end, "the pieces that it comes in make a difference");
    assert!(pieces.answers == whole.answers, "the pieces that it comes in make a difference");

    let finals = answered(&whole.answers, &whole.end);
    let mut sent = Walk(bytes.get(4..).unwrap_or(&[]));
    for number in &finals {
        let (sent, len, is_whole) = sent.next().expect("only what was asked is answered");
        assert_eq!(sent, *number, "answers come in the order of the options");
        assert!(is_whole || len > KEPT_MOST, "an option was answered before it was there");
    }
    assert!(whole.answers.len() <= finals.len() * ANSWER_MOST, "{} bytes", whole.answers.len());
    reached.add("options answered", finals.len());
    match &whole.end {
        Ok(Progress::More) => assert!(
            sent.next().is_none_or(|(_, _, is_whole)| !is_whole) || bytes.len() < 4,
            "an option was not answered"
        ),
        Ok(Progress::Chosen(session)) => {
            reached.add("exports chosen", 1);
            assert_eq!(session.export(), "first");
            assert!(!conversation.stopping, "an export was given while stopping");
        }
        Ok(Progress::Aborted) => assert_eq!(finals.last(), Some(&option::ABORT)),
        Err(_) => reached.add("connections dropped", 1),
    }
}
