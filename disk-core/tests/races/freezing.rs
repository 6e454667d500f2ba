//! Requests that panic, and what becomes of those that come after them or wait for them.

use disk_core::ErrorKind;
use disk_core::condition::Condition;
use disk_core::testing::{Fault, Op};
use disk_core::tracker::Stage;

use crate::disk::{BLOCK, Disk, settle};

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_request_freezes_the_disk_and_nobody_waits_for_ever() {
    let disk = Disk::new().await;
    disk.write(0, 4096, 2).await;
    disk.top.hold(Op::Write);
    let first = disk.start_write(0, 4096, 3);
    disk.top.until_held(1).await;
    let waits = disk.start_write(0, 512, 4);
    settle().await;
    assert_eq!(disk.in_stage(Stage::Overlap), 1, "the scenario");
    disk.faults.inject(Fault::panic(Op::Read));
    let panics = disk.start_read(8192, 512);
    assert!(panics.await.expect_err("it panicked").is_panic());
    assert_eq!((disk.faults.hits(), disk.device.condition()), (1, Condition::Frozen));

    let before = disk.file.to_vec();
    disk.top.release();
    first.await.expect("no panic").expect("it had started before");
    let refused = waits.await.expect("no panic").expect_err("it had not");
    assert_eq!(refused.kind(), ErrorKind::Io);
    assert!(refused.to_string().contains("frozen"), "{refused}");
    let after = disk.file.to_vec();
    assert_ne!(before, after, "the first write is there");
    let late = disk.start_write(BLOCK, 512, 5).await.expect("no panic");
    assert_eq!(late.expect_err("frozen").kind(), ErrorKind::Io);
    let closed = disk.device.close().await.expect_err("not in order");
    assert!(closed.to_string().contains("frozen"), "{closed}");
    assert!(disk.device.requests().is_empty());
    assert_eq!(disk.file.to_vec(), after, "nothing touches the image any more");
}

#[tokio::test(start_paused = true)]
async fn a_failed_flush_and_a_panic_are_told_and_the_worse_stays() {
    let disk = Disk::new().await;
    assert_eq!(disk.device.condition(), Condition::Sound);
    disk.write(0, 4096, 2).await;
    disk.faults.inject(Fault::fail(Op::Flush, ErrorKind::Io));
    disk.device.flush(&disk.client).await.expect_err("injected");
    assert_eq!(disk.device.condition(), Condition::FlushFailed);
    disk.read(0, 512).await;
    disk.faults.inject(Fault::panic(Op::Read));
    disk.start_read(0, 512).await.expect_err("it panicked");
    assert_eq!(disk.device.condition(), Condition::Frozen);
    disk.device.flush(&disk.client).await.expect_err("frozen");
    assert_eq!(disk.device.condition(), Condition::Frozen);
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_work_that_the_image_does_for_several_requests_freezes_the_disk_too() {
    // The writes of a new block: the counter of the growth, the block's own, its map entry; the flush before that.
    for (op, nth) in [(Op::Write, 1), (Op::Write, 3), (Op::Flush, 1)] {
        let disk = Disk::new().await;
        disk.write(0, 4096, 2).await;
        disk.faults.inject(Fault::panic(op).nth(nth));
        let struck = disk.start_write(2 * BLOCK, BLOCK, 3).await.expect("the panic is another task's");
        assert_eq!(
            (disk.faults.hits(), struck.expect_err("cut short").kind()),
            (1, ErrorKind::Fault),
            "{op:?}"
        );
        assert_eq!(disk.device.condition(), Condition::Frozen, "{op:?}");
        let late = disk.start_write(0, 512, 5).await.expect("no panic");
        assert_eq!(late.expect_err("frozen").kind(), ErrorKind::Io);
        disk.device.close().await.expect_err("not in order");
    }
}
