//! Draining and closing a disk that is at work.

use std::sync::Arc;
use std::time::Duration;

use disk_core::ErrorKind;
use disk_core::storage::Storage;
use disk_core::testing::model::stamp;
use disk_core::testing::{Fault, Op};
use disk_core::throttle::{Dimension, Limits, Rates};
use disk_core::tracker::Stage;

use crate::disk::{BLOCK, Disk, below, block, settle};

#[tokio::test(start_paused = true)]
async fn closing_waits_for_what_is_in_flight_and_takes_nothing_new() {
    let disk = Disk::new().await;
    disk.top.hold(Op::Write);
    let write = disk.start_write(0, 4096, 2);
    disk.top.until_held(1).await;
    let waiting = disk.start_write(0, 512, 3);
    let device = disk.device.clone();
    let close = tokio::spawn(async move { device.close().await });
    settle().await;
    assert!(!close.is_finished());
    let refused = disk.start_write(BLOCK, 512, 4).await.expect("no panic");
    assert_eq!(refused.expect_err("it came too late").kind(), ErrorKind::Closed);
    disk.top.release();
    write.await.expect("no panic").expect("written");
    waiting.await.expect("no panic").expect("it was in flight");
    close.await.expect("no panic").expect("closed");

    let again = Disk::open(Arc::new(disk.file.snapshot()), Limits::default()).await;
    let mut expected = below(0, BLOCK);
    expected[..4096].copy_from_slice(&stamp(0, 4096, 2));
    expected[..512].copy_from_slice(&stamp(0, 512, 3));
    assert!(again.read(0, BLOCK).await == expected);
    assert_eq!(disk.file.len(), (2 << 20) + BLOCK, "no spare space is left at the end");
}

#[tokio::test(start_paused = true)]
async fn draining_lets_throttled_requests_go_and_more_may_come_afterwards() {
    let mut rates = Rates::default();
    rates[Dimension::IopsWrite].avg = 1;
    let disk = Disk::throttled(Limits::new(rates, 0).expect("valid")).await;
    let writes: Vec<_> = (0..20).map(|n| disk.start_write(n * 512, 512, 2)).collect();
    settle().await;
    assert!(disk.in_stage(Stage::Throttle) > 15, "the scenario");
    let began = tokio::time::Instant::now();
    disk.device.drain().await;
    assert!(began.elapsed() < Duration::from_secs(1) && disk.device.requests().is_empty());
    for write in writes {
        write.await.expect("no panic").expect("written");
    }
    disk.write(0, 512, 3).await;
    assert!(disk.read(0, 1024).await == [stamp(0, 512, 3), stamp(512, 512, 2)].concat());
}

/// A closed image whose block 2 could move into a hole.
async fn image_with_a_hole() -> Disk {
    let disk = Disk::new().await;
    for number in 0..3 {
        disk.write(number * BLOCK, BLOCK, 2).await;
    }
    disk.discard(block(0)).await;
    disk.flush().await;
    let killed = Arc::new(disk.file.snapshot());
    let again = Disk::open(killed, Limits::default()).await;
    again.write(BLOCK, 512, 3).await;
    again.flush().await;
    assert_eq!(again.device.chain().top().compactable(), [block(2)], "the scenario");
    again
}

#[tokio::test(start_paused = true)]
async fn compaction_touches_nothing_after_the_disk_is_closed() {
    // Closed at many moments of its work.
    for milliseconds in (0..400).step_by(25) {
        let disk = image_with_a_hole().await;
        let compaction = tokio::spawn(disk.device.clone().keep_compact());
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        disk.device.close().await.expect("closed");
        let closed = disk.file.to_vec();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(disk.file.to_vec() == closed, "the image changed after it was closed at {milliseconds} ms");
        assert!(compaction.is_finished(), "closed at {milliseconds} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn compaction_that_cannot_write_ends_with_the_disk() {
    let disk = image_with_a_hole().await;
    disk.top.hold(Op::Read);
    disk.faults.inject(Fault::fail(Op::Write, ErrorKind::NoSpace));
    let compaction = tokio::spawn(disk.device.clone().keep_compact());
    disk.top.until_held(1).await;
    let device = disk.device.clone();
    let close = tokio::spawn(async move { device.close().await });
    settle().await;
    assert!(!close.is_finished(), "the block is on its way");
    disk.top.release();
    tokio::time::timeout(Duration::from_secs(60), close)
        .await
        .expect("in time")
        .expect("no panic")
        .expect("closed");
    assert_eq!(disk.faults.hits(), 1, "the scenario: compaction failed");
    tokio::time::timeout(Duration::from_secs(60), compaction).await.expect("it ends").expect("no panic");
}
