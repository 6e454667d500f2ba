//! Whatever several clients ask of a disk at one time, it answers as if they had come one after the other in their
//! order, while compaction moves blocks below them.
//!
//! Invariant: answers are judged in the order of arrival, whatever order the storage carried the work out in.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::buf::Buf;
use crate::chain::StatusExtent;
use crate::client::Client;
use crate::device::{Device, DeviceOptions};
use crate::op::Op;
use crate::range::ByteRange;
use crate::storage::{MemStorage, Storage};
use crate::testing::Jitter;
use crate::testing::model::campaign::Figures;
use crate::testing::model::images::{self, ChainSpec, Images};
use crate::testing::model::request::{Content, Request, Step};
use crate::testing::model::target::{Answer, Connection, Target, data_of};
use crate::testing::model::{Model, SECTOR};
use crate::throttle::{Limits, Throttle};
use futures_util::future::join_all;
use proptest::prelude::*;

const CLIENTS: usize = 3;

/// A disk and what is asked of it.
#[derive(Debug, Clone)]
pub struct Case {
    /// How the disk is put together.
    spec: Spec,
    steps: Vec<Step>,
}

/// How a disk is put together.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Its images.
    pub chain: ChainSpec,
    /// How it treats its requests.
    pub device: DeviceOptions,
    /// Operations of the storage take up to so many milliseconds; 0: no time.
    pub jitter: u64,
    /// Chooses those times.
    pub seed: u64,
}

/// Cases of all kinds.
pub fn cases() -> BoxedStrategy<Case> {
    let device = (prop_oneof![Just(512u64), Just(4096)], prop::bool::weighted(0.85)).prop_map(
        |(logical_block_size, discard)| DeviceOptions {
            logical_block_size,
            discard,
            ..DeviceOptions::default()
        },
    );
    let jitter = prop_oneof![1 => Just(0), 3 => 1..300u64];
    let specs = (images::any_chain(), device, jitter, any::<u64>())
        .prop_map(|(chain, device, jitter, seed)| Spec { chain, device, jitter, seed });
    specs
        .prop_flat_map(|spec| {
            let top = spec.chain.images.last().expect("a chain has at least a base").clone();
            let unit = prop_oneof![Just(1), Just(512), Just(4096)];
            let steps =
                unit.prop_flat_map(move |unit| prop::collection::vec(top.shape(unit).crowded_steps(), 1..40));
            (Just(spec), steps)
        })
        .prop_map(|(spec, steps)| Case { spec, steps })
        .boxed()
}

/// Asks all of a case and judges every answer.
///
/// # Errors
/// In words: the step and what is wrong with its answer.
pub fn trial(case: &Case) -> Result<Figures, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(async {
        let mut trial = Trial::start(&case.spec).await?;
        for (serial, step) in (1..).zip(&case.steps) {
            trial.step(step, serial).await.map_err(|wrong| format!("step {serial}, {step:?}: {wrong}"))?;
        }
        trial.reopen(true).await?;
        Ok(trial.figures)
    })
}

/// A disk under test and what has happened to it.
pub struct Trial {
    spec: Spec,
    images: Images,
    file: Arc<MemStorage>,
    /// The disk; another one after each reopening.
    pub device: Arc<Device>,
    compaction: tokio::task::JoinHandle<()>,
    clients: Vec<Client>,
    asked: HashMap<Op, u64>,
    model: Model,
    figures: Figures,
}

impl Trial {
    /// Builds the images and opens the disk.
    ///
    /// # Errors
    /// In words.
    pub async fn start(spec: &Spec) -> Result<Trial, String> {
        let images = Images::build(&spec.chain).await?;
        let file = Arc::new(images.top.snapshot());
        let device = open(spec, &images, &file).await?;
        let compaction = tokio::spawn(Arc::clone(&device).keep_compact());
        let clients = (0..CLIENTS).map(|_| Client::new()).collect();
        let model = images.model.clone();
        let (spec, asked, figures) = (spec.clone(), HashMap::new(), Figures::default());
        Ok(Trial { spec, images, file, device, compaction, clients, asked, model, figures })
    }

    /// Does one step and judges what it answers.
    ///
    /// # Errors
    /// In words.
    pub async fn step(&mut self, step: &Step, serial: u32) -> Result<(), String> {
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
            data.push(data_of(&connection(0), request, serial << 4 | number, &self.images.model).await?);
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

    /// Closes the disk in order, or kills its process, and opens it anew.
    ///
    /// # Errors
    /// In words.
    pub async fn reopen(&mut self, clean: bool) -> Result<(), String> {
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
        self.figures.moves += self.device.stats().of(Op::Compact).bytes;
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
