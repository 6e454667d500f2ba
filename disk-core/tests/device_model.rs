//! Whatever several clients ask of a disk at one time, it answers as if they had come one after the other in their
//! order, while compaction moves blocks below them.

use std::sync::Arc;

use disk_core::buf::Buf;
use disk_core::chain::{Chain, ChainOptions, DetectZeroes, StatusExtent, ZeroRequest};
use disk_core::client::Client;
use disk_core::device::{Device, DeviceOptions};
use disk_core::format::raw::Raw;
use disk_core::format::{Format, Variant};
use disk_core::range::ByteRange;
use disk_core::storage::MemStorage;
use disk_core::testing::model::campaign;
use disk_core::testing::model::images::{ChainSpec, ImageSpec, Kind, Medium};
use disk_core::testing::model::request::{Content, Request, Step};
use disk_core::testing::model::target::{Answer, Connection, Target, flat};
use disk_core::testing::trials::device::{self, Spec, Trial};
use disk_core::throttle::{Limits, Throttle};

#[test]
fn a_disk_answers_as_if_its_requests_came_one_after_the_other() {
    let figures = campaign::run("device", 250, &device::cases(), |case| device::trial(&case));
    assert!(figures.operations > 8000 && figures.reopens > 200 && figures.moves > 0, "{figures}");
}

/// A block of which a part was written over a parent's data is copied up whole; a discard of it leaves zeroes, not the
/// parent's data, and status says so of each of its bytes, also of one alone.
#[tokio::test(start_paused = true)]
async fn what_a_discard_leaves_of_a_partly_written_block_reads_as_zeroes_and_status_agrees() {
    const BLOCK: u64 = 128 << 10;
    let (size, fua, unit) = (3 * BLOCK, false, ByteRange::at(0, 2 * BLOCK));
    let write = |range| Request::Write { range, content: Content::New, fua };
    let image = |kind, medium, past| ImageSpec { kind, medium, size, past };
    let child = Kind::Vdi { variant: Variant::Differencing, block_size: BLOCK };
    for (detect_zeroes, medium) in [DetectZeroes::Off, DetectZeroes::On, DetectZeroes::Unmap]
        .into_iter()
        .flat_map(|detect| [Medium::File, Medium::PlainFile, Medium::Device].map(|medium| (detect, medium)))
    {
        let options = ChainOptions { honor_zeroes: true, honor_same: false, detect_zeroes };
        let images = vec![
            image(Kind::Raw, Medium::File, vec![write(unit)]),
            image(child, medium, vec![write(ByteRange::at(BLOCK + 7, 100))]),
            image(child, medium, Vec::new()),
        ];
        let device = DeviceOptions::default();
        let chain = ChainSpec { images, options };
        let mut trial = Trial::start(&Spec { chain, device, jitter: 0, seed: 1 }).await.expect("a chain");
        let steps = [
            write(ByteRange::at(0, 1)),
            write(ByteRange::at(BLOCK + 512, 1)),
            Request::Discard { range: ByteRange::at(0, BLOCK), fua },
            Request::Discard { range: ByteRange::at(BLOCK, BLOCK), fua },
            Request::Status { range: ByteRange::at(BLOCK - 1, 1), most: 1 },
            Request::Status { range: ByteRange::at(BLOCK, BLOCK), most: 1 },
        ];
        for (serial, request) in (1..).zip(steps) {
            let step = Step::One(request);
            trial.step(&step, serial).await.unwrap_or_else(|wrong| panic!("{medium:?}, {step:?}: {wrong}"));
        }
        let chain = trial.device.chain();
        let bytes = flat(&chain.read(unit).await.expect("readable"));
        assert!(
            bytes.iter().all(|byte| *byte == 0),
            "{medium:?}, {detect_zeroes:?}: the parent's data is back"
        );
        let status = chain.status(unit, 9).await.expect("known");
        let zero = StatusExtent { len: 2 * BLOCK, data: false, zero: true, depth: 1 };
        assert_eq!(status, [zero], "{medium:?}, {detect_zeroes:?}");
        trial.reopen(true).await.unwrap_or_else(|wrong| panic!("{medium:?}, opened anew: {wrong}"));
    }
}

#[tokio::test]
async fn a_request_for_no_bytes_does_nothing_wherever_it_is() {
    let storage = Arc::new(MemStorage::from_bytes(&[7; 8192]));
    let chain =
        Chain::new(vec![Raw.open(storage.clone(), false).await.expect("raw")], ChainOptions::default());
    let options = DeviceOptions { logical_block_size: 4096, ..DeviceOptions::default() };
    let throttle = Arc::new(Throttle::new(Limits::default(), None));
    let device = Arc::new(Device::new("disk".into(), chain, throttle, options));
    let connection = Connection { device: &device, client: Client::new() };
    let (how, fua) = (ZeroRequest { may_free: true, fast_only: true }, false);
    for range in [0, 1, 4096, 7168, 8191, 8192].map(|at| ByteRange::at(at, 0)) {
        let write = Request::Write { range, content: Content::New, fua };
        let changes = [write, Request::Zero { range, how, fua }, Request::Discard { range, fua }];
        for request in changes {
            let answer = connection.ask(&request, Buf::copy_from(&[])).await;
            assert_eq!(answer.expect("nothing to fail"), Answer::Done, "{request:?}");
        }
        let read = connection.ask(&Request::Read(range), Buf::copy_from(&[])).await;
        assert_eq!(read.expect("nothing to fail"), Answer::Bytes(Vec::new()));
    }
    assert_eq!(storage.to_vec(), [7; 8192]);
}
