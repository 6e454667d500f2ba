//! A chain of layers read and written as one disk: a base image and differencing images over it.
//!
//! ```text
//!   top    ░░██░░░░██░░   lookup: Data → its storage; Zero → zeroes; Absent → one layer down
//!   …      ██░░░░██░░░░
//!   base   ████████▒▒▒▒   past the end of a short parent: zeroes
//! ```
//! The chain moves all guest bytes and alone knows of parents. Only the top layer is ever written.
//!
//! Invariant: the caller holds the turn of every range it passes, so no other request changes those bytes meanwhile.
//! New bytes become visible ([`Layer::commit`]) only after they and everything they were copied over are written.

mod clear;
mod read;
mod status;
mod write;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use smallvec::SmallVec;
use tokio::sync::Semaphore;

use crate::buf::Buf;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Layer, LayerInfo, Mapping, Place};
use crate::range::ByteRange;
use crate::storage::Storage;

pub use read::Reading;
pub use status::StatusExtent;
pub use write::Writing;

/// Copies for copy-on-write, and comparisons with what lies below, that are under way at once; each takes up to [`FILL_STEP`] bytes of memory.
const FILLS_AT_ONCE: usize = 16;

/// Bytes that copy-on-write moves or compares in one step, so that a block of 128 MiB does not need a buffer of 128 MiB.
const FILL_STEP: u64 = 1 << 20;

/// Places that one prefetch asks for at most.
const PREFETCH_EXTENTS: usize = 64;

/// Bytes of which one lookup finds out at most. Each looks as far as something goes on, in every layer: without a bound,
/// going through a disk of many extents would take their number times its size.
const LOOK_AHEAD: u64 = 1 << 30;

/// What a write of zeroes in a write request means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DetectZeroes {
    /// Data like any other.
    #[default]
    Off,
    /// The range is zeroed and keeps its space.
    On,
    /// The range is zeroed and its space is given back.
    Unmap,
}

/// How a chain treats writes that need not take space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ChainOptions {
    /// A write of zeroes to a block that has no space allocates it, instead of being noted as zero.
    pub honor_zeroes: bool,
    /// A write of what a differencing image reads already allocates, instead of being left out.
    pub honor_same: bool,
    /// Write requests are looked through for zeroes.
    pub detect_zeroes: DetectZeroes,
}

/// How a range is to be zeroed, as a client asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ZeroRequest {
    /// Space may be given back. False: the range has its space afterwards.
    pub may_free: bool,
    /// Fail with [`ErrorKind::Unsupported`], having changed nothing, if it would take as long as writing.
    pub fast_only: bool,
}

/// One part of what a read brought.
#[derive(Debug, Clone)]
pub enum Piece {
    /// Bytes.
    Data(Buf),
    /// So many zeroes that nobody had to read.
    Hole(u64),
}

impl Piece {
    /// Bytes of the disk that it stands for.
    pub fn len(&self) -> u64 {
        match self {
            Piece::Data(buf) => buf.len() as u64,
            Piece::Hole(len) => *len,
        }
    }

    /// Whether it stands for no byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a read brought, in the order of the disk.
pub type Pieces = SmallVec<[Piece; 1]>;

/// A base image and differencing images over it, as one disk.
pub struct Chain {
    /// Base first; never empty.
    layers: Vec<Arc<dyn Layer>>,
    options: ChainOptions,
    /// `begin_changes` of the top layer has succeeded.
    changing: AtomicBool,
    fills: Semaphore,
}

impl Chain {
    /// A chain of opened layers, base first. The last is the one that is written; its size is the disk's.
    ///
    /// # Panics
    /// If there is no layer.
    pub fn new(layers: Vec<Arc<dyn Layer>>, options: ChainOptions) -> Self {
        assert!(!layers.is_empty(), "a chain has at least a base");
        Chain { layers, options, changing: AtomicBool::new(false), fills: Semaphore::new(FILLS_AT_ONCE) }
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.top().info().size
    }

    /// Whether writes are refused.
    pub fn read_only(&self) -> bool {
        self.top().info().read_only
    }

    /// The layers, base first.
    pub fn layers(&self) -> &[Arc<dyn Layer>] {
        &self.layers
    }

    /// The layer that is written.
    pub fn top(&self) -> &dyn Layer {
        &**self.layers.last().expect("a chain has at least a base")
    }

    fn top_info(&self) -> &LayerInfo {
        self.top().info()
    }

    /// Everything that completed before is durable afterwards.
    ///
    /// # Errors
    /// What the storage says; after one failure every later flush fails.
    pub async fn flush(&self) -> Result<()> {
        if self.read_only() { Ok(()) } else { self.top().flush().await }
    }

    /// Brings the data of a range, or of its first part, into the host's memory; only a hint, nothing is waited for.
    pub fn prefetch(&self, range: ByteRange) {
        for extent in self.extents(self.layers.len(), range).take(PREFETCH_EXTENTS) {
            if let Origin::Data { storage, at, .. } = extent.origin {
                storage.prefetch(ByteRange::at(at, extent.range.len()));
            }
        }
    }

    /// To be awaited before any change: refuses read-only chains and marks the image as changed, once.
    async fn begin_changes(&self) -> Result<()> {
        if self.changing.load(Ordering::Acquire) {
            return Ok(());
        }
        if self.read_only() {
            return Err(Error::new(
                ErrorKind::ReadOnly,
                format!("{} is open for reading only", self.top().storage().name()),
            ));
        }
        self.top().begin_changes().await?;
        self.changing.store(true, Ordering::Release);
        Ok(())
    }

    /// Where the first bytes of a non-empty range come from, looking at the lowest `height` layers only.
    fn locate(&self, height: usize, range: ByteRange) -> Extent<'_> {
        let (mut range, _) = range.split_at(LOOK_AHEAD);
        for (index, layer) in self.layers[..height].iter().enumerate().rev() {
            let inside = range.intersect(&ByteRange::new(0, layer.info().size));
            if inside.is_empty() {
                // Past the end of a short layer there are zeroes, even over a longer one below it: it decides.
                return Extent { range, origin: Origin::Zero { index: Some(index) } };
            }
            let Mapping { len, place } = layer.lookup(inside);
            let (found, _) = inside.split_at(len);
            match place {
                Place::Data(at) => {
                    return Extent {
                        range: found,
                        origin: Origin::Data { storage: layer.storage(), at, index },
                    };
                }
                Place::Zero => return Extent { range: found, origin: Origin::Zero { index: Some(index) } },
                Place::Absent => range = found,
            }
        }
        Extent { range, origin: Origin::Zero { index: None } }
    }

    /// The whole of a range, extent by extent.
    fn extents(&self, height: usize, range: ByteRange) -> impl Iterator<Item = Extent<'_>> {
        let mut rest = range;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let extent = self.locate(height, rest);
            (_, rest) = rest.split_at(extent.range.len());
            Some(extent)
        })
    }

    /// Whether the layers below the top hold nothing but zeroes in a range, as far as their maps say.
    fn zero_below(&self, range: ByteRange) -> bool {
        self.extents(self.layers.len() - 1, range).all(|extent| matches!(extent.origin, Origin::Zero { .. }))
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.layers.iter().map(|layer| layer.storage().name())).finish()
    }
}

/// Bytes of the disk that come from one place.
#[derive(Debug, Clone, Copy)]
struct Extent<'a> {
    range: ByteRange,
    origin: Origin<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Origin<'a> {
    Data {
        storage: &'a Arc<dyn Storage>,
        at: u64,
        /// Of the layer, counted from the base.
        index: usize,
    },
    Zero {
        /// Of the layer that says so; `None` if no layer knows anything of the range.
        index: Option<usize>,
    },
}
