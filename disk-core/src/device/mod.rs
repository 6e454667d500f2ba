//! A disk: a chain behind turns, throttle and accounts.
//!
//! ```text
//!   life      of every request: list, throttle, turn, work, finish
//!   work      what reads and writes do on the chain
//!   blocks    requests that do not start or end on logical blocks
//!   compact   the disk's own work: space back to the host
//! ```
//! Invariant: no request reaches the chain but through `life`, the daemon's own work included; a request that has
//! started is always awaited to its end, and after one that panicked none reaches the chain.

mod blocks;
mod compact;
mod life;
mod work;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::sync::Notify;

use crate::buf::{Buf, Pool};
use crate::chain::{Chain, Pieces, Reading, StatusExtent, ZeroRequest};
use crate::client::Client;
use crate::clock::Moment;
use crate::condition::{Condition, Gauge};
use crate::error::{Error, ErrorKind, Result};
use crate::op::Op;
use crate::planted::{Bug, planted};
use crate::range::ByteRange;
use crate::stats::DiskStats;
use crate::throttle::Throttle;
use crate::tracker::{RequestInfo, Tracker};

pub use life::{Prepared, Started};
use work::Write;

/// A write that is listed and has not begun.
pub type PreparedWrite = Prepared<Write>;

/// Bytes that one hint to read ahead is about at most; what lies behind them is left to later hints.
const CACHE_MOST: u64 = 32 << 20;

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
    tracker: Arc<Tracker>,
    throttle: Arc<Throttle>,
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
            tracker: Arc::default(),
            throttle,
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
        self.tracker.stats()
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
    pub async fn read(self: &Arc<Self>, client: &Client, range: ByteRange) -> Result<Pieces> {
        self.start_read(client, range, &mut Moment::now()).done().await
    }

    /// Starts [`Device::read`] at `clock`, a moment just passed. If it is done on return, `clock` is the moment of that.
    pub fn start_read(
        self: &Arc<Self>,
        client: &Client,
        range: ByteRange,
        clock: &mut Moment,
    ) -> Started<Pieces, impl Future<Output = Result<Pieces>> + Send + use<>> {
        self.start(Op::Read, range, client, clock, Reading::new(range))
    }

    /// Writes `data` at `at`. Once it returns, the write survives the death of this process; with `fua` it is durable.
    ///
    /// # Errors
    /// As [`Device::read`], and [`ErrorKind::ReadOnly`]. After an error each sector of the range is old or new.
    pub async fn write(self: &Arc<Self>, client: &Client, at: u64, data: Buf, fua: bool) -> Result<()> {
        let range = inside(at, data.len() as u64)?;
        self.start_write(client, range, data, fua, &mut Moment::now()).done().await
    }

    /// Starts a [write](Device::write) of `data`, which is as long as `range`, at `clock`, a moment just passed. If it is
    /// done on return, `clock` is the moment of that.
    pub fn start_write(
        self: &Arc<Self>,
        client: &Client,
        range: ByteRange,
        data: Buf,
        fua: bool,
        clock: &mut Moment,
    ) -> Started<(), impl Future<Output = Result<()>> + Send + use<>> {
        self.start(Op::Write, range, client, clock, Write::new(self, range, data, fua))
    }

    /// Lists a [write](Device::write) of `data`, which is as long as `range`, at `began`, a moment just passed, to be
    /// started later, perhaps by another thread. Requests on the same bytes that come after this wait for it.
    ///
    /// # Errors
    /// As [`Device::write`], for what is known already.
    pub fn prepare_write(
        self: &Arc<Self>,
        client: &Client,
        range: ByteRange,
        data: Buf,
        fua: bool,
        began: Moment,
    ) -> Result<PreparedWrite> {
        self.prepare(Op::Write, range, client, began, Write::new(self, range, data, fua))
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
}

fn inside(at: u64, len: u64) -> Result<ByteRange> {
    ByteRange::checked(at, len)
        .ok_or_else(|| Error::new(ErrorKind::OutOfRange, format!("{at}+{len} is past the end of any disk")))
}
