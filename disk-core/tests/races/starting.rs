//! Requests that are started: done at once where nothing has to be waited for, and otherwise from where they came to.

use disk_core::buf::Buf;
use disk_core::clock::Moment;
use disk_core::device::Started;
use disk_core::op;
use disk_core::testing::Op;
use disk_core::testing::model::stamp;
use disk_core::testing::model::target::flat;
use disk_core::throttle::{self, Dimension, Rate, Rates};
use disk_core::tracker::Stage;
use disk_core::{ByteRange, ErrorKind};

use crate::disk::{BLOCK, Disk, settle};

#[tokio::test]
async fn what_waits_for_nothing_is_done_where_it_is_started() {
    let disk = Disk::new().await;
    disk.write(0, 4096, 2).await;
    let (range, data) = (ByteRange::at(512, 512), Buf::copy_from(&stamp(512, 512, 3)));
    let mut clock = Moment::now();
    let began = clock;
    let Started::Done(written) = disk.device.start_write(&disk.client, range, data, false, &mut clock) else {
        panic!("a block that is there, in memory");
    };
    written.expect("written");
    assert!(clock > began, "the clock is that of its end");
    let Started::Done(read) = disk.device.start_read(&disk.client, range, &mut clock) else {
        panic!("the same");
    };
    assert_eq!(flat(&read.expect("read")), stamp(512, 512, 3));
    let stats = disk.device.stats();
    let operations = |op| stats.of(op).operations;
    assert_eq!((operations(op::Op::Write), operations(op::Op::Read)), (2, 1));
    assert!(disk.device.requests().is_empty());
    let past = ByteRange::at(disk.device.size(), 1);
    let Started::Done(refused) = disk.device.start_read(&disk.client, past, &mut clock) else {
        panic!("nothing to wait for");
    };
    assert_eq!(refused.expect_err("past the end").kind(), ErrorKind::OutOfRange);
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_its_turn_or_its_storage_is_listed_until_its_future_ends_or_is_dropped() {
    let disk = Disk::new().await;
    disk.write(0, 4096, 2).await;
    disk.top.hold(Op::Write);
    let data = |serial| Buf::copy_from(&stamp(0, 512, serial));
    let (range, mut clock) = (ByteRange::at(0, 512), Moment::now());
    let start =
        |serial, clock: &mut Moment| disk.device.start_write(&disk.client, range, data(serial), false, clock);
    // Nobody polls any of them: the first has begun, and they are listed.
    let Started::Going(first) = start(3, &mut clock) else { panic!("it is held") };
    let Started::Going(dropped) = start(4, &mut clock) else { panic!("the first has the turn") };
    let Started::Going(last) = start(5, &mut clock) else { panic!("the first has the turn") };
    disk.top.until_held(1).await;
    assert_eq!((disk.in_stage(Stage::Working), disk.in_stage(Stage::Overlap)), (1, 2));
    drop(dropped);
    assert_eq!((disk.in_stage(Stage::Working), disk.in_stage(Stage::Overlap)), (1, 1));
    let last = tokio::spawn(last);
    settle().await;
    assert!(!last.is_finished());
    disk.top.release();
    first.await.expect("written");
    last.await.expect("no panic").expect("written");
    assert_eq!(disk.read(0, 512).await, stamp(0, 512, 5));
    assert!(disk.device.requests().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_the_throttle_holds_back_is_charged_once_and_goes_when_it_may() {
    let mut rates = Rates::default();
    rates[Dimension::IopsTotal] = Rate { avg: 10, ..Rate::default() };
    let disk = Disk::throttled(throttle::Limits::new(rates, 0).expect("lawful")).await;
    disk.write(BLOCK, 512, 2).await;
    let (range, mut done, mut going) = (ByteRange::at(BLOCK, 512), 0, Vec::new());
    for _ in 0..21 {
        match disk.device.start_read(&disk.client, range, &mut Moment::now()) {
            Started::Done(read) => {
                read.expect("read");
                done += 1;
            }
            Started::Going(read) => going.push(tokio::spawn(read)),
        }
    }
    // A bucket of one that is full lets one more go; the write was the first.
    assert_eq!((done, going.len()), (1, 20));
    let began = Moment::now();
    for read in going {
        read.await.expect("no panic").expect("read");
    }
    let took = began.elapsed().as_secs_f64();
    assert!((1.85..2.15).contains(&took), "{took} s for 20 requests at 10 a second");
}
