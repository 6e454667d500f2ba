//! Whatever a power cut or a kill leaves of a disk at work: it opens, what was flushed is there, every other sector is
//! old or new, and it can be used on.
//!
//! Several requests are under way at a time, compaction runs below them, parents are full of data and block devices of
//! old bytes. Nearly every write puts different bytes into every sector, so a sector from another place or time is
//! recognised.
//!
//! Invariant: what a cut must have spared is known from the answers alone, never from the disk's own state.

use std::sync::Arc;
use std::time::Duration;

use crate::buf::Buf;
use crate::client::Client;
use crate::device::{Device, DeviceOptions};
use crate::op::Op;
use crate::range::ByteRange;
use crate::storage::{MemStorage, Storage};
use crate::testing::model::campaign::Figures;
use crate::testing::model::images::{ChainSpec, Images, read_all};
use crate::testing::model::request::{Request, Step};
use crate::testing::model::target::{Connection, Target, data_of};
use crate::testing::model::{Model, SECTOR, stamp};
use crate::testing::{CrashStorage, Jitter};
use crate::throttle::{Limits, Throttle};
use futures_util::future::join_all;
use proptest::prelude::*;

/// Moments of a workload's past at which the power is cut.
const CUTS: usize = 24;
/// Files looked at for each of them.
const STATES: usize = 2;

/// A disk and what is done to it before its power is cut.
#[derive(Debug, Clone)]
pub struct Case {
    /// How the disk is put together.
    spec: Spec,
    steps: Vec<Step>,
}

#[derive(Debug, Clone)]
struct Spec {
    chain: ChainSpec,
    /// Operations of the storage take up to so many milliseconds; 0: no time.
    jitter: u64,
    seed: u64,
}

/// Cases over such chains.
pub fn cases(chains: BoxedStrategy<ChainSpec>) -> BoxedStrategy<Case> {
    let jitter = prop_oneof![1 => Just(0), 2 => 1..300u64];
    let specs = (chains, jitter, any::<u64>()).prop_map(|(chain, jitter, seed)| Spec { chain, jitter, seed });
    specs
        .prop_flat_map(|spec| {
            let top = spec.chain.images.last().expect("a chain has at least a base").clone();
            (Just(spec), prop::collection::vec(top.shape(SECTOR).crowded_steps(), 1..25))
        })
        .prop_map(|(spec, steps)| Case { spec, steps })
        .boxed()
}

/// Does the work of a case, cuts its power at moments of that past, and looks at what is left.
///
/// # Errors
/// In words: the state and what is wrong with it.
pub fn trial(case: &Case) -> Result<Figures, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(async {
        let mut work = Work::start(&case.spec).await?;
        for (serial, step) in (1..).zip(&case.steps) {
            work.step(step, serial).await.map_err(|wrong| format!("step {serial}, {step:?}: {wrong}"))?;
        }
        work.stop().await;
        let mut figures = Figures { operations: work.operations, ..Figures::default() };
        figures.moves = work.moves + work.device.stats().of(Op::Compact).bytes;
        judge(&work, &mut figures).await?;
        Ok(figures)
    })
}

/// A request that came through, and between which positions of the storage.
#[derive(Debug)]
struct Event {
    what: What,
    from: usize,
    to: usize,
    /// A cut at this position or later cannot undo it.
    durable: usize,
}

#[derive(Debug)]
enum What {
    Asked(Request, Buf),
    /// What discards left, read back.
    Seen(ByteRange, Vec<u8>),
}

/// Everything that was asked of a disk, in the order of arrival.
struct Past {
    start: Model,
    events: Vec<Event>,
}

impl Past {
    /// What a disk may read if only what `certain` names is known to have happened, of all that had begun at `cut`.
    fn model(&self, cut: usize, certain: impl Fn(&Event) -> bool) -> Result<Model, String> {
        let mut model = self.start.clone();
        for event in self.events.iter().filter(|event| event.from < cut || certain(event)) {
            match &event.what {
                What::Asked(request, data) if certain(event) => model.apply(request, data),
                What::Asked(request, data) => model.apply_perhaps(request, data),
                What::Seen(range, bytes) if certain(event) => {
                    model.settle(range.start(), bytes).map_err(|wrong| format!("reading back: {wrong}"))?;
                }
                What::Seen(..) => {}
            }
        }
        Ok(model)
    }

    fn after_power_cut(&self, cut: usize) -> Result<Model, String> {
        self.model(cut, |event| event.durable <= cut)
    }

    fn after_kill(&self, cut: usize) -> Result<Model, String> {
        self.model(cut, |event| event.to <= cut)
    }

    /// A flush that began at `from` and ended at `to`.
    fn flushed(&mut self, from: usize, to: usize) {
        for event in self.events.iter_mut().filter(|event| event.to <= from) {
            event.durable = event.durable.min(to);
        }
    }
}

/// A disk at work on a storage that remembers everything.
struct Work {
    spec: Spec,
    images: Images,
    storage: Arc<CrashStorage>,
    device: Arc<Device>,
    compaction: tokio::task::JoinHandle<()>,
    past: Past,
    operations: u64,
    /// Bytes of blocks that devices of the past have moved.
    moves: u64,
}

impl Work {
    async fn start(spec: &Spec) -> Result<Work, String> {
        let images = Images::build(&spec.chain).await?;
        let storage = Arc::new(CrashStorage::new(images.top.snapshot()));
        let device = open(spec, &images, storage.clone()).await?;
        let compaction = tokio::spawn(Arc::clone(&device).keep_compact());
        let past = Past { start: images.model.clone(), events: Vec::new() };
        Ok(Work { spec: spec.clone(), images, storage, device, compaction, past, operations: 0, moves: 0 })
    }

    async fn step(&mut self, step: &Step, serial: u32) -> Result<(), String> {
        match step {
            Step::One(request) => self.together(std::slice::from_ref(request), serial).await,
            Step::Together(requests) => self.together(requests, serial).await,
            Step::Compact | Step::Settle => {
                tokio::time::sleep(Duration::from_millis(250)).await;
                Ok(())
            }
            Step::Reopen { clean } => self.reopen(*clean).await,
        }
    }

    /// Asks all at one time.
    async fn together(&mut self, requests: &[Request], serial: u32) -> Result<(), String> {
        let connection = Connection { device: &self.device, client: Client::new() };
        let mut data = Vec::new();
        for (number, request) in (0..).zip(requests) {
            data.push(data_of(&connection, request, serial << 4 | number, &self.images.model).await?);
        }
        let asking = requests.iter().zip(&data).map(async |(request, data)| {
            let from = self.storage.position();
            let answer = connection.ask(request, data.clone()).await;
            (from, answer, self.storage.position())
        });
        let answers = join_all(asking).await;
        self.operations += requests.len() as u64;
        let mut flushes = Vec::new();
        for ((request, data), (from, answer, to)) in requests.iter().zip(data).zip(answers) {
            match (request, answer) {
                (Request::Zero { how, .. }, Err(error))
                    if how.fast_only && error.kind() == crate::ErrorKind::Unsupported => {}
                (_, Err(error)) => return Err(format!("{request:?}: {error}")),
                (Request::Flush, Ok(_)) => flushes.push((from, to)),
                (_, Ok(_)) => {
                    let durable = if is_fua(request) { to } else { usize::MAX };
                    let what = What::Asked(request.clone(), data);
                    self.past.events.push(Event { what, from, to, durable });
                }
            }
        }
        flushes.into_iter().for_each(|(from, to)| self.past.flushed(from, to));
        self.read_back(requests).await
    }

    /// Discards leave a choice, and what was read of it must stay so.
    async fn read_back(&mut self, requests: &[Request]) -> Result<(), String> {
        for request in requests {
            let Request::Discard { range, .. } = *request else { continue };
            let pieces = self.device.read(&Client::new(), range).await;
            let bytes = crate::testing::model::target::flat(&pieces.map_err(|error| error.to_string())?);
            let now = self.storage.position();
            let what = What::Seen(range, bytes);
            self.past.events.push(Event { what, from: now, to: now, durable: usize::MAX });
        }
        Ok(())
    }

    async fn reopen(&mut self, clean: bool) -> Result<(), String> {
        if clean {
            let from = self.storage.position();
            self.device.close().await.map_err(|error| format!("closing: {error}"))?;
            self.past.flushed(from, self.storage.position());
        }
        self.stop().await;
        self.moves += self.device.stats().of(Op::Compact).bytes;
        self.device = open(&self.spec, &self.images, self.storage.clone()).await?;
        self.compaction = tokio::spawn(Arc::clone(&self.device).keep_compact());
        Ok(())
    }

    /// Ends the process, when it has nothing more to do.
    async fn stop(&mut self) {
        self.compaction.abort();
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
}

async fn open(spec: &Spec, images: &Images, storage: Arc<CrashStorage>) -> Result<Arc<Device>, String> {
    let storage: Arc<dyn Storage> = match spec.jitter {
        0 => storage,
        most => Arc::new(Jitter::new(storage, Duration::from_millis(most), spec.seed)),
    };
    let chain = images.open(storage).await?;
    let throttle = Arc::new(Throttle::new(Limits::default(), None));
    Ok(Arc::new(Device::new("disk".into(), chain, throttle, DeviceOptions::default())))
}

fn is_fua(request: &Request) -> bool {
    matches!(
        request,
        Request::Write { fua: true, .. }
            | Request::Zero { fua: true, .. }
            | Request::Discard { fua: true, .. }
    )
}

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % limit as u64) as usize
    }

    /// A few sectors of the disk.
    fn range(&mut self, size: u64) -> ByteRange {
        let first = self.below((size / SECTOR) as usize) as u64;
        ByteRange::at(first * SECTOR, SECTOR * (1 + self.below(20) as u64))
            .intersect(&ByteRange::new(0, size))
    }
}

/// Opens what was left, reads it, recovers it, reads it again, and uses it on.
async fn survives(
    images: &Images,
    state: &MemStorage,
    mut model: Model,
    dice: &mut Dice,
) -> Result<(), String> {
    let looked = images.open_as(Arc::new(state.snapshot()), true).await?;
    let bytes = read_all(&looked).await?;
    model.settle(0, &bytes).map_err(|difference| format!("the disk {difference}"))?;
    images.inspect(&looked, state, &mut model).await?;

    let file = Arc::new(state.snapshot());
    let chain = images.open(file.clone()).await?;
    for serial in 0..4 {
        let range = dice.range(chain.size());
        let data = stamp(range.start(), range.len(), 0xf0_0000 + serial);
        chain.write(range, Buf::copy_from(&data)).await.map_err(|error| format!("used on: {error}"))?;
        model.write(range.start(), &data);
    }
    chain.flush().await.map_err(|error| format!("flushed: {error}"))?;
    images.inspect(&chain, &file, &mut model).await.map_err(|wrong| format!("used on: {wrong}"))
}

/// Cuts the power again while what was left is recovered and used on.
async fn recovers_again(
    images: &Images,
    state: &MemStorage,
    mut model: Model,
    dice: &mut Dice,
    figures: &mut Figures,
) -> Result<(), String> {
    let looked = images.open_as(Arc::new(state.snapshot()), true).await?;
    model.settle(0, &read_all(&looked).await?).map_err(|difference| difference.to_string())?;
    let storage = Arc::new(CrashStorage::new(state.snapshot()));
    let chain = images.open(storage.clone()).await?;
    let range = dice.range(chain.size());
    let data = stamp(range.start(), range.len(), 0xf1_0000);
    chain.write(range, Buf::copy_from(&data)).await.map_err(|error| format!("recovering: {error}"))?;
    chain.top().settle().await.map_err(|error| format!("settling: {error}"))?;
    model.perhaps(range, |model| model.write(range.start(), &data));
    for _ in 0..3 {
        let cut = dice.below(storage.position() + 1);
        figures.cuts += 1;
        for state in storage.states(cut, dice.0).take(STATES) {
            figures.states += 1;
            survives(images, &state, model.clone(), dice)
                .await
                .map_err(|wrong| format!("{} while recovering: {wrong}", state.name()))?;
        }
    }
    Ok(())
}

/// Cuts the power at moments of the past.
async fn judge(work: &Work, figures: &mut Figures) -> Result<(), String> {
    let mut dice = Dice(work.spec.seed);
    for _ in 0..CUTS {
        let cut = dice.below(work.storage.position() + 1);
        let model = work.past.after_power_cut(cut)?;
        let random = work.storage.states(cut, dice.0).take(STATES);
        let orderly = work.storage.corner_states(cut).skip(dice.below(64)).step_by(64).take(1);
        figures.cuts += 1;
        for state in random.chain(orderly) {
            figures.states += 1;
            let failed = |wrong| format!("{}: {wrong}", state.name());
            survives(&work.images, &state, model.clone(), &mut dice).await.map_err(failed)?;
            if dice.below(30) == 0 {
                recovers_again(&work.images, &state, model.clone(), &mut dice, figures)
                    .await
                    .map_err(failed)?;
            }
        }
        // A kill loses nothing that was written, so nothing that was acknowledged.
        let killed = work.storage.killed(cut);
        figures.states += 1;
        survives(&work.images, &killed, work.past.after_kill(cut)?, &mut dice)
            .await
            .map_err(|wrong| format!("{}: {wrong}", killed.name()))?;
    }
    Ok(())
}
