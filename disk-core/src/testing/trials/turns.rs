//! Turns of a tracker in every order of events: an executor of one thread that polls requests in an order of its own,
//! wakes them for nothing, lets them give up at any moment, and compares the tracker after each event with an oracle
//! that knows nothing but the definition.
//!
//! Each call into the tracker is one step under its lock, so an order of calls and polls is what threads could do to
//! it; what happens between unlocking and waking is the one thing that is not taken apart.
//!
//! Invariant: the choices decide everything; the same choices give the same run.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};

use proptest::prelude::*;

use crate::clock::Moment;
use crate::error::ErrorKind;
use crate::op::Op;
use crate::range::ByteRange;
use crate::testing::mix;
use crate::testing::model::campaign::Figures;
use crate::tracker::{RequestInfo, Stage, Ticket, Tracker};

/// Bytes of the disk that requests meet on.
const BYTES: u64 = 24;

/// What a request is to do.
#[derive(Debug, Clone)]
pub struct Plan {
    op: Op,
    range: ByteRange,
    /// It takes its turn at once or not at all.
    tries: bool,
    /// Polls of its work after its turn has come.
    work: u8,
}

/// Requests for one tracker.
#[derive(Debug, Clone)]
pub struct Case {
    plans: Vec<Plan>,
    /// The tracker closes at some moment.
    closes: bool,
    seed: u64,
}

/// Crowds of requests that overlap often, each gone through in one random order.
pub fn cases() -> BoxedStrategy<Case> {
    let op = prop_oneof![
        4 => Just(Op::Read),
        4 => Just(Op::Write),
        1 => Just(Op::Discard),
        1 => Just(Op::Flush),
    ];
    let plan = (op, 0..BYTES, 0..8u64, prop::bool::weighted(0.1), 0..3u8).prop_map(
        |(op, start, len, tries, work)| {
            let len = if op == Op::Flush { 0 } else { len.min(BYTES - start) };
            Plan { op, range: ByteRange::at(start, len), tries, work }
        },
    );
    (prop::collection::vec(plan, 1..12), prop::bool::weighted(0.3), any::<u64>())
        .prop_map(|(plans, closes, seed)| Case { plans, closes, seed })
        .boxed()
}

/// Goes through a case in the order that its seed gives.
///
/// # Errors
/// In words: what the tracker did that the definition does not allow.
pub fn trial(case: &Case) -> Result<Figures, String> {
    let mut choices = Random { seed: case.seed, number: 0 };
    Run::new(&Tracker::default(), &case.plans, case.closes).go(&mut choices)?;
    Ok(Figures { operations: case.plans.len() as u64, schedules: 1, ..Figures::default() })
}

/// Goes through every order of events of every set of `requests` requests on two neighbouring bytes. All are listed
/// first, as that order means nothing, and nobody is woken for nothing.
///
/// # Errors
/// As [`trial`].
pub fn every_order(requests: usize) -> Result<Figures, String> {
    let ranges = [ByteRange::new(0, 1), ByteRange::new(1, 2), ByteRange::new(0, 2)];
    let kinds: Vec<Plan> = [Op::Read, Op::Write]
        .into_iter()
        .flat_map(|op| ranges.map(|range| Plan { op, range, tries: false, work: 0 }))
        .collect();
    let mut figures = Figures::default();
    for set in 0..kinds.len().pow(requests as u32) {
        let digits: Vec<usize> =
            (0..requests).map(|number| set / kinds.len().pow(number as u32) % kinds.len()).collect();
        if !digits.is_sorted() {
            // The same requests under other numbers.
            continue;
        }
        let plans: Vec<Plan> = digits.into_iter().map(|kind| kinds[kind].clone()).collect();
        let mut choices = Every::default();
        loop {
            Run::new(&Tracker::default(), &plans, false)
                .go(&mut choices)
                .map_err(|wrong| format!("{plans:?}, {:?}: {wrong}", choices.path))?;
            figures.schedules += 1;
            if !choices.next() {
                break;
            }
        }
        figures.operations += requests as u64;
    }
    Ok(figures)
}

/// Decides which of several things happens next.
trait Choices {
    /// A number below `of`, which is not 0.
    fn choose(&mut self, of: usize) -> usize;

    /// Whether tasks are woken for nothing, now and then.
    fn wakes_for_nothing(&self) -> bool;
}

struct Random {
    seed: u64,
    number: u64,
}

impl Choices for Random {
    fn choose(&mut self, of: usize) -> usize {
        self.number += 1;
        mix(self.seed, self.number) as usize % of
    }

    fn wakes_for_nothing(&self) -> bool {
        true
    }
}

/// Goes through all choices, the last one first, as an odometer does.
#[derive(Default)]
struct Every {
    /// What was chosen, of how many.
    path: Vec<(usize, usize)>,
    at: usize,
}

impl Choices for Every {
    fn choose(&mut self, of: usize) -> usize {
        if self.at == self.path.len() {
            self.path.push((0, of));
        }
        let (chosen, before) = self.path[self.at];
        assert_eq!(before, of, "the same choices lead to the same state");
        self.at += 1;
        chosen
    }

    fn wakes_for_nothing(&self) -> bool {
        false
    }
}

impl Every {
    /// Goes to the next path; false after the last.
    fn next(&mut self) -> bool {
        self.at = 0;
        while let Some((chosen, of)) = self.path.pop() {
            if chosen + 1 < of {
                self.path.push((chosen + 1, of));
                return true;
            }
        }
        false
    }
}

/// A waker that remembers that it was called.
#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// How far a request has come.
enum State<'a> {
    Planned,
    Listed(Ticket<&'a Tracker>),
    Waiting(Ticket<&'a Tracker>, Arc<Flag>),
    /// Whoever works has a ticket and so many polls left.
    Working {
        _ticket: Ticket<&'a Tracker>,
        left: u8,
    },
    Ended,
}

/// What the definition says of a listed request.
#[derive(Debug, Clone)]
struct Listed {
    plan: usize,
    id: u64,
    /// Its place among those who asked for their turn.
    claimed: Option<usize>,
}

/// What can happen next.
#[derive(Debug, Clone, Copy)]
enum Event {
    Begin(usize),
    Poll(usize),
    Work(usize),
    GiveUp(usize),
    Close,
    Drain,
}

/// Somebody who waits until the tracker is empty.
type Drain<'a> = (Pin<Box<dyn Future<Output = ()> + 'a>>, Arc<Flag>);

/// A tracker, requests on their way through it, and what the definition says of them.
struct Run<'a> {
    tracker: &'a Tracker,
    plans: &'a [Plan],
    closes: bool,
    requests: Vec<State<'a>>,
    oracle: Vec<Listed>,
    claims: usize,
    drained: Option<Drain<'a>>,
}

impl<'a> Run<'a> {
    fn new(tracker: &'a Tracker, plans: &'a [Plan], closes: bool) -> Self {
        let requests = plans.iter().map(|_| State::Planned).collect();
        Run { tracker, plans, closes, requests, oracle: Vec::new(), claims: 0, drained: None }
    }

    fn go(mut self, choices: &mut impl Choices) -> Result<(), String> {
        loop {
            let events = self.events(choices);
            if events.is_empty() {
                break;
            }
            let event = events[choices.choose(events.len())];
            self.happen(event)
                .and_then(|()| self.compare())
                .map_err(|wrong| format!("{event:?}: {wrong}"))?;
        }
        match self.oracle.is_empty() {
            true => Ok(()),
            false => Err(format!("nobody is woken any more, but there are {:?}", self.oracle)),
        }
    }

    /// Everything that may happen now. None: all have ended, or a wake-up was lost.
    fn events(&self, choices: &impl Choices) -> Vec<Event> {
        let mut events = Vec::new();
        let first = self.requests.iter().position(|request| matches!(request, State::Planned));
        if let (Some(number), false) = (first, choices.wakes_for_nothing()) {
            return vec![Event::Begin(number)];
        }
        for (number, request) in self.requests.iter().enumerate() {
            match request {
                State::Planned => events.push(Event::Begin(number)),
                State::Listed(_) => events.extend([Event::Poll(number), Event::GiveUp(number)]),
                State::Waiting(_, woken) if woken.0.load(Ordering::SeqCst) => {
                    events.extend([Event::Poll(number), Event::GiveUp(number)]);
                }
                State::Waiting(..) => {}
                State::Working { .. } => events.push(Event::Work(number)),
                State::Ended => {}
            }
        }
        if events.is_empty() {
            return events;
        }
        // What nobody has to do must not hide that nobody else can.
        let waiting = |state: &State<'_>| matches!(state, State::Waiting(..));
        let still = self.requests.iter().enumerate().filter(|(_, state)| waiting(state));
        for (number, _) in still {
            events.push(Event::GiveUp(number));
            if choices.wakes_for_nothing() {
                events.push(Event::Poll(number));
            }
        }
        if choices.wakes_for_nothing() {
            if self.closes && !self.tracker.is_closed() {
                events.push(Event::Close);
            }
            events.push(Event::Drain);
        }
        events
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Begin(number) => self.begin(number),
            Event::Poll(number) => self.poll(number),
            Event::Work(number) => {
                if let State::Working { left: left @ 1.., .. } = &mut self.requests[number] {
                    *left -= 1;
                    return Ok(());
                }
                self.end(number);
                Ok(())
            }
            Event::GiveUp(number) => {
                self.end(number);
                Ok(())
            }
            Event::Close => {
                self.tracker.close();
                Ok(())
            }
            Event::Drain => self.drain(),
        }
    }

    fn begin(&mut self, number: usize) -> Result<(), String> {
        let Plan { op, range, tries, work } = self.plans[number];
        let closed = self.tracker.is_closed();
        if tries {
            let free = self
                .oracle
                .iter()
                .all(|listed| listed.claimed.is_none() || !overlap(&self.plans[listed.plan].range, &range));
            let ticket = self.tracker.try_begin(op, range, 0);
            if ticket.is_some() != (free && !closed) {
                return Err(format!("trying gave {ticket:?}, closed: {closed}, free: {free}"));
            }
            self.requests[number] = match ticket {
                Some(ticket) => {
                    self.list(number, ticket.id(), true);
                    State::Working { _ticket: ticket, left: work }
                }
                None => State::Ended,
            };
            return Ok(());
        }
        self.requests[number] = match self.tracker.begin(op, range, 1, Moment::now(), false) {
            Ok(ticket) if !closed => {
                self.list(number, ticket.id(), false);
                State::Listed(ticket)
            }
            Err(error) if closed && error.kind() == ErrorKind::Closed => State::Ended,
            other => return Err(format!("closed: {closed}, but {other:?}")),
        };
        Ok(())
    }

    fn list(&mut self, plan: usize, id: u64, claims: bool) {
        let claimed = claims.then_some(self.claims);
        self.claims += usize::from(claims);
        self.oracle.push(Listed { plan, id, claimed });
    }

    fn poll(&mut self, number: usize) -> Result<(), String> {
        let (mut ticket, woken) = match std::mem::replace(&mut self.requests[number], State::Ended) {
            State::Listed(ticket) => {
                let place = self.claims;
                self.claims += 1;
                let listed = self.oracle.iter_mut().find(|listed| listed.plan == number);
                listed.expect("it is listed").claimed = Some(place);
                (ticket, Arc::new(Flag::default()))
            }
            State::Waiting(ticket, woken) => (ticket, woken),
            _ => unreachable!("only who waits is polled"),
        };
        // Another waker each time: the tracker has to keep the last one.
        let was_woken = woken.0.load(Ordering::SeqCst);
        let woken = Arc::new(Flag::default());
        let waker = Waker::from(Arc::clone(&woken));
        let come = Pin::new(&mut ticket.turn()).poll(&mut Context::from_waker(&waker)).is_ready();
        let may = self.blocker(number).is_none();
        if come != may {
            return Err(format!("its turn has come: {come}, by the definition: {may}"));
        }
        if was_woken && !come {
            return Err("it was woken before its turn".into());
        }
        self.requests[number] = match come {
            true => State::Working { _ticket: ticket, left: self.plans[number].work },
            false => State::Waiting(ticket, woken),
        };
        Ok(())
    }

    fn end(&mut self, number: usize) {
        self.oracle.retain(|listed| listed.plan != number);
        self.requests[number] = State::Ended;
    }

    /// Somebody waits for the tracker to be empty, or looks whether it is by now.
    fn drain(&mut self) -> Result<(), String> {
        let mut future = match self.drained.take() {
            Some((future, _)) => future,
            None => Box::pin(self.tracker.drained()),
        };
        let woken = Arc::new(Flag::default());
        let waker = Waker::from(Arc::clone(&woken));
        let over = future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        match (over, self.oracle.is_empty()) {
            (true, true) => Ok(()),
            // It was empty in between, and somebody else has come since.
            (false, false) => {
                self.drained = Some((future, woken));
                Ok(())
            }
            (over, empty) => Err(format!("drained: {over}, nobody listed: {empty}")),
        }
    }

    /// The earliest listed request that `number`, which has asked for its turn, has to wait for.
    fn blocker(&self, number: usize) -> Option<u64> {
        let own = self.oracle.iter().find(|listed| listed.plan == number)?;
        let plan = |listed: &Listed| &self.plans[listed.plan];
        self.oracle
            .iter()
            .filter(|other| other.claimed.is_some() && other.claimed < own.claimed)
            .filter(|other| changes(plan(other).op) || changes(plan(own).op))
            .filter(|other| overlap(&plan(other).range, &plan(own).range))
            .min_by_key(|other| other.claimed)
            .map(|other| other.id)
    }

    /// The tracker's list is the oracle's, and everybody whose turn has come knows.
    fn compare(&self) -> Result<(), String> {
        let listed = self.tracker.requests();
        let ids = |requests: &[RequestInfo]| requests.iter().map(|request| request.id).collect::<Vec<_>>();
        let mut expected: Vec<u64> = self.oracle.iter().map(|listed| listed.id).collect();
        expected.sort_unstable();
        if ids(&listed) != expected || self.tracker.in_flight() != expected.len() {
            return Err(format!("listed are {:?}, not {expected:?}", ids(&listed)));
        }
        for own in &self.oracle {
            let request = listed.iter().find(|request| request.id == own.id).expect("just compared");
            let blocker = self.blocker(own.plan);
            let stage = match (own.claimed, blocker) {
                (None, _) => Stage::Throttle,
                (Some(_), None) => Stage::Working,
                (Some(_), Some(_)) => Stage::Overlap,
            };
            let waits_for = if own.claimed.is_some() { blocker } else { None };
            if (request.stage, request.waiting_for) != (stage, waits_for) {
                return Err(format!("{request:?}, not {stage:?} behind {waits_for:?}"));
            }
            if let (State::Waiting(_, woken), None) = (&self.requests[own.plan], blocker)
                && !woken.0.load(Ordering::SeqCst)
            {
                return Err(format!("{request:?}: its turn has come and nobody woke it"));
            }
        }
        match &self.drained {
            Some((_, woken)) if self.oracle.is_empty() && !woken.0.load(Ordering::SeqCst) => {
                Err("the list is empty and who waits for that was not woken".into())
            }
            _ => Ok(()),
        }
    }
}

/// Byte by byte, so that it shares no arithmetic with the tracker.
pub(super) fn overlap(a: &ByteRange, b: &ByteRange) -> bool {
    (a.start()..a.end()).any(|byte| b.start() <= byte && byte < b.end())
}

pub(super) fn changes(op: Op) -> bool {
    !matches!(op, Op::Read | Op::Flush | Op::Cache | Op::BlockStatus)
}
