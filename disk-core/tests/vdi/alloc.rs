//! Many requests at once: what they share, what they wait for, what happens when one of them goes away.

use std::sync::Arc;

use disk_core::format::vdi::Vdi;
use disk_core::format::{Before, Format, Layer, Place, Reservation, Reserved};
use disk_core::storage::{MemStorage, Storage};
use disk_core::testing::{Fault, Faults, Hold, Op};
use disk_core::{ByteRange, ErrorKind};
use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::sync::Mutex;

use crate::disk::{BLOCK, Disk, Rng, SECTOR, SECTORS, SETUPS, Stamp, stamp};
use crate::images::{chain_of, dynamic, made, open, write};

const MIB: u64 = 1 << 20;

/// The block map of the images that these tests make.
fn map() -> ByteRange {
    ByteRange::new(MIB, 2 * MIB)
}

async fn faulty(size: u64) -> (Arc<MemStorage>, Arc<Faults>, Arc<dyn Layer>) {
    let below = made(dynamic(size)).await;
    let faults = Arc::new(Faults::new(below.clone()));
    let layer = Vdi.open(faults.clone(), false).await.unwrap();
    (below, faults, layer)
}

async fn held(size: u64) -> (Arc<Hold>, Arc<dyn Layer>) {
    let hold = Arc::new(Hold::new(made(dynamic(size)).await));
    let layer: Arc<dyn Layer> = Vdi.open(hold.clone(), false).await.unwrap();
    layer.begin_changes().await.unwrap();
    (hold, layer)
}

async fn room(layer: &dyn Layer, block: u64) -> Reservation {
    match layer.reserve(ByteRange::at(block * MIB, 1)).await.unwrap() {
        Reserved::New(reservation) => reservation,
        Reserved::Mapped => panic!("block {block} is there already"),
    }
}

#[tokio::test]
async fn sixty_four_new_blocks_at_once_share_their_flushes_and_map_writes() {
    for before in [Before::Zeroes, Before::Data] {
        let (_, faults, layer) = faulty(256 * MIB).await;
        layer.begin_changes().await.unwrap();
        let (flushes, writes) = (faults.count(Op::Flush), faults.count(Op::Write));
        let allocate = async |block| {
            let reservation = room(&*layer, block).await;
            layer.commit(reservation, before).await.unwrap();
        };
        join_all((0..64).map(allocate)).await;
        assert_eq!(layer.allocated(), 64 * MIB);
        let (flushes, writes) = (faults.count(Op::Flush) - flushes, faults.count(Op::Write) - writes);
        println!("{before:?}: {flushes} flushes, {writes} metadata writes for 64 blocks");
        assert!(flushes <= 4 && writes <= 6, "{before:?}: {flushes} flushes, {writes} metadata writes");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn room_that_others_were_quicker_to_take_is_no_want_of_room() {
    for _ in 0..300 {
        let (_, _, layer) = faulty(64 * MIB).await;
        layer.begin_changes().await.unwrap();
        let allocate = |block| {
            let layer = Arc::clone(&layer);
            tokio::spawn(async move {
                let reservation = room(&*layer, block).await;
                layer.commit(reservation, Before::Zeroes).await.unwrap();
            })
        };
        for task in (0..64).map(allocate).collect::<Vec<_>>() {
            task.await.expect("there is a slot for every block");
        }
        assert_eq!(layer.allocated(), 64 * MIB);
    }
}

#[tokio::test]
async fn writing_on_and_on_takes_one_flush_for_many_blocks() {
    let (_, faults, layer) = faulty(1 << 30).await;
    let chain = chain_of(&[&layer]);
    for block in 0..512 {
        write(&chain, block * MIB, b"sequential").await;
    }
    let flushes = faults.count(Op::Flush);
    println!("{flushes} flushes for 512 blocks one after the other");
    assert!(flushes <= 16, "{flushes} flushes");
}

#[tokio::test]
async fn small_writes_into_one_fresh_block_wait_for_one_allocation_and_then_run_together() {
    let (hold, layer) = held(8 * MIB).await;
    let chain = chain_of(&[&layer]);
    write(&chain, 0, b"space for more blocks").await;
    write(&chain, MIB, b"space for more blocks").await;
    hold.hold(Op::Write);
    let piece = |n: u64| disk_core::buf::Buf::copy_from(&[n as u8 + 1; 4096]);
    let writes = join_all((0..32).map(|n| chain.write(ByteRange::at(2 * MIB + n * 4096, 4096), piece(n))));
    let script = async {
        hold.until_held(1).await;
        tokio::task::yield_now().await;
        assert_eq!(hold.held(Op::Write), 1, "one has the block, the others wait");
        hold.release_one();
        hold.until_held(1).await;
        assert_eq!(hold.held(Op::Write), 1, "its map entry");
        hold.release_one();
        hold.until_held(31).await;
        hold.release();
    };
    let (outcomes, ()) = futures_util::join!(writes, script);
    assert!(outcomes.iter().all(Result::is_ok));
    assert_eq!(layer.allocated(), 3 * MIB);
}

#[tokio::test]
async fn who_waits_for_a_block_finds_it_or_gets_it_when_the_other_gives_up() {
    let (_, _, layer) = faulty(8 * MIB).await;
    for gives_up in [false, true] {
        let block = ByteRange::at(if gives_up { 3 * MIB } else { 0 }, 1);
        let first = room(&*layer, block.start() / MIB).await;
        let mut second = layer.reserve(block);
        assert!((&mut second).now_or_never().is_none(), "it waits");
        if gives_up {
            drop(first)
        } else {
            layer.commit(first, Before::Zeroes).await.unwrap()
        }
        assert_eq!(matches!(second.await.unwrap(), Reserved::New(_)), gives_up);
    }
}

#[tokio::test]
async fn a_commit_that_nobody_waits_for_any_more_is_finished_all_the_same() {
    let (hold, layer) = held(8 * MIB).await;
    let reservation = room(&*layer, 5).await;
    hold.hold_within(Op::Write, map());
    let mut commit = layer.commit(reservation, Before::Zeroes);
    assert!((&mut commit).now_or_never().is_none());
    hold.until_held(1).await;
    drop(commit);
    let waiting = layer.reserve(ByteRange::at(5 * MIB, 1));
    hold.release();
    assert!(matches!(waiting.await.unwrap(), Reserved::Mapped));
    assert!(matches!(layer.lookup(ByteRange::at(5 * MIB, 1)).place, Place::Data(_)));
}

#[tokio::test]
async fn growth_that_nobody_waits_for_any_more_serves_the_next_one() {
    let (hold, layer) = held(8 * MIB).await;
    hold.hold(Op::Flush);
    let mut first = layer.reserve(ByteRange::at(0, 1));
    assert!((&mut first).now_or_never().is_none());
    hold.until_held(1).await;
    drop(first);
    let second = layer.reserve(ByteRange::at(0, 1));
    hold.release();
    assert!(matches!(second.await.unwrap(), Reserved::New(_)));
}

#[tokio::test]
async fn nothing_is_mapped_before_its_bytes_are_durable_unless_they_may_be_lost() {
    let (hold, layer) = held(8 * MIB).await;
    drop(room(&*layer, 0).await);
    layer.flush().await.unwrap();
    layer.flush().await.unwrap();
    hold.hold(Op::Flush);
    let reservation = room(&*layer, 1).await;
    assert!(reservation.zeroed, "it was punched, durably");
    layer.commit(reservation, Before::Zeroes).await.expect("no flush is needed over zeroes");
    hold.release();
    let reservation = room(&*layer, 2).await;
    hold.hold(Op::Flush);
    let mut commit = layer.commit(reservation, Before::Data);
    assert!((&mut commit).now_or_never().is_none());
    hold.until_held(1).await;
    assert_eq!(layer.lookup(ByteRange::at(2 * MIB, 1)).place, Place::Absent);
    hold.release();
    commit.await.unwrap();
    assert!(matches!(layer.lookup(ByteRange::at(2 * MIB, 1)).place, Place::Data(_)));
}

#[tokio::test]
async fn a_slot_whose_map_write_failed_is_not_used_before_the_entry_was_written_anew() {
    let (below, faults, layer) = faulty(8 * MIB).await;
    let doubtful = room(&*layer, 0).await;
    let place = doubtful.at;
    faults.inject(Fault::tear(Op::Write, u64::MAX, ErrorKind::Io).within(map()));
    // Writing the old entry back fails as well.
    faults.inject(Fault::fail(Op::Write, ErrorKind::Io).within(map()));
    assert_eq!(layer.commit(doubtful, Before::Zeroes).await.unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(layer.lookup(ByteRange::at(0, 1)).place, Place::Absent);
    let kept = open(&below, true).await.unwrap();
    assert_eq!(kept.lookup(ByteRange::at(0, 1)).place, Place::Data(place), "the failed write got through");
    // The file may name the place as block 0, so nobody else gets it, however often is flushed …
    faults.inject(Fault::fail(Op::Write, ErrorKind::Io).within(map()).sticky());
    assert_eq!(layer.flush().await.unwrap_err().kind(), ErrorKind::Io, "the doubt is not over");
    assert_ne!(room(&*layer, 1).await.at, place);
    // … until the entry is what memory says, durably.
    faults.heal();
    layer.flush().await.unwrap();
    let clear = open(&below, true).await.unwrap();
    assert_eq!(clear.lookup(ByteRange::at(0, 1)).place, Place::Absent);
    layer.flush().await.unwrap();
    let mut places = Vec::new();
    for block in 1..8 {
        let reservation = room(&*layer, block).await;
        places.push(reservation.at);
        layer.commit(reservation, Before::Zeroes).await.unwrap();
    }
    assert!(places.contains(&place), "then it serves again: {places:?}");
}

#[tokio::test]
async fn a_full_image_whose_blocks_are_freed_and_made_again_never_has_more_slots_than_blocks() {
    let (below, _, layer) = faulty(8 * MIB).await;
    let chain = chain_of(&[&layer]);
    let mut rng = Rng(1);
    for round in 0..200u64 {
        let block = rng.below(8);
        write(&chain, block * MIB + rng.below(9) * 100_000, &round.to_le_bytes()).await;
        if rng.chance(2) {
            chain.discard(ByteRange::at(rng.below(8) * MIB, MIB)).await.unwrap();
        }
    }
    assert!(below.len() <= 2 * MIB + 8 * MIB, "{} bytes", below.len());
}

#[tokio::test]
async fn the_last_slot_of_a_full_image_is_waited_for_while_it_is_being_punched() {
    let (hold, layer) = held(2 * MIB).await;
    let chain = chain_of(&[&layer]);
    write(&chain, 0, b"both").await;
    write(&chain, MIB, b"blocks").await;
    chain.discard(ByteRange::at(0, MIB)).await.unwrap();
    hold.hold(Op::Zero);
    let flush = layer.flush();
    let script = async {
        hold.until_held(1).await;
        let mut wanted = layer.reserve(ByteRange::at(0, 1));
        for _ in 0..9 {
            assert!((&mut wanted).now_or_never().is_none(), "nobody may have the slot now");
            tokio::task::yield_now().await;
        }
        hold.release();
        assert!(matches!(wanted.await.unwrap(), Reserved::New(_)));
    };
    let (flushed, ()) = futures_util::join!(flush, script);
    flushed.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writers_discards_flushes_and_compaction_at_once_never_disturb_each_other() {
    for (setup, seed) in SETUPS.into_iter().zip(1..) {
        let image = Arc::new(setup.image().await);
        let disk = Disk::open(setup, image.clone(), false).await.unwrap();
        let per_block = BLOCK / SECTOR;
        let blocks: Vec<Mutex<Vec<Stamp>>> =
            setup.inherited().chunks(per_block as usize).map(|block| Mutex::new(block.to_vec())).collect();
        let shared = Arc::new((disk, blocks));
        let mut tasks = Vec::new();
        for worker in 0..6 {
            let shared = Arc::clone(&shared);
            tasks.push(tokio::spawn(async move {
                let mut rng = Rng(seed * 100 + worker);
                for round in 0..60 {
                    work(&shared.0, &shared.1, &mut rng, (worker * 100 + round) as u32 + 2).await;
                }
            }));
        }
        for task in tasks {
            task.await.expect("no worker found a wrong sector");
        }
        shared.0.top.settle().await.unwrap();
        crate::disk::judge(&image.snapshot(), "at the end");
        crate::disk::same_maps(&shared.0, &image.snapshot(), setup).await;
    }
}

/// One thing to one block, or to all; the lock of a block is its turn.
async fn work(disk: &Disk, blocks: &[Mutex<Vec<Stamp>>], rng: &mut Rng, serial: u32) {
    let per_block = BLOCK / SECTOR;
    let number = rng.below(blocks.len() as u64);
    let whole = number * per_block..((number + 1) * per_block).min(SECTORS);
    match rng.below(8) {
        0 => disk.chain.flush().await.unwrap(),
        1 => {
            for block in disk.top.compactable() {
                let turn = blocks[(block.start() / BLOCK) as usize].lock().await;
                disk.top.compact(&[block]).await.unwrap();
                check(disk, &turn, block.start() / SECTOR).await;
            }
        }
        2 | 3 => {
            let mut turn = blocks[number as usize].lock().await;
            disk.chain.discard(crate::disk::range(&whole)).await.unwrap();
            let now = disk.read(whole.clone()).await.unwrap();
            assert!(now.iter().zip(&*turn).all(|(now, before)| *now == 0 || now == before));
            *turn = now;
        }
        _ => {
            let mut turn = blocks[number as usize].lock().await;
            check(disk, &turn, whole.start).await;
            let start = whole.start + rng.below(whole.end - whole.start);
            let end = (start + 1 + rng.below(40)).min(whole.end);
            disk.write(&(start..end), serial).await.unwrap();
            for sector in start..end {
                turn[(sector - whole.start) as usize] = stamp(sector, serial);
            }
            check(disk, &turn, whole.start).await;
        }
    }
}

async fn check(disk: &Disk, expected: &[Stamp], start: u64) {
    let now = disk.read(start..start + expected.len() as u64).await.unwrap();
    assert!(now == expected, "block at sector {start}");
}

#[tokio::test]
async fn a_device_that_is_too_small_says_so_and_keeps_what_it_has() {
    let plain = MemStorage::new(2 * MIB + 3 * BLOCK);
    let limits = plain.limits();
    let device = plain.with_limits(disk_core::storage::Limits { grows_with_zeroes: false, ..limits });
    let storage = Arc::new(device.named("/dev/small"));
    let options = disk_core::format::CreateOptions { block_size: Some(BLOCK), ..dynamic(8 * BLOCK) };
    Vdi.create(storage.clone(), options).await.unwrap();
    let layer = Vdi.open(storage, false).await.unwrap();
    let chain = chain_of(&[&layer]);
    for block in 0..3 {
        write(&chain, block * BLOCK, b"fits").await;
    }
    let more = chain.write(ByteRange::at(3 * BLOCK, 4), disk_core::buf::Buf::copy_from(b"more")).await;
    let error = more.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert!(error.to_string().contains("/dev/small"), "{error}");
    chain.discard(ByteRange::at(BLOCK, BLOCK)).await.unwrap();
    write(&chain, 5 * BLOCK, b"room again").await;
}
