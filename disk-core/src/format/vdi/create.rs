//! Making a VDI as VirtualBox makes one today: version 1.1, header of 400 bytes, map and data on whole MiB.
//!
//! Invariant: the header is written last, so a file that was not finished is no VDI.

use std::sync::Arc;

use uuid::Uuid;
use zerocopy::byteorder::little_endian::U32;
use zerocopy::{FromZeros, IntoBytes};

use super::header::{Kind, MAX_BLOCK_SIZE, MAX_BLOCKS, MAX_DISK_SIZE, MIN_BLOCK_SIZE, Shape, Slot};
use super::layout::{self, HEADER_AREA, HeaderV1, PreHeader, RawGeometry};
use super::map::Entry;
use crate::buf::{Buf, Pool};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{CreateOptions, Variant};
use crate::range::ByteRange;
use crate::storage::{Storage, Zero};

/// Bytes of a block if nobody says otherwise: the one size that every program reads.
pub const DEFAULT_BLOCK_SIZE: u64 = 1 << 20;

/// Longest comment, bytes: the field ends in a NUL.
pub const COMMENT_LEN: usize = 255;

const TEXT: &str = "<<< diskchain Virtual Disk Image >>>\n";
const ALIGNMENT: u64 = 1 << 20;

/// Makes an image in an empty file.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for options that the format has no place for, before anything is written; what the
/// storage says.
pub async fn create(storage: Arc<dyn Storage>, options: &CreateOptions) -> Result<()> {
    let name = storage.name();
    let shape = shape_of(options, name)?;
    let header = header_of(options, &shape, name)?;
    let fixed = options.variant == Variant::Fixed;
    let slots = if fixed { shape.blocks } else { 0 };
    if storage.limits().grows_with_zeroes {
        storage.resize(shape.end_of(slots)).await?;
    }
    if fixed {
        let keep = Zero { may_free: false, fast_only: false };
        storage.zero(shape.slots(0, slots), keep).await?;
    }
    write_map(&*storage, &shape, |block| if fixed { Entry::Slot(Slot(block)) } else { Entry::Absent })
        .await?;
    storage.flush().await?;
    storage.write(0, Buf::copy_from(&header)).await?;
    storage.flush().await
}

fn shape_of(options: &CreateOptions, name: &str) -> Result<Shape> {
    let refuse = |message: String| Err(Error::new(ErrorKind::Unsupported, format!("{name}: {message}")));
    let (disk_size, block_size) = (options.size, options.block_size.unwrap_or(DEFAULT_BLOCK_SIZE));
    if disk_size == 0 || disk_size > MAX_DISK_SIZE || !disk_size.is_multiple_of(512) {
        return refuse(format!("disk size {disk_size} is not a multiple of 512 from 512 to {MAX_DISK_SIZE}"));
    }
    if !block_size.is_power_of_two() || !(MIN_BLOCK_SIZE..=MAX_BLOCK_SIZE).contains(&block_size) {
        return refuse(format!("block size {block_size} is not a power of two from 128 KiB to 128 MiB"));
    }
    let blocks = disk_size.div_ceil(block_size);
    let Some(blocks) = u32::try_from(blocks).ok().filter(|blocks| *blocks <= MAX_BLOCKS) else {
        return refuse(format!("a disk of {disk_size} bytes needs blocks of more than {block_size} bytes"));
    };
    let mut shape =
        Shape { disk_size, block_size, block_extra: 0, blocks, map_offset: ALIGNMENT, data_offset: 0 };
    shape.data_offset = shape.map().end().next_multiple_of(ALIGNMENT);
    if shape.data_offset > u32::MAX.into() {
        return refuse(format!("a disk of {disk_size} bytes needs blocks of more than {block_size} bytes"));
    }
    Ok(shape)
}

fn header_of(options: &CreateOptions, shape: &Shape, name: &str) -> Result<Vec<u8>> {
    let refuse = |message: &str| Err(Error::new(ErrorKind::Unsupported, format!("{name}: {message}")));
    let kind = match options.variant {
        Variant::Dynamic => Kind::Dynamic,
        Variant::Fixed => Kind::Fixed,
        Variant::Differencing => Kind::Differencing,
    };
    let parent = match options.parent {
        Some(_) if !kind.has_parent() => return refuse("only a differencing image has a parent"),
        None if kind.has_parent() => return refuse("a differencing image needs a parent"),
        parent => parent,
    };
    let comment = options.comment.as_deref().unwrap_or_default().as_bytes();
    if comment.len() > COMMENT_LEN || comment.contains(&0) {
        return refuse("a comment has at most 255 bytes and no NUL");
    }
    let mut pre = PreHeader::new_zeroed();
    pre.text[..TEXT.len()].copy_from_slice(TEXT.as_bytes());
    pre.signature.set(layout::SIGNATURE);
    pre.version.set(layout::VERSION_1_1);
    let geometry = RawGeometry { sector_size: U32::new(512), ..RawGeometry::new_zeroed() };
    let mut header = HeaderV1::new_zeroed();
    header.header_size.set(layout::HEADER_LEN_PLUS);
    header.kind.set(kind.raw());
    header.comment[..comment.len()].copy_from_slice(comment);
    header.map_offset.set(shape.map_offset as u32);
    header.data_offset.set(shape.data_offset as u32);
    header.geometry = geometry;
    header.disk_size.set(shape.disk_size);
    header.block_size.set(shape.block_size as u32);
    header.blocks.set(shape.blocks);
    header.blocks_allocated.set(if kind == Kind::Fixed { shape.blocks } else { 0 });
    // VirtualBox takes an image without these two for broken.
    header.uuid_create = layout::raw_uuid(Some(options.uuid.unwrap_or_else(Uuid::new_v4)));
    header.uuid_modify = layout::raw_uuid(Some(Uuid::new_v4()));
    header.uuid_link = layout::raw_uuid(parent.and_then(|parent| parent.uuid));
    header.uuid_parent_modify = layout::raw_uuid(parent.and_then(|parent| parent.modification_uuid));
    let mut area = [pre.as_bytes(), header.as_bytes(), geometry.as_bytes()].concat();
    area.resize(HEADER_AREA, 0);
    Ok(area)
}

/// Writes the whole map, a piece at a time.
async fn write_map(storage: &dyn Storage, shape: &Shape, entry: impl Fn(u32) -> Entry) -> Result<()> {
    const PIECE: u64 = 1 << 20;
    let mut rest = shape.map();
    let mut block = 0;
    while !rest.is_empty() {
        let (piece, after): (ByteRange, ByteRange) = rest.split_at(PIECE);
        let mut table = Pool::global().take(piece.len() as usize);
        for raw in table.chunks_exact_mut(4) {
            raw.copy_from_slice(&entry(block).raw().to_le_bytes());
            block += 1;
        }
        storage.write(piece.start(), table.freeze()).await?;
        rest = after;
    }
    Ok(())
}
