//! What a VDI header says: parsed and checked once, at the door.
//!
//! Invariant: of a [`Header`] the block map lies between the header and the data, inside the file, and has an entry
//! for every block of the disk; no offset that follows from it passes 2⁶³.

use uuid::Uuid;
use zerocopy::FromBytes;

use super::layout::{self, HeaderV0, HeaderV1, PreHeader, RawGeometry};
use crate::error::{Error, ErrorKind, Result};
use crate::range::ByteRange;

/// Block sizes that VirtualBox opens, bytes.
pub const MIN_BLOCK_SIZE: u64 = 128 << 10;
/// See [`MIN_BLOCK_SIZE`].
pub const MAX_BLOCK_SIZE: u64 = 128 << 20;
/// VirtualBox keeps disks below 4 PiB − 3 MiB.
pub const MAX_DISK_SIZE: u64 = (4 << 50) - (3 << 20);
/// The map of so many blocks takes 8 GiB; more is a mistake or an attack.
pub const MAX_BLOCKS: u32 = 1 << 31;

const SECTOR: u64 = 512;
const ENTRY_LEN: u64 = 4;

/// What an image is, as its header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Grows as it is written.
    Dynamic,
    /// Has room for everything from the start.
    Fixed,
    /// Holds what a run of a virtual machine changed; absent blocks are the parent's.
    Undo,
    /// Holds what differs from a parent.
    Differencing,
}

impl Kind {
    fn of(raw: u32) -> Option<Kind> {
        Some(match raw {
            1 => Kind::Dynamic,
            2 => Kind::Fixed,
            3 => Kind::Undo,
            4 => Kind::Differencing,
            _ => return None,
        })
    }

    /// The number for it in the header.
    pub fn raw(self) -> u32 {
        match self {
            Kind::Dynamic => 1,
            Kind::Fixed => 2,
            Kind::Undo => 3,
            Kind::Differencing => 4,
        }
    }

    /// The word for it in configuration and output.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Dynamic => "dynamic",
            Kind::Fixed => "fixed",
            Kind::Undo => "undo",
            Kind::Differencing => "differencing",
        }
    }

    /// Whether absent blocks are to be looked up in a parent.
    pub fn has_parent(self) -> bool {
        matches!(self, Kind::Undo | Kind::Differencing)
    }
}

/// Where things are in the file. A *slot* is a place for one block: slot `s` starts at `data + s · stride`, with
/// the block's extra bytes in front of its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Bytes of the disk, whole sectors.
    pub disk_size: u64,
    /// Bytes of a block's data, a power of two.
    pub block_size: u64,
    /// Bytes in front of each block's data.
    pub block_extra: u64,
    /// Entries of the map; at least one for each block of the disk.
    pub blocks: u32,
    /// Where the map starts.
    pub map_offset: u64,
    /// Where slot 0 starts.
    pub data_offset: u64,
}

/// Number of a place for one block in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

impl Shape {
    /// Bytes from one slot to the next.
    pub fn stride(&self) -> u64 {
        self.block_size + self.block_extra
    }

    /// Where a slot's data starts.
    pub fn data_of(&self, slot: Slot) -> u64 {
        self.end_of(slot.0) + self.block_extra
    }

    /// Length of a file with `slots` slots.
    pub fn end_of(&self, slots: u32) -> u64 {
        self.data_offset + u64::from(slots) * self.stride()
    }

    /// The bytes of the slots `start..end`, extra bytes included.
    pub fn slots(&self, start: u32, end: u32) -> ByteRange {
        ByteRange::new(self.end_of(start), self.end_of(end))
    }

    /// Slots that a file of `len` bytes has whole.
    pub fn slots_in(&self, len: u64) -> u32 {
        let slots = len.saturating_sub(self.data_offset) / self.stride();
        u32::try_from(slots).unwrap_or(u32::MAX)
    }

    /// The block that a byte of the disk lies in.
    pub fn block_at(&self, offset: u64) -> u32 {
        u32::try_from(offset / self.block_size).expect("a disk has at most 2^31 blocks")
    }

    /// The bytes of the disk that a block stands for: less than a block at the disk's end, none past it.
    pub fn disk_range(&self, block: u32) -> ByteRange {
        let start = (u64::from(block) * self.block_size).min(self.disk_size);
        ByteRange::new(start, (start + self.block_size).min(self.disk_size))
    }

    /// Blocks of the disk.
    pub fn disk_blocks(&self) -> u32 {
        self.disk_size.div_ceil(self.block_size) as u32
    }

    /// Where a block's map entry is.
    pub fn entry_offset(&self, block: u32) -> u64 {
        self.map_offset + u64::from(block) * ENTRY_LEN
    }

    /// The bytes of the block map.
    pub fn map(&self) -> ByteRange {
        ByteRange::new(self.map_offset, self.entry_offset(self.blocks))
    }

    /// Bytes at the start of the file that belong to the header.
    pub fn header_area(&self) -> usize {
        layout::HEADER_AREA.min(self.map_offset as usize)
    }
}

/// A geometry, as old firmware wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    pub cylinders: u32,
    pub heads: u32,
    pub sectors: u32,
    pub sector_size: u32,
}

impl From<RawGeometry> for Geometry {
    fn from(raw: RawGeometry) -> Self {
        Geometry {
            cylinders: raw.cylinders.get(),
            heads: raw.heads.get(),
            sectors: raw.sectors.get(),
            sector_size: raw.sector_size.get(),
        }
    }
}

/// A header that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The text at the start of the file: who made it.
    pub text: String,
    /// Major and minor version.
    pub version: (u16, u16),
    /// Bytes of the header after the pre-header.
    pub header_size: u32,
    pub kind: Kind,
    /// Flags of the image; bit 0: blocks are filled with zeroes when they are made.
    pub flags: u32,
    pub comment: String,
    pub shape: Shape,
    /// The disk's size as the header has it; not always whole sectors.
    pub disk_size: u64,
    /// Physical geometry.
    pub geometry: Geometry,
    /// Logical geometry; only the longer header has it.
    pub logical_geometry: Option<Geometry>,
    /// The header's count of allocated blocks, which other programs append at.
    pub blocks_allocated: u32,
    pub uuid: Option<Uuid>,
    pub modification_uuid: Option<Uuid>,
    pub parent_uuid: Option<Uuid>,
    pub parent_modification_uuid: Option<Uuid>,
}

impl Header {
    /// Parses the head of a file of `len` bytes; `name` is for messages.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidImage`], naming the field and its value.
    pub fn parse(head: &[u8], len: u64, name: &str) -> Result<Header> {
        let header = Self::read(head, name)?;
        header.check(len, name)?;
        Ok(header)
    }

    /// The header of that version, its fields not checked yet.
    fn read(head: &[u8], name: &str) -> Result<Header> {
        let short = |what: &str| invalid(name, format!("the file ends inside the {what}"));
        let (pre, rest) =
            PreHeader::read_from_prefix(head).map_err(|_| short("first 72 bytes of the header"))?;
        let signature = pre.signature.get();
        if signature != layout::SIGNATURE {
            return Err(invalid(
                name,
                format!("signature {signature:#010x} is not that of a VDI, {:#010x}", layout::SIGNATURE),
            ));
        }
        match pre.version.get() {
            layout::VERSION_0_2 => {
                let (raw, _) =
                    HeaderV0::read_from_prefix(rest).map_err(|_| short("header of version 0.2"))?;
                Self::from_v0(&pre, &raw, name)
            }
            layout::VERSION_1_1 => {
                let (raw, rest) =
                    HeaderV1::read_from_prefix(rest).map_err(|_| short("header of version 1.1"))?;
                Self::from_v1(&pre, &raw, rest, name)
            }
            other => Err(invalid(
                name,
                format!("version {}.{} is neither 1.1 nor 0.2", other >> 16, other & 0xffff),
            )),
        }
    }

    fn from_v0(pre: &PreHeader, raw: &HeaderV0, name: &str) -> Result<Header> {
        let map_offset = (size_of::<PreHeader>() + size_of::<HeaderV0>()) as u64;
        Ok(Header {
            text: text_of(&pre.text).trim_end().to_string(),
            version: (0, 2),
            header_size: size_of::<HeaderV0>() as u32,
            kind: kind_of(raw.kind.get(), name)?,
            flags: raw.flags.get(),
            comment: text_of(&raw.comment),
            shape: Shape {
                disk_size: raw.disk_size.get() / SECTOR * SECTOR,
                block_size: raw.block_size.get().into(),
                block_extra: 0,
                blocks: raw.blocks.get(),
                map_offset,
                data_offset: map_offset + u64::from(raw.blocks.get()) * ENTRY_LEN,
            },
            disk_size: raw.disk_size.get(),
            geometry: raw.geometry.into(),
            logical_geometry: None,
            blocks_allocated: raw.blocks_allocated.get(),
            uuid: layout::uuid_of(raw.uuid_create),
            modification_uuid: layout::uuid_of(raw.uuid_modify),
            parent_uuid: layout::uuid_of(raw.uuid_link),
            parent_modification_uuid: None,
        })
    }

    fn from_v1(pre: &PreHeader, raw: &HeaderV1, rest: &[u8], name: &str) -> Result<Header> {
        let header_size = raw.header_size.get();
        if header_size < layout::HEADER_LEN_OLD {
            return Err(invalid(
                name,
                format!("header size {header_size} is less than {}", layout::HEADER_LEN_OLD),
            ));
        }
        let logical = RawGeometry::read_from_prefix(rest).ok().map(|(geometry, _)| Geometry::from(geometry));
        Ok(Header {
            text: text_of(&pre.text).trim_end().to_string(),
            version: (1, 1),
            header_size,
            kind: kind_of(raw.kind.get(), name)?,
            flags: raw.flags.get(),
            comment: text_of(&raw.comment),
            shape: Shape {
                disk_size: raw.disk_size.get() / SECTOR * SECTOR,
                block_size: raw.block_size.get().into(),
                block_extra: raw.block_extra.get().into(),
                blocks: raw.blocks.get(),
                map_offset: raw.map_offset.get().into(),
                data_offset: raw.data_offset.get().into(),
            },
            disk_size: raw.disk_size.get(),
            geometry: raw.geometry.into(),
            logical_geometry: logical.filter(|_| header_size >= layout::HEADER_LEN_PLUS),
            blocks_allocated: raw.blocks_allocated.get(),
            uuid: layout::uuid_of(raw.uuid_create),
            modification_uuid: layout::uuid_of(raw.uuid_modify),
            parent_uuid: layout::uuid_of(raw.uuid_link),
            parent_modification_uuid: layout::uuid_of(raw.uuid_parent_modify),
        })
    }

    /// Refuses what contradicts itself or the format.
    fn check(&self, len: u64, name: &str) -> Result<()> {
        self.check_disk(name)?;
        self.check_places(len, name)?;
        if let (false, Some(parent)) = (self.kind.has_parent(), self.parent_uuid) {
            let kind = self.kind.name();
            return Err(invalid(name, format!("a {kind} image has no parent, yet it names {parent} as one")));
        }
        Ok(())
    }

    fn check_disk(&self, name: &str) -> Result<()> {
        let refuse = |message: String| Err(invalid(name, message));
        let Shape { disk_size, block_size, block_extra, blocks, .. } = self.shape;
        if disk_size == 0 || self.disk_size > MAX_DISK_SIZE {
            return refuse(format!(
                "disk size {} is not between 512 and {MAX_DISK_SIZE} bytes",
                self.disk_size
            ));
        }
        if !block_size.is_power_of_two() || !(MIN_BLOCK_SIZE..=MAX_BLOCK_SIZE).contains(&block_size) {
            return refuse(format!("block size {block_size} is not a power of two from 128 KiB to 128 MiB"));
        }
        if block_extra > block_size {
            return refuse(format!(
                "block extra size {block_extra} is more than a block, {block_size} bytes"
            ));
        }
        let sector = self.geometry.sector_size;
        if u64::from(sector) != SECTOR {
            return refuse(format!("sector size {sector} is not 512"));
        }
        if blocks > MAX_BLOCKS {
            return refuse(format!("{blocks} blocks are more than {MAX_BLOCKS}"));
        }
        let needed = disk_size.div_ceil(block_size);
        if u64::from(blocks) < needed {
            return refuse(format!(
                "{blocks} blocks are too few for a disk of {disk_size} bytes: it has {needed}"
            ));
        }
        Ok(())
    }

    fn check_places(&self, len: u64, name: &str) -> Result<()> {
        let refuse = |message: String| Err(invalid(name, message));
        let header_end = size_of::<PreHeader>() as u64 + u64::from(self.header_size);
        let map = self.shape.map();
        if map.start() < header_end {
            return refuse(format!(
                "block map offset {} is inside the header, {header_end} bytes",
                map.start()
            ));
        }
        // Version 0.2 has no choice: its map starts at 420.
        if self.version != (0, 2) {
            for (what, offset) in [("block map", map.start()), ("data", self.shape.data_offset)] {
                if !offset.is_multiple_of(SECTOR) {
                    return refuse(format!("{what} offset {offset} is not a multiple of 512"));
                }
            }
        }
        if self.shape.data_offset < map.end() {
            let data = self.shape.data_offset;
            return refuse(format!(
                "data offset {data} is inside the block map, which ends at {}",
                map.end()
            ));
        }
        if map.end() > len {
            return refuse(format!("the block map ends at {}, past the end of the file at {len}", map.end()));
        }
        Ok(())
    }
}

fn kind_of(raw: u32, name: &str) -> Result<Kind> {
    Kind::of(raw).ok_or_else(|| {
        invalid(
            name,
            format!("image type {raw} is none of dynamic (1), fixed (2), undo (3), differencing (4)"),
        )
    })
}

/// A field of text: up to its first NUL, whatever encoding its writer used.
fn text_of(field: &[u8]) -> String {
    let text = field.split(|&byte| byte == 0).next().unwrap_or(&[]);
    String::from_utf8_lossy(text).into_owned()
}

fn invalid(name: &str, message: String) -> Error {
    Error::new(ErrorKind::InvalidImage, format!("{name}: {message}"))
}
