//! Writes that meet in a block that has no place yet.

use disk_core::format::Place;
use disk_core::range::ByteRange;
use disk_core::testing::Op;
use disk_core::testing::model::stamp;
use disk_core::tracker::Stage;

use crate::disk::{BLOCK, Disk, below, block, settle};

#[tokio::test(start_paused = true)]
async fn a_block_is_not_seen_before_its_copy_from_below_is_complete() {
    let disk = Disk::new().await;
    disk.parent.hold(Op::Read);
    let first = disk.start_write(8192, 4096, 2);
    disk.parent.until_held(1).await;
    let second = disk.start_write(65536, 512, 3);
    settle().await;
    assert_eq!(disk.in_stage(Stage::Working), 2, "neither waits for the turn of the other");
    assert_eq!(disk.device.chain().top().lookup(block(0)).place, Place::Absent);
    assert!(!first.is_finished() && !second.is_finished());
    let reader = disk.start_read(0, BLOCK);
    settle().await;
    assert!(!reader.is_finished(), "it waits for both writers");

    disk.parent.release();
    first.await.expect("no panic").expect("written");
    second.await.expect("no panic").expect("written");
    let mut expected = below(0, BLOCK);
    expected[8192..12288].copy_from_slice(&stamp(8192, 4096, 2));
    expected[65536..66048].copy_from_slice(&stamp(65536, 512, 3));
    assert!(reader.await.expect("no panic").expect("read") == expected);
}

#[tokio::test(start_paused = true)]
async fn a_reader_beside_a_write_into_a_fresh_block_reads_the_parent() {
    let disk = Disk::new().await;
    disk.top.hold(Op::Write);
    let writer = disk.start_write(0, 4096, 2);
    disk.top.until_held(1).await;
    let before = disk.read(4096, 8192).await;
    assert!(before == below(4096, 8192));
    assert!(!writer.is_finished());
    disk.top.release();
    writer.await.expect("no panic").expect("written");
    assert!(disk.read(4096, 8192).await == below(4096, 8192));
}

#[tokio::test(start_paused = true)]
async fn small_writes_into_a_fresh_block_keep_their_depth_after_the_first() {
    let disk = Disk::new().await;
    // The block's data lies behind header and map.
    let data = ByteRange::new(2 << 20, u64::MAX);
    disk.top.hold_within(Op::Write, data);
    let writers: Vec<_> = (0..8).map(|n| disk.start_write(n * 4096, 4096, 2 + n as u32)).collect();
    settle().await;
    let at_first = disk.top.held(Op::Write);
    assert!((1..=2).contains(&at_first), "one write and its fill, not {at_first}");
    while disk.top.held(Op::Write) < 7 {
        assert!(disk.top.release_one(), "nothing is left to hold; the others went one by one");
        settle().await;
        assert!(disk.device.requests().len() >= 7, "all but the first wait");
    }
    assert_eq!(disk.device.requests().len(), 7, "the first is done, all others write at one time");
    disk.top.release();
    for writer in writers {
        writer.await.expect("no panic").expect("written");
    }
    let mut expected = below(0, BLOCK);
    for n in 0..8 {
        let at = n * 4096;
        expected[at..at + 4096].copy_from_slice(&stamp(at as u64, 4096, 2 + n as u32));
    }
    assert!(disk.read(0, BLOCK).await == expected);
    assert_eq!(disk.device.chain().top().allocated(), BLOCK);
}

#[tokio::test(start_paused = true)]
async fn when_the_first_write_into_a_fresh_block_fails_the_second_still_gets_the_parents_bytes() {
    let disk = Disk::new().await;
    disk.parent.hold(Op::Read);
    let first = disk.start_write(0, 4096, 2);
    disk.parent.until_held(1).await;
    let second = disk.start_write(4096, 4096, 3);
    settle().await;
    disk.faults.inject(disk_core::testing::Fault::fail(Op::Write, disk_core::ErrorKind::Io));
    disk.parent.release();
    let failed = first.await.expect("no panic");
    assert!(failed.is_err() && disk.faults.hits() == 1, "{failed:?}");
    second.await.expect("no panic").expect("written");
    let mut expected = below(0, BLOCK);
    expected[4096..8192].copy_from_slice(&stamp(4096, 4096, 3));
    let now = disk.read(0, BLOCK).await;
    // The first may have come through in part.
    assert!(now[4096..] == expected[4096..]);
    for (sector, old) in now[..4096].chunks(512).zip(expected.chunks(512)) {
        assert!(sector == old || stamp(0, 4096, 2).chunks(512).any(|new| new == sector));
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_into_a_full_image_waits_for_the_slot_that_is_being_punched() {
    let disk = Disk::on_device().await;
    for number in 0..crate::disk::BLOCKS {
        disk.write(number * BLOCK, BLOCK, 2).await;
    }
    disk.discard(block(3)).await;
    disk.top.hold(Op::Zero);
    let (device, client) = (disk.device.clone(), disk.client.clone());
    let flush = tokio::spawn(async move { device.flush(&client).await });
    disk.top.until_held(1).await;
    let write = disk.start_write(3 * BLOCK, 4096, 3);
    settle().await;
    assert!(!write.is_finished(), "it has nowhere to go yet: {:?}", write.await);
    disk.top.release();
    flush.await.expect("no panic").expect("flushed");
    write.await.expect("no panic").expect("there is room for it");
    assert!(disk.read(3 * BLOCK, 4096).await == stamp(3 * BLOCK, 4096, 3));
    assert!(disk.read(3 * BLOCK + 4096, 4096).await == vec![0; 4096]);
}
