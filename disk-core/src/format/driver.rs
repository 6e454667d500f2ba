//! What a format does with a file that is no layer of a chain yet: recognise it, say what it is, make it, open it,
//! check it. The trait [`Format`] and its questions and answers.
//!
//! Invariant: every method but `create`, a writable `open` and a repairing `check` leaves the file as it is, and
//! none follows a name that an image contains.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use uuid::Uuid;

use super::{Layer, LayerInfo};
use crate::error::Result;
use crate::storage::Storage;

/// Bytes of a file's start that [`Format::probe`] and [`Format::identify`] are given, or all of a shorter file.
pub const HEAD_LEN: usize = 4096;

/// One image format. A new one is a folder beside this file and a line in [`FORMATS`](super::FORMATS).
pub trait Format: Send + Sync + fmt::Debug {
    /// Its name, lower case, as the configuration spells it.
    fn name(&self) -> &'static str;
    /// Its full name, for people.
    fn title(&self) -> &'static str;
    /// Endings of file names that people give such images, lower case, without the dot.
    fn extensions(&self) -> &'static [&'static str];
    /// What the driver can do.
    fn capabilities(&self) -> Capabilities;
    /// Whether a file that starts with `head` (at most [`HEAD_LEN`] bytes) is of this format. Raw never is: any
    /// bytes can be a raw image, so it has to be named.
    fn probe(&self, head: &[u8]) -> bool;
    /// What the head of a file of `len` bytes says about the image, without opening it: size, variant, identities.
    /// `read_only` of the answer is true. Fails with [`InvalidImage`](crate::ErrorKind::InvalidImage) where `open`
    /// would fail for the header alone; `name` is for that message.
    fn identify(&self, head: &[u8], len: u64, name: &str) -> Result<LayerInfo>;
    /// Opens an image as a layer. Reading its metadata may take a while; it is checked here, once.
    fn open(&self, storage: Arc<dyn Storage>, read_only: bool) -> BoxFuture<'static, Result<Arc<dyn Layer>>>;
    /// Makes an image in an empty writable file, durable when it returns. Options that the format has no place for
    /// fail with [`Unsupported`](crate::ErrorKind::Unsupported) before anything is written.
    fn create(&self, storage: Arc<dyn Storage>, options: CreateOptions) -> BoxFuture<'static, Result<()>>;
    /// Looks for contradictions in the metadata, and with [`Repair::Everything`] removes those that it can without
    /// losing data (the storage must be writable then). Fails only if the file cannot be read or is not an image of
    /// this format at all.
    fn check(&self, storage: Arc<dyn Storage>, repair: Repair) -> BoxFuture<'static, Result<CheckReport>>;
    /// Everything that the image says about itself, in the order to show it. Works on an image that another process
    /// is writing to, and on one whose parent is missing.
    fn describe(&self, storage: Arc<dyn Storage>) -> BoxFuture<'static, Result<Description>>;
}

/// What a driver can do, as `diskchain formats` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Kinds of image that it makes, the default first.
    pub variants: &'static [Variant],
    /// Sizes that a block of a new image may have; `None` if the format has no blocks.
    pub block_sizes: Option<BlockSizes>,
    /// Largest disk, bytes.
    pub max_size: u64,
    /// Images have identities (UUIDs).
    pub uuid: bool,
    /// Longest comment, bytes of UTF-8; 0 if the format has no place for one.
    pub comment_len: usize,
    /// There is metadata that `check` looks at.
    pub check: bool,
    /// `check` can repair.
    pub repair: bool,
    /// Discarded blocks give their space back.
    pub can_free: bool,
}

/// Sizes of a block of a new image, bytes; powers of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSizes {
    /// Smallest.
    pub min: u64,
    /// Largest.
    pub max: u64,
    /// What is used if none is asked for.
    pub default: u64,
}

/// A kind of image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// Grows as it is written.
    Dynamic,
    /// Has room for everything from the start.
    Fixed,
    /// Holds what differs from a parent.
    Differencing,
}

impl Variant {
    /// The word for it in configuration and output.
    pub fn name(self) -> &'static str {
        match self {
            Variant::Dynamic => "dynamic",
            Variant::Fixed => "fixed",
            Variant::Differencing => "differencing",
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The identity of a parent, as a child notes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParentIdentity {
    /// Its UUID; `None` if its format has none (raw).
    pub uuid: Option<Uuid>,
    /// Its modification UUID at the time the child is made.
    pub modification_uuid: Option<Uuid>,
}

/// The image to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateOptions {
    /// Size of the disk, bytes; a multiple of 512, not 0.
    pub size: u64,
    /// What kind; one of the format's [`Capabilities::variants`].
    pub variant: Variant,
    /// The parent of a differencing image; `None` for the other variants.
    pub parent: Option<ParentIdentity>,
    /// Bytes of a block; `None` for the format's default.
    pub block_size: Option<u64>,
    /// Identity of the image; `None` for a random one, if the format has any.
    pub uuid: Option<Uuid>,
    /// A comment to keep in the image.
    pub comment: Option<String>,
}

/// Whether [`Format::check`] may change the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repair {
    /// It only looks.
    Nothing,
    /// It removes every contradiction that it can without losing data.
    Everything,
}

/// How bad a finding of a check is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The metadata contradicts itself: reading or writing the image may give wrong data.
    Error,
    /// Space of the file that nothing uses. No data is at risk.
    Leak,
}

/// One kind of finding, counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// How often it was found.
    pub count: u64,
    /// How many of those are repaired.
    pub repaired: u64,
    /// The first few in words; at most [`CheckReport::EXAMPLES`].
    pub examples: Vec<String>,
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// By kind. A kind is a short stable word in kebab-case, such as `entry-past-end`.
    pub findings: BTreeMap<&'static str, Finding>,
    /// Blocks of the disk.
    pub total_blocks: u64,
    /// Blocks that have a place in the file.
    pub allocated_blocks: u64,
    /// First byte of the file after everything that is in use.
    pub end_offset: u64,
}

impl CheckReport {
    /// Findings of one kind that are told in words; the rest is only counted, however broken an image is.
    pub const EXAMPLES: usize = 8;

    /// Notes one finding. `text` says where (block, offset) and what is wrong there.
    pub fn add(&mut self, kind: &'static str, severity: Severity, text: impl FnOnce() -> String) {
        let finding = self.finding(kind, severity);
        finding.count += 1;
        if finding.examples.len() < Self::EXAMPLES {
            finding.examples.push(text());
        }
    }

    /// Notes a finding at each of `places`, which may be very many. `text` says where it is and what is wrong there.
    pub fn add_each(
        &mut self,
        kind: &'static str,
        severity: Severity,
        places: Range<u32>,
        text: impl Fn(u32) -> String,
    ) {
        let finding = self.finding(kind, severity);
        finding.count += places.len() as u64;
        let room = Self::EXAMPLES.saturating_sub(finding.examples.len());
        finding.examples.extend(places.take(room).map(text));
    }

    fn finding(&mut self, kind: &'static str, severity: Severity) -> &mut Finding {
        let none_yet = Finding { severity, count: 0, repaired: 0, examples: Vec::new() };
        self.findings.entry(kind).or_insert(none_yet)
    }

    /// Notes that `count` findings of a kind are repaired.
    ///
    /// # Panics
    /// If fewer were found.
    pub fn repaired(&mut self, kind: &str, count: u64) {
        let finding = self.findings.get_mut(kind).expect("only what was found is repaired");
        finding.repaired += count;
        assert!(
            finding.repaired <= finding.count,
            "{kind}: repaired {} of {}",
            finding.repaired,
            finding.count
        );
    }

    /// Findings of one severity, repaired or not.
    pub fn found(&self, severity: Severity) -> u64 {
        self.of(severity).map(|finding| finding.count).sum()
    }

    /// Findings of one severity that were repaired.
    pub fn fixed(&self, severity: Severity) -> u64 {
        self.of(severity).map(|finding| finding.repaired).sum()
    }

    fn of(&self, severity: Severity) -> impl Iterator<Item = &Finding> {
        self.findings.values().filter(move |finding| finding.severity == severity)
    }
}

/// What an image says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// What every format has.
    pub info: LayerInfo,
    /// What this format has besides: keys in kebab-case, in the order to show them. What is not set is left out.
    pub facts: Vec<(&'static str, Value)>,
}

/// The value of a fact about an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Words.
    Text(String),
    /// A size or offset, bytes.
    Bytes(u64),
    /// Any other number.
    Number(u64),
    /// Yes or no.
    Flag(bool),
    /// An identity.
    Uuid(Uuid),
}
