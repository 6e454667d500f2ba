//! Image formats: their list, and the trait [`Layer`] that every opened image implements. What a format does with a
//! file that is not open yet is in `driver`.
//!
//! A layer maps; it says where bytes are, makes room for new ones and frees old ones. It never moves guest data
//! on a request's behalf and never sees the layers below it: the chain does both.
//!
//! Invariant: metadata in memory changes only after the write that persists it has succeeded, and a range
//! becomes visible (commit) only after its bytes are where the mapping says.

mod driver;
pub mod raw;
pub mod vdi;

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use uuid::Uuid;

use crate::error::Result;
use crate::range::ByteRange;
use crate::storage::Storage;

pub use driver::{
    BlockSizes, Capabilities, CheckReport, CreateOptions, Description, Finding, Format, HEAD_LEN,
    ParentIdentity, Repair, Severity, Value, Variant,
};

/// Every format there is, in the order in which they are tried on a file of unknown format.
pub static FORMATS: &[&dyn Format] = &[&raw::Raw, &vdi::Vdi];

/// The format of that name, in upper or lower case.
pub fn find(name: &str) -> Option<&'static dyn Format> {
    FORMATS.iter().copied().find(|format| format.name().eq_ignore_ascii_case(name))
}

/// The format of a file that starts with `head` (its first [`HEAD_LEN`] bytes). `None`: possibly raw, possibly
/// something unknown; only the user can say.
pub fn probe(head: &[u8]) -> Option<&'static dyn Format> {
    FORMATS.iter().copied().find(|format| format.probe(head))
}

/// What one image of a chain is, fixed while it is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerInfo {
    /// Name of the format as the configuration spells it: `raw`, `vdi`.
    pub format: &'static str,
    /// Name of the kind within the format: `dynamic`, `fixed`, `differencing`, `undo`; empty for raw.
    pub variant: &'static str,
    /// Size of the disk it describes, bytes.
    pub size: u64,
    /// Bytes of one block (a power of two), the unit in which it allocates and clears; the last block of a disk may
    /// end beyond the disk. 512 for formats that map nothing.
    pub block_size: u64,
    /// Opened without the right to write.
    pub read_only: bool,
    /// Absent ranges are to be looked up in a parent.
    pub differencing: bool,
    /// How it takes and gives space.
    pub space: Space,
    /// Identity of the image, if the format has one.
    pub uuid: Option<Uuid>,
    /// Changes whenever the content does, if the format has one.
    pub modification_uuid: Option<Uuid>,
    /// Identity of the parent that the image names, if it names one.
    pub parent_uuid: Option<Uuid>,
    /// Modification identity that the parent had when the image was made over it, if noted.
    pub parent_modification_uuid: Option<Uuid>,
}

/// How a layer takes and gives space. It decides what zeroing and discarding do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    /// Every byte has its place in the storage; the host allocates below. Zeroes and discards go to the storage as
    /// they come, and [`Layer::reserve`] and [`Layer::clear`] are never called (raw).
    Host,
    /// Blocks are allocated on first write and given back by [`Layer::clear`] (a dynamic or differencing image).
    Blocks,
    /// All space was taken at creation and is kept, so that no write runs out of it (a fixed image): zeroes are
    /// written in place, discards are ignored, [`Layer::reserve`] and [`Layer::clear`] are never called.
    Preallocated,
}

/// Where the first bytes of a range are, in one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// Bytes from the start of the range that this holds for; at least 1, at most the range's length.
    pub len: u64,
    /// Where they are.
    pub place: Place,
}

/// Where bytes are, in one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// At this offset of the layer's storage, one after the other.
    Data(u64),
    /// Nowhere: they read as zeroes, whatever the layers below hold.
    Zero,
    /// Not in this layer: the parent has them, and without a parent they read as zeroes.
    Absent,
}

/// Answer to a wish for room for new bytes.
#[derive(Debug)]
pub enum Reserved {
    /// A new block. Nobody sees it before [`Layer::commit`].
    New(Reservation),
    /// Somebody else has just made the block visible: look it up again.
    Mapped,
}

/// A block that has a place but is not visible yet. Dropping it gives the place back.
pub struct Reservation {
    /// The bytes of the disk that the block stands for, cut off at the disk's end.
    pub range: ByteRange,
    /// Where in the storage `range` starts.
    pub at: u64,
    /// The place reads as zeroes now, and durably: only what is not zero has to be written.
    pub zeroed: bool,
    /// Number of the place, for the layer's own use.
    pub(crate) place: u64,
    /// Runs when the reservation is dropped without a commit.
    pub(crate) release: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(release) = self.release.take() {
            release();
        }
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reservation({} at {})", self.range, self.at)
    }
}

/// What a reservation's range read as before, all layers together. It decides whether a power cut may show the
/// new block without its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// Zeroes everywhere: a zeroed place without its bytes still reads as it did.
    Zeroes,
    /// Something else: the bytes must be durable before the mapping is.
    Data,
}

/// What a cleared range shall read as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reveal {
    /// Zeroes, whatever the layers below hold.
    Zeroes,
    /// Nothing is promised (a discard); a differencing image still must not show its parent's old data.
    Anything,
}

/// One image of a chain, opened.
///
/// All ranges lie inside the disk. Guest ranges that are written, reserved or cleared are never under way twice
/// at once: the tracker's turns see to it. Lookups may run at any time.
pub trait Layer: Send + Sync + fmt::Debug {
    /// What it is.
    fn info(&self) -> &LayerInfo;
    /// Where its bytes are.
    fn storage(&self) -> &Arc<dyn Storage>;
    /// Where the first bytes of a non-empty `range` are. Answers from memory, never blocks. As much of the range as
    /// is contiguous in the storage comes as one mapping.
    fn lookup(&self, range: ByteRange) -> Mapping;
    /// To be awaited before the first change after opening: brings counters left by a crash in order and gives the
    /// image its new modification identity, durably. Cheap when already done.
    fn begin_changes(&self) -> BoxFuture<'_, Result<()>>;
    /// Room for the one block that `range` lies in, which is `Absent` or `Zero` now. Waits while another request
    /// holds a reservation of the same block.
    fn reserve(&self, range: ByteRange) -> BoxFuture<'_, Result<Reserved>>;
    /// Makes a reserved block visible. All its bytes have been written. When it returns, the mapping survives the
    /// death of the process; a flush of the storage makes it survive a power cut. Commits that are under way
    /// together share their flush and metadata writes.
    fn commit(&self, reservation: Reservation, before: Before) -> BoxFuture<'_, Result<()>>;
    /// Forgets the content of whole blocks: `range` starts on a block and ends on one or at the end of the disk.
    fn clear(&self, range: ByteRange, reveal: Reveal) -> BoxFuture<'_, Result<()>>;
    /// Bytes of guest data that the layer has room for now: its allocated blocks.
    fn allocated(&self) -> u64;
    /// Makes everything that completed before durable: data and metadata.
    fn flush(&self) -> BoxFuture<'_, Result<()>>;
    /// Next step of giving freed space back: blocks of the disk that must stand still for it (each a whole block, cut
    /// at the disk's end), or empty when there is nothing to do. See [`Layer::compact`].
    fn compactable(&self) -> Vec<ByteRange>;
    /// Moves those blocks into holes of the file and cuts its end off. The caller holds the turns of all `blocks`
    /// exclusively. Blocks that are no longer worth moving are left alone.
    fn compact<'a>(&'a self, blocks: &'a [ByteRange]) -> BoxFuture<'a, Result<()>>;
    /// Leaves the image as another program likes to find it: exact counters, no spare space at its end, everything
    /// durable. Called with no request under way; requests may follow.
    fn settle(&self) -> BoxFuture<'_, Result<()>>;
}
