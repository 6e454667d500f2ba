//! Reading the header and the block map of a file into memory, once, and looking at what the map says.
//!
//! Invariant: a table is read in pieces of at most [`PIECE`] bytes, and memory grows only with entries that are not
//! uniform: an image that lies about its size costs nothing.

use super::header::{Header, Shape, Slot};
use super::layout::HEADER_AREA;
use super::map::{Entry, Map, PAGE};
use super::slots::{SlotBits, SlotSet};
use crate::buf::{BufMut, Pool};
use crate::error::{Error, ErrorKind, Result};
use crate::range::ByteRange;
use crate::storage::{Completion, Storage};

/// Bytes of the map that are read at once.
const PIECE: u64 = 1 << 20;

/// Reads and checks the header. Also returns the bytes it is in, for the fields that change later.
///
/// # Errors
/// [`ErrorKind::InvalidImage`], or what the storage says.
pub async fn read_header(storage: &dyn Storage) -> Result<(Header, Vec<u8>)> {
    let len = storage.len();
    let head = Pool::global().take(HEADER_AREA.min(len as usize));
    let mut bytes = storage.read(0, head).await?.to_vec();
    let header = Header::parse(&bytes, len, storage.name())?;
    bytes.truncate(header.shape.header_area());
    Ok((header, bytes))
}

/// Reads the block map.
///
/// # Errors
/// What the storage says.
pub async fn read_map(storage: &dyn Storage, shape: &Shape) -> Result<Map> {
    let mut map = Map::builder(shape.blocks);
    let read = |piece: ByteRange| storage.read(piece.start(), Pool::global().take(piece.len() as usize));
    let mut pieces = pieces(shape.map());
    let mut coming: Option<Completion<BufMut>> = pieces.next().map(read);
    while let Some(completion) = coming {
        let bytes = completion.await?;
        // The next piece is on its way while this one is looked at.
        coming = pieces.next().map(read);
        for page in bytes.chunks(PAGE as usize * 4) {
            map.push(page);
        }
    }
    Ok(map.build())
}

fn pieces(map: ByteRange) -> impl Iterator<Item = ByteRange> {
    let mut rest = map;
    std::iter::from_fn(move || {
        let (piece, after) = rest.split_at(PIECE);
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}

/// What the entries of a map say together.
pub struct Census {
    /// Blocks that are in a slot of the file, damaged ones left out.
    pub allocated: u64,
    /// One more than the highest slot in use; 0 if there is none.
    pub end: u32,
    /// Slots below `end` that no entry names.
    pub vacant: SlotSet,
}

/// An entry that cannot be right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// The slot of this block is another block's too.
    Shared { block: u32, slot: Slot },
    /// The slot of this block is not in the file.
    PastEnd { block: u32, slot: Slot },
    /// The file ends inside the part of the slot that the disk uses.
    CutOff { block: u32, slot: Slot },
}

/// Looks at all entries of a map that belongs to a file of `len` bytes. `damage` is told of every entry that cannot
/// be right, in the order of the blocks.
pub fn census(map: &Map, shape: &Shape, len: u64, mut damage: impl FnMut(Damage)) -> Census {
    let mut used = SlotBits::default();
    let (mut allocated, mut end) = (0, 0);
    for (block, slot) in map.allocated() {
        let data = shape.data_of(slot);
        // Past the disk's end a block has only padding, which other programs leave out of the file.
        if data >= len {
            damage(Damage::PastEnd { block, slot });
        } else if !used.insert(slot) {
            damage(Damage::Shared { block, slot });
        } else {
            if data + shape.disk_range(block).len() > len {
                damage(Damage::CutOff { block, slot });
            }
            allocated += 1;
            end = end.max(slot.0 + 1);
        }
    }
    Census { allocated, end, vacant: used.missing(end) }
}

/// Damage in words; `len` is the file's length.
pub fn told(damage: Damage, map: &Map, shape: &Shape, len: u64) -> String {
    match damage {
        Damage::Shared { block, slot } => {
            let first = map.allocated().find(|(_, other)| *other == slot).map_or(block, |(first, _)| first);
            format!("blocks {first} and {block} are both in slot {}, at {}", slot.0, shape.data_of(slot))
        }
        Damage::PastEnd { block, slot } => format!(
            "block {block} is in slot {}, at {}, past the end of the file at {len}",
            slot.0,
            shape.data_of(slot)
        ),
        Damage::CutOff { block, slot } => format!(
            "the file ends at {len}, inside block {block}, which is in slot {}, at {}",
            slot.0,
            shape.data_of(slot)
        ),
    }
}

/// The error for damage found when an image is opened for writing.
pub fn corrupt(damage: Damage, map: &Map, shape: &Shape, storage: &dyn Storage) -> Error {
    let damage = told(damage, map, shape, storage.len());
    let name = storage.name();
    Error::new(ErrorKind::Corrupt, format!("{name}: {damage}; it can be opened for reading only"))
}

/// Whether every block of the disk is in a slot.
pub fn is_full(map: &Map, shape: &Shape) -> bool {
    let mut block = 0;
    while block < shape.disk_blocks() {
        let (entry, blocks) = map.run(block, shape.disk_blocks());
        if !matches!(entry, Entry::Slot(_)) {
            return false;
        }
        block += blocks;
    }
    true
}
