//! The life of a request, from its first step to its last.
//!
//! ```text
//!   list ────▶ throttle ──▶ turn ──▶ work ──▶ finish
//!   and time   holds no     alone on  the      bytes, errors,
//!              range        its range chain    where the time went
//! ```
//! A read or write that has to wait for none of it is done when [`Device::start`] returns, without a future, a task or
//! an allocation. Otherwise it goes on from where it is in a future of its own.
//!
//! Invariant: a request works only after [`Device::may_work`], under a ticket that has its turn, and [`Device::finish`]
//! ends what has worked.

use std::ops::Deref;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::poll;

use super::{CACHE_MOST, Device};
use crate::client::Client;
use crate::clock::Moment;
use crate::condition::Condition;
use crate::error::{Error, ErrorKind, Result};
use crate::op::Op;
use crate::range::ByteRange;
use crate::stats::Outcome;
use crate::throttle::Direction;
use crate::tracker::{Ticket, Tracker};

/// What came of a request that was started. Most are done at once.
#[derive(Debug)]
pub enum Started<T, F> {
    /// It is done.
    Done(Result<T>),
    /// It waits for something; the future is to be awaited, though the work goes on without it.
    Going(F),
}

impl<T, F: Future<Output = Result<T>>> Started<T, F> {
    /// Waits for its end.
    pub(super) async fn done(self) -> Result<T> {
        match self {
            Started::Done(outcome) => outcome,
            Started::Going(future) => future.await,
        }
    }
}

/// What a request does on the chain when it has its turn.
pub trait Work: Send + 'static {
    type Output: Send;

    /// Begins, and does all of it if nothing has to be waited for. `None`: [`Work::go_on`] does the rest.
    fn begin(&mut self, device: &Device) -> Option<Result<Self::Output>>;

    /// What is left to do.
    fn go_on(self, device: &Device) -> impl Future<Output = Result<Self::Output>> + Send;
}

/// A request that is listed.
pub(super) struct Listed<T: Deref<Target = Tracker>> {
    ticket: Ticket<T>,
    op: Op,
    range: ByteRange,
    began: Moment,
    throttled: Duration,
    waited: Duration,
}

impl Listed<&Tracker> {
    #[inline]
    fn keep(self, tracker: &Arc<Tracker>) -> Listed<Arc<Tracker>> {
        let Listed { ticket, op, range, began, throttled, waited } = self;
        Listed { ticket: ticket.keep(Arc::clone(tracker)), op, range, began, throttled, waited }
    }
}

/// How far a request came before it had to wait.
enum Reached {
    /// The throttle, which has not heard of it.
    Throttle,
    /// Its place in the order of turns.
    Line(Listed<Arc<Tracker>>),
    /// Its turn.
    Turn(Listed<Arc<Tracker>>),
    /// Work on the chain.
    Work(Listed<Arc<Tracker>>),
}

/// A request that is listed, in its place among those on the same bytes, and has not begun to work. Dropping it takes it
/// off the list.
pub struct Prepared<W> {
    device: Arc<Device>,
    client: Client,
    op: Op,
    range: ByteRange,
    began: Moment,
    reached: Reached,
    work: W,
}

impl<W: Work> Prepared<W> {
    /// Whether it has its turn, so that it need not wait for others.
    pub fn has_turn(&self) -> bool {
        matches!(self.reached, Reached::Turn(_))
    }

    /// Starts it, on any thread. If it is done on return, `clock` is the moment of that.
    pub fn start(
        self,
        clock: &mut Moment,
    ) -> Started<W::Output, impl Future<Output = Result<W::Output>> + Send + use<W>> {
        let Prepared { device, client, op, range, began, mut reached, mut work } = self;
        if let Reached::Turn(listed) = reached {
            reached = match device.begin_work(&client, &mut work) {
                Err(error) => return Started::Done(Err(error)),
                Ok(Some(outcome)) => {
                    *clock = Moment::now();
                    device.finish(listed, &client, outcome.as_ref().err(), *clock);
                    return Started::Done(outcome);
                }
                Ok(None) => Reached::Work(listed),
            };
        }
        Started::Going(async move { device.go_on(op, range, &client, began, reached, work).await })
    }
}

impl Device {
    /// Starts a request at `clock`, a moment just passed. If it is done on return, `clock` is the moment of that.
    #[inline]
    pub(super) fn start<W: Work>(
        self: &Arc<Self>,
        op: Op,
        range: ByteRange,
        client: &Client,
        clock: &mut Moment,
        mut work: W,
    ) -> Started<W::Output, impl Future<Output = Result<W::Output>> + Send + use<W>> {
        let began = *clock;
        let reached = match self.list_now(op, range, client, began) {
            Err(error) => return Started::Done(Err(error)),
            Ok(None) => Reached::Throttle,
            Ok(Some(listed)) if !listed.ticket.works() => Reached::Line(listed.keep(&self.tracker)),
            Ok(Some(listed)) => match self.begin_work(client, &mut work) {
                Err(error) => return Started::Done(Err(error)),
                Ok(Some(outcome)) => {
                    *clock = Moment::now();
                    self.finish(listed, client, outcome.as_ref().err(), *clock);
                    return Started::Done(outcome);
                }
                Ok(None) => Reached::Work(listed.keep(&self.tracker)),
            },
        };
        let (device, client) = (Arc::clone(self), client.clone());
        Started::Going(async move { device.go_on(op, range, &client, began, reached, work).await })
    }

    /// Lists a request at `began`, a moment just passed, and leaves its work for later.
    pub(super) fn prepare<W: Work>(
        self: &Arc<Self>,
        op: Op,
        range: ByteRange,
        client: &Client,
        began: Moment,
        work: W,
    ) -> Result<Prepared<W>> {
        let reached = match self.list_now(op, range, client, began)? {
            None => Reached::Throttle,
            Some(listed) if listed.ticket.works() => Reached::Turn(listed.keep(&self.tracker)),
            Some(listed) => Reached::Line(listed.keep(&self.tracker)),
        };
        Ok(Prepared { device: Arc::clone(self), client: client.clone(), op, range, began, reached, work })
    }

    async fn go_on<W: Work>(
        &self,
        op: Op,
        range: ByteRange,
        client: &Client,
        began: Moment,
        reached: Reached,
        mut work: W,
    ) -> Result<W::Output> {
        let listed = match reached {
            Reached::Work(listed) => return self.finish_work(listed, client, work.go_on(self)).await,
            Reached::Turn(listed) => listed,
            Reached::Line(mut listed) => {
                self.wait_for_turn(&mut listed, client).await?;
                listed
            }
            Reached::Throttle => Box::pin(self.turn(op, range, client, began)).await?.keep(&self.tracker),
        };
        match self.begin_work(client, &mut work)? {
            Some(outcome) => {
                self.finish(listed, client, outcome.as_ref().err(), Moment::now());
                outcome
            }
            None => self.finish_work(listed, client, work.go_on(self)).await,
        }
    }

    /// A request as one future.
    pub(super) async fn run<T>(
        &self,
        op: Op,
        range: ByteRange,
        client: &Client,
        work: impl AsyncFnOnce() -> Result<T>,
    ) -> Result<T> {
        let listed = self.turn(op, range, client, Moment::now()).await?;
        self.may_work(client)?;
        self.finish_work(listed, client, work()).await
    }

    /// Lists a request that waits for nothing; `None` if the throttle holds it back, and then nothing has happened.
    #[inline]
    fn list_now(
        &self,
        op: Op,
        range: ByteRange,
        client: &Client,
        began: Moment,
    ) -> Result<Option<Listed<&Tracker>>> {
        self.check_end(op, range)?;
        if let Some((direction, bytes)) = self.cost(op, range)
            && !self.throttle.try_admit(direction, bytes, began)
        {
            return Ok(None);
        }
        // What nothing holds back is listed and has its turn, or its place in the line, in one step.
        Ok(Some(self.list(op, range, client, began, true)?))
    }

    /// Lists a request and waits until it is let through and has its turn.
    async fn turn(
        &self,
        op: Op,
        range: ByteRange,
        client: &Client,
        began: Moment,
    ) -> Result<Listed<&Tracker>> {
        self.check_end(op, range)?;
        let admitted = self.cost(op, range).and_then(|(way, bytes)| self.throttle.admit(way, bytes, began));
        let mut listed = self.list(op, range, client, began, admitted.is_none())?;
        if let Some(admitted) = admitted {
            client.unless_gone(admitted).await?;
            listed.throttled = began.elapsed();
        }
        self.wait_for_turn(&mut listed, client).await?;
        Ok(listed)
    }

    #[inline]
    fn list(
        &self,
        op: Op,
        range: ByteRange,
        client: &Client,
        began: Moment,
        claims: bool,
    ) -> Result<Listed<&Tracker>> {
        let ticket = self.tracker.begin(op, self.turn_range(op, range), client.id(), began, claims)?;
        Ok(Listed { ticket, op, range, began, throttled: Duration::ZERO, waited: Duration::ZERO })
    }

    async fn wait_for_turn<T: Deref<Target = Tracker>>(
        &self,
        listed: &mut Listed<T>,
        client: &Client,
    ) -> Result<()> {
        if listed.ticket.works() {
            return Ok(());
        }
        let mut turn = pin!(listed.ticket.turn());
        if poll!(turn.as_mut()).is_pending() {
            let since = Moment::now();
            client.unless_gone(turn).await?;
            listed.waited = since.elapsed();
        }
        Ok(())
    }

    #[inline]
    fn begin_work<W: Work>(&self, client: &Client, work: &mut W) -> Result<Option<Result<W::Output>>> {
        self.may_work(client)?;
        let _watch = FreezeOnPanic(self);
        Ok(work.begin(self))
    }

    async fn finish_work<T, P: Deref<Target = Tracker>>(
        &self,
        listed: Listed<P>,
        client: &Client,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let outcome = {
            let _watch = FreezeOnPanic(self);
            work.await
        };
        self.finish(listed, client, outcome.as_ref().err(), Moment::now());
        outcome
    }

    /// Accounts for a request that has worked, and takes it off the list.
    #[inline]
    fn finish<T: Deref<Target = Tracker>>(
        &self,
        listed: Listed<T>,
        client: &Client,
        error: Option<&Error>,
        now: Moment,
    ) {
        let Listed { ticket, op, range, began, throttled, waited } = listed;
        let total = now.since(began);
        let error = error.map(Error::kind);
        let spent = Outcome { op, bytes: range.len(), end: range.end(), error, throttled, waited, total };
        self.remember(error);
        if !self.options.slow_io.is_zero() && total >= self.options.slow_io {
            self.log_slow(ticket.id(), client, range, &spent);
        }
        ticket.finish(now, &spent);
    }

    #[inline]
    fn check_end(&self, op: Op, range: ByteRange) -> Result<()> {
        if range.end() <= self.size() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::OutOfRange,
            format!("{} {range} is past the end of {} at {}", op.name(), self.name, self.size()),
        ))
    }

    /// Asked when it is a request's turn, before it touches anything.
    #[inline]
    fn may_work(&self, client: &Client) -> Result<()> {
        if client.is_gone() {
            return Err(Error::new(ErrorKind::Cancelled, "the client is gone"));
        }
        self.usable()
    }

    /// # Errors
    /// [`ErrorKind::Io`] on a frozen disk.
    pub(super) fn usable(&self) -> Result<()> {
        if self.condition() < Condition::Frozen {
            return Ok(());
        }
        let message = format!("{} is frozen: an earlier request ended in a fault of this program", self.name);
        Err(Error::new(ErrorKind::Io, message))
    }

    /// Remembers what a failure says about the disk. A flush is not always one that a client asked for: blocks are
    /// flushed before the map names them.
    pub(super) fn remember(&self, error: Option<ErrorKind>) {
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

    /// What a request counts for in the throttle: its direction and the bytes it moves. A trim of the whole disk moves
    /// none; charged by its length it would stop a limited disk for hours.
    #[inline]
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
    #[inline]
    fn turn_range(&self, op: Op, range: ByteRange) -> ByteRange {
        match op {
            // They look at maps, not at bytes, and one over the whole disk must not hold writers up.
            Op::BlockStatus | Op::Cache | Op::Flush => ByteRange::new(range.start(), range.start()),
            _ => self.in_logical_blocks(range),
        }
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

/// While work on the chain goes on, for a panic in it. Work that images do in tasks of their own ends with
/// [`ErrorKind::Fault`] instead.
pub(super) struct FreezeOnPanic<'a>(pub(super) &'a Device);

impl Drop for FreezeOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.freeze();
        }
    }
}
