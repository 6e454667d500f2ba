//! What an opened image is used for: reading at many places, and writing with a model beside it.
//!
//! Invariant: every sector that is compared was read before anything was written.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use arbitrary::Arbitrary;
use disk_core::buf::Pool;
use disk_core::chain::{Chain, ChainOptions, ZeroRequest};
use disk_core::format::vdi::Vdi;
use disk_core::format::{Format, Layer, Repair, Severity};
use disk_core::range::ByteRange;
use disk_core::storage::{MemStorage, Storage};
use disk_core::testing::model::target::flat;

const SECTOR: u64 = 512;
/// Blocks that are looked into, from the first on.
const BLOCKS_MOST: u64 = 32;
/// Bytes at each end of the file's tables that are compared.
const MARGIN: u64 = 64 << 10;

/// One thing that is done to a disk.
#[derive(Debug, Arbitrary)]
pub enum Step {
    Write(Place),
    Zero(Place, bool),
    Discard(Place),
    Flush,
    Compact,
    Reopen,
}

/// Whole sectors of the disk.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub struct Place {
    sector: u32,
    sectors: u8,
    /// All of the block, too.
    block: bool,
}

/// What an image reads like, by sector; `None` where it cannot be read.
pub struct Trial {
    sectors: BTreeMap<u64, Option<Vec<u8>>>,
}

impl Place {
    fn range(self, size: u64, block: u64) -> ByteRange {
        let sectors = size / SECTOR;
        let first = u64::from(self.sector) % sectors;
        let last = (first + u64::from(self.sectors % 16) + 1).min(sectors);
        let range = ByteRange::new(first * SECTOR, last * SECTOR);
        // Large blocks would take long.
        if !self.block || block > 1 << 20 {
            return range;
        }
        ByteRange::new(range.start() / block * block, range.end().next_multiple_of(block).min(size))
    }
}

impl Step {
    fn range(&self, size: u64, block: u64) -> Option<ByteRange> {
        match self {
            Step::Write(place) | Step::Zero(place, _) | Step::Discard(place) => {
                Some(place.range(size, block))
            }
            Step::Flush | Step::Compact | Step::Reopen => None,
        }
    }
}

impl Trial {
    /// Reads an image at random places, at the ends of its first blocks, and wherever `steps` will go.
    pub async fn read_only(layer: Arc<dyn Layer>, places: &[u32], steps: &[Step]) -> Trial {
        let (size, block) = (layer.info().size, layer.info().block_size);
        let chain = Chain::new(vec![layer], ChainOptions::default());
        let mut sectors: Vec<u64> = places.iter().map(|place| u64::from(*place) % (size / SECTOR)).collect();
        for start in (0..size).step_by(block as usize).take(BLOCKS_MOST as usize) {
            sectors.extend([start / SECTOR, (start + block).min(size) / SECTOR - 1]);
        }
        for range in steps.iter().filter_map(|step| step.range(size, block)) {
            let all = range.start() / SECTOR..range.end() / SECTOR;
            // The ends of a long one tell enough.
            sectors.extend(all.clone().take(32).chain(all.rev().take(32)));
        }
        let mut read = BTreeMap::new();
        for sector in sectors {
            read.insert(sector, read_sector(&chain, sector).await);
            let range = ByteRange::new(sector * SECTOR, size);
            let status = chain.status(range, 4).await.expect("a status takes no data");
            assert!(!status.is_empty() && status.len() <= 4 && status.iter().all(|one| one.len > 0));
        }
        Trial { sectors: read }
    }

    /// What could be read can be read, and is the same.
    pub async fn expect_preserved(&self, layer: Arc<dyn Layer>) {
        let chain = Chain::new(vec![layer], ChainOptions::default());
        for (sector, before) in self.sectors.iter().filter(|(_, before)| before.is_some()) {
            assert!(read_sector(&chain, *sector).await == *before, "sector {sector} was changed by a repair");
        }
    }

    /// Carries the steps out on an image that was opened for writing, whose file was `image`.
    pub async fn write(
        &self,
        layer: Arc<dyn Layer>,
        file: Arc<MemStorage>,
        image: &MemStorage,
        steps: &[Step],
    ) {
        let (size, block) = (layer.info().size, layer.info().block_size);
        let mut chain = Chain::new(vec![layer], ChainOptions::default());
        // What each sector may be.
        let mut model: BTreeMap<u64, Vec<Vec<u8>>> = BTreeMap::new();
        for (sector, before) in &self.sectors {
            let before = before.clone().expect("an image that can be written can be read");
            model.insert(*sector, vec![before]);
        }
        for (number, step) in steps.iter().enumerate() {
            let stamp = vec![number as u8 + 0x80; SECTOR as usize];
            let zero = vec![0; SECTOR as usize];
            match (step, step.range(size, block)) {
                (Step::Write(_), Some(range)) => {
                    let mut data = Pool::global().take(range.len() as usize);
                    data.fill(stamp[0]);
                    chain.write(range, data.freeze()).await.expect("memory has room");
                    model.range_mut(touched(range)).for_each(|(_, may)| *may = vec![stamp.clone()]);
                }
                (Step::Zero(_, may_free), Some(range)) => {
                    let how = ZeroRequest { may_free: *may_free, fast_only: false };
                    chain.zero(range, how).await.expect("memory has room");
                    model.range_mut(touched(range)).for_each(|(_, may)| *may = vec![zero.clone()]);
                }
                (Step::Discard(_), Some(range)) => {
                    chain.discard(range).await.expect("a discard never fails");
                    model.range_mut(touched(range)).for_each(|(_, may)| may.push(zero.clone()));
                }
                (Step::Compact, _) => compact(&chain).await,
                (Step::Reopen, _) => {
                    chain.top().settle().await.expect("memory has room");
                    drop(chain);
                    let layer = Vdi.open(file.clone(), false).await.expect("it could be written before");
                    chain = Chain::new(vec![layer], ChainOptions::default());
                }
                _ => chain.flush().await.expect("memory is durable"),
            }
            let near = step.range(size, block).map_or(0..u64::MAX, touched);
            expect(&chain, &mut model, near).await;
        }
        chain.top().settle().await.expect("memory has room");
        drop(chain);
        expect_kept(&file, image).await;
        let report = Vdi.check(file.clone(), Repair::Nothing).await.expect("still an image");
        assert_eq!(report.found(Severity::Error), 0, "{report:?}");
        let layer = Vdi.open(file, true).await.expect("still an image");
        expect(&Chain::new(vec![layer], ChainOptions::default()), &mut model, 0..u64::MAX).await;
    }
}

fn touched(range: ByteRange) -> Range<u64> {
    range.start() / SECTOR..range.end() / SECTOR
}

async fn compact(chain: &Chain) {
    chain.flush().await.expect("memory is durable");
    let blocks = chain.top().compactable();
    if !blocks.is_empty() {
        chain.top().compact(&blocks).await.expect("memory has room");
    }
}

/// Every one of the sectors is one of what it may be, and from now on that.
async fn expect(chain: &Chain, model: &mut BTreeMap<u64, Vec<Vec<u8>>>, sectors: Range<u64>) {
    for (sector, may) in model.range_mut(sectors) {
        let now = read_sector(chain, *sector).await.expect("what is right can be read");
        assert!(may.contains(&now), "sector {sector} is {:02x?}, not {:02x?}", &now[..4], &may[0][..4]);
        *may = vec![now];
    }
}

/// Nothing in front of the data was written but the map, and of the header the counter and the identity of its state.
async fn expect_kept(file: &MemStorage, image: &MemStorage) {
    let (mut now, mut before) = (head(file, MARGIN as usize).await, head(image, MARGIN as usize).await);
    let word = |bytes: &[u8], at: usize| {
        u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    };
    let is_old = word(&before, 0x44) == 2;
    let (counter, identity, map) =
        if is_old { (0x170, 0x184, 420) } else { (0x184, 0x198, word(&before, 0x154) as usize) };
    let blocks = word(&before, if is_old { 0x16c } else { 0x180 }) as usize;
    for bytes in [&mut now, &mut before] {
        bytes[counter..counter + 4].fill(0);
        bytes[identity..identity + 16].fill(0);
        let end = (map + blocks * 4).min(bytes.len());
        bytes[map.min(end)..end].fill(0);
    }
    // The data may follow at once.
    let data = if is_old { map + blocks * 4 } else { word(&before, 0x158) as usize };
    let end = data.min(now.len()).min(before.len());
    assert!(now[..end] == before[..end], "the header was changed where it must not be");
}

async fn read_sector(chain: &Chain, sector: u64) -> Option<Vec<u8>> {
    chain.read(ByteRange::at(sector * SECTOR, SECTOR)).await.ok().map(|pieces| flat(&pieces))
}

/// The first bytes of a file, at most `most`.
pub async fn head(file: &MemStorage, most: usize) -> Vec<u8> {
    let len = most.min(file.len() as usize);
    file.read(0, Pool::global().take(len)).await.expect("memory can be read").to_vec()
}

/// Whether two files are alike, as far as their first bytes and sizes tell.
pub async fn same(one: &MemStorage, other: &MemStorage) -> bool {
    (one.len(), one.allocated()) == (other.len(), other.allocated())
        && head(one, 8192).await == head(other, 8192).await
}
