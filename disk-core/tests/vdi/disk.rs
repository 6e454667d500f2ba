//! A disk under test, its model, and random things to do to both.
//!
//! Every sector that is ever written has its own content: its number and a serial number, repeated. So a sector that
//! shows up in a wrong place, or from a wrong time, is recognised.

use std::ops::Range;
use std::sync::Arc;

use disk_core::buf::{Buf, Pool};
use disk_core::chain::{Chain, ChainOptions, Piece, ZeroRequest};
use disk_core::format::raw::Raw;
use disk_core::format::vdi::Vdi;
use disk_core::format::{CreateOptions, Format, Layer, ParentIdentity, Place, Reserved, Variant};
use disk_core::storage::{MemStorage, Storage};
use disk_core::{ByteRange, Error, Result};
use futures_util::FutureExt;
use tokio::sync::OnceCell;

pub const SECTOR: u64 = 512;
/// The smallest legal block.
pub const BLOCK: u64 = 128 << 10;

/// What a sector holds: 0 for zeroes, or a number that only one write ever wrote.
pub type Stamp = u64;

pub fn stamp(sector: u64, serial: u32) -> Stamp {
    sector << 32 | u64::from(serial)
}

/// SplitMix64.
#[derive(Debug, Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }
}

/// The kinds of image that the tests run over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setup {
    /// A dynamic image in a file.
    Base,
    /// A differencing image in a file, over a raw parent that is shorter.
    Child,
    /// A differencing image on a block device full of old bytes.
    Device,
}

pub const SETUPS: [Setup; 3] = [Setup::Base, Setup::Child, Setup::Device];

/// Sectors of the disks under test: eleven blocks and a bit.
pub const SECTORS: u64 = 11 * BLOCK / SECTOR + 7;
const PARENT_SECTORS: u64 = 8 * BLOCK / SECTOR;

impl Setup {
    /// What the disk reads before anything is written: a parent has data in its even blocks.
    pub fn inherited(self) -> Vec<Stamp> {
        let of = |sector: u64| match self {
            Setup::Child | Setup::Device
                if sector < PARENT_SECTORS && (sector * SECTOR / BLOCK).is_multiple_of(2) =>
            {
                stamp(sector, 1)
            }
            _ => 0,
        };
        (0..SECTORS).map(of).collect()
    }

    /// The parent, which no test changes.
    pub async fn parent(self) -> Option<Arc<dyn Layer>> {
        static PARENT: OnceCell<Arc<dyn Layer>> = OnceCell::const_new();
        if self == Setup::Base {
            return None;
        }
        let make = || async {
            let bytes = bytes_of(&self.inherited()[..PARENT_SECTORS as usize]);
            Raw.open(Arc::new(MemStorage::from_bytes(&bytes)), true).await.expect("raw always opens")
        };
        Some(Arc::clone(PARENT.get_or_init(make).await))
    }

    /// An empty image.
    pub async fn image(self) -> MemStorage {
        let storage = Arc::new(match self {
            Setup::Base | Setup::Child => MemStorage::new(0),
            Setup::Device => {
                let plain = MemStorage::from_bytes(&vec![0xdb; (2 << 20) + 14 * BLOCK as usize]);
                let limits = plain.limits();
                plain.with_limits(disk_core::storage::Limits { grows_with_zeroes: false, ..limits })
            }
        });
        let child = self != Setup::Base;
        let options = CreateOptions {
            size: SECTORS * SECTOR,
            variant: if child { Variant::Differencing } else { Variant::Dynamic },
            parent: child.then_some(ParentIdentity { uuid: None, modification_uuid: None }),
            block_size: Some(BLOCK),
            uuid: None,
            comment: None,
        };
        Vdi.create(storage.clone(), options).await.expect("an empty file");
        Arc::into_inner(storage).expect("creation is over")
    }
}

pub fn bytes_of(stamps: &[Stamp]) -> Vec<u8> {
    stamps.iter().flat_map(|stamp| stamp.to_le_bytes().repeat(SECTOR as usize / 8)).collect()
}

/// What sectors hold; `Err` with the first sector that is no content of a sector at all.
pub fn stamps_of(bytes: &[u8]) -> Result<Vec<Stamp>, usize> {
    let sectors = bytes.chunks_exact(SECTOR as usize).enumerate();
    sectors
        .map(|(number, sector)| {
            // It repeats every eight bytes.
            let right = sector[8..] == sector[..sector.len() - 8];
            let stamp = u64::from_le_bytes(sector[..8].try_into().expect("eight bytes"));
            if right { Ok(stamp) } else { Err(number) }
        })
        .collect()
}

/// One thing to do to a disk, over sectors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Write(Range<u64>),
    Zero(Range<u64>, bool),
    Discard(Range<u64>),
    Flush,
    Compact,
    Settle,
    /// The process dies and another one opens the image.
    Reopen,
    /// A request takes room for the block of this sector, fills it, and then fails.
    Abandon(u64),
    /// Writes at one time into different places.
    Together(Vec<Range<u64>>),
}

impl Step {
    pub fn random(rng: &mut Rng) -> Step {
        match rng.below(24) {
            0..=6 => Step::Write(sectors(rng)),
            7 | 8 => Step::Zero(sectors(rng), rng.chance(2)),
            9..=12 => Step::Discard(sectors(rng)),
            13..=16 => Step::Flush,
            17 | 18 => Step::Compact,
            19 => Step::Settle,
            20 => Step::Reopen,
            21 | 22 => Step::Abandon(rng.below(SECTORS)),
            _ => {
                let part = SECTORS / 4;
                Step::Together((0..4).map(|n| part * n..part * n + 1 + rng.below(part)).collect())
            }
        }
    }
}

/// A few sectors, or blocks on their borders.
fn sectors(rng: &mut Rng) -> Range<u64> {
    let per_block = BLOCK / SECTOR;
    if rng.chance(2) {
        let start = rng.below(SECTORS);
        return start..(start + 1 + rng.below(24)).min(SECTORS);
    }
    let start = rng.below(SECTORS.div_ceil(per_block));
    let end = start + 1 + rng.below(4);
    start * per_block..(end * per_block).min(SECTORS)
}

/// The image under test, opened in a chain.
pub struct Disk {
    pub setup: Setup,
    pub storage: Arc<dyn Storage>,
    pub top: Arc<dyn Layer>,
    pub chain: Chain,
}

impl Disk {
    pub async fn open(setup: Setup, storage: Arc<dyn Storage>, read_only: bool) -> Result<Disk> {
        let top = Vdi.open(storage.clone(), read_only).await?;
        let layers = setup.parent().await.into_iter().chain([top.clone()]).collect();
        let chain = Chain::new(layers, ChainOptions::default());
        Ok(Disk { setup, storage, top, chain })
    }

    pub async fn read(&self, sectors: Range<u64>) -> Result<Vec<Stamp>> {
        let mut bytes = Vec::new();
        for piece in self.chain.read(range(&sectors)).await? {
            match piece {
                Piece::Data(data) => bytes.extend_from_slice(&data),
                Piece::Hole(len) => bytes.resize(bytes.len() + len as usize, 0),
            }
        }
        Ok(stamps_of(&bytes).unwrap_or_else(|sector| {
            panic!(
                "{}: sector {} holds what was never written",
                self.storage.name(),
                sectors.start + sector as u64
            )
        }))
    }

    pub async fn read_all(&self) -> Result<Vec<Stamp>> {
        self.read(0..SECTORS).await
    }

    pub async fn write(&self, sectors: &Range<u64>, serial: u32) -> Result<()> {
        let stamps: Vec<Stamp> = sectors.clone().map(|sector| stamp(sector, serial)).collect();
        self.chain.write(range(sectors), Buf::copy_from(&bytes_of(&stamps))).await.map(|_| ())
    }

    /// Does one step. Returns the sectors that it touched, also if it failed.
    pub async fn act(&mut self, step: &Step, serial: u32) -> Result<()> {
        match step {
            Step::Write(sectors) => self.write(sectors, serial).await,
            Step::Zero(sectors, may_free) => {
                self.chain.zero(range(sectors), ZeroRequest { may_free: *may_free, fast_only: false }).await
            }
            Step::Discard(sectors) => self.chain.discard(range(sectors)).await,
            Step::Flush => self.chain.flush().await,
            Step::Compact => {
                let blocks = self.top.compactable();
                self.top.compact(&blocks).await
            }
            Step::Settle => self.top.settle().await,
            Step::Reopen => {
                *self = Disk::open(self.setup, self.storage.clone(), false).await?;
                Ok(())
            }
            Step::Abandon(sector) => {
                let sector = range(&(*sector..*sector + 1));
                if matches!(self.top.lookup(sector).place, Place::Data(_)) {
                    return Ok(());
                }
                if let Reserved::New(room) = self.top.reserve(sector).await? {
                    self.storage
                        .write(room.at, Buf::copy_from(&vec![0xab; room.range.len() as usize]))
                        .await?;
                }
                Ok(())
            }
            Step::Together(all) => {
                let writes = all.iter().map(|sectors| self.write(sectors, serial));
                futures_util::future::join_all(writes).await.into_iter().collect::<Result<(), Error>>()
            }
        }
    }
}

/// The sectors that a step may change.
pub fn touched(step: &Step) -> Vec<Range<u64>> {
    match step {
        Step::Write(sectors) | Step::Zero(sectors, _) | Step::Discard(sectors) => vec![sectors.clone()],
        Step::Together(all) => all.clone(),
        Step::Flush | Step::Compact | Step::Settle | Step::Reopen | Step::Abandon(_) => Vec::new(),
    }
}

/// What a sector reads after a step that succeeded. `None`: a discard promises nothing.
pub fn after(step: &Step, sector: u64, serial: u32) -> Option<Stamp> {
    match step {
        Step::Write(_) | Step::Together(_) => Some(stamp(sector, serial)),
        Step::Zero(..) => Some(0),
        _ => None,
    }
}

pub fn range(sectors: &Range<u64>) -> ByteRange {
    ByteRange::new(sectors.start * SECTOR, sectors.end * SECTOR)
}

/// The header and map of an image as a reader of few words finds them. Panics with `what` if they contradict
/// themselves: the reader shares no code with the driver.
pub fn judge(storage: &MemStorage, what: &str) -> Judged {
    let len = storage.len();
    let head = Pool::global().take((2 << 20).min(len as usize));
    let bytes = storage.read(0, head).now_or_never().expect("memory never waits").expect("it is as long");
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    let (map, data, counter) = (word(0x154) as usize, u64::from(word(0x158)), word(0x184));
    let entries: Vec<u32> = (0..word(0x180) as usize).map(|block| word(map + 4 * block)).collect();
    let mut slots: Vec<u32> = entries.iter().copied().filter(|entry| *entry < 0xffff_fffe).collect();
    let end = slots.iter().max().map_or(0, |max| max + 1);
    assert!(data + u64::from(end) * BLOCK <= len, "{what}: a block is past the end: {entries:?}");
    assert!(counter >= end, "{what}: the counter {counter} is behind the map {entries:?}");
    let allocated = slots.len() as u32;
    slots.sort_unstable();
    slots.dedup();
    assert_eq!(slots.len() as u32, allocated, "{what}: two blocks share a slot: {entries:?}");
    Judged { entries, counter, allocated, len, data }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    pub entries: Vec<u32>,
    pub counter: u32,
    pub allocated: u32,
    pub len: u64,
    pub data: u64,
}

/// What a fresh open finds is what the running layer knows.
pub async fn same_maps(disk: &Disk, file: &MemStorage, setup: Setup) {
    let fresh = Disk::open(setup, Arc::new(file.snapshot()), true).await.expect("readable");
    assert_eq!(fresh.top.allocated(), disk.top.allocated());
    let whole = range(&(0..SECTORS));
    for block in whole.blocks(BLOCK) {
        assert_eq!(fresh.top.lookup(block), disk.top.lookup(block), "block {block}");
    }
}
