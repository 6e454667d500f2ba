//! Raw images: the disk is the file, byte for byte. The smallest format, and the template for others.
//!
//! A file that ends inside a sector is a disk of whole sectors, as QEMU sees it: the missing bytes are zeroes, and
//! before the first change the file grows by them.
//!
//! Invariant: the bytes `0..data_end` are in the file at their own offsets; `data_end..size` has less than a sector.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::future::BoxFuture;

use super::{Before, Layer, LayerInfo, Mapping, Place, Reservation, Reserved, Reveal, Space};
use super::{Capabilities, CheckReport, CreateOptions, Description, Format, Repair, Variant};
use crate::error::{Error, ErrorKind, Result};
use crate::planted::{Bug, planted};
use crate::range::ByteRange;
use crate::storage::{Storage, Zero};

const SECTOR: u64 = 512;

/// The format `raw`.
#[derive(Debug)]
pub struct Raw;

impl Format for Raw {
    fn name(&self) -> &'static str {
        "raw"
    }

    fn title(&self) -> &'static str {
        "raw disk, file or block device"
    }

    fn extensions(&self) -> &'static [&'static str] {
        &["raw", "img", "iso"]
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            variants: &[Variant::Dynamic, Variant::Fixed],
            block_sizes: None,
            max_size: i64::MAX as u64 / SECTOR * SECTOR,
            uuid: false,
            comment_len: 0,
            check: false,
            repair: false,
            can_free: true,
        }
    }

    fn probe(&self, _head: &[u8]) -> bool {
        false
    }

    fn identify(&self, _head: &[u8], len: u64, name: &str) -> Result<LayerInfo> {
        let size = len.checked_next_multiple_of(SECTOR).filter(|&size| size <= self.capabilities().max_size);
        let too_long = || {
            Error::new(ErrorKind::InvalidImage, format!("{name}: {len} bytes are more than a raw disk has"))
        };
        Ok(LayerInfo {
            format: self.name(),
            variant: "",
            size: size.ok_or_else(too_long)?,
            block_size: SECTOR,
            read_only: true,
            differencing: false,
            space: Space::Host,
            uuid: None,
            modification_uuid: None,
            parent_uuid: None,
            parent_modification_uuid: None,
        })
    }

    fn open(&self, storage: Arc<dyn Storage>, read_only: bool) -> BoxFuture<'static, Result<Arc<dyn Layer>>> {
        let info = self.identify(&[], storage.len(), storage.name());
        Box::pin(async move {
            let info = LayerInfo { read_only, ..info? };
            let data_end = AtomicU64::new(storage.len());
            Ok(Arc::new(RawLayer { info, storage, data_end }) as Arc<dyn Layer>)
        })
    }

    fn create(&self, storage: Arc<dyn Storage>, options: CreateOptions) -> BoxFuture<'static, Result<()>> {
        Box::pin(async move {
            storage.resize(options.size).await?;
            if options.variant == Variant::Fixed {
                let keep = Zero { may_free: false, fast_only: false };
                storage.zero(ByteRange::new(0, options.size), keep).await?;
            }
            storage.flush().await
        })
    }

    fn check(&self, storage: Arc<dyn Storage>, _repair: Repair) -> BoxFuture<'static, Result<CheckReport>> {
        let blocks = storage.len().div_ceil(SECTOR);
        let report = CheckReport {
            total_blocks: blocks,
            allocated_blocks: blocks,
            end_offset: storage.len(),
            ..CheckReport::default()
        };
        Box::pin(async move { Ok(report) })
    }

    fn describe(&self, storage: Arc<dyn Storage>) -> BoxFuture<'static, Result<Description>> {
        let info = self.identify(&[], storage.len(), storage.name());
        Box::pin(async move { Ok(Description { info: info?, facts: Vec::new() }) })
    }
}

#[derive(Debug)]
struct RawLayer {
    info: LayerInfo,
    storage: Arc<dyn Storage>,
    data_end: AtomicU64,
}

impl RawLayer {
    /// Gives the last sector its missing bytes. Twice at once does no harm: both set the same length.
    async fn complete_last_sector(&self) -> Result<()> {
        if self.data_end.load(Ordering::Acquire) < self.info.size {
            self.storage.resize(self.info.size).await?;
            self.data_end.store(self.info.size, Ordering::Release);
        }
        Ok(())
    }
}

impl Layer for RawLayer {
    fn info(&self) -> &LayerInfo {
        &self.info
    }

    fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    fn lookup(&self, range: ByteRange) -> Mapping {
        let (data, tail) =
            range.split_at(self.data_end.load(Ordering::Acquire).saturating_sub(range.start()));
        if data.is_empty() {
            return Mapping { len: tail.len(), place: Place::Zero };
        }
        Mapping { len: data.len(), place: Place::Data(data.start()) }
    }

    fn begin_changes(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.complete_last_sector())
    }

    fn reserve(&self, _range: ByteRange) -> BoxFuture<'_, Result<Reserved>> {
        // Only the missing bytes of the last sector are ever without a place.
        Box::pin(async { self.complete_last_sector().await.map(|()| Reserved::Mapped) })
    }

    fn commit(&self, _reservation: Reservation, _before: Before) -> BoxFuture<'_, Result<()>> {
        unreachable!("a raw image hands out no reservations")
    }

    fn clear(&self, range: ByteRange, _reveal: Reveal) -> BoxFuture<'_, Result<()>> {
        let how = Zero { may_free: true, fast_only: false };
        Box::pin(async move { self.storage.zero(range, how).await })
    }

    fn allocated(&self) -> u64 {
        self.storage.allocated().min(self.info.size)
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { if planted(Bug::SkipBarrier) { Ok(()) } else { self.storage.flush().await } })
    }

    fn compactable(&self) -> Vec<ByteRange> {
        Vec::new()
    }

    fn compact<'a>(&'a self, _blocks: &'a [ByteRange]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    fn settle(&self) -> BoxFuture<'_, Result<()>> {
        self.flush()
    }
}
