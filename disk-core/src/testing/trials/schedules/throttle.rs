//! Threads that ask the throttles of a group for tokens, while time passes as the scheduler says.
//!
//! The oracle knows when calls about a request began and ended, and judges by the limits alone: no more go than they
//! allow, who came first in its line goes first, and nobody is passed over for one that came later to another line. That
//! everybody goes in the end, the scheduler sees by itself.

use std::cell::Cell;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use proptest::prelude::*;
use shuttle::future::block_on;
use shuttle::thread;

use super::{add, explore, pause};
use crate::client::Client;
use crate::clock::Moment;
use crate::sync::explored::time;
use crate::testing::model::campaign::Figures;
use crate::throttle::{Dimension, Direction, Group, Limits, Rates, Throttle};

/// Operations a second of the group, and of a member that is limited by itself.
const RATE: u64 = 10;

/// A thread that asks again when its last request has gone.
#[derive(Debug, Clone, Copy)]
struct Plan {
    member: usize,
    direction: Direction,
    requests: u8,
    /// Its first one comes after so many moments.
    comes: u8,
    /// Its client leaves after so many moments.
    leaves: Option<u8>,
}

/// What somebody does to the limits.
#[derive(Debug, Clone, Copy)]
enum Change {
    /// Other limits for the group: operations a second, 0 for none.
    Group(u64),
    /// Other limits for the first member.
    Own(u64),
    /// The second member is not throttled for a moment.
    Lift,
}

/// Threads of one group of two members.
#[derive(Debug, Clone)]
pub struct Case {
    plans: Vec<Plan>,
    /// The first member has a limit of its own.
    own: bool,
    changes: Vec<Change>,
    seed: u64,
}

/// A few requests more than there are tokens, half of the cases with limits that change.
pub fn cases() -> BoxedStrategy<Case> {
    let direction = prop_oneof![3 => Just(Direction::Read), 1 => Just(Direction::Write)];
    let leaves = prop::option::weighted(0.3, 0..24u8);
    let plan = (0..2usize, direction, 1..4u8, 0..12u8, leaves).prop_map(
        |(member, direction, requests, comes, leaves)| Plan { member, direction, requests, comes, leaves },
    );
    let change = prop_oneof![
        Just(Change::Group(0)),
        (1..40u64).prop_map(Change::Group),
        (0..40u64).prop_map(Change::Own),
        Just(Change::Lift),
    ];
    let changes = prop_oneof![Just(Vec::new()), prop::collection::vec(change, 1..3)];
    (prop::collection::vec(plan, 2..6), prop::bool::weighted(0.3), changes, any::<u64>())
        .prop_map(|(plans, own, changes, seed)| Case { plans, own, changes, seed })
        .boxed()
}

/// What was reached, so that a campaign can say that it was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reached {
    /// Requests that went without waiting.
    pub at_once: u64,
    /// Those that waited and went.
    pub waited: u64,
    /// Those whose client left while they waited.
    pub cancelled: u64,
    /// Times that limits changed or were lifted while somebody waited.
    pub changed: u64,
    /// Looks at whether somebody had been passed over in its own line, while somebody waited.
    pub own_line: u64,
    /// Times that somebody waited whom another member had passed, as it may.
    pub other_line: u64,
}

impl std::ops::Add for Reached {
    type Output = Reached;

    fn add(self, other: Reached) -> Reached {
        Reached {
            at_once: self.at_once + other.at_once,
            waited: self.waited + other.waited,
            cancelled: self.cancelled + other.cancelled,
            changed: self.changed + other.changed,
            own_line: self.own_line + other.own_line,
            other_line: self.other_line + other.other_line,
        }
    }
}

/// Goes through many schedules of a case.
///
/// # Errors
/// In words: what the throttle did that its limits do not allow.
pub fn trial(case: &Case, reached: &Cell<Reached>) -> Result<Figures, String> {
    let case = Arc::new(case.clone());
    let (schedules, sum) = explore(case.seed, move || execute(&case))?;
    add(reached, sum);
    Ok(super::figures(schedules, sum.at_once + sum.waited + sum.cancelled))
}

fn limit(rate: u64) -> Limits {
    let mut rates = Rates::default();
    rates[Dimension::IopsTotal].avg = rate;
    Limits::new(rates, 0).expect("one rate contradicts nothing")
}

/// The threads of one schedule.
fn execute(case: &Arc<Case>) -> Reached {
    let group = Group::new(limit(RATE));
    let own = if case.own { limit(RATE) } else { Limits::UNLIMITED };
    let members = [own, Limits::UNLIMITED].map(|own| Throttle::new(own, Some(&group)));
    let world = Arc::new(World { case: Arc::clone(case), group, members, oracle: Mutex::default() });
    let mut threads = Vec::new();
    let spawn = |body: Box<dyn FnOnce(&World) + Send>| {
        let world = Arc::clone(&world);
        thread::spawn(move || body(&world))
    };
    // Nobody waits for it: it goes on as long as somebody else does.
    drop(shuttle::future::spawn(async {
        loop {
            time::pass().await;
            shuttle::future::yield_now().await;
        }
    }));
    for plan in case.plans.iter().copied() {
        let client = Client::new();
        if let Some(moments) = plan.leaves {
            let client = client.clone();
            threads.push(spawn(Box::new(move |_| {
                pause(moments);
                client.leave();
            })));
        }
        threads.push(spawn(Box::new(move |world| {
            pause(plan.comes);
            // Who has left asks no more.
            (0..plan.requests).all(|_| world.request(plan, &client));
        })));
    }
    threads.push(spawn(Box::new(|world| world.change())));
    for thread in threads {
        thread.join().expect("a thread that panics ends the execution");
    }
    assert_eq!((world.group.waiting(), world.waiting(0), world.waiting(1)), (0, 0, 0), "nobody waits");
    world.oracle(|oracle| oracle.reached)
}

/// A group, its members and what is known of their requests.
struct World {
    case: Arc<Case>,
    group: Group,
    members: [Throttle; 2],
    oracle: Mutex<Oracle>,
}

/// A moment: the number of a note.
type Tick = u64;

#[derive(Default)]
struct Oracle {
    now: Tick,
    requests: Vec<Request>,
    reached: Reached,
}

#[derive(Clone, Copy)]
struct Request {
    plan: Plan,
    /// When it came, when it had its place in line, and when it had gone, through or away.
    came: Tick,
    queued: Option<Tick>,
    gone: Option<Tick>,
    went: bool,
}

/// Whether the first is there and before the second.
fn before(first: Option<Tick>, second: Tick) -> bool {
    first.is_some_and(|first| first < second)
}

impl Oracle {
    fn tick(&mut self) -> Tick {
        self.now += 1;
        self.now
    }
}

impl World {
    fn oracle<T>(&self, note: impl FnOnce(&mut Oracle) -> T) -> T {
        note(&mut self.oracle.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Requests of a member that wait, for its own limits or the group's.
    fn waiting(&self, member: usize) -> usize {
        self.members[member].status().waiting
    }

    /// One request. False: its client has left while it waited.
    fn request(&self, plan: Plan, client: &Client) -> bool {
        let number = self.oracle(|oracle| {
            let came = oracle.tick();
            oracle.requests.push(Request { plan, came, queued: None, gone: None, went: false });
            oracle.requests.len() - 1
        });
        let waits = self.members[plan.member].admit(plan.direction, 4096, Moment::now());
        let waited = waits.is_some();
        self.oracle(|oracle| {
            let now = oracle.tick();
            oracle.requests[number].queued = waited.then_some(now);
        });
        let went = waits.is_none_or(|waits| block_on(client.unless_gone(waits)).is_ok());
        let time = Moment::now();
        self.oracle(|oracle| {
            let now = oracle.tick();
            (oracle.requests[number].gone, oracle.requests[number].went) = (Some(now), went);
            let reached = &mut oracle.reached;
            *match (went, waited) {
                (false, _) => &mut reached.cancelled,
                (true, true) => &mut reached.waited,
                (true, false) => &mut reached.at_once,
            } += 1;
        });
        if !went {
            return false;
        }
        if self.case.changes.is_empty() {
            self.no_more_than_the_limit(time);
        }
        // Where there is one gate only, it is clear who is in which line: who has been let go by the own one and has not
        // come to the group's yet may be overtaken on the way.
        if !self.case.own && !self.case.changes.iter().any(|change| matches!(change, Change::Own(_))) {
            self.nobody_was_passed_over(number);
        }
        true
    }

    /// As many as go when the bucket is empty, one over its size, and as many as leak out meanwhile.
    fn no_more_than_the_limit(&self, time: Moment) {
        let most = RATE / 10
            + 1
            + u64::try_from(RATE as u128 * u128::from(time.nanoseconds()) / 1_000_000_000).expect("few");
        let went = self.oracle(|oracle| oracle.requests.iter().filter(|request| request.went).count());
        assert!(
            went as u64 <= most,
            "{went} went by {:?}, not {most}",
            Duration::from_nanos(time.nanoseconds())
        );
    }

    /// Looks at the lines after a request has gone.
    fn nobody_was_passed_over(&self, number: usize) {
        let known = self.oracle(|oracle| oracle.requests.clone());
        let own = known[number];
        let (member, other) = (own.plan.member, 1 - own.plan.member);
        let (waiting, waiting_there) = (self.waiting(member), self.waiting(other));
        let now_known = self.oracle(|oracle| oracle.requests.clone());

        // Who may wait at the look: who has come by now and had not gone before.
        let may_wait = |member: usize| {
            let had_gone = |at: usize| known.get(at).is_some_and(|request| request.gone.is_some());
            let all = now_known.iter().enumerate();
            all.filter(move |&(at, request)| request.plan.member == member && !had_gone(at))
                .map(|(_, request)| request)
        };
        let same_line = |a: &Request, b: &Request| {
            (a.plan.member, a.plan.direction as usize) == (b.plan.member, b.plan.direction as usize)
        };
        // Those that were in its line when it came have gone before it.
        let came_before = |request: &&Request| same_line(request, &own) && before(request.queued, own.came);
        let rest = may_wait(member).filter(|request| !came_before(request)).count();
        assert!(waiting <= rest, "{waiting} wait, of whom {rest} came after {:?}", own.plan);

        // Members take turns. If all of the other's wait still, each of them has let one pass for itself and one for each
        // that may have been before it.
        let all_wait = self.case.changes.is_empty() && waiting_there == may_wait(other).count();
        let mut let_pass = 0;
        for request in may_wait(other).filter(|request| all_wait && request.queued.is_some()) {
            let came_later = |passing: &&Request| {
                let beside =
                    passing.plan.member == member && passing.plan.direction == request.plan.direction;
                beside && passing.went && before(request.queued, passing.came)
            };
            let passed = known.iter().filter(came_later).count();
            let ahead = |ahead: &&Request| {
                same_line(ahead, request)
                    && !before(request.queued, ahead.came)
                    && !matches!((ahead.gone, request.queued), (Some(gone), Some(queued)) if gone < queued)
            };
            let most = now_known.iter().filter(ahead).count();
            assert!(passed <= most, "{passed} that came later passed {:?}, not {most}", request.plan);
            let_pass += u64::from(passed > 0);
        }
        self.oracle(|oracle| {
            oracle.reached.own_line += u64::from(waiting > 0);
            oracle.reached.other_line += let_pass;
        });
    }

    fn change(&self) {
        for change in &self.case.changes {
            pause(6);
            let waiting = self.waiting(0) + self.waiting(1);
            self.oracle(|oracle| oracle.reached.changed += u64::from(waiting > 0));
            match *change {
                Change::Group(rate) => self.group.set_limits(limit(rate)),
                Change::Own(rate) => self.members[0].set_limits(limit(rate)),
                Change::Lift => {
                    let lifted = self.members[1].lift();
                    pause(2);
                    drop(lifted);
                }
            }
        }
    }
}
