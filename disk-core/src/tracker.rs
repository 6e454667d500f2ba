//! The requests of a disk: a list that can be looked at, turns for those that overlap, drain, and the accounts of those
//! that came to their end.
//!
//! A request is *listed* from [`Tracker::begin`] until its [`Ticket`] is dropped. It takes its place in the order
//! of turns when it asks for its [turn](Ticket::turn), not before, so a request that the throttle holds back holds
//! nobody else back. Two requests conflict if their ranges overlap and at least one is exclusive.
//!
//! Invariant: a request works only when no conflicting request that asked for its turn earlier is still listed.
//! Everybody waits for earlier ones only, so nobody waits in a circle and nobody is overtaken.

use std::future::Future;
use std::mem;
use std::ops::Deref;
use std::pin::Pin;
use std::ptr;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use slab::Slab;
use tokio::sync::Notify;

use crate::clock::Moment;
use crate::error::{Error, ErrorKind, Result};
use crate::op::Op;
use crate::planted::{Bug, planted};
use crate::range::ByteRange;
use crate::stats::{DiskStats, Outcome, WriteEffect};
use crate::sync::{Mutex, MutexGuard};

/// How far a listed request has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Listed; the throttle may be holding it back.
    Throttle,
    /// Waits for earlier requests on the same bytes.
    Overlap,
    /// Has its turn.
    Working,
}

impl Stage {
    /// The name that status and metrics use.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Throttle => "throttle",
            Stage::Overlap => "overlap",
            Stage::Working => "working",
        }
    }
}

/// A listed request, as status shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestInfo {
    /// Number of the request, unique within its disk.
    pub id: u64,
    /// What it does.
    pub op: Op,
    /// The bytes of the disk that it is about, as its turn covers them.
    pub range: ByteRange,
    /// Number of the client that asked; 0 is the daemon itself.
    pub client: u64,
    /// Time since it was listed.
    pub age: Duration,
    /// How far it has come.
    pub stage: Stage,
    /// The earliest request that it waits for.
    pub waiting_for: Option<u64>,
}

/// The requests of one disk.
#[derive(Debug, Default)]
pub struct Tracker {
    state: Mutex<State>,
    /// Told whenever the list becomes empty.
    emptied: Notify,
}

#[derive(Debug, Default)]
struct State {
    last_id: u64,
    closed: bool,
    /// Somebody waits for the list to become empty.
    draining: bool,
    listed: Slab<Entry>,
    busy: Busy,
    /// Accounts of those that came to their end. They are kept here for the sake of the lock, which is held at the end
    /// of a request anyway: counters of their own, shared by all threads, cost several times as much.
    ended: DiskStats,
    /// Those that asked for a turn, oldest first. It is scanned in a line: requests that wait for nothing leave it
    /// before the next one comes, so it holds what is in flight below, tens to hundreds. Who waits for whom is found by
    /// scanning too: noted for each pair it would take a crowd's number squared, gigabytes for a hostile one.
    order: Vec<Claim>,
}

#[derive(Debug)]
struct Entry {
    id: u64,
    op: Op,
    range: ByteRange,
    client: u64,
    began: Moment,
    stage: Stage,
    /// Earlier conflicting requests that are still listed.
    blockers: usize,
    waker: Option<Waker>,
}

#[derive(Debug)]
struct Claim {
    range: ByteRange,
    exclusive: bool,
    key: usize,
}

impl Claim {
    fn conflicts_with(&self, other: &Claim) -> bool {
        let missed = planted(Bug::OverlapOffByOne) && self.range.intersect(&other.range).len() == 1;
        (self.exclusive || other.exclusive) && self.range.overlaps(&other.range) && !missed
    }
}

impl Tracker {
    /// Lists a request that began at `began`, a moment just passed. `range` is what its turn will cover. With `claims`
    /// it asks for its turn in the same step.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`] after [`Tracker::close`].
    pub fn begin(
        &self,
        op: Op,
        range: ByteRange,
        client: u64,
        began: Moment,
        claims: bool,
    ) -> Result<Ticket<&Tracker>> {
        let mut state = self.lock();
        if state.closed {
            return Err(Error::new(ErrorKind::Closed, "the disk is closing"));
        }
        let (id, key) = state.list(op, range, client, began);
        let works = claims && state.claim(key);
        Ok(Ticket { tracker: self, key, id, claimed: claims, works, listed: true })
    }

    /// Lists a request and gives it its turn at once, or not at all: `None` if it would have to wait, or if the
    /// tracker is closed. Whoever needs the turns of several ranges together takes them like this, as waiting for one
    /// while holding another could end in a circle.
    pub fn try_begin(&self, op: Op, range: ByteRange, client: u64) -> Option<Ticket<&Tracker>> {
        let began = Moment::now();
        let mut state = self.lock();
        if state.closed || state.order.iter().any(|claim| claim.range.overlaps(&range)) {
            return None;
        }
        let (id, key) = state.list(op, range, client, began);
        state.claim(key);
        Some(Ticket { tracker: self, key, id, claimed: true, works: true, listed: true })
    }

    /// Every listed request, oldest first.
    pub fn requests(&self) -> Vec<RequestInfo> {
        let state = self.lock();
        let now = Moment::now();
        let mut all: Vec<_> = state
            .listed
            .iter()
            .map(|(key, entry)| RequestInfo {
                id: entry.id,
                op: entry.op,
                range: entry.range,
                client: entry.client,
                age: now.since(entry.began),
                stage: entry.stage,
                waiting_for: state.first_blocker(key, entry),
            })
            .collect();
        all.sort_by_key(|request| request.id);
        all
    }

    /// Number of listed requests.
    pub fn in_flight(&self) -> usize {
        self.lock().listed.len()
    }

    /// The accounts now: of requests that are off the list, and how many of clients are on it.
    pub fn stats(&self) -> DiskStats {
        let state = self.lock();
        let (in_flight, busy) = (state.busy.requests, state.busy.total(Moment::now()));
        DiskStats { in_flight, busy, ..state.ended.clone() }
    }

    /// Counts what was done under tickets that are only dropped.
    pub fn count(&self, outcome: &Outcome) {
        self.lock().ended.record(outcome);
    }

    /// Counts what a write turned out to mean.
    pub fn count_effect(&self, effect: WriteEffect) {
        self.lock().ended.add_effect(effect);
    }

    /// From now on [`Tracker::begin`] fails.
    pub fn close(&self) {
        self.lock().closed = true;
    }

    /// Whether [`Tracker::close`] was called.
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Waits until no request is listed. More may come meanwhile unless it was closed first.
    pub async fn drained(&self) {
        loop {
            let emptied = self.emptied.notified();
            {
                let mut state = self.lock();
                if state.listed.is_empty() {
                    return;
                }
                state.draining = true;
            }
            emptied.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Puts a request on the list. Returns its number and where it is.
    fn list(&mut self, op: Op, range: ByteRange, client: u64, began: Moment) -> (u64, usize) {
        self.last_id += 1;
        let id = self.last_id;
        let (stage, blockers, waker) = (Stage::Throttle, 0, None);
        let key = self.listed.insert(Entry { id, op, range, client, began, stage, blockers, waker });
        if op != Op::Compact {
            self.busy.enter(began);
        }
        (id, key)
    }

    /// Puts a request in the order of turns and counts whom it has to wait for. Returns whether it has its turn.
    fn claim(&mut self, key: usize) -> bool {
        let entry = &mut self.listed[key];
        let claim = Claim { range: entry.range, exclusive: entry.op.is_exclusive(), key };
        entry.blockers = self.order.iter().filter(|earlier| earlier.conflicts_with(&claim)).count();
        let works = entry.blockers == 0;
        entry.stage = if works { Stage::Working } else { Stage::Overlap };
        self.order.push(claim);
        works
    }

    /// Takes a request off the list and lets those go on that waited for it alone.
    fn finish(&mut self, key: usize, claimed: bool, now: Moment, wake: &mut Vec<Waker>) {
        if self.listed[key].op != Op::Compact {
            self.busy.leave(now);
        }
        drop(self.listed.remove(key));
        if !claimed {
            return;
        }
        // Order is kept: who claimed earlier stays earlier.
        let at = self.order.iter().rposition(|claim| claim.key == key);
        let at = at.expect("who claimed is in the order until it finishes");
        let finished = self.order.remove(at);
        for later in self.order[at..].iter().filter(|later| later.conflicts_with(&finished)) {
            let entry = &mut self.listed[later.key];
            entry.blockers -= 1;
            if entry.blockers == 0 {
                entry.stage = Stage::Working;
                wake.extend(entry.waker.take());
            }
        }
    }

    fn first_blocker(&self, key: usize, entry: &Entry) -> Option<u64> {
        if entry.stage != Stage::Overlap {
            return None;
        }
        let own = self.order.iter().find(|claim| claim.key == key)?;
        let earlier = self.order.iter().take_while(|claim| claim.key != key);
        earlier.filter(|claim| claim.conflicts_with(own)).map(|claim| self.listed[claim.key].id).next()
    }
}

/// How many requests are in flight, and how long at least one was: the sum of the periods in which the number was not
/// zero.
#[derive(Debug, Default)]
struct Busy {
    requests: u64,
    /// Of the periods that have ended.
    total: Duration,
    /// When the period began that has not ended, or when the last one ended.
    since: Option<Moment>,
}

impl Busy {
    fn enter(&mut self, now: Moment) {
        if self.requests == 0 {
            // The clock was read before the lock was taken: what another request has counted meanwhile counts once.
            self.since = self.since.max(Some(now));
        }
        self.requests += 1;
    }

    fn leave(&mut self, now: Moment) {
        if self.requests == 1 {
            self.total = self.total(now);
            self.since = self.since.max(Some(now));
        }
        self.requests -= 1;
    }

    fn total(&self, now: Moment) -> Duration {
        match self.since {
            Some(since) if self.requests > 0 => self.total + now.since(since),
            _ => self.total,
        }
    }
}

/// A listed request. Dropping it takes it off the list and passes its turn on. `T` is how it knows its tracker.
#[derive(Debug)]
pub struct Ticket<T: Deref<Target = Tracker>> {
    tracker: T,
    key: usize,
    id: u64,
    claimed: bool,
    /// It had its turn when it was listed.
    works: bool,
    /// It is this ticket that takes it off the list.
    listed: bool,
}

impl<T: Deref<Target = Tracker>> Ticket<T> {
    /// Number of the request, unique within its disk.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Whether it had its turn as soon as it asked, when it was listed.
    pub fn works(&self) -> bool {
        self.works
    }

    /// Waits until no earlier conflicting request is listed. The place in the order is taken by the first poll; a
    /// turn that is dropped while it waits loses nobody's wake-up as long as its ticket is dropped too.
    pub fn turn(&mut self) -> Turn<'_> {
        Turn { tracker: &self.tracker, key: self.key, claimed: &mut self.claimed }
    }

    /// Takes it off the list at `now`, a moment just passed, and counts what became of it.
    pub fn finish(mut self, now: Moment, outcome: &Outcome) {
        self.leave(now, Some(outcome));
    }

    fn leave(&mut self, now: Moment, outcome: Option<&Outcome>) {
        if !mem::take(&mut self.listed) {
            return;
        }
        let mut wake = Vec::new();
        let mut state = self.tracker.lock();
        // First what could fail, however unlikely: nobody waits for it.
        if let Some(outcome) = outcome {
            state.ended.record(outcome);
        }
        state.finish(self.key, self.claimed, now, &mut wake);
        let drained = state.listed.is_empty() && mem::take(&mut state.draining);
        drop(state);
        wake.into_iter().for_each(Waker::wake);
        if drained {
            self.tracker.emptied.notify_waiters();
        }
    }
}

impl Ticket<&Tracker> {
    /// The same request, listed by the same tracker: for one that has to wait, by itself.
    ///
    /// # Panics
    /// If `tracker` is another one.
    pub fn keep(mut self, tracker: Arc<Tracker>) -> Ticket<Arc<Tracker>> {
        assert!(ptr::eq(self.tracker, &*tracker), "a ticket is its tracker's");
        let listed = mem::take(&mut self.listed);
        Ticket { tracker, key: self.key, id: self.id, claimed: self.claimed, works: self.works, listed }
    }
}

impl<T: Deref<Target = Tracker>> Drop for Ticket<T> {
    fn drop(&mut self) {
        if self.listed {
            self.leave(Moment::now(), None);
        }
    }
}

/// Waits for a request's turn.
#[derive(Debug)]
pub struct Turn<'a> {
    tracker: &'a Tracker,
    key: usize,
    claimed: &'a mut bool,
}

impl Future for Turn<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.tracker.lock();
        if !*self.claimed {
            state.claim(self.key);
            *self.claimed = true;
        }
        let mut entry = &mut state.listed[self.key];
        if entry.blockers == 0 {
            return Poll::Ready(());
        }
        if planted(Bug::WakerAfterLook) {
            drop(state);
            state = self.tracker.lock();
            entry = &mut state.listed[self.key];
        }
        match &mut entry.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::poll;
    use std::pin::pin;

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::new(start, end)
    }

    fn load(tracker: &Tracker) -> (u64, Duration) {
        let stats = tracker.stats();
        (stats.in_flight, stats.busy)
    }

    fn begin(tracker: &Tracker, op: Op, range: ByteRange, client: u64) -> Result<Ticket<&Tracker>> {
        tracker.begin(op, range, client, Moment::now(), false)
    }

    #[tokio::test]
    async fn readers_share_and_a_writer_waits_for_all_of_them() {
        let tracker = Tracker::default();
        let mut first = begin(&tracker, Op::Read, range(0, 100), 1).unwrap();
        let mut second = begin(&tracker, Op::Read, range(50, 150), 1).unwrap();
        let mut writer = begin(&tracker, Op::Write, range(90, 95), 2).unwrap();
        assert!(poll!(pin!(first.turn())).is_ready());
        assert!(poll!(pin!(second.turn())).is_ready());
        let mut turn = pin!(writer.turn());
        assert!(poll!(turn.as_mut()).is_pending());
        drop(first);
        assert!(poll!(turn.as_mut()).is_pending(), "one reader is still there");
        drop(second);
        assert!(poll!(turn.as_mut()).is_ready());
    }

    #[tokio::test]
    async fn a_reader_does_not_overtake_a_writer_that_waits() {
        let tracker = Tracker::default();
        let mut reader = begin(&tracker, Op::Read, range(0, 10), 1).unwrap();
        let mut writer = begin(&tracker, Op::Write, range(5, 15), 1).unwrap();
        let mut late = begin(&tracker, Op::Read, range(12, 20), 1).unwrap();
        assert!(poll!(pin!(reader.turn())).is_ready());
        let mut write_turn = pin!(writer.turn());
        assert!(poll!(write_turn.as_mut()).is_pending());
        let mut late_turn = pin!(late.turn());
        assert!(poll!(late_turn.as_mut()).is_pending());
        let listed = tracker.requests();
        assert_eq!(listed[1].waiting_for, Some(listed[0].id));
        assert_eq!(listed[2].waiting_for, Some(listed[1].id), "the late reader waits for the writer alone");
    }

    #[tokio::test]
    async fn a_request_that_has_not_asked_for_its_turn_holds_nobody_back() {
        let tracker = Tracker::default();
        let throttled = begin(&tracker, Op::Write, range(0, 10), 1).unwrap();
        let mut other = begin(&tracker, Op::Write, range(0, 10), 2).unwrap();
        assert!(poll!(pin!(other.turn())).is_ready());
        assert_eq!(tracker.requests()[0].stage, Stage::Throttle);
        drop(throttled);
        assert_eq!(tracker.in_flight(), 1);
    }

    #[tokio::test]
    async fn a_waiting_request_that_gives_up_lets_those_behind_it_go_on() {
        let tracker = Tracker::default();
        let mut reader = begin(&tracker, Op::Read, range(0, 10), 1).unwrap();
        let mut late = begin(&tracker, Op::Read, range(0, 10), 1).unwrap();
        assert!(poll!(pin!(reader.turn())).is_ready());
        {
            let mut writer = begin(&tracker, Op::Write, range(0, 10), 1).unwrap();
            assert!(poll!(pin!(writer.turn())).is_pending());
            assert!(poll!(pin!(late.turn())).is_pending());
        }
        assert!(poll!(pin!(late.turn())).is_ready());
    }

    #[tokio::test]
    async fn drain_ends_when_the_last_request_is_gone_and_a_closed_tracker_takes_no_more() {
        let tracker = Tracker::default();
        let ticket = begin(&tracker, Op::Flush, range(0, 0), 1).unwrap();
        tracker.close();
        assert_eq!(begin(&tracker, Op::Read, range(0, 1), 1).unwrap_err().kind(), ErrorKind::Closed);
        let mut drained = pin!(tracker.drained());
        assert!(poll!(drained.as_mut()).is_pending());
        drop(ticket);
        assert!(poll!(drained.as_mut()).is_ready());
    }

    #[tokio::test]
    async fn a_turn_that_is_not_free_is_not_taken_by_trying() {
        let tracker = Tracker::default();
        let mut reader = begin(&tracker, Op::Read, range(0, 10), 1).unwrap();
        assert!(poll!(pin!(reader.turn())).is_ready());
        assert!(tracker.try_begin(Op::Compact, range(5, 6), 0).is_none());
        assert_eq!(tracker.in_flight(), 1, "the try left nothing behind");
        let held = tracker.try_begin(Op::Compact, range(10, 20), 0).unwrap();
        let mut writer = begin(&tracker, Op::Write, range(15, 16), 1).unwrap();
        let mut turn = pin!(writer.turn());
        assert!(poll!(turn.as_mut()).is_pending());
        drop(held);
        assert!(poll!(turn.as_mut()).is_ready());
    }

    #[tokio::test]
    async fn a_request_on_no_bytes_neither_waits_for_a_writer_around_it_nor_holds_one_up() {
        let tracker = Tracker::default();
        let mut writer = begin(&tracker, Op::Write, range(0, 100), 1).unwrap();
        assert!(poll!(pin!(writer.turn())).is_ready());
        let mut status = begin(&tracker, Op::BlockStatus, range(50, 50), 2).unwrap();
        assert!(poll!(pin!(status.turn())).is_ready());
        drop(writer);
        let mut next = begin(&tracker, Op::Write, range(0, 100), 1).unwrap();
        assert!(poll!(pin!(next.turn())).is_ready());
    }

    #[tokio::test]
    async fn a_request_that_asks_when_it_is_listed_has_its_turn_or_its_place_in_the_order() {
        let tracker = Tracker::default();
        let begin = |op, range| tracker.begin(op, range, 1, Moment::now(), true).unwrap();
        let reader = begin(Op::Read, range(0, 10));
        assert!(reader.works());
        let mut writer = begin(Op::Write, range(5, 15));
        assert!(!writer.works());
        let late = begin(Op::Read, range(12, 20));
        assert!(!late.works(), "it does not overtake the writer");
        reader.finish(Moment::now(), &Outcome::default());
        assert!(poll!(pin!(writer.turn())).is_ready());
    }

    #[test]
    fn time_counts_once_while_requests_overlap_and_not_at_all_while_there_is_none() {
        let (tracker, start) = (Tracker::default(), Moment::now());
        let at = |milliseconds| start.after(Duration::from_millis(milliseconds));
        let enter = |now| tracker.begin(Op::Flush, range(0, 0), 1, at(now), true).unwrap();
        let (first, second) = (enter(1000), enter(2000));
        assert_eq!(tracker.stats().in_flight, 2);
        first.finish(at(3000), &Outcome::default());
        assert_eq!(tracker.stats().in_flight, 1);
        second.finish(at(5000), &Outcome::default());
        assert_eq!(load(&tracker), (0, Duration::from_millis(4000)));
        enter(10_000).finish(at(10_001), &Outcome::default());
        assert_eq!(load(&tracker), (0, Duration::from_millis(4001)));
        // Both read the clock before the period that ended at 10.001 was counted.
        enter(10_000).finish(at(10_002), &Outcome::default());
        enter(9_000).finish(at(9_001), &Outcome::default());
        assert_eq!(load(&tracker), (0, Duration::from_millis(4002)));
        drop(tracker.try_begin(Op::Compact, range(0, 0), 0).unwrap());
        assert_eq!(
            load(&tracker),
            (0, Duration::from_millis(4002)),
            "the daemon's own work is nobody's request"
        );
    }

    #[test]
    fn many_threads_leave_nothing_in_flight_or_uncounted_and_no_time_that_did_not_pass() {
        let (tracker, start) = (Tracker::default(), Moment::now());
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let tracker = &tracker;
                scope.spawn(move || {
                    for at in 0..5_000 {
                        let range = ByteRange::at(thread * 5_000 + at, 1);
                        let ticket = begin(tracker, Op::Write, range, 1).unwrap();
                        ticket.finish(
                            Moment::now(),
                            &Outcome { op: Op::Write, bytes: 1, ..Outcome::default() },
                        );
                    }
                });
            }
        });
        let (in_flight, busy) = load(&tracker);
        assert_eq!(in_flight, 0);
        let writes = tracker.stats().of(Op::Write).clone();
        assert_eq!((writes.operations, writes.bytes, writes.latency.count()), (20_000, 20_000, 20_000));
        assert!(busy > Duration::ZERO && busy <= start.elapsed(), "{busy:?}");
    }

    proptest::proptest! {
        /// Random requests that claim, finish or give up in random order, against the definition: who works now
        /// conflicts with nobody who claimed earlier and is still listed, and everybody else does.
        #[test]
        fn turns_are_as_defined(script in proptest::collection::vec((0u8..4, 0u64..32, 1u64..16, 0usize..64), 1..80)) {
            let tracker = Tracker::default();
            let mut live: Vec<Ticket<&Tracker>> = Vec::new();
            let waker = Waker::noop();
            for (what, start, len, pick) in script {
                match what {
                    0..=1 => {
                        let op = if what == 0 { Op::Read } else { Op::Write };
                        let mut ticket = begin(&tracker, op, ByteRange::at(start, len), 1).unwrap();
                        let _ = Pin::new(&mut ticket.turn()).poll(&mut Context::from_waker(waker));
                        live.push(ticket);
                    }
                    _ if live.is_empty() => {}
                    _ => drop(live.remove(pick % live.len())),
                }
                let listed = tracker.requests();
                for (at, request) in listed.iter().enumerate() {
                    let earlier = listed[..at].iter().find(|e| {
                        (e.op.is_exclusive() || request.op.is_exclusive()) && e.range.overlaps(&request.range)
                    });
                    proptest::prop_assert_eq!(request.stage == Stage::Working, earlier.is_none());
                    proptest::prop_assert_eq!(request.waiting_for, earlier.map(|e| e.id));
                }
            }
        }
    }
}
