//! Threads that ask a tracker for turns.
//!
//! What the oracle knows of each request is when calls about it began and ended. One that has asked before another
//! began to ask is earlier; of two that asked at the same time either may be. So it never says more than the definition
//! does, whatever the threads do in between.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};

use proptest::prelude::*;
use shuttle::future::block_on;
use shuttle::thread;

use super::{add, explore, pause};
use crate::client::Client;
use crate::clock::Moment;
use crate::op::Op;
use crate::range::ByteRange;
use crate::stats::Outcome;
use crate::testing::model::campaign::Figures;
use crate::testing::trials::turns::{changes, overlap};
use crate::tracker::{RequestInfo, Stage, Ticket, Tracker};

/// Bytes of the disk that requests meet on.
const BYTES: u64 = 8;

/// When a request asks for its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asks {
    /// When it is listed.
    Listed,
    /// Later, as one that the throttle has held back.
    Later,
    /// When it is listed, and it goes away if it would have to wait.
    OrNot,
}

#[derive(Debug, Clone)]
struct Plan {
    op: Op,
    range: ByteRange,
    asks: Asks,
    /// Moments that its work takes.
    work: u8,
}

/// What one thread does.
#[derive(Debug, Clone)]
struct ClientPlan {
    requests: Vec<Plan>,
    /// It is told to leave, after so many moments.
    leaves: Option<u8>,
}

/// Threads of one tracker.
#[derive(Debug, Clone)]
pub struct Case {
    clients: Vec<ClientPlan>,
    /// Threads that wait for an empty list, and after how many moments they begin to.
    drains: Vec<u8>,
    /// The first of them closes the tracker before.
    closes: bool,
    seed: u64,
}

/// A few clients with a few requests each, most of which overlap.
pub fn cases() -> BoxedStrategy<Case> {
    let op = prop_oneof![3 => Just(Op::Read), 4 => Just(Op::Write), 1 => Just(Op::Flush)];
    let asks = prop_oneof![5 => Just(Asks::Listed), 2 => Just(Asks::Later), 1 => Just(Asks::OrNot)];
    let plan = (op, 0..BYTES, 1..6u64, asks, 0..3u8).prop_map(|(op, start, len, asks, work)| {
        let len = if op == Op::Flush { 0 } else { len.min(BYTES - start) };
        Plan { op, range: ByteRange::at(start, len), asks, work }
    });
    let leaves = prop::option::weighted(0.4, 0..12u8);
    let client = (prop::collection::vec(plan, 1..4), leaves)
        .prop_map(|(requests, leaves)| ClientPlan { requests, leaves });
    let drains = prop::collection::vec(0..8u8, 0..3);
    (prop::collection::vec(client, 2..5), drains, any::<bool>(), any::<u64>())
        .prop_map(|(clients, drains, closes, seed)| Case { clients, drains, closes, seed })
        .boxed()
}

/// What was reached, so that a campaign can say that it was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reached {
    /// Requests that were listed.
    pub listed: u64,
    /// Those that had to wait and got their turn.
    pub waited: u64,
    /// Those whose client left before they had their turn.
    pub cancelled: u64,
    /// Those that came to a closed tracker.
    pub refused: u64,
    /// Those that did not get their turn by trying.
    pub tried_in_vain: u64,
    /// Drains that had to wait, while requests were listed.
    pub drained: u64,
}

impl std::ops::Add for Reached {
    type Output = Reached;

    fn add(self, other: Reached) -> Reached {
        Reached {
            listed: self.listed + other.listed,
            waited: self.waited + other.waited,
            cancelled: self.cancelled + other.cancelled,
            refused: self.refused + other.refused,
            tried_in_vain: self.tried_in_vain + other.tried_in_vain,
            drained: self.drained + other.drained,
        }
    }
}

/// Goes through many schedules of a case.
///
/// # Errors
/// In words: what the tracker did that the definition does not allow.
pub fn trial(case: &Case, reached: &Cell<Reached>) -> Result<Figures, String> {
    let case = Arc::new(case.clone());
    let (schedules, sum) = explore(case.seed, move || execute(&case))?;
    add(reached, sum);
    Ok(super::figures(schedules, sum.listed))
}

/// The threads of one schedule.
fn execute(case: &Arc<Case>) -> Reached {
    let late = case.clients.iter().flat_map(|client| &client.requests).any(|plan| plan.asks == Asks::Later);
    let world = Arc::new(World::default());
    let mut threads = Vec::new();
    let spawn = |body: Box<dyn FnOnce(&World) + Send>| {
        let world = Arc::clone(&world);
        thread::spawn(move || body(&world))
    };
    for plan in case.clients.clone() {
        let client = Client::new();
        if let Some(moments) = plan.leaves {
            let client = client.clone();
            threads.push(spawn(Box::new(move |_| {
                pause(moments);
                client.leave();
            })));
        }
        threads.push(spawn(Box::new(move |world| {
            plan.requests.iter().for_each(|plan| world.request(&client, plan));
        })));
    }
    for (number, &moments) in case.drains.iter().enumerate() {
        let closes = case.closes && number == 0;
        threads.push(spawn(Box::new(move |world| {
            pause(moments);
            world.drain(closes);
        })));
    }
    threads.push(spawn(Box::new(move |world| (0..3).for_each(|_| world.look(late)))));
    for thread in threads {
        thread.join().expect("a thread that panics ends the execution");
    }
    assert_eq!((world.tracker.in_flight(), world.tracker.stats().in_flight), (0, 0), "all have left");
    world.oracle(|oracle| oracle.reached)
}

/// A tracker and what is known of those who use it.
#[derive(Default)]
struct World {
    tracker: Tracker,
    oracle: Mutex<Oracle>,
}

/// A moment: the number of a note.
type Tick = u64;

#[derive(Default)]
struct Oracle {
    now: Tick,
    requests: Vec<Request>,
    /// When the call that closed the tracker began and ended.
    closing: Option<Tick>,
    closed: Option<Tick>,
    /// A drain of the closed tracker has ended.
    over: bool,
    reached: Reached,
}

struct Request {
    plan: Plan,
    /// When the calls ended that listed it and that asked for its turn, and when the latter began.
    listed: Option<Tick>,
    asking: Option<Tick>,
    asked: Option<Tick>,
    started: bool,
    /// When the call that takes it off the list began and ended.
    leaving: Option<Tick>,
    left: Option<Tick>,
}

impl Request {
    fn conflicts_with(&self, other: &Request) -> bool {
        (changes(self.plan.op) || changes(other.plan.op)) && overlap(&self.plan.range, &other.plan.range)
    }
}

/// Whether the first is there and before the second.
fn before(first: Option<Tick>, second: Option<Tick>) -> bool {
    matches!((first, second), (Some(first), Some(second)) if first < second)
}

impl Oracle {
    fn tick(&mut self) -> Tick {
        self.now += 1;
        self.now
    }

    /// A request has its turn.
    fn starts(&mut self, number: usize) {
        let own = &self.requests[number];
        for other in self.requests.iter().filter(|other| other.conflicts_with(own)) {
            if std::ptr::eq(other, own) || other.leaving.is_some() {
                continue;
            }
            assert!(!other.started, "{:?} works beside {:?}", own.plan, other.plan);
            assert!(!before(other.asked, own.asking), "{:?} overtook {:?}", own.plan, other.plan);
        }
        self.requests[number].started = true;
    }

    /// A request does not have its turn; somebody it waits for must have been there at `since` or later.
    fn waits(&self, number: usize, since: Tick, blocks: impl Fn(&Request, &Request) -> bool) {
        let own = &self.requests[number];
        let somebody = self.requests.iter().any(|other| {
            !std::ptr::eq(other, own)
                && blocks(other, own)
                && other.asking.is_some()
                && !before(own.asked, other.asking)
                && !before(other.left, Some(since))
        });
        assert!(somebody, "{:?} waits for nobody", own.plan);
    }
}

impl World {
    fn oracle<T>(&self, note: impl FnOnce(&mut Oracle) -> T) -> T {
        note(&mut self.oracle.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// One request from its beginning to its end.
    fn request(&self, client: &Client, plan: &Plan) {
        let (number, began) = self.oracle(|oracle| {
            let now = oracle.tick();
            let asking = (plan.asks != Asks::Later).then_some(now);
            let plan = plan.clone();
            let (listed, asked, started, leaving, left) = (None, None, false, None, None);
            oracle.requests.push(Request { plan, listed, asking, asked, started, leaving, left });
            (oracle.requests.len() - 1, now)
        });
        let Some(mut ticket) = self.list(client, plan, number, began) else {
            // It never was there, so nobody waits for it.
            self.oracle(|oracle| oracle.requests[number].asking = None);
            return;
        };
        if ticket.works() {
            self.oracle(|oracle| oracle.starts(number));
        } else if !self.wait(client, &mut ticket, number) {
            self.oracle(|oracle| oracle.reached.cancelled += 1);
            self.leave(number, || drop(ticket));
            return;
        }
        pause(plan.work);
        self.leave(number, || ticket.finish(Moment::now(), &Outcome::default()));
    }

    fn list(&self, client: &Client, plan: &Plan, number: usize, began: Tick) -> Option<Ticket<&Tracker>> {
        let ticket = match plan.asks {
            Asks::OrNot => self.tracker.try_begin(plan.op, plan.range, client.id()),
            asks => {
                let claims = asks == Asks::Listed;
                self.tracker.begin(plan.op, plan.range, client.id(), Moment::now(), claims).ok()
            }
        };
        self.oracle(|oracle| {
            let now = oracle.tick();
            let Some(ticket) = &ticket else {
                if oracle.closing.is_some() {
                    oracle.reached.refused += 1;
                } else {
                    assert!(plan.asks == Asks::OrNot, "{plan:?} refused by a tracker that nobody closed");
                    oracle.reached.tried_in_vain += 1;
                    oracle.waits(number, began, |other, own| overlap(&other.plan.range, &own.plan.range));
                }
                return;
            };
            assert!(!before(oracle.closed, Some(began)), "{plan:?} listed by a closed tracker");
            assert!(!oracle.over, "{plan:?} listed after the last drain");
            oracle.reached.listed += 1;
            let own = &mut oracle.requests[number];
            own.listed = Some(now);
            own.asked = own.asking.map(|_| now);
            if own.asked.is_some() && !ticket.works() {
                oracle.waits(number, began, Request::conflicts_with);
            }
        });
        ticket
    }

    /// Waits for a turn. False: the client left first.
    fn wait(&self, client: &Client, ticket: &mut Ticket<&Tracker>, number: usize) -> bool {
        let (mut turn, mut waited) = (pin!(ticket.turn()), false);
        let watched = poll_fn(|cx| {
            let since = self.oracle(|oracle| {
                let now = oracle.tick();
                oracle.requests[number].asking.get_or_insert(now);
                now
            });
            let come = turn.as_mut().poll(cx);
            self.oracle(|oracle| {
                let now = oracle.tick();
                oracle.requests[number].asked.get_or_insert(now);
                match come.is_ready() {
                    true => oracle.starts(number),
                    false => oracle.waits(number, since, Request::conflicts_with),
                }
            });
            waited |= come.is_pending();
            come
        });
        let come = block_on(client.unless_gone(watched)).is_ok();
        self.oracle(|oracle| oracle.reached.waited += u64::from(come && waited));
        come
    }

    fn leave(&self, number: usize, leave: impl FnOnce()) {
        self.oracle(|oracle| oracle.requests[number].leaving = Some(oracle.tick()));
        leave();
        self.oracle(|oracle| oracle.requests[number].left = Some(oracle.tick()));
    }

    /// Waits for an empty list.
    fn drain(&self, closes: bool) {
        if closes {
            self.oracle(|oracle| oracle.closing = Some(oracle.tick()));
            self.tracker.close();
            self.oracle(|oracle| oracle.closed = Some(oracle.tick()));
        }
        let began = self.oracle(Oracle::tick);
        let (mut drained, mut waited) = (pin!(self.tracker.drained()), false);
        block_on(poll_fn(|cx| {
            let over = drained.as_mut().poll(cx);
            waited |= over.is_pending();
            over
        }));
        self.oracle(|oracle| {
            oracle.reached.drained += u64::from(waited);
            let closed = before(oracle.closed, Some(began));
            for request in &oracle.requests {
                let there = request.listed.is_some() && request.leaving.is_none();
                let stayed = there && (closed || before(request.listed, Some(began)));
                assert!(!stayed, "drained, but {:?} is there", request.plan);
            }
            oracle.over |= closed;
        });
    }

    /// The list as status shows it. Where nobody asks later than it is listed, the numbers are the order of turns.
    fn look(&self, late: bool) {
        let listed = self.tracker.requests();
        let conflict = |a: &RequestInfo, b: &RequestInfo| {
            (changes(a.op) || changes(b.op)) && overlap(&a.range, &b.range)
        };
        for (at, own) in listed.iter().enumerate() {
            let mut others = listed.iter().filter(|other| other.id != own.id && conflict(other, own));
            match own.stage {
                Stage::Throttle => assert!(late, "{own:?} has asked"),
                Stage::Working => {
                    assert!(others.all(|other| other.stage != Stage::Working), "two work: {listed:?}");
                }
                Stage::Overlap => {
                    let blocker = others.find(|other| Some(other.id) == own.waiting_for);
                    let asked = blocker.is_some_and(|other| other.stage != Stage::Throttle);
                    assert!(asked, "{own:?} waits for nobody: {listed:?}");
                }
            }
            if !late {
                let earlier = listed[..at].iter().find(|earlier| conflict(earlier, own));
                assert_eq!(own.waiting_for, earlier.map(|earlier| earlier.id), "{listed:?}");
                assert_eq!(own.stage == Stage::Working, earlier.is_none(), "{listed:?}");
            }
        }
        pause(2);
    }
}
