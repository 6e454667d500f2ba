//! Discards and compaction against requests on the same blocks.

use std::time::Duration;

use disk_core::chain::{StatusExtent, ZeroRequest};
use disk_core::format::Place;
use disk_core::storage::Storage;
use disk_core::testing::model::stamp;
use disk_core::testing::{Fault, Op};
use disk_core::tracker::Stage;
use disk_core::{ByteRange, op};

use crate::disk::{BLOCK, Disk, block, settle};

/// Blocks 0 to 2 in slots 0 to 2; then block 0 is discarded, durably, so that block 2 can move into its slot.
async fn with_a_hole() -> Disk {
    let disk = Disk::new().await;
    for number in 0..3 {
        disk.write(number * BLOCK, BLOCK, 2).await;
    }
    disk.discard(block(0)).await;
    disk.flush().await;
    assert_eq!(disk.device.chain().top().compactable(), [block(2)], "the scenario");
    disk
}

fn slot_of(disk: &Disk, number: u64) -> Place {
    disk.device.chain().top().lookup(block(number)).place
}

/// Long enough for compaction to do all it can.
async fn a_while() {
    tokio::time::sleep(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_discard_waits_for_the_reader_of_its_block() {
    let disk = Disk::new().await;
    disk.write(0, BLOCK, 2).await;
    disk.top.hold(Op::Read);
    let reader = disk.start_read(4096, 4096);
    disk.top.until_held(1).await;
    let discard = disk.start_discard(block(0));
    settle().await;
    let requests = disk.device.requests();
    assert_eq!(requests[1].waiting_for, Some(requests[0].id));
    assert!(matches!(slot_of(&disk, 0), Place::Data(_)));
    disk.top.release();
    assert!(reader.await.expect("no panic").expect("read") == stamp(4096, 4096, 2));
    discard.await.expect("no panic").expect("discarded");
    assert_eq!(slot_of(&disk, 0), Place::Zero, "the parent must not come back");
}

#[tokio::test(start_paused = true)]
async fn compaction_leaves_a_block_alone_while_it_is_read_or_written() {
    for op in [Op::Read, Op::Write] {
        let disk = with_a_hole().await;
        let old = slot_of(&disk, 2);
        let data = ByteRange::new(2 << 20, u64::MAX);
        disk.top.hold_within(op, data);
        let (reader, writer) = match op {
            Op::Read => (Some(disk.start_read(2 * BLOCK, 4096)), None),
            _ => (None, Some(disk.start_write(2 * BLOCK, 4096, 3))),
        };
        disk.top.until_held(1).await;
        let compaction = tokio::spawn(disk.device.clone().keep_compact());
        a_while().await;
        assert_eq!(slot_of(&disk, 2), old, "it moved under a {op:?}");
        disk.top.release();
        if let Some(reader) = reader {
            assert!(reader.await.expect("no panic").expect("read") == stamp(2 * BLOCK, 4096, 2));
        }
        if let Some(writer) = writer {
            writer.await.expect("no panic").expect("written");
        }
        a_while().await;
        assert_ne!(slot_of(&disk, 2), old, "it did not move when it could");
        assert_eq!(disk.file.len(), (2 << 20) + 2 * BLOCK, "two blocks are left");
        let serial = if op == Op::Write { 3 } else { 2 };
        assert!(disk.read(2 * BLOCK, 4096).await == stamp(2 * BLOCK, 4096, serial));
        assert!(disk.read(2 * BLOCK + 4096, 4096).await == stamp(2 * BLOCK + 4096, 4096, 2));
        disk.device.close().await.expect("closed");
        compaction.await.expect("it ends with the disk");
    }
}

#[tokio::test(start_paused = true)]
async fn discarded_blocks_give_their_space_back_although_nobody_flushes() {
    let disk = Disk::that_unmaps_zeroes().await;
    let compaction = tokio::spawn(disk.device.clone().keep_compact());
    for number in 0..3 {
        disk.write(number * BLOCK, BLOCK, 2).await;
    }
    disk.discard(block(0)).await;
    a_while().await;
    assert_eq!(disk.file.len(), (2 << 20) + 2 * BLOCK);
    assert!(disk.read(2 * BLOCK, BLOCK).await == stamp(2 * BLOCK, BLOCK, 2));
    let zeroes = disk_core::buf::Buf::copy_from(&[0; BLOCK as usize]);
    disk.device.write(&disk.client, BLOCK, zeroes, false).await.expect("written");
    a_while().await;
    assert_eq!(disk.file.len(), (2 << 20) + BLOCK, "zeroes that are detected free their block, too");
    disk.device.close().await.expect("closed");
    compaction.await.expect("it ends with the disk");
}

#[tokio::test(start_paused = true)]
async fn requests_on_a_block_that_moves_wait_until_it_has_moved() {
    let disk = with_a_hole().await;
    let old = slot_of(&disk, 2);
    disk.top.hold(Op::Read);
    let compaction = tokio::spawn(disk.device.clone().keep_compact());
    disk.top.until_held(1).await;
    assert!(disk.device.requests().iter().any(|request| request.op == op::Op::Compact));
    let writer = disk.start_write(2 * BLOCK + 512, 512, 3);
    let reader = disk.start_read(2 * BLOCK, 4096);
    let elsewhere = disk.start_write(BLOCK, 512, 3);
    elsewhere.await.expect("no panic").expect("not concerned");
    settle().await;
    assert_eq!(disk.in_stage(Stage::Overlap), 2);
    disk.top.release();
    writer.await.expect("no panic").expect("written");
    let mut expected = stamp(2 * BLOCK, 4096, 2);
    expected[512..1024].copy_from_slice(&stamp(2 * BLOCK + 512, 512, 3));
    assert!(reader.await.expect("no panic").expect("read") == expected);
    assert_ne!(slot_of(&disk, 2), old);
    disk.device.close().await.expect("closed");
    compaction.await.expect("it ends with the disk");
}

#[tokio::test(start_paused = true)]
async fn a_block_that_moves_while_its_status_is_asked_is_no_hole() {
    let disk = with_a_hole().await;
    disk.faults.inject(Fault::delay(Op::Status, Duration::from_secs(60)));
    let (device, client) = (disk.device.clone(), disk.client.clone());
    let status = tokio::spawn(async move { device.block_status(&client, block(2), 9).await });
    settle().await;
    let old = slot_of(&disk, 2);
    let compaction = tokio::spawn(disk.device.clone().keep_compact());
    a_while().await;
    assert_ne!(slot_of(&disk, 2), old, "the scenario: it has moved");
    assert_eq!(disk.file.len(), (2 << 20) + 2 * BLOCK, "and its old place is gone");
    assert!(!status.is_finished() && disk.faults.hits() == 1);
    let data = StatusExtent { len: BLOCK, data: true, zero: false, depth: 1 };
    assert_eq!(status.await.expect("no panic").expect("answered"), [data]);
    disk.device.close().await.expect("closed");
    compaction.await.expect("it ends with the disk");
}

#[tokio::test(start_paused = true)]
async fn a_block_that_moves_from_behind_a_hole_whose_status_is_asked_is_no_hole() {
    let disk = with_a_hole().await;
    let how = ZeroRequest { may_free: true, fast_only: false };
    // In two parts, so that block 1 keeps its place, as a hole of the host.
    for part in block(1).blocks(BLOCK / 2) {
        disk.device.write_zeroes(&disk.client, part, how, false).await.expect("zeroed");
    }
    let both = ByteRange::at(BLOCK, 2 * BLOCK);
    assert_eq!(disk.device.chain().top().lookup(both).len, 2 * BLOCK, "the scenario: side by side");
    disk.faults.inject(Fault::delay(Op::Status, Duration::from_secs(60)));
    let (device, client) = (disk.device.clone(), disk.client.clone());
    let status = tokio::spawn(async move { device.block_status(&client, both, 9).await });
    settle().await;
    let compaction = tokio::spawn(disk.device.clone().keep_compact());
    a_while().await;
    assert_eq!(disk.file.len(), (2 << 20) + 2 * BLOCK, "the scenario: the second has moved");
    assert!(!status.is_finished() && disk.faults.hits() == 1);
    let hole = StatusExtent { len: BLOCK, data: false, zero: true, depth: 1 };
    let data = StatusExtent { len: BLOCK, data: true, zero: false, depth: 1 };
    assert_eq!(status.await.expect("no panic").expect("answered"), [hole, data]);
    disk.device.close().await.expect("closed");
    compaction.await.expect("it ends with the disk");
}
