//! Every operation of the storages of a chain at work fails, is cut short, is slow or hangs, one in each run: the
//! requests that needed it get its error, nothing else changes, and afterwards everything works again.
//!
//! What the engines make whole themselves, short transfers and interrupted calls, does not reach this height; what is
//! left of a transfer that cannot be made whole does, as a write of which a first part is there.
//!
//! Invariant: in each run one fault strikes, or a trial fails: a fault that did not happen proves nothing.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use proptest::prelude::*;

use crate::buf::{Buf, Pool};
use crate::client::Client;
use crate::condition::Condition;
use crate::device::{Device, DeviceOptions};
use crate::error::{Error, ErrorKind};
use crate::range::ByteRange;
use crate::storage::Storage;
use crate::testing::model::campaign::Figures;
use crate::testing::model::images::{self, ChainSpec, Images, Kind, read_all};
use crate::testing::model::request::{Request, Step};
use crate::testing::model::target::{Answer, Connection, Target, data_of};
use crate::testing::model::{Model, SECTOR};
use crate::testing::{CrashStorage, Fault, Faults, Op};
use crate::throttle::{Limits, Throttle};

/// Runs of one case at most: with more operations than that, every second, third … is struck.
const RUNS: usize = 48;

/// How long a slow operation takes.
const SLOW: Duration = Duration::from_secs(3);
/// How long one takes that hangs, and after what time a request counts as hanging.
const HANG: Duration = Duration::from_secs(3600);
const PATIENCE: Duration = Duration::from_secs(600);
/// Longer than anything is under way.
const REST: Duration = Duration::from_secs(3 * 3600);

/// Steps that a full file system stays full after somebody noticed.
const FULL_STEPS: u32 = 3;

/// A chain and what is asked of it.
#[derive(Debug, Clone)]
pub struct Case {
    chain: ChainSpec,
    steps: Vec<Step>,
    seed: usize,
}

/// Cases of all kinds.
pub fn cases() -> BoxedStrategy<Case> {
    (images::any_chain(), any::<usize>())
        .prop_flat_map(|(chain, seed)| {
            let top = chain.images.last().expect("a chain has at least a base").clone();
            (Just(chain), prop::collection::vec(top.shape(SECTOR).crowded_steps(), 1..12), Just(seed))
        })
        .prop_map(|(chain, steps, seed)| Case { chain, steps, seed })
        .boxed()
}

/// What goes wrong with an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "they are what can go wrong")]
pub enum Effect {
    Fails,
    NoSpace,
    TornSector,
    TornPage,
    Slow,
    Hangs,
}

impl Effect {
    fn of(op: Op) -> &'static [Effect] {
        use Effect::{Fails, Hangs, NoSpace, Slow, TornPage, TornSector};
        match op {
            Op::Write | Op::Zero => &[Fails, NoSpace, TornSector, TornPage, Slow, Hangs],
            Op::Resize => &[Fails, NoSpace, Slow, Hangs],
            Op::Read | Op::Discard | Op::Status | Op::Flush => &[Fails, Slow, Hangs],
        }
    }

    fn fault(self, op: Op) -> Fault {
        match self {
            Effect::Fails if op == Op::Flush => Fault::fail(op, ErrorKind::FlushFailed),
            Effect::Fails => Fault::fail(op, ErrorKind::Io),
            // The file system is full until somebody makes room.
            Effect::NoSpace => Fault::fail(op, ErrorKind::NoSpace).sticky(),
            Effect::TornSector => Fault::tear(op, SECTOR, ErrorKind::Io),
            Effect::TornPage => Fault::tear(op, 4096, ErrorKind::Io),
            Effect::Slow => Fault::delay(op, SLOW),
            Effect::Hangs => Fault::delay(op, HANG),
        }
    }

    fn kind(self, op: Op) -> Option<ErrorKind> {
        match self {
            Effect::Fails if op == Op::Flush => Some(ErrorKind::FlushFailed),
            Effect::Fails | Effect::TornSector | Effect::TornPage => Some(ErrorKind::Io),
            Effect::NoSpace => Some(ErrorKind::NoSpace),
            Effect::Slow | Effect::Hangs => None,
        }
    }
}

/// What a fault was and what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    /// `top` or `parent`.
    pub file: &'static str,
    /// `data`, `metadata`, or `file` for what concerns all of it.
    pub place: &'static str,
    /// What was struck.
    pub op: Op,
    /// How.
    pub effect: Effect,
    /// How it ended for the requests of that time.
    pub outcome: &'static str,
}

/// How often each came.
pub type Table = BTreeMap<Row, u64>;

/// Strikes at the operations of a case in turn, and notes what became of it in `table`.
///
/// # Errors
/// In words: the fault and what was wrong after it.
pub fn trial(case: &Case, table: &RefCell<Table>) -> Result<Figures, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(async {
        let images = Images::build(&case.chain).await?;
        let healthy = Run::start(&images, None).await?.go(&case.steps).await?;
        let mut places = Vec::new();
        for (file, counts) in healthy.counts.iter().enumerate() {
            for (op, count) in counts {
                places.extend((1..=*count).map(|nth| (file, *op, nth)));
            }
        }
        let mut figures = Figures::default();
        let step = places.len().div_ceil(RUNS).max(1);
        for (number, (file, op, nth)) in places.into_iter().enumerate().skip(case.seed % step).step_by(step) {
            let effects = Effect::of(op);
            let effect = effects[number.wrapping_add(case.seed) % effects.len()];
            let plan = Plan { file, op, nth, effect };
            let failed = |wrong| format!("{plan:?}: {wrong}");
            let run = Run::start(&images, Some(plan)).await.map_err(failed)?;
            let run = run.go(&case.steps).await.map_err(failed)?;
            *table.borrow_mut().entry(run.row(plan).map_err(failed)?).or_default() += 1;
            figures.operations += run.operations;
            figures.faults += 1;
        }
        Ok(figures)
    })
}

/// Which operation is struck, and how.
#[derive(Debug, Clone, Copy)]
struct Plan {
    /// Number of the storage: parents first, base first; the top is the last.
    file: usize,
    op: Op,
    nth: u64,
    effect: Effect,
}

/// A disk at work with one fault in its storages.
struct Run<'a> {
    images: &'a Images,
    plan: Option<Plan>,
    disk: Arc<CrashStorage>,
    /// The storages, base first.
    files: Vec<Arc<Faults>>,
    device: Arc<Device>,
    compaction: tokio::task::JoinHandle<()>,
    client: Client,
    model: Model,
    /// A flush has failed since the disk was opened.
    flush_failed: bool,
    full_steps: u32,
    healed: bool,
    /// Operations of each storage until nothing could strike any more.
    counts: Vec<[(Op, u64); Op::ALL.len()]>,
    operations: u64,
    failed: u64,
    hung: bool,
}

impl<'a> Run<'a> {
    async fn start(images: &'a Images, plan: Option<Plan>) -> Result<Run<'a>, String> {
        let disk = Arc::new(CrashStorage::new(images.top.snapshot().named("the top")));
        let all = images.parents().into_iter().chain([disk.clone() as Arc<dyn Storage>]);
        let files: Vec<Arc<Faults>> = all.map(|file| Arc::new(Faults::new(file))).collect();
        if let Some(Plan { file, op, nth, effect }) = plan {
            files[file].inject(effect.fault(op).nth(nth));
        }
        let mut failed = 0;
        let device = match open(images, &files).await {
            Err(_) if struck(&files) > 0 => {
                failed += 1;
                open(images, &files).await?
            }
            outcome => outcome?,
        };
        let compaction = tokio::spawn(Arc::clone(&device).keep_compact());
        Ok(Run {
            images,
            plan,
            disk,
            files,
            device,
            compaction,
            client: Client::new(),
            model: images.model.clone(),
            flush_failed: false,
            full_steps: 0,
            healed: false,
            counts: Vec::new(),
            operations: 0,
            failed,
            hung: false,
        })
    }

    async fn go(mut self, steps: &[Step]) -> Result<Run<'a>, String> {
        for (serial, step) in (1..).zip(steps) {
            self.step(step, serial).await.map_err(|wrong| format!("step {serial}, {step:?}: {wrong}"))?;
        }
        self.end().await.map_err(|wrong| format!("in the end: {wrong}"))?;
        Ok(self)
    }

    async fn step(&mut self, step: &Step, serial: u32) -> Result<(), String> {
        match step {
            Step::One(request) => self.together(std::slice::from_ref(request), serial).await?,
            Step::Together(requests) => self.together(requests, serial).await?,
            Step::Compact | Step::Settle => tokio::time::sleep(Duration::from_millis(250)).await,
            Step::Reopen { clean } => self.reopen(*clean).await?,
        }
        self.notice();
        Ok(())
    }

    /// To be called when something has been asked: has the fault struck, and is it over?
    fn notice(&mut self) {
        let Some(Plan { op, effect, .. }) = self.plan.filter(|_| struck(&self.files) > 0 && !self.healed)
        else {
            return;
        };
        self.flush_failed = op == Op::Flush && effect == Effect::Fails;
        self.full_steps += 1;
        if effect == Effect::NoSpace && self.full_steps == FULL_STEPS {
            self.heal();
        }
    }

    /// Asks all at one time, and judges the answers in the order of arrival.
    async fn together(&mut self, requests: &[Request], serial: u32) -> Result<(), String> {
        let mut data = Vec::new();
        for (number, request) in (0..).zip(requests) {
            if let Request::Status { range, .. } = request {
                self.read_back(*range).await?;
            }
            data.push(self.data_of(request, serial << 4 | number).await?);
        }
        let unsettled = self.model.clone();
        let lost = self.flush_failed;
        let device = Arc::clone(&self.device);
        let connection = Connection { device: &device, client: self.client.clone() };
        let asking = requests.iter().zip(&data).map(|(request, data)| connection.ask(request, data.clone()));
        let mut all = std::pin::pin!(join_all(asking));
        let answers = match tokio::time::timeout(PATIENCE, all.as_mut()).await {
            Ok(answers) => answers,
            Err(_) => {
                self.hung = true;
                others_go_on(&device, &self.client, requests, unsettled).await?;
                all.await
            }
        };
        self.operations += requests.len() as u64;
        let mut failed = Vec::new();
        for ((request, data), answer) in requests.iter().zip(&data).zip(&answers) {
            match (request, answer) {
                (_, Err(error)) if self.is_expected(request, error)? => {
                    if error.kind() == ErrorKind::FlushFailed && device.condition() < Condition::FlushFailed {
                        return Err(format!("{request:?}: the disk is shown as sound after {error}"));
                    }
                    self.model.apply_perhaps(request, data);
                    failed.push(request);
                }
                (Request::Status { .. }, Ok(_)) if requests.len() > 1 => {}
                (_, Ok(_)) if lost && makes_durable(request) => {
                    return Err(format!("{request:?} succeeded after a flush had failed"));
                }
                _ => self.model.judge(request, data, answer)?,
            }
        }
        self.failed += failed.len() as u64;
        for request in failed {
            if let Some(range) = changes(request) {
                self.read_back(range).await?;
            }
        }
        Ok(())
    }

    /// Whether a fault explains the error. It has to say which file it is about.
    fn is_expected(&self, request: &Request, error: &Error) -> Result<bool, String> {
        if matches!(request, Request::Zero { how, .. } if how.fast_only)
            && error.kind() == ErrorKind::Unsupported
        {
            // As without a fault: nothing has changed.
            return Ok(false);
        }
        let Some(Plan { file, op, effect, .. }) =
            self.plan.filter(|_| struck(&self.files) > 0 && !self.healed)
        else {
            return Err(format!("{request:?} failed without a fault: {error}"));
        };
        if Some(error.kind()) != effect.kind(op) {
            return Err(format!("{request:?} failed with something else: {error}"));
        }
        match error.to_string().contains(self.files[file].name()) {
            true => Ok(true),
            false => Err(format!("{request:?}: the error does not name the file: {error}")),
        }
    }

    /// What a request writes. The fault may strike here as well: then it is asked again.
    async fn data_of(&mut self, request: &Request, serial: u32) -> Result<Buf, String> {
        let connection = Connection { device: &self.device, client: self.client.clone() };
        let before = struck(&self.files);
        match data_of(&connection, request, serial, &self.images.model).await {
            Err(_) if struck(&self.files) > before => {
                self.failed += 1;
                data_of(&connection, request, serial, &self.images.model).await
            }
            outcome => outcome,
        }
    }

    /// Reads a range, so that what it holds is known from here on.
    async fn read_back(&mut self, range: ByteRange) -> Result<(), String> {
        let connection = Connection { device: &self.device, client: self.client.clone() };
        let request = Request::Read(range);
        let before = struck(&self.files);
        let nothing = Buf::copy_from(&[]);
        let mut answer = connection.ask(&request, nothing.clone()).await;
        if answer.is_err() && struck(&self.files) > before {
            self.failed += 1;
            answer = connection.ask(&request, nothing).await;
        }
        self.model.judge(&request, &[], &answer)
    }

    async fn reopen(&mut self, clean: bool) -> Result<(), String> {
        if clean && let Err(error) = self.device.close().await {
            self.is_expected(&Request::Flush, &error)?;
            self.failed += 1;
            self.notice();
        } else if clean && self.flush_failed {
            return Err("a disk was closed in order after a flush had failed".into());
        }
        self.compaction.abort();
        tokio::time::sleep(REST).await;
        if self.flush_failed {
            self.heal();
        }
        let before = struck(&self.files);
        self.device = match open(self.images, &self.files).await {
            Err(_) if struck(&self.files) > before => {
                self.failed += 1;
                open(self.images, &self.files).await?
            }
            outcome => outcome?,
        };
        self.compaction = tokio::spawn(Arc::clone(&self.device).keep_compact());
        Ok(())
    }

    fn heal(&mut self) {
        self.files.iter().for_each(|file| file.heal());
        self.flush_failed = false;
        self.healed = true;
    }

    /// The fault is over. What is flushed now is there after a power cut, and files, memory and model agree.
    async fn end(&mut self) -> Result<(), String> {
        if self.flush_failed {
            if self.device.flush(&self.client).await.is_ok() {
                return Err("a flush succeeded after one had failed".into());
            }
            self.failed += 1;
            self.reopen(false).await?;
        }
        tokio::time::sleep(REST).await;
        // A fault that has not struck yet may have done so now, in compaction, or does so here. Whoever flushes next hears
        // of a flush that failed, even if nobody had asked for that one.
        match self.device.flush(&self.client).await {
            Ok(()) => {
                self.notice();
                if self.flush_failed {
                    return Err("a flush succeeded after one had failed in compaction".into());
                }
            }
            Err(error) => {
                self.is_expected(&Request::Flush, &error)?;
                let lost = error.kind() == ErrorKind::FlushFailed;
                if lost && self.device.condition() < Condition::FlushFailed {
                    return Err(format!("the disk is shown as sound after {error}"));
                }
                self.failed += 1;
                self.flush_failed = true;
                self.reopen(false).await?;
            }
        }
        self.heal();
        self.counts = self.files.iter().map(|file| Op::ALL.map(|op| (op, file.count(op)))).collect();
        self.device.flush(&self.client).await.map_err(|error| format!("flush: {error}"))?;
        let now = self.disk.position();
        let cut = self.disk.states(now, 0).next().expect("there is always one");
        let left = self.images.open_as(Arc::new(cut), true).await?;
        let bytes = read_all(&left).await?;
        self.model.settle(0, &bytes).map_err(|difference| format!("after a power cut {difference}"))?;
        let file = self.disk.killed(now);
        self.images.inspect(self.device.chain(), &file, &mut self.model).await?;
        self.device.close().await.map_err(|error| format!("closing: {error}"))?;
        self.compaction.abort();
        let file = self.disk.killed(self.disk.position());
        let left = self.images.open_as(Arc::new(file), true).await?;
        let bytes = read_all(&left).await?;
        self.model.settle(0, &bytes).map_err(|difference| format!("closed {difference}"))
    }

    fn row(&self, plan: Plan) -> Result<Row, String> {
        let Plan { file, op, effect, .. } = plan;
        let struck = self.files[file].struck();
        let (_, range) = struck.first().ok_or("it did not happen")?;
        let top = file + 1 == self.files.len();
        let data = match self.images.spec.images[file].kind {
            Kind::Raw => 0,
            Kind::Vdi { .. } => data_offset(&*self.files[file]),
        };
        let place = match range {
            None => "file",
            Some(range) if range.start() < data => "metadata",
            Some(_) => "data",
        };
        let outcome = match (self.failed, self.hung, effect.kind(op)) {
            (0, true, _) => "others went on, then it succeeded",
            (0, false, None) => "succeeded late",
            (0, false, Some(_)) => "no request failed",
            (_, _, Some(_)) if op == Op::Flush => "failed, as did all flushes until it was opened anew",
            (_, _, Some(_)) => "failed with this error, nothing else changed",
            (failed, _, None) => {
                return Err(format!("{failed} requests failed although none of their work did"));
            }
        };
        Ok(Row { file: if top { "top" } else { "parent" }, place, op, effect, outcome })
    }
}

async fn open(images: &Images, files: &[Arc<Faults>]) -> Result<Arc<Device>, String> {
    let mut all: Vec<Arc<dyn Storage>> =
        files.iter().map(|file| Arc::clone(file) as Arc<dyn Storage>).collect();
    let top = all.pop().expect("a chain has at least a base");
    let chain = images.open_over(all, top, false).await?;
    let throttle = Arc::new(Throttle::new(Limits::default(), None));
    Ok(Arc::new(Device::new("disk".into(), chain, throttle, DeviceOptions::default())))
}

fn struck(files: &[Arc<Faults>]) -> u64 {
    files.iter().map(|file| file.hits()).sum()
}

/// The range that a request changes.
fn changes(request: &Request) -> Option<ByteRange> {
    match request {
        Request::Write { range, .. } | Request::Zero { range, .. } | Request::Discard { range, .. } => {
            Some(*range)
        }
        Request::Read(_) | Request::Status { .. } | Request::Cache(_) | Request::Flush => None,
    }
}

fn makes_durable(request: &Request) -> bool {
    matches!(
        request,
        Request::Flush
            | Request::Write { fua: true, .. }
            | Request::Zero { fua: true, .. }
            | Request::Discard { fua: true, .. }
    )
}

/// While one of `requests` hangs, parts of the disk that none of them changes are read at once. `model` is from before.
async fn others_go_on(
    device: &Arc<Device>,
    client: &Client,
    requests: &[Request],
    mut model: Model,
) -> Result<(), String> {
    let changed = requests.iter().filter_map(changes);
    let busy: Vec<ByteRange> = device.requests().iter().map(|request| request.range).chain(changed).collect();
    let sectors = model.size() / SECTOR;
    for part in 0..8 {
        let range = ByteRange::at(sectors * part / 8 * SECTOR, SECTOR);
        if busy.iter().any(|busy| busy.overlaps(&range)) {
            continue;
        }
        let connection = Connection { device, client: client.clone() };
        let request = Request::Read(range);
        let asked = connection.ask(&request, Buf::copy_from(&[]));
        let answer: Result<Answer, Error> = tokio::time::timeout(Duration::from_secs(1), asked)
            .await
            .map_err(|_| format!("{range} cannot be read while others hang"))?;
        model.judge(&request, &[], &answer)?;
    }
    Ok(())
}

/// Where the blocks of a VDI start in its file, as its header says.
fn data_offset(file: &dyn Storage) -> u64 {
    let read = file.read(0x158, Pool::global().take(4)).now_or_never().expect("memory never waits");
    let bytes = read.expect("a VDI has a header");
    u32::from_le_bytes(bytes[..].try_into().expect("four bytes")).into()
}
