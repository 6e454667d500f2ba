//! Where requests wait for tokens: queues over [`Buckets`], one task with one timer that lets them go.
//!
//! ```text
//!   member a ── read:  r1 r2 r3 ─┐
//!            └─ write: w1        │  first come first served within a member and direction;
//!   member b ── read:  r4       ─┤  members take turns, and so do reads and writes
//!                                ▼
//!                             Buckets ──▶ go
//! ```
//! Invariant: while somebody waits, the dispatcher lives and its timer is set no later than the first moment at
//! which somebody may go. It ends, under the lock, only when nobody waits; so no wake-up can be lost, whoever
//! stops waiting and whenever.

use std::collections::BTreeMap;
use std::future::Future;
use std::ops::Bound;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

use super::bucket::Buckets;
use super::limits::{Dimension, Direction, Limits};
use crate::clock::Moment;
use crate::planted::{Bug, planted};
use crate::sync::{AtomicBool, JoinHandle, Mutex, MutexGuard, spawn, timeout, yield_now};

/// One of those who share a gate.
pub(super) type Member = u64;

/// One set of limits and those who wait for it.
#[derive(Debug)]
pub(super) struct Gate {
    /// Whether any limit is set; a hint for the fast path, the truth is in the state.
    limited: AtomicBool,
    state: Mutex<State>,
    /// Wakes the dispatcher before its time.
    changed: Notify,
    /// Several members: let go in rounds, so that a member whose next request comes when the last is done is not
    /// overtaken by one with a long queue.
    shared: bool,
}

#[derive(Debug)]
struct State {
    limits: Limits,
    buckets: Buckets,
    queues: [Queue; 2],
    /// The direction that goes first when both may.
    first: Direction,
    /// Number of the next waiter: its place in line.
    sequence: u64,
    /// Members that are not throttled now, once for each guard that says so.
    lifted: Vec<Member>,
    dispatcher: Option<JoinHandle<()>>,
}

impl Gate {
    pub(super) fn new(limits: Limits, shared: bool) -> Arc<Gate> {
        Arc::new(Gate {
            limited: AtomicBool::new(!limits.is_unlimited()),
            state: Mutex::new(State {
                limits,
                buckets: Buckets::new(&limits, Moment::now().nanoseconds()),
                queues: Default::default(),
                first: Direction::Read,
                sequence: 0,
                lifted: Vec::new(),
                dispatcher: None,
            }),
            changed: Notify::new(),
            shared,
        })
    }

    /// Takes tokens for one request that comes at `since` if there are some and nobody waits for them, and if `more` says
    /// so too, which is asked last. Returns whether it may go; otherwise nothing is taken.
    pub(super) fn try_enter(
        &self,
        member: Member,
        direction: Direction,
        bytes: u64,
        since: Moment,
        more: impl FnOnce() -> bool,
    ) -> bool {
        // Relaxed: a request that races with a change of limits may see the old or the new ones.
        if !self.limited.load(Ordering::Relaxed) {
            return more();
        }
        let now = since.nanoseconds();
        let mut state = self.lock();
        if state.lifted.contains(&member) {
            return more();
        }
        let goes = state.has_tokens(direction, now) && more();
        if goes {
            state.buckets.charge(direction, bytes);
        }
        goes
    }

    /// Takes tokens for one request that comes at `since` (`None`), or a place in the line of those who wait for them.
    pub(super) fn enter(
        self: &Arc<Self>,
        member: Member,
        direction: Direction,
        bytes: u64,
        since: Moment,
    ) -> Option<Waiting> {
        if !self.limited.load(Ordering::Relaxed) {
            return None;
        }
        let now = since.nanoseconds();
        let mut state = self.lock();
        if state.lifted.contains(&member) {
            return None;
        }
        if state.has_tokens(direction, now) {
            state.buckets.charge(direction, bytes);
            return None;
        }
        // Those who came before go first, as far as tokens reach by now; perhaps this request goes with them.
        let (sender, receiver) = oneshot::channel();
        let first = state.queue(direction).is_empty();
        let place = state.enqueue(member, direction, Waiter { bytes, go: sender });
        state.release(now, self.shared);
        if !state.queue(direction).holds(place) {
            return None;
        }
        let dimension = state.buckets.wait(direction, now).map(|(dimension, _)| dimension);
        // The dispatcher knows of those who wait already. It has to hear of the first one, and of tokens left over.
        self.keep_dispatching(&mut state, first || dimension.is_none());
        Some(Waiting { gate: self.clone(), place, since, dimension, go: receiver })
    }

    /// Other limits, from now on and for those who wait already.
    pub(super) fn set_limits(self: &Arc<Self>, limits: Limits) {
        let now = Moment::now().nanoseconds();
        let mut state = self.lock();
        state.limits = limits;
        state.buckets.set(&limits, now);
        self.limited.store(!limits.is_unlimited(), Ordering::Relaxed);
        // Without limits nobody waits, as those who come now do not even look whether somebody does.
        state.release(now, self.shared && !limits.is_unlimited());
        self.changed.notify_one();
    }

    pub(super) fn limits(&self) -> Limits {
        self.lock().limits
    }

    /// Requests that wait, of one member or of all.
    pub(super) fn waiting(&self, member: Option<Member>) -> usize {
        let state = self.lock();
        state.queues.iter().map(|queue| queue.len(member)).sum()
    }

    /// Lets a member through without limits until [`Gate::restore`] has been called as often as this.
    pub(super) fn lift(&self, member: Member) {
        let mut state = self.lock();
        state.lifted.push(member);
        for queue in &mut state.queues {
            queue.take_line(member).into_values().for_each(Waiter::release);
        }
        self.end_if_idle(&state);
    }

    /// Takes back one [`Gate::lift`].
    pub(super) fn restore(&self, member: Member) {
        let mut state = self.lock();
        if let Some(at) = state.lifted.iter().position(|&lifted| lifted == member) {
            state.lifted.swap_remove(at);
        }
    }

    fn leave(&self, place: Place) {
        let mut state = self.lock();
        state.queues[place.direction as usize].remove(place);
        self.end_if_idle(&state);
    }

    /// Makes sure that somebody looks after those who wait; with `news`, that it looks again now.
    fn keep_dispatching(self: &Arc<Self>, state: &mut State, news: bool) {
        // A dispatcher that is finished without having said so went down with its runtime.
        if state.dispatcher.as_ref().is_none_or(JoinHandle::is_finished) {
            state.dispatcher = Some(spawn(dispatch(self.clone())));
        } else if news {
            self.changed.notify_one();
        }
    }

    fn end_if_idle(&self, state: &State) {
        if state.dispatcher.is_some() && state.nobody_waits() {
            self.changed.notify_one();
        }
    }

    /// Lets go whoever may go. Returns how long to wait until the next may, or `None` when nobody waits and the
    /// dispatcher is done.
    fn release_due(&self) -> Option<Duration> {
        let now = Moment::now().nanoseconds();
        let mut state = self.lock();
        state.release(now, self.shared);
        let pause = state.next_wait(now);
        if pause.is_none() && !planted(Bug::DispatcherEndsUnseen) {
            state.dispatcher = None;
        }
        pause
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn dispatch(gate: Arc<Gate>) {
    while let Some(pause) = gate.release_due() {
        if pause.is_zero() {
            // A round is over. Those who were let go get a chance to come back before the next one.
            yield_now().await;
        } else {
            // Timer or change, the answer is the same: look again.
            let _ = timeout(pause, gate.changed.notified()).await;
        }
    }
}

impl State {
    fn nobody_waits(&self) -> bool {
        self.queues.iter().all(Queue::is_empty)
    }

    /// Whether a request may go before anybody else: nobody waits.
    fn has_tokens(&mut self, direction: Direction, now: u64) -> bool {
        (self.nobody_waits() || planted(Bug::NewcomersFirst)) && self.buckets.lets_go(direction, now)
    }

    fn queue(&mut self, direction: Direction) -> &mut Queue {
        &mut self.queues[direction as usize]
    }

    fn enqueue(&mut self, member: Member, direction: Direction, waiter: Waiter) -> Place {
        let place = Place { member, direction, sequence: self.sequence };
        self.sequence += 1;
        self.queue(direction).push(place, waiter);
        place
    }

    /// Lets go whoever may go at `now`; of a shared gate, about one request of each member.
    fn release(&mut self, now: u64, shared: bool) {
        let round = if shared { self.queues.iter().map(Queue::waiting_members).sum() } else { usize::MAX };
        for _ in 0..round {
            if !self.release_one(now) {
                return;
            }
        }
    }

    fn release_one(&mut self, now: u64) -> bool {
        for direction in [self.first, self.first.other()] {
            if self.queue(direction).is_empty() || self.buckets.wait(direction, now).is_some() {
                continue;
            }
            if let Some(waiter) = self.queue(direction).pop() {
                self.buckets.charge(direction, waiter.bytes);
                self.first = direction.other();
                waiter.release();
                return true;
            }
        }
        false
    }

    /// Time until the next waiter may go; zero if one may go now.
    fn next_wait(&mut self, now: u64) -> Option<Duration> {
        [Direction::Read, Direction::Write]
            .into_iter()
            .filter(|&direction| !self.queues[direction as usize].is_empty())
            .map(|direction| self.buckets.wait(direction, now).map_or(Duration::ZERO, |(_, wait)| wait))
            .min()
    }
}

/// The requests of one direction that wait, a line for each member.
#[derive(Debug, Default)]
struct Queue {
    /// Lines by sequence number, first come first. None of them is empty.
    lines: BTreeMap<Member, BTreeMap<u64, Waiter>>,
    /// Who went last. It is the turn of the next member that waits, in a circle of all: a member keeps its place in
    /// the circle while it has nobody waiting for a moment.
    last: Member,
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    fn waiting_members(&self) -> usize {
        self.lines.len()
    }

    fn len(&self, member: Option<Member>) -> usize {
        match member {
            Some(member) => self.lines.get(&member).map_or(0, BTreeMap::len),
            None => self.lines.values().map(BTreeMap::len).sum(),
        }
    }

    fn holds(&self, place: Place) -> bool {
        self.lines.get(&place.member).is_some_and(|line| line.contains_key(&place.sequence))
    }

    fn push(&mut self, place: Place, waiter: Waiter) {
        self.lines.entry(place.member).or_default().insert(place.sequence, waiter);
    }

    /// The head of the line whose turn it is.
    fn pop(&mut self) -> Option<Waiter> {
        let after = (Bound::Excluded(self.last), Bound::Unbounded);
        let (&member, _) = self.lines.range(after).next().or_else(|| self.lines.first_key_value())?;
        self.last = member;
        let line = self.lines.get_mut(&member)?;
        let (_, waiter) = line.pop_first()?;
        if line.is_empty() {
            self.lines.remove(&member);
        }
        Some(waiter)
    }

    fn remove(&mut self, place: Place) {
        if let Some(line) = self.lines.get_mut(&place.member) {
            line.remove(&place.sequence);
            if line.is_empty() {
                self.lines.remove(&place.member);
            }
        }
    }

    fn take_line(&mut self, member: Member) -> BTreeMap<u64, Waiter> {
        self.lines.remove(&member).unwrap_or_default()
    }
}

#[derive(Debug)]
struct Waiter {
    bytes: u64,
    go: oneshot::Sender<()>,
}

impl Waiter {
    fn release(self) {
        // It cannot have gone away: a waiter leaves the queue first, under the lock.
        let _ = self.go.send(());
    }
}

/// Where in the lines a waiter is.
#[derive(Debug, Clone, Copy)]
struct Place {
    member: Member,
    direction: Direction,
    sequence: u64,
}

/// A request in the line. Resolves when it may go, to the time it has waited and the limit that made it wait (none
/// if it waited only for others). Dropping it leaves the line.
#[derive(Debug)]
pub(super) struct Waiting {
    gate: Arc<Gate>,
    place: Place,
    since: Moment,
    dimension: Option<Dimension>,
    go: oneshot::Receiver<()>,
}

impl Future for Waiting {
    type Output = (Option<Dimension>, Duration);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // An error would mean that the sender is gone, but it lives in the gate until it says go.
        let _ = ready!(Pin::new(&mut self.go).poll(cx));
        Poll::Ready((self.dimension, self.since.elapsed()))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.gate.leave(self.place);
    }
}
