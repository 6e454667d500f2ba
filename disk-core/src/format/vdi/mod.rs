//! VDI, the disk images of VirtualBox: a header, a block map, and blocks in the order in which they were made.
//!
//! ```text
//!   ┌────────┬─────────────────────┬────────┬────────┬────────┬─ ─ ─
//!   │ header │ block map           │ slot 0 │ slot 1 │ slot 2 │
//!   └────────┴─────────────────────┴────────┴────────┴────────┴─ ─ ─
//!              block 0 → slot 1 ──────────────┘        │
//!              block 1 → absent: the parent's, or zeroes
//!              block 2 → zero, whatever the parent has │
//!              block 3 → slot 2 ───────────────────────┘
//! ```
//! - `layout` and `header`: the header's bytes and their meaning. `map`: the block map in memory. `load`: from the file.
//! - `space`, `slots` and `claim`: which slots can be handed out, to whom.
//! - `layer`: an opened image. `entries`, `tail` and `compact`: what it writes, in which order. `group`: for many at once.
//! - `create`, `check` and `describe`: images that are not open.
//!
//! Invariant: whatever a power cut leaves of a file that was right is right again: no slot is two blocks', none is
//! past the end of the file, and no block shows bytes that were not its own.

mod check;
mod claim;
mod compact;
mod create;
mod describe;
mod entries;
mod group;
mod header;
mod layer;
mod layout;
mod load;
mod map;
mod slots;
mod space;
mod tail;

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::{
    BlockSizes, Capabilities, CheckReport, CreateOptions, Description, Format, Layer, LayerInfo, Repair,
    Space, Variant,
};
use crate::error::Result;
use crate::storage::Storage;
use header::{Header, Kind};

pub use layer::VdiLayer;

/// The format `vdi`.
#[derive(Debug)]
pub struct Vdi;

impl Format for Vdi {
    fn name(&self) -> &'static str {
        "vdi"
    }

    fn title(&self) -> &'static str {
        "VirtualBox disk image"
    }

    fn extensions(&self) -> &'static [&'static str] {
        &["vdi"]
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            variants: &[Variant::Dynamic, Variant::Fixed, Variant::Differencing],
            block_sizes: Some(BlockSizes {
                min: header::MIN_BLOCK_SIZE,
                max: header::MAX_BLOCK_SIZE,
                default: create::DEFAULT_BLOCK_SIZE,
            }),
            max_size: header::MAX_DISK_SIZE,
            uuid: true,
            comment_len: create::COMMENT_LEN,
            check: true,
            repair: true,
            can_free: true,
        }
    }

    fn probe(&self, head: &[u8]) -> bool {
        head.get(0x40..0x44) == Some(&layout::SIGNATURE.to_le_bytes())
    }

    fn identify(&self, head: &[u8], len: u64, name: &str) -> Result<LayerInfo> {
        Ok(unopened(&Header::parse(head, len, name)?))
    }

    fn open(&self, storage: Arc<dyn Storage>, read_only: bool) -> BoxFuture<'static, Result<Arc<dyn Layer>>> {
        Box::pin(async move { Ok(Arc::new(VdiLayer::open(storage, read_only).await?) as Arc<dyn Layer>) })
    }

    fn create(&self, storage: Arc<dyn Storage>, options: CreateOptions) -> BoxFuture<'static, Result<()>> {
        Box::pin(async move { create::create(storage, &options).await })
    }

    fn check(&self, storage: Arc<dyn Storage>, repair: Repair) -> BoxFuture<'static, Result<CheckReport>> {
        Box::pin(check::check(storage, repair))
    }

    fn describe(&self, storage: Arc<dyn Storage>) -> BoxFuture<'static, Result<Description>> {
        Box::pin(async move {
            let (header, _) = load::read_header(&*storage).await?;
            Ok(Description { info: unopened(&header), facts: describe::facts(&header) })
        })
    }
}

/// What an image is that is not opened. Whether a fixed one has all its blocks only its map can tell.
fn unopened(header: &Header) -> LayerInfo {
    let space = if header.kind == Kind::Fixed { Space::Preallocated } else { Space::Blocks };
    info_of(header, space, true)
}

fn info_of(header: &Header, space: Space, read_only: bool) -> LayerInfo {
    LayerInfo {
        format: "vdi",
        variant: header.kind.name(),
        size: header.shape.disk_size,
        block_size: header.shape.block_size,
        read_only,
        differencing: header.kind.has_parent(),
        space,
        uuid: header.uuid,
        modification_uuid: header.modification_uuid,
        parent_uuid: header.parent_uuid,
        parent_modification_uuid: header.parent_modification_uuid,
    }
}
