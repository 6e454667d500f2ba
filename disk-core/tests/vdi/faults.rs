//! Every operation of the storage fails once, in every way: the request gets the error, and nothing else changes.

use std::sync::Arc;

use disk_core::ErrorKind;
use disk_core::storage::MemStorage;
use disk_core::testing::{Fault, Faults, Op};

use crate::disk::{Disk, Rng, SECTORS, Setup, Stamp, Step, after, judge, same_maps, touched};

/// A script of random steps with one fault in it.
struct Run {
    below: Arc<MemStorage>,
    faults: Arc<Faults>,
    disk: Disk,
    /// What each sector reads.
    expected: Vec<Stamp>,
}

impl Run {
    async fn new(setup: Setup) -> Run {
        let below = Arc::new(setup.image().await);
        let faults = Arc::new(Faults::new(below.clone()));
        let disk = Disk::open(setup, faults.clone(), false).await.expect("a new image");
        Run { below, faults, disk, expected: setup.inherited() }
    }

    /// Does a step. If it fails, each sector that it touched may be old or new, and stays what it is then.
    async fn act(&mut self, step: &Step, serial: u32, what: &str) -> disk_core::Result<()> {
        let outcome = self.disk.act(step, serial).await;
        let touched: Vec<u64> = touched(step).into_iter().flatten().collect();
        if outcome.is_ok() && touched.iter().all(|sector| after(step, *sector, serial).is_some()) {
            for sector in touched {
                self.expected[sector as usize] = after(step, sector, serial).expect("just asked");
            }
            return outcome;
        }
        if outcome.is_err() {
            self.faults.heal();
        }
        let now = self.look().await;
        for sector in touched {
            let (old, new) = (self.expected[sector as usize], after(step, sector, serial).unwrap_or(0));
            let is = now[sector as usize];
            assert!([old, new].contains(&is), "{what}: sector {sector} is {is:#x}, not {old:#x} or {new:#x}");
            self.expected[sector as usize] = is;
        }
        outcome
    }

    /// What the disk reads. The fault may strike here as well: then it reads it again.
    async fn look(&self) -> Vec<Stamp> {
        let hits = self.faults.hits();
        match self.disk.read_all().await {
            Err(_) if self.faults.hits() > hits => self.disk.read_all().await.expect("readable"),
            outcome => outcome.expect("readable"),
        }
    }

    async fn verify(&self, what: &str) {
        let now = self.look().await;
        let wrong = (0..SECTORS as usize).find(|&sector| now[sector] != self.expected[sector]);
        assert_eq!(wrong, None, "{what}: sector");
    }

    /// After a flush a fresh opening finds what the layer knows.
    async fn end(&mut self, what: &str) {
        self.disk.chain.flush().await.unwrap_or_else(|error| panic!("{what}: {error}"));
        self.verify(what).await;
        let file = self.below.snapshot();
        judge(&file, what);
        same_maps(&self.disk, &file, self.disk.setup).await;
        let again = Disk::open(self.disk.setup, Arc::new(file), true).await.expect("an image");
        assert!(again.read_all().await.expect("readable") == self.expected, "{what}: opened again");
    }
}

fn script(seed: u64) -> Vec<Step> {
    let mut rng = Rng(seed);
    (0..24).map(|_| Step::random(&mut rng)).collect()
}

/// Runs the script with that fault. Returns whether it struck.
async fn with_fault(setup: Setup, seed: u64, fault: Fault, what: &str) -> bool {
    let mut run = Run::new(setup).await;
    run.faults.inject(fault);
    let mut failed = 0;
    for (serial, step) in (2..).zip(script(seed)) {
        let struck = run.faults.hits();
        let outcome = run.act(&step, serial, what).await;
        let healthy = run.faults.hits() == struck;
        if let Err(error) = &outcome {
            assert!(!healthy, "{what}: {step:?} failed without a fault: {error}");
            failed += 1;
            run.verify(what).await;
            if struck == 0 && matches!(step, Step::Reopen) {
                run.disk = Disk::open(setup, run.faults.clone(), false).await.expect("the fault is over");
            }
        }
    }
    assert!(failed <= 1, "{what}: one fault failed {failed} steps");
    run.end(what).await;
    run.faults.hits() > 0
}

/// Every operation of the script fails once.
async fn each_fails_once(setup: Setup, seed: u64) {
    let mut dry = Run::new(setup).await;
    for (serial, step) in (2..).zip(script(seed)) {
        dry.act(&step, serial, "dry run").await.expect("no fault");
    }
    let mut runs = 0;
    for op in [Op::Read, Op::Write, Op::Zero, Op::Flush, Op::Resize] {
        let count = dry.faults.count(op);
        assert!(count > 0 || (op, setup) == (Op::Resize, Setup::Device), "the script has no {op:?}");
        for nth in 1..=count {
            let kinds = [ErrorKind::Io, ErrorKind::NoSpace];
            let mut faults: Vec<Fault> = kinds.map(|kind| Fault::fail(op, kind)).into();
            if op == Op::Write {
                faults.extend([512, 4096, u64::MAX].map(|kept| Fault::tear(op, kept, ErrorKind::Io)));
            }
            for fault in faults.into_iter().skip(nth as usize % 2).step_by(2) {
                let what = format!("{setup:?}, seed {seed}, {nth} of {count}: {fault:?}");
                let struck = with_fault(setup, seed, fault.nth(nth), &what).await;
                assert!(struck, "{what}: it did not happen");
                runs += 1;
            }
        }
    }
    println!("{setup:?}: {runs} faults, 0 wrong");
    assert!(runs > 70, "only {runs} faults");
}

#[tokio::test]
async fn one_failed_operation_fails_its_request_alone_and_leaves_a_base_right() {
    each_fails_once(Setup::Base, 3).await;
}

#[tokio::test]
async fn one_failed_operation_fails_its_request_alone_and_leaves_a_child_right() {
    each_fails_once(Setup::Child, 4).await;
}

#[tokio::test]
async fn one_failed_operation_fails_its_request_alone_and_leaves_a_device_right() {
    each_fails_once(Setup::Device, 8).await;
}

#[tokio::test]
async fn a_full_file_system_fails_what_needs_room_until_there_is_room_again() {
    for setup in [Setup::Base, Setup::Child] {
        for seed in 1..=6 {
            let what = format!("{setup:?}, seed {seed}");
            let mut run = Run::new(setup).await;
            let steps = script(seed);
            for (serial, step) in (2..).zip(&steps[..8]) {
                run.act(step, serial, &what).await.expect("there is room");
            }
            let hits = run.faults.hits();
            for (serial, step) in (100..).zip(&steps[8..16]) {
                run.faults.inject(Fault::fail(Op::Resize, ErrorKind::NoSpace).sticky());
                run.faults.inject(Fault::fail(Op::Write, ErrorKind::NoSpace).sticky());
                if let Err(error) = run.act(step, serial, &what).await {
                    assert_eq!(error.kind(), ErrorKind::NoSpace, "{what}: {error}");
                }
                run.faults.heal();
            }
            assert!(run.faults.hits() > hits, "{what}: nothing needed room");
            for (serial, step) in (200..).zip(&steps[16..]) {
                run.act(step, serial, &what)
                    .await
                    .unwrap_or_else(|error| panic!("{what}: {step:?}: {error}"));
            }
            run.end(&what).await;
        }
    }
}

#[tokio::test]
async fn bytes_that_a_failed_cut_left_at_the_end_never_show_up_in_new_blocks() {
    let mut run = Run::new(Setup::Base).await;
    let blocks = |range: std::ops::Range<u64>| range.start * 256..range.end * 256;
    run.act(&Step::Write(blocks(0..4)), 2, "fill").await.unwrap();
    run.act(&Step::Discard(blocks(1..4)), 3, "free").await.unwrap();
    run.faults.inject(Fault::fail(Op::Resize, ErrorKind::Io));
    let cut = run.act(&Step::Settle, 4, "cut").await.expect_err("the length cannot be set");
    assert_eq!((cut.kind(), run.faults.hits()), (ErrorKind::Io, 1));
    for block in 5..9 {
        run.act(&Step::Write(block * 256 + 7..block * 256 + 8), 5, "new blocks").await.unwrap();
    }
    run.end("after the cut").await;
}
