//! Whatever several clients ask of a disk at one time, it answers as if they had come one after the other in their
//! order, while compaction moves blocks below them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use disk_core::buf::Buf;
use disk_core::chain::{Chain, ChainOptions, StatusExtent, ZeroRequest};
use disk_core::client::Client;
use disk_core::device::{Device, DeviceOptions};
use disk_core::format::Format;
use disk_core::format::raw::Raw;
use disk_core::range::ByteRange;
use disk_core::storage::{MemStorage, Storage};
use disk_core::testing::Jitter;
use disk_core::testing::model::campaign::{self, Figures};
use disk_core::testing::model::images::{self, ChainSpec, Images};
use disk_core::testing::model::request::{Content, Request, Step};
use disk_core::testing::model::target::{Answer, Connection, Target, data_of};
use disk_core::testing::model::{Model, SECTOR};
use disk_core::throttle::{Limits, Throttle};
use disk_core::tracker::Op;
use futures_util::future::join_all;
use proptest::prelude::*;

const CLIENTS: usize = 3;

/// How a disk is put together.
#[derive(Debug, Clone)]
struct Spec {
    chain: ChainSpec,
    device: DeviceOptions,
    /// Operations of the storage take up to so many milliseconds; 0: no time.
    jitter: u64,
    seed: u64,
}

/// A disk under test and what has happened to it.
struct Trial {
    spec: Spec,
    images: Images,
    file: Arc<MemStorage>,
    device: Arc<Device>,
    compaction: tokio::task::JoinHandle<()>,
    clients: Vec<Client>,
    asked: HashMap<Op, u64>,
    model: Model,
    figures: Figures,
}

impl Trial {
    async fn start(spec: &Spec) -> Result<Trial, String> {
        let images = Images::build(&spec.chain).await?;
        let file = Arc::new(images.top.snapshot());
        let device = open(spec, &images, &file).await?;
        let compaction = tokio::spawn(Arc::clone(&device).keep_compact());
        let clients = (0..CLIENTS).map(|_| Client::new()).collect();
        let model = images.model.clone();
        let (spec, asked, figures) = (spec.clone(), HashMap::new(), Figures::default());
        Ok(Trial { spec, images, file, device, compaction, clients, asked, model, figures })
    }

    async fn step(&mut self, step: &Step, serial: u32) -> Result<(), String> {
        match step {
            Step::One(request) => self.together(std::slice::from_ref(request), serial).await?,
            Step::Together(requests) => self.together(requests, serial).await?,
            Step::Compact => tokio::time::sleep(Duration::from_millis(150)).await,
            Step::Settle => self.device.drain().await,
            Step::Reopen { clean } => self.reopen(*clean).await?,
        }
        if serial.is_multiple_of(12) { self.inspect().await } else { Ok(()) }
    }

    /// Asks all at one time, and judges the answers in the order of arrival.
    async fn together(&mut self, requests: &[Request], serial: u32) -> Result<(), String> {
        let connection = |number: usize| Connection {
            device: &self.device,
            client: self.clients[number % CLIENTS].clone(),
        };
        let mut data = Vec::new();
        for (number, request) in (0..).zip(requests) {
            if let Request::Status { range, .. } = request {
                // What discards left there is settled first.
                let read = Request::Read(*range);
                self.model.judge(&read, &[], &connection(0).ask(&read, Buf::copy_from(&[])).await)?;
            }
            if matches!(request, Request::Status { .. } | Request::Write { content: Content::Same, .. }) {
                *self.asked.entry(Op::Read).or_default() += 1;
            }
            data.push(data_of(&connection(0), request, serial << 4 | number).await?);
        }
        let before = self.model.clone();
        let asking = requests.iter().zip(&data).enumerate().map(|(number, (request, data))| async move {
            connection(number).ask(request, data.clone()).await
        });
        let answers = join_all(asking).await;
        for ((request, data), answer) in requests.iter().zip(&data).zip(&answers) {
            self.figures.operations += 1;
            *self.asked.entry(op_of(request)).or_default() += 1;
            match (request, answer) {
                (Request::Status { range, most }, Ok(Answer::Status(status))) => {
                    judge_status(&before, requests, *range, *most, status)?;
                }
                _ => self.model.judge(request, data, answer)?,
            }
        }
        Ok(())
    }

    async fn reopen(&mut self, clean: bool) -> Result<(), String> {
        self.figures.reopens += 1;
        if clean {
            self.device.close().await.map_err(|error| format!("closing: {error}"))?;
            let closed = self.file.to_vec();
            tokio::time::sleep(Duration::from_secs(5)).await;
            if self.file.to_vec() != closed {
                return Err("the image changed after it was closed".into());
            }
            if !self.compaction.is_finished() {
                return Err("compaction goes on after the disk was closed".into());
            }
        } else {
            // The process dies at a moment when compaction may be at work; nobody waits for an answer.
            self.compaction.abort();
        }
        self.judge_counts()?;
        self.file = Arc::new(self.file.snapshot());
        self.device = open(&self.spec, &self.images, &self.file).await?;
        self.compaction = tokio::spawn(Arc::clone(&self.device).keep_compact());
        self.inspect().await
    }

    /// The accounts are what was asked.
    fn judge_counts(&mut self) -> Result<(), String> {
        let stats = self.device.stats();
        for op in Op::ALL.into_iter().filter(|op| *op != Op::Compact) {
            let failed: u64 =
                stats.errors.iter().filter(|error| error.op == op).map(|error| error.count).sum();
            let (asked, counted) = (self.asked.remove(&op).unwrap_or(0), stats.of(op).operations + failed);
            if asked != counted {
                return Err(format!("asked {} {asked} times, counted {counted}", op.name()));
            }
        }
        Ok(())
    }

    async fn inspect(&mut self) -> Result<(), String> {
        self.figures.inspections += 1;
        let compactions = || self.device.stats().of(Op::Compact).operations;
        tokio::time::sleep(Duration::from_secs(60)).await;
        let before = compactions();
        tokio::time::sleep(Duration::from_secs(60)).await;
        if compactions() != before {
            return Err("compaction does not come to rest".into());
        }
        let chain = self.device.chain();
        self.images.inspect(chain, &self.file, &mut self.model).await
    }
}

async fn open(spec: &Spec, images: &Images, file: &Arc<MemStorage>) -> Result<Arc<Device>, String> {
    let storage: Arc<dyn Storage> = match spec.jitter {
        0 => file.clone(),
        most => Arc::new(Jitter::new(file.clone(), Duration::from_millis(most), spec.seed)),
    };
    let chain = images.open(storage).await?;
    Ok(Arc::new(Device::new(
        "disk".into(),
        chain,
        Arc::new(Throttle::new(Limits::default(), None)),
        spec.device,
    )))
}

/// A status asked while other requests were under way: it says zero only of what was zero before or was asked to be
/// changed.
fn judge_status(
    before: &Model,
    requests: &[Request],
    range: ByteRange,
    most: usize,
    status: &[StatusExtent],
) -> Result<(), String> {
    let mut may = before.clone();
    for request in requests {
        if let Request::Write { range, .. } | Request::Zero { range, .. } | Request::Discard { range, .. } =
            request
        {
            may.zero(range.align_out(SECTOR).intersect(&ByteRange::new(0, may.size())));
        }
    }
    may.judge_status(range, most, status)
}

fn op_of(request: &Request) -> Op {
    match request {
        Request::Read(_) => Op::Read,
        Request::Write { .. } => Op::Write,
        Request::Zero { .. } => Op::WriteZeroes,
        Request::Discard { .. } => Op::Discard,
        Request::Status { .. } => Op::BlockStatus,
        Request::Cache(_) => Op::Cache,
        Request::Flush => Op::Flush,
    }
}

fn specs() -> impl Strategy<Value = Spec> {
    let device = (prop_oneof![Just(512u64), Just(4096)], prop::bool::weighted(0.85)).prop_map(
        |(logical_block_size, discard)| DeviceOptions {
            logical_block_size,
            discard,
            ..DeviceOptions::default()
        },
    );
    let jitter = prop_oneof![1 => Just(0), 3 => 1..300u64];
    (images::any_chain(), device, jitter, any::<u64>()).prop_map(|(chain, device, jitter, seed)| Spec {
        chain,
        device,
        jitter,
        seed,
    })
}

#[test]
fn a_disk_answers_as_if_its_requests_came_one_after_the_other() {
    let strategy = specs().prop_flat_map(|spec| {
        let top = spec.chain.images.last().expect("a chain has at least a base").clone();
        let unit = prop_oneof![Just(1), Just(512), Just(4096)];
        let steps =
            unit.prop_flat_map(move |unit| prop::collection::vec(top.shape(unit).crowded_steps(), 1..40));
        (Just(spec), steps)
    });
    let figures = campaign::run("device", 250, &strategy, |(spec, steps)| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let mut trial = Trial::start(&spec).await?;
            for (serial, step) in (1..).zip(&steps) {
                trial
                    .step(step, serial)
                    .await
                    .map_err(|wrong| format!("step {serial}, {step:?}: {wrong}"))?;
            }
            trial.reopen(true).await?;
            Ok(trial.figures)
        })
    });
    assert!(figures.operations > 8000 && figures.reopens > 200, "{figures}");
}

#[tokio::test]
async fn a_request_for_no_bytes_does_nothing_wherever_it_is() {
    let storage = Arc::new(MemStorage::from_bytes(&[7; 8192]));
    let chain =
        Chain::new(vec![Raw.open(storage.clone(), false).await.expect("raw")], ChainOptions::default());
    let options = DeviceOptions { logical_block_size: 4096, ..DeviceOptions::default() };
    let device = Device::new("disk".into(), chain, Arc::new(Throttle::new(Limits::default(), None)), options);
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
