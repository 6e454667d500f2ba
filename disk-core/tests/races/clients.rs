//! Clients that leave while their requests wait, and while they are worked on.

use disk_core::ErrorKind;
use disk_core::client::Client;
use disk_core::testing::Op;
use disk_core::testing::model::stamp;
use disk_core::throttle::{Dimension, Limits, Rates};
use disk_core::tracker::Stage;

use crate::disk::{BLOCK, Disk, below, block, settle};

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_for_its_turn_never_starts_once_its_client_has_left() {
    let disk = Disk::new().await;
    disk.top.hold(Op::Write);
    let first = disk.start_write(0, 4096, 2);
    disk.top.until_held(1).await;
    let leaver = Client::new();
    let second = disk.start_write_as(&leaver, 0, 8192, 3);
    let third = disk.start_write(4096, 4096, 4);
    settle().await;
    assert_eq!(disk.in_stage(Stage::Overlap), 2, "the scenario: the third waits for the second");
    leaver.leave();
    let left = second.await.expect("no panic").expect_err("its client is gone");
    assert_eq!(left.kind(), ErrorKind::Cancelled);
    assert!(!first.is_finished(), "it was told before the first was done");
    settle().await;
    assert_eq!(disk.in_stage(Stage::Working), 2, "the third waits for nobody any more");
    disk.top.release();
    first.await.expect("no panic").expect("written");
    third.await.expect("no panic").expect("written");
    let mut expected = stamp(0, 4096, 2);
    expected.extend(stamp(4096, 4096, 4));
    assert!(disk.read(0, 8192).await == expected);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_the_throttle_holds_never_starts_once_its_client_has_left() {
    let mut rates = Rates::default();
    rates[Dimension::IopsWrite].avg = 1;
    let disk = Disk::throttled(Limits::new(rates, 0).expect("valid")).await;
    let leaver = Client::new();
    disk.write(0, 512, 2).await;
    let second = disk.start_write_as(&leaver, BLOCK, 512, 3);
    settle().await;
    assert_eq!(disk.in_stage(Stage::Throttle), 1, "the scenario");
    leaver.leave();
    let left = second.await.expect("no panic").expect_err("its client is gone");
    assert_eq!(left.kind(), ErrorKind::Cancelled);
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    assert!(disk.read(BLOCK, 512).await == below(BLOCK, 512));
    assert_eq!(disk.device.requests(), []);
    let refused = disk.start_write_as(&leaver, 0, 512, 4).await.expect("no panic");
    assert_eq!(refused.expect_err("it came after its client had left").kind(), ErrorKind::Cancelled);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_has_started_is_finished_although_its_client_has_left() {
    let disk = Disk::new().await;
    disk.top.hold(Op::Write);
    let leaver = Client::new();
    let write = disk.start_write_as(&leaver, 0, 4096, 2);
    disk.top.until_held(1).await;
    leaver.leave();
    settle().await;
    assert!(!write.is_finished());
    let after = disk.start_write(0, 512, 3);
    settle().await;
    assert_eq!(disk.in_stage(Stage::Overlap), 1, "what comes later waits for it");
    disk.top.release();
    write.await.expect("no panic").expect("it had started");
    after.await.expect("no panic").expect("written");
    let mut expected = stamp(0, 4096, 2);
    expected[..512].copy_from_slice(&stamp(0, 512, 3));
    assert!(disk.read(0, 4096).await == expected);
}

#[tokio::test(start_paused = true)]
async fn a_hint_to_read_ahead_is_throttled_like_the_read_that_it_is() {
    let mut rates = Rates::default();
    rates[Dimension::BpsRead].avg = 4096;
    let disk = Disk::throttled(Limits::new(rates, 0).expect("valid")).await;
    disk.device.cache(&disk.client, block(0)).await.expect("the first goes at once");
    let (device, client) = (disk.device.clone(), disk.client.clone());
    let second = tokio::spawn(async move { device.cache(&client, block(1)).await });
    settle().await;
    assert_eq!(disk.in_stage(Stage::Throttle), 1);
    second.await.expect("no panic").expect("in its time");
}
