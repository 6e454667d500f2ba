//! A disk: a chain behind turns, throttle and accounts. [`Device::run`] is the life of every request.
//!
//! ```text
//!   begin ──▶ throttle ──▶ turn ──▶ work ──▶ finish
//!   listed    holds no     alone on  the      bytes, errors,
//!   and timed range        its range chain    where the time went
//! ```
//! Invariant: no request reaches the chain but through [`Device::run`], the daemon's own work included; a request that
//! has started is always awaited to its end, and after one that panicked none reaches the chain.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::poll;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::buf::{Buf, Pool};
use crate::chain::{Chain, Piece, Pieces, StatusExtent, WriteEffect, ZeroRequest};
use crate::client::Client;
use crate::condition::{Condition, Gauge};
use crate::error::{Error, ErrorKind, Result};
use crate::format::Space;
use crate::planted::{Bug, planted};
use crate::range::ByteRange;
use crate::stats::{DiskStats, Outcome, Stats};
use crate::throttle::{Direction, Throttle};
use crate::tracker::{Op, RequestInfo, Ticket, Tracker};

/// Blocks that give their place back in one step of compaction, and bytes of them (but at least one block): requests on
/// them wait until all have moved.
const COMPACT_AT_ONCE: usize = 16;
/// See [`COMPACT_AT_ONCE`].
const COMPACT_BYTES: u64 = 32 << 20;

/// Bytes that one hint to read ahead is about at most; what lies behind them is left to later hints.
const CACHE_MOST: u64 = 32 << 20;

/// How long nobody has to discard anything before compaction starts, and how long it waits for busy blocks: a file
/// system trims in bursts, and what it frees last should not be moved first.
const COMPACT_PAUSE: Duration = Duration::from_millis(100);

/// How a disk treats its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceOptions {
    /// Bytes that are written or not written as one; a power of two, 512 or 4096. Requests that do not start or end on
    /// it are carried out by reading the rest of the block first.
    pub logical_block_size: u64,
    /// Discards are carried out; otherwise they succeed and do nothing.
    pub discard: bool,
    /// A request that takes longer is logged, with where its time went. Zero: none is.
    pub slow_io: Duration,
}

impl Default for DeviceOptions {
    fn default() -> Self {
        DeviceOptions { logical_block_size: 512, discard: true, slow_io: Duration::ZERO }
    }
}

/// A disk that takes requests.
#[derive(Debug)]
pub struct Device {
    name: String,
    chain: Chain,
    options: DeviceOptions,
    tracker: Tracker,
    throttle: Arc<Throttle>,
    stats: Stats,
    condition: Gauge,
    /// Discards and zeroes so far: compaction waits until it stands still.
    cleared: AtomicU64,
    clearing: Notify,
}

impl Device {
    /// A disk over a chain. `throttle` may be shared with whoever changes its limits.
    pub fn new(name: String, chain: Chain, throttle: Arc<Throttle>, options: DeviceOptions) -> Self {
        Device {
            name,
            chain,
            options,
            tracker: Tracker::default(),
            throttle,
            stats: Stats::default(),
            condition: Gauge::default(),
            cleared: AtomicU64::new(0),
            clearing: Notify::new(),
        }
    }

    /// Its name in the configuration.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.chain.size()
    }

    /// Whether writes are refused.
    pub fn read_only(&self) -> bool {
        self.chain.read_only()
    }

    /// Its images.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// How it treats its requests.
    pub fn options(&self) -> &DeviceOptions {
        &self.options
    }

    /// Its limits.
    pub fn throttle(&self) -> &Arc<Throttle> {
        &self.throttle
    }

    /// Its accounts, now.
    pub fn stats(&self) -> DiskStats {
        let (in_flight, busy) = self.tracker.load();
        DiskStats { in_flight, busy, ..self.stats.snapshot() }
    }

    /// The worst that happened to it since it was opened.
    pub fn condition(&self) -> Condition {
        self.condition.now()
    }

    /// Its requests in flight, oldest first.
    pub fn requests(&self) -> Vec<RequestInfo> {
        self.tracker.requests()
    }

    /// Reads a range.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfRange`] past the end, [`ErrorKind::Closed`], [`ErrorKind::Cancelled`] if the client left
    /// before it started, and what the storage says.
    pub async fn read(&self, client: &Client, range: ByteRange) -> Result<Pieces> {
        self.run(Op::Read, range, client, || self.chain.read(range)).await
    }

    /// Writes `data` at `at`. Once it returns, the write survives the death of this process; with `fua` it is durable.
    ///
    /// # Errors
    /// As [`Device::read`], and [`ErrorKind::ReadOnly`]. After an error each sector of the range is old or new.
    pub async fn write(&self, client: &Client, at: u64, data: Buf, fua: bool) -> Result<()> {
        let range = self.inside(at, data.len() as u64)?;
        self.run(Op::Write, range, client, async || {
            let effect = if range.is_aligned(self.options.logical_block_size) {
                self.chain.write(range, data).await?
            } else {
                Box::pin(self.write_unaligned(range, data)).await?
            };
            self.stats.add_effect(effect);
            if effect.freed {
                self.note_clearing();
            }
            if fua { self.sync().await } else { Ok(()) }
        })
        .await
    }

    /// Makes a range read as zeroes; with `fua` durably.
    ///
    /// # Errors
    /// As [`Device::write`]; [`ErrorKind::Unsupported`] if it was to be fast and cannot be.
    pub async fn write_zeroes(
        &self,
        client: &Client,
        range: ByteRange,
        how: ZeroRequest,
        fua: bool,
    ) -> Result<()> {
        self.run(Op::WriteZeroes, range, client, async || {
            let how = ZeroRequest { may_free: how.may_free && self.options.discard, ..how };
            let (head, whole, tail) = self.around_logical_blocks(range);
            if how.fast_only && whole != range {
                return Err(Error::new(ErrorKind::Unsupported, "parts of blocks are zeroed by writing"));
            }
            if !whole.is_empty() {
                self.chain.zero(whole, how).await?;
            }
            for edge in [head, tail].into_iter().filter(|edge| !edge.is_empty()) {
                let mut zeroes = Pool::global().take(edge.len() as usize);
                zeroes.fill(0);
                self.write_edge(edge, &zeroes).await?;
            }
            self.note_clearing();
            if fua && !planted(Bug::DropFuaOnZeroes) { self.sync().await } else { Ok(()) }
        })
        .await
    }

    /// Gives the space of a range back; it reads as before or as zeroes afterwards. With `fua` durably.
    ///
    /// # Errors
    /// As [`Device::write`].
    pub async fn discard(&self, client: &Client, range: ByteRange, fua: bool) -> Result<()> {
        self.run(Op::Discard, range, client, async || {
            let (_, whole, _) = self.around_logical_blocks(range);
            if self.read_only() {
                return Err(Error::new(ErrorKind::ReadOnly, format!("{} is read-only", self.name)));
            }
            if self.options.discard && !whole.is_empty() {
                self.chain.discard(whole).await?;
                self.note_clearing();
            }
            if fua { self.sync().await } else { Ok(()) }
        })
        .await
    }

    /// Makes everything durable that completed, for any client, before this was called.
    ///
    /// # Errors
    /// What the storage says; after one failure every later flush fails.
    pub async fn flush(&self, client: &Client) -> Result<()> {
        self.run(Op::Flush, ByteRange::new(0, 0), client, || self.sync()).await
    }

    /// Asks the host to have a range in memory soon: its first 32 MiB, or as much as the host is free to read.
    ///
    /// # Errors
    /// As [`Device::read`].
    pub async fn cache(&self, client: &Client, range: ByteRange) -> Result<()> {
        self.run(Op::Cache, range, client, async || {
            self.chain.prefetch(range.split_at(CACHE_MOST).0);
            Ok(())
        })
        .await
    }

    /// Which parts of a range hold data, in at most `most` extents; fewer bytes than asked for if there are more.
    ///
    /// # Errors
    /// As [`Device::read`].
    pub async fn block_status(
        &self,
        client: &Client,
        range: ByteRange,
        most: usize,
    ) -> Result<Vec<StatusExtent>> {
        self.run(Op::BlockStatus, range, client, || self.chain.status(range, most)).await
    }

    /// Waits until no request is in flight, letting throttled ones go. More may come meanwhile.
    pub async fn drain(&self) {
        let _lifted = self.throttle.lift();
        self.tracker.drained().await;
    }

    /// Takes no more requests, waits for those in flight, and leaves the image durable and as other programs like it.
    ///
    /// # Errors
    /// If the image could not be brought in order or flushed; it is as after a crash then, and nothing flushed is lost.
    pub async fn close(&self) -> Result<()> {
        self.tracker.close();
        self.clearing.notify_waiters();
        self.drain().await;
        self.usable()?;
        if self.read_only() {
            return Ok(());
        }
        self.chain.top().settle().await?;
        self.sync().await
    }

    /// Gives the space of discarded blocks back for as long as the disk is open. To be spawned once a disk.
    pub async fn keep_compact(self: Arc<Self>) {
        if self.read_only() || self.chain.top().info().space != Space::Blocks {
            return;
        }
        let mut failed = false;
        loop {
            let news = self.clearing.notified();
            if self.tracker.is_closed() {
                return;
            }
            if failed || self.chain.top().compactable().is_empty() {
                news.await;
            }
            self.calm().await;
            let outcome = self.compact().await;
            failed = outcome.is_err();
            if let Err(error) = outcome {
                tracing::warn!(diskchain.disk = %self.name, %error, "cannot give freed space back for now");
            }
        }
    }

    /// Every request's life. `work` makes its future when it is its turn: made before, it would take its place in the
    /// request's own future twice, and all of that is moved for every request.
    async fn run<T>(
        &self,
        op: Op,
        range: ByteRange,
        client: &Client,
        work: impl AsyncFnOnce() -> Result<T>,
    ) -> Result<T> {
        if range.end() > self.size() {
            return Err(Error::new(
                ErrorKind::OutOfRange,
                format!("{} {range} is past the end of {} at {}", op.name(), self.name, self.size()),
            ));
        }
        let began = Instant::now();
        let mut spent = Outcome { op, bytes: range.len(), end: range.end(), ..Outcome::default() };
        let admitted = self.cost(op, range).and_then(|(way, bytes)| self.throttle.admit(way, bytes, began));
        // What nothing holds back is listed and has its turn in one step.
        let claims = admitted.is_none();
        let mut ticket = self.tracker.begin(op, self.turn_range(op, range), client.id(), began, claims)?;
        // Waiting is boxed, so that the future of a request that waits for nothing stays small.
        if let Some(admitted) = admitted {
            Box::pin(client.unless_gone(admitted)).await?;
            spent.throttled = began.elapsed();
        }
        if !ticket.works() {
            spent.waited = Box::pin(wait_for_turn(&mut ticket, client)).await?;
        }
        if client.is_gone() {
            return Err(Error::new(ErrorKind::Cancelled, "the client is gone"));
        }
        self.usable()?;
        let outcome = {
            let _watch = FreezeOnPanic(self);
            work().await
        };
        let now = Instant::now();
        spent.total = now.saturating_duration_since(began);
        spent.error = outcome.as_ref().err().map(Error::kind);
        self.remember(spent.error);
        self.stats.record(&spent);
        if !self.options.slow_io.is_zero() && spent.total >= self.options.slow_io {
            self.log_slow(ticket.id(), client, range, &spent);
        }
        ticket.finish(now);
        outcome
    }

    /// # Errors
    /// [`ErrorKind::Io`] on a frozen disk.
    fn usable(&self) -> Result<()> {
        if self.condition() < Condition::Frozen {
            return Ok(());
        }
        let message = format!("{} is frozen: an earlier request ended in a fault of this program", self.name);
        Err(Error::new(ErrorKind::Io, message))
    }

    /// Remembers what a failure says about the disk. A flush is not always one that a client asked for: blocks are
    /// flushed before the map names them.
    fn remember(&self, error: Option<ErrorKind>) {
        let condition = match error {
            Some(ErrorKind::Corrupt) => Condition::Corrupt,
            Some(ErrorKind::FlushFailed) => Condition::FlushFailed,
            Some(ErrorKind::Fault) => return self.freeze(),
            _ => return,
        };
        self.condition.worsen(condition);
    }

    /// Nobody may trust the disk any more. The others are not concerned.
    fn freeze(&self) {
        if self.condition.worsen(Condition::Frozen) {
            tracing::error!(
                diskchain.disk = %self.name,
                "frozen: a request ended in a fault of this program; start it anew and check the image"
            );
        }
    }

    /// Flushes the chain, and remembers if that failed.
    async fn sync(&self) -> Result<()> {
        if planted(Bug::LieAfterFailedSync) && self.condition() == Condition::FlushFailed {
            return Ok(());
        }
        let outcome = self.chain.flush().await;
        if outcome.is_err() {
            self.condition.worsen(Condition::FlushFailed);
        }
        outcome
    }

    /// What a request counts for in the throttle: its direction and the bytes it moves. A trim of the whole disk moves
    /// none; charged by its length it would stop a limited disk for hours.
    fn cost(&self, op: Op, range: ByteRange) -> Option<(Direction, u64)> {
        match op {
            Op::Read => Some((Direction::Read, range.len())),
            Op::Write => Some((Direction::Write, range.len())),
            Op::WriteZeroes if self.chain.top().storage().limits().fast_zero => Some((Direction::Write, 0)),
            Op::WriteZeroes => Some((Direction::Write, range.len())),
            Op::Discard => Some((Direction::Write, 0)),
            // What is read ahead is read.
            Op::Cache => Some((Direction::Read, range.len().min(CACHE_MOST))),
            Op::Flush | Op::BlockStatus | Op::Compact => None,
        }
    }

    /// What the turn of a request covers: whole logical blocks, as parts of them are read and written with the rest.
    fn turn_range(&self, op: Op, range: ByteRange) -> ByteRange {
        match op {
            // They look at maps, not at bytes, and one over the whole disk must not hold writers up.
            Op::BlockStatus | Op::Cache | Op::Flush => ByteRange::new(range.start(), range.start()),
            _ => self.in_logical_blocks(range),
        }
    }

    fn in_logical_blocks(&self, range: ByteRange) -> ByteRange {
        range.align_out(self.options.logical_block_size).intersect(&ByteRange::new(0, self.size()))
    }

    /// A range as the part before its first whole logical block, the whole ones, and the part after. A block that the
    /// disk's end cuts off counts as whole.
    fn around_logical_blocks(&self, range: ByteRange) -> (ByteRange, ByteRange, ByteRange) {
        let block = self.options.logical_block_size;
        let start = range.start().next_multiple_of(block);
        let end = if range.end() == self.size() { range.end() } else { range.end() - range.end() % block };
        if start >= end {
            let none = ByteRange::new(range.end(), range.end());
            return (range, none, none);
        }
        (ByteRange::new(range.start(), start), ByteRange::new(start, end), ByteRange::new(end, range.end()))
    }

    /// Writes what does not start or end on logical blocks: the whole ones as they are, the two edges with the rest of
    /// their blocks.
    async fn write_unaligned(&self, range: ByteRange, data: Buf) -> Result<WriteEffect> {
        let (head, whole, tail) = self.around_logical_blocks(range);
        let part = |of: ByteRange| {
            data.slice((of.start() - range.start()) as usize..(of.end() - range.start()) as usize)
        };
        let mut effect = self.chain.write(whole, part(whole)).await?;
        for edge in [head, tail].into_iter().filter(|edge| !edge.is_empty()) {
            effect += self.write_edge(edge, &part(edge)).await?;
        }
        Ok(effect)
    }

    /// Writes bytes that cover parts of one or two logical blocks together with the rest of those blocks.
    async fn write_edge(&self, range: ByteRange, data: &[u8]) -> Result<WriteEffect> {
        let whole = self.in_logical_blocks(range);
        if whole == range {
            return self.chain.write(range, Buf::copy_from(data)).await;
        }
        let mut merged = Pool::global().take(whole.len() as usize);
        let head = (range.start() - whole.start()) as usize;
        merged[head..head + data.len()].copy_from_slice(data);
        for edge in [ByteRange::new(whole.start(), range.start()), ByteRange::new(range.end(), whole.end())] {
            let mut at = (edge.start() - whole.start()) as usize;
            for piece in self.chain.read(edge).await? {
                let part = &mut merged[at..at + piece.len() as usize];
                match &piece {
                    Piece::Data(bytes) => part.copy_from_slice(bytes),
                    Piece::Hole(_) => part.fill(0),
                }
                at += part.len();
            }
        }
        self.chain.write(whole, merged.freeze()).await
    }

    fn inside(&self, at: u64, len: u64) -> Result<ByteRange> {
        ByteRange::checked(at, len).ok_or_else(|| {
            Error::new(ErrorKind::OutOfRange, format!("{at}+{len} is past the end of any disk"))
        })
    }

    fn note_clearing(&self) {
        self.cleared.fetch_add(1, Ordering::Relaxed);
        self.clearing.notify_one();
    }

    /// Waits until nobody has discarded anything for a moment.
    async fn calm(&self) {
        loop {
            let before = self.cleared.load(Ordering::Relaxed);
            tokio::time::sleep(COMPACT_PAUSE).await;
            if self.cleared.load(Ordering::Relaxed) == before {
                return;
            }
        }
    }

    /// One step of giving space back: the blocks that are free to move, all at once. Nothing on a closed disk.
    async fn compact(&self) -> Result<()> {
        let began = Instant::now();
        // It is in flight even if no block is free to move: closing waits for it.
        let Some(listed) = self.tracker.try_begin(Op::Compact, ByteRange::new(0, 0), 0) else {
            return Ok(());
        };
        let mut tickets = vec![listed];
        let mut blocks = Vec::new();
        let most = (COMPACT_BYTES / self.chain.top().info().block_size).max(1) as usize;
        for block in self.chain.top().compactable().into_iter().take(most.min(COMPACT_AT_ONCE)) {
            if let Some(ticket) = self.tracker.try_begin(Op::Compact, block, 0) {
                tickets.push(ticket);
                blocks.push(block);
            }
        }
        self.usable()?;
        let outcome = {
            let _watch = FreezeOnPanic(self);
            self.chain.top().compact(&blocks).await
        };
        let bytes = blocks.iter().map(ByteRange::len).sum();
        let error = outcome.as_ref().err().map(Error::kind);
        let total = began.elapsed();
        self.remember(error);
        self.stats.record(&Outcome { op: Op::Compact, bytes, total, error, ..Outcome::default() });
        outcome
    }

    fn log_slow(&self, id: u64, client: &Client, range: ByteRange, spent: &Outcome) {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        tracing::warn!(
            diskchain.disk = %self.name,
            diskchain.client = client.id(),
            request = id,
            op = spent.op.name(),
            offset = range.start(),
            length = range.len(),
            total_ms = ms(spent.total),
            throttle_ms = ms(spent.throttled),
            overlap_ms = ms(spent.waited),
            work_ms = ms(spent.total.saturating_sub(spent.throttled + spent.waited)),
            "slow request"
        );
    }
}

/// Returns how long that took; nothing if it was free.
async fn wait_for_turn(ticket: &mut Ticket<'_>, client: &Client) -> Result<Duration> {
    let mut turn = pin!(ticket.turn());
    if poll!(turn.as_mut()).is_ready() {
        return Ok(Duration::ZERO);
    }
    let since = Instant::now();
    client.unless_gone(turn).await?;
    Ok(since.elapsed())
}

/// While work on the chain goes on, for a panic in it. Work that images do in tasks of their own ends with
/// [`ErrorKind::Fault`] instead.
struct FreezeOnPanic<'a>(&'a Device);

impl Drop for FreezeOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.freeze();
        }
    }
}
