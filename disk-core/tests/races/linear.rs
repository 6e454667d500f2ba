//! Many tasks on several threads ask for the same few sectors. Afterwards, for each sector, the answers must have an
//! order in which every read finds the last write before it.
//!
//! Invariant: a write puts into a sector what no other write puts anywhere, so a read says which write it saw.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use disk_core::buf::Buf;
use disk_core::chain::{Chain, ChainOptions, ZeroRequest};
use disk_core::client::Client;
use disk_core::device::{Device, DeviceOptions};
use disk_core::format::raw::Raw;
use disk_core::format::vdi::Vdi;
use disk_core::format::{CreateOptions, Format, ParentIdentity, Variant};
use disk_core::range::ByteRange;
use disk_core::storage::{MemStorage, Storage};
use disk_core::testing::Jitter;
use disk_core::testing::model::request::Shape;
use disk_core::testing::model::target::flat;
use disk_core::testing::model::{SECTOR, campaign, stamp};
use disk_core::throttle::{Limits, Throttle};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::Config;

use crate::disk::BLOCK;

/// Sectors that are asked for: around the border of two blocks.
const FIRST: u64 = BLOCK / SECTOR - 24;
const HOT: u64 = 48;
const TASKS: u32 = 8;
/// Serial number of what the parent holds.
const PARENT: u32 = 1;

/// What one request did to one sector, or found there. A write is known by its serial number; zeroes are 0.
#[derive(Debug, Clone, Copy)]
struct Event {
    began: u64,
    ended: u64,
    act: Act,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Write(u32),
    /// Zeroes, or what was there.
    Discard,
    Read(u32),
}

#[derive(Debug, Clone, Copy)]
enum Ask {
    Read,
    Write,
    Zero,
    Discard,
}

struct Disk {
    device: Arc<Device>,
    clock: AtomicU64,
    serial: AtomicU32,
}

impl Disk {
    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// Asks once, and says for each sector of `range` what happened.
    async fn ask(&self, client: &Client, ask: Ask, range: ByteRange) -> Vec<(u64, Event)> {
        let sectors = range.start() / SECTOR..range.end() / SECTOR;
        let began = self.now();
        let done =
            |ended, act| sectors.clone().map(move |sector| (sector, Event { began, ended, act })).collect();
        match ask {
            Ask::Write => {
                let serial = self.serial.fetch_add(1, Ordering::Relaxed);
                let data = Buf::copy_from(&stamp(range.start(), range.len(), serial));
                self.device
                    .write(client, range.start(), data, serial.is_multiple_of(50))
                    .await
                    .expect("written");
                done(self.now(), Act::Write(serial))
            }
            Ask::Zero => {
                let how = ZeroRequest { may_free: began.is_multiple_of(2), fast_only: false };
                self.device.write_zeroes(client, range, how, false).await.expect("zeroed");
                done(self.now(), Act::Write(0))
            }
            Ask::Discard => {
                self.device.discard(client, range, false).await.expect("discarded");
                done(self.now(), Act::Discard)
            }
            Ask::Read => {
                let bytes = flat(&self.device.read(client, range).await.expect("read"));
                let ended = self.now();
                let found = bytes.chunks(SECTOR as usize).zip(sectors.clone());
                found
                    .map(|(bytes, sector)| {
                        (sector, Event { began, ended, act: Act::Read(serial_of(sector, bytes)) })
                    })
                    .collect()
            }
        }
    }
}

/// Which write a sector is of. Panics if it is of none or of several.
fn serial_of(sector: u64, bytes: &[u8]) -> u32 {
    let serial = u32::from_le_bytes(bytes[..4].try_into().expect("four bytes")) & 0xff_ffff;
    let whole = if serial == 0 { vec![0; SECTOR as usize] } else { stamp(sector * SECTOR, SECTOR, serial) };
    assert!(bytes == whole, "sector {sector} is torn or foreign: {:02x?}", &bytes[..64]);
    serial
}

/// Whether what happened to a sector has an order. `events` starts with the write of what was there at first.
fn judge(events: &[Event]) -> Result<(), String> {
    let writes: Vec<&Event> = events.iter().filter(|event| matches!(event.act, Act::Write(_))).collect();
    for read in events {
        let Act::Read(value) = read.act else { continue };
        let gives = |event: &&Event| match event.act {
            Act::Write(written) => written == value,
            Act::Discard => value == 0,
            Act::Read(_) => false,
        };
        let overwritten = |source: &Event| {
            writes.iter().any(|other| source.ended < other.began && other.ended < read.began)
        };
        let mut sources = events.iter().filter(gives).filter(|source| source.began < read.ended);
        if !sources.any(|source| !overwritten(source)) {
            return Err(format!("{read:?} is too old or too new"));
        }
    }
    judge_zones(events)
}

/// The test of Gibbons and Korach for registers whose writes all differ: the time in which a value must have been
/// there belongs to it alone.
fn judge_zones(events: &[Event]) -> Result<(), String> {
    let mut values = std::collections::HashMap::<u32, (u64, u64)>::new();
    for event in events {
        let (Act::Write(value) | Act::Read(value)) = event.act else { continue };
        let (first_end, last_begin) = values.entry(value).or_insert((u64::MAX, 0));
        *first_end = event.ended.min(*first_end);
        *last_begin = event.began.max(*last_begin);
    }
    // Zeroes are written by many.
    values.remove(&0);
    let (mut forward, mut backward) = (Vec::new(), Vec::new());
    for (value, (first_end, last_begin)) in values {
        if first_end < last_begin {
            forward.push((first_end, last_begin, value));
        } else {
            backward.push((last_begin, first_end, value));
        }
    }
    forward.sort_unstable();
    if let Some(pair) = forward.windows(2).find(|pair| pair[0].1 > pair[1].0) {
        return Err(format!("values were there at one time: {pair:?}"));
    }
    let inside = |zone: &(u64, u64, u32)| forward.iter().any(|other| other.0 < zone.0 && zone.1 < other.1);
    match backward.iter().find(|zone| inside(zone)) {
        Some(zone) => Err(format!("{zone:?} was written and gone while another value stood")),
        None => Ok(()),
    }
}

async fn disk(seed: u64) -> (Disk, Arc<MemStorage>) {
    let size = 4 * BLOCK;
    let file = Arc::new(MemStorage::new(0));
    let options = CreateOptions {
        size,
        variant: Variant::Differencing,
        parent: Some(ParentIdentity { uuid: None, modification_uuid: None }),
        block_size: Some(BLOCK),
        uuid: None,
        comment: None,
    };
    Vdi.create(file.clone(), options).await.expect("an empty file");
    let slow =
        |storage: Arc<dyn Storage>, seed| Arc::new(Jitter::new(storage, Duration::from_micros(300), seed));
    let parent = Arc::new(MemStorage::from_bytes(&stamp(0, size, PARENT)));
    let layers = vec![
        Raw.open(slow(parent, seed), true).await.expect("raw always opens"),
        Vdi.open(slow(file.clone(), !seed), false).await.expect("an image"),
    ];
    let chain = Chain::new(layers, ChainOptions::default());
    let throttle = Arc::new(Throttle::new(Limits::default(), None));
    let device = Arc::new(Device::new("disk".into(), chain, throttle, DeviceOptions::default()));
    (Disk { device, clock: AtomicU64::new(1), serial: AtomicU32::new(PARENT + 1) }, file)
}

/// What a task asks, in order.
fn script(seed: u64, length: usize) -> Vec<(Ask, ByteRange)> {
    let hot = ByteRange::at(FIRST * SECTOR, HOT * SECTOR);
    let small = (0..HOT, 1..12u64)
        .prop_map(move |(first, len)| ByteRange::at((FIRST + first) * SECTOR, len * SECTOR).intersect(&hot));
    let large = Shape { size: 4 * BLOCK, unit: SECTOR, block: BLOCK }.ranges();
    let blocks = (0..4u64).prop_map(|block| ByteRange::at(block * BLOCK, BLOCK));
    let asks = prop_oneof![
        12 => small.clone().prop_map(|range| (Ask::Read, range)),
        12 => small.clone().prop_map(|range| (Ask::Write, range)),
        1 => small.prop_map(|range| (Ask::Zero, range)),
        1 => large.prop_map(|range| (Ask::Read, range)),
        2 => blocks.prop_map(|range| (Ask::Discard, range)),
    ];
    let scripts = prop::collection::vec(asks, length);
    scripts.new_tree(&mut campaign::runner(Config::default(), seed)).expect("a script").current()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_many_tasks_read_and_write_has_an_order_for_every_sector() {
    let (seed, began) = (campaign::seed(), Instant::now());
    println!("linear: seed {seed}");
    let (disk, file) = disk(seed).await;
    let disk = Arc::new(disk);
    let compaction = tokio::spawn(disk.device.clone().keep_compact());
    let length = 1000 * campaign::effort() as usize;
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let disk = Arc::clone(&disk);
            tokio::spawn(async move {
                let client = Client::new();
                let mut seen = Vec::new();
                for (number, (ask, range)) in
                    script(seed << 8 | u64::from(task), length).into_iter().enumerate()
                {
                    seen.extend(disk.ask(&client, ask, range).await);
                    if number % 200 == 199 {
                        // Now and then a pause that compaction can use.
                        tokio::time::sleep(Duration::from_millis(150)).await;
                    }
                }
                seen
            })
        })
        .collect();
    let mut sectors = vec![Vec::new(); (4 * BLOCK / SECTOR) as usize];
    for sector in &mut sectors {
        sector.push(Event { began: 0, ended: 0, act: Act::Write(PARENT) });
    }
    for task in tasks {
        for (sector, event) in task.await.expect("no panic") {
            sectors[sector as usize].push(event);
        }
    }
    for (sector, event) in disk.ask(&Client::new(), Ask::Read, ByteRange::new(0, 4 * BLOCK)).await {
        sectors[sector as usize].push(event);
    }
    let events: usize = sectors.iter().map(Vec::len).sum();
    for (sector, events) in sectors.iter().enumerate() {
        judge(events).unwrap_or_else(|wrong| panic!("seed {seed}, sector {sector}: {wrong}"));
    }
    disk.device.close().await.expect("closed");
    compaction.await.expect("it ends with the disk");
    let waited = disk.device.stats().of(disk_core::op::Op::Write).waited;
    let moved = disk.device.stats().of(disk_core::op::Op::Compact).operations;
    assert!(waited > Duration::ZERO, "nobody ever waited for anybody");
    println!(
        "linear: {} requests of {TASKS} tasks, {events} events, {moved} compactions, {} bytes left, 0 wrong, in {:.0?}",
        length * TASKS as usize,
        file.len(),
        began.elapsed()
    );
}

#[test]
fn the_judge_tells_stale_early_and_mixed_up_reads() {
    let write = |began, ended, value| Event { began, ended, act: Act::Write(value) };
    let read = |began, ended, value| Event { began, ended, act: Act::Read(value) };
    let start = write(0, 0, 1);
    judge(&[start, write(1, 4, 2), read(2, 3, 1), read(5, 6, 2)]).expect("in order");
    judge(&[start, write(1, 4, 2), read(2, 3, 2), read(5, 6, 2)]).expect("seen before it was acknowledged");
    judge(&[start, write(1, 2, 2), read(3, 4, 1)]).expect_err("stale");
    judge(&[start, read(1, 2, 2), write(3, 4, 2)]).expect_err("before it was written");
    judge(&[start, write(1, 9, 2), read(2, 3, 2), read(4, 5, 1)]).expect_err("new, then old");
    let both = [start, write(1, 9, 2), write(1, 9, 3)];
    judge(&[&both[..], &[read(2, 3, 2), read(4, 5, 3)]].concat()).expect("either order");
    judge(&[&both[..], &[read(2, 3, 2), read(4, 5, 3), read(6, 7, 2)]].concat()).expect_err("back and forth");
    judge(&[start, Event { began: 1, ended: 2, act: Act::Discard }, read(3, 4, 1)])
        .expect("a discard may do nothing");
    judge(&[start, Event { began: 1, ended: 2, act: Act::Discard }, read(3, 4, 0)]).expect("or zero");
    judge(&[start, read(3, 4, 0)]).expect_err("zeroes from nowhere");
}
