//! A reader of image files of few words: it shares no code with the drivers, so it can tell when they are wrong.
//!
//! Invariant: it reads what the file says and nothing that the running layers know.

use futures_util::FutureExt;

use crate::buf::Pool;
use crate::range::ByteRange;
use crate::storage::{MemStorage, Storage};
use crate::testing::model::SECTOR;

/// An image as its file has it.
#[derive(Debug)]
pub struct Image {
    size: u64,
    kind: Kind,
    file: MemStorage,
}

#[derive(Debug)]
enum Kind {
    Raw,
    Vdi(Table),
}

/// The block map of a VDI and what it stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Bytes of a block.
    pub block_size: u64,
    /// What the map says of each block: a slot, or one of [`ABSENT`] and [`ZERO`].
    pub entries: Vec<u32>,
    /// The header's number of allocated blocks.
    pub counter: u32,
    /// Where slot 0 starts in the file.
    pub data: u64,
}

/// The parent's, or zeroes.
pub const ABSENT: u32 = 0xffff_ffff;
/// Zeroes, whatever the parent has.
pub const ZERO: u32 = 0xffff_fffe;

/// A part of the disk and where a chain of images has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The part.
    pub range: ByteRange,
    /// Layer that decides, 1 for the top; 0 if none does.
    pub depth: u32,
    /// The bytes, or `None` for zeroes that no image keeps.
    pub bytes: Option<Vec<u8>>,
}

impl Image {
    /// A raw image: every byte is in its place.
    pub fn raw(file: MemStorage) -> Image {
        Image { size: file.len().next_multiple_of(SECTOR), kind: Kind::Raw, file }
    }

    /// A VDI.
    ///
    /// # Errors
    /// In words, if its map contradicts itself, its file or its counter.
    pub fn vdi(file: MemStorage) -> Result<Image, String> {
        let word = |at: u64| u32::from_le_bytes(bytes(&file, at, 4)[..].try_into().expect("four bytes"));
        let size = u64::from(word(0x170)) | u64::from(word(0x174)) << 32;
        let (map, block_size) = (u64::from(word(0x154)), u64::from(word(0x178)));
        let map = bytes(&file, map, 4 * u64::from(word(0x180)));
        let entry = |raw: &[u8]| u32::from_le_bytes(raw.try_into().expect("four bytes"));
        let entries = map.chunks_exact(4).map(entry).collect();
        let table = Table { block_size, entries, counter: word(0x184), data: word(0x158).into() };
        table.judge(file.len())?;
        Ok(Image { size, kind: Kind::Vdi(table), file })
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The map, if it has one.
    pub fn table(&self) -> Option<&Table> {
        match &self.kind {
            Kind::Raw => None,
            Kind::Vdi(table) => Some(table),
        }
    }

    /// The place of the first bytes of `range` in the file, `Err` with [`ABSENT`] or [`ZERO`] if they have none, and
    /// how many bytes that is true of.
    fn place(&self, range: ByteRange) -> (Result<u64, u32>, u64) {
        match &self.kind {
            Kind::Raw => (Ok(range.start()), range.len()),
            Kind::Vdi(table) => {
                let piece = range.blocks(table.block_size).next().expect("a range that is not empty");
                let place = match table.entries[(piece.start() / table.block_size) as usize] {
                    none @ (ABSENT | ZERO) => Err(none),
                    slot => {
                        Ok(table.data + u64::from(slot) * table.block_size + piece.start() % table.block_size)
                    }
                };
                (place, piece.len())
            }
        }
    }
}

impl Table {
    /// Slots that a block is in.
    pub fn slots(&self) -> impl Iterator<Item = u32> {
        self.entries.iter().copied().filter(|entry| !matches!(*entry, ABSENT | ZERO))
    }

    fn judge(&self, file_len: u64) -> Result<(), String> {
        let mut slots: Vec<u32> = self.slots().collect();
        let end = slots.iter().max().map_or(0, |last| last + 1);
        if self.data + u64::from(end) * self.block_size > file_len {
            return Err(format!("slot {} is past the end of the file at {file_len}: {self:?}", end - 1));
        }
        if self.counter < end {
            return Err(format!("the counter is behind the map: {self:?}"));
        }
        if self.counter as usize > self.entries.len() {
            return Err(format!("the counter is greater than the number of blocks: {self:?}"));
        }
        slots.sort_unstable();
        match slots.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(format!("two blocks are in slot {}: {self:?}", pair[0])),
            None => Ok(()),
        }
    }
}

/// Where a chain of images, base first, has its disk.
pub fn read(chain: &[Image]) -> Vec<Found> {
    let mut found = Vec::new();
    let mut rest = ByteRange::new(0, chain.last().map_or(0, Image::size));
    while !rest.is_empty() {
        let part = find(chain, rest);
        (_, rest) = rest.split_at(part.range.len());
        found.push(part);
    }
    found
}

/// Where a chain of images has the first bytes of a range.
fn find(chain: &[Image], range: ByteRange) -> Found {
    let mut range = range;
    for (depth, image) in (1..).zip(chain.iter().rev()) {
        let inside = ByteRange::new(0, image.size).intersect(&range);
        if inside.is_empty() {
            // A short image decides that there are zeroes past its end, as in QEMU.
            return Found { range, depth, bytes: None };
        }
        let (place, len) = image.place(inside);
        range = inside.split_at(len).0;
        match place {
            Ok(at) => {
                // A raw file may end inside its last sector.
                let mut found = bytes(&image.file, at, len.min(image.file.len() - at));
                found.resize(len as usize, 0);
                return Found { range, depth, bytes: Some(found) };
            }
            Err(ZERO) => return Found { range, depth, bytes: None },
            Err(_) => {}
        }
    }
    Found { range, depth: 0, bytes: None }
}

fn bytes(file: &MemStorage, at: u64, len: u64) -> Vec<u8> {
    let read = file.read(at, Pool::global().take(len as usize)).now_or_never().expect("memory never waits");
    read.expect("a part of the file").to_vec()
}
