//! Throttling: what a disk, or a group of disks, may do in a second.
//!
//! ```text
//!   request ──▶ Throttle (the disk's own limits) ──▶ Group (limits shared with other disks) ──▶ goes
//! ```
//! Limits mean what they mean in QEMU's throttle groups. `limits` says what they are, `bucket` is the arithmetic,
//! `gate` is where requests wait.
//!
//! Invariant: a request holds nothing while it waits here, so a throttled request blocks nobody but those that are
//! throttled by the same limits.

mod bucket;
mod gate;
mod limits;
#[cfg(test)]
mod tests;

pub use limits::{Dimension, Direction, LARGEST, Limits, Rate, Rates, Rule, Violation};

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Moment;
use futures_util::future::BoxFuture;
use gate::{Gate, Member, Waiting};

/// The throttle of one disk.
#[derive(Debug)]
pub struct Throttle {
    own: Arc<Gate>,
    group: Option<(Arc<Gate>, Member)>,
    /// Nanoseconds that requests have waited, by the dimension that made them wait.
    waited: [AtomicU64; 6],
}

/// The disk is the only member of its own gate.
const SELF: Member = 0;

impl Throttle {
    /// A throttle with `limits`, and with those of `group` after them.
    pub fn new(limits: Limits, group: Option<&Group>) -> Self {
        Throttle { own: Gate::new(limits, false), group: group.map(Group::join), waited: Default::default() }
    }

    /// Takes the tokens for a request of `bytes` bytes that comes at `now`, unless it would have to wait for some.
    /// Returns whether it may go; if not, nothing is taken and it is to be [admitted](Throttle::admit).
    pub fn try_admit(&self, direction: Direction, bytes: u64, now: Moment) -> bool {
        self.own.try_enter(SELF, direction, bytes, now, || match &self.group {
            Some((gate, member)) => gate.try_enter(*member, direction, bytes, now, || true),
            None => true,
        })
    }

    /// Takes the tokens for a request of `bytes` bytes that comes at `now`. `None`: it may go, as nothing is limited or
    /// tokens are there. Otherwise a future that is ready when it may, with how long that took. First come first served
    /// within a direction; reads and writes wait separately. Dropping the future gives the place up.
    ///
    /// # Panics
    /// If it has to wait outside of a tokio runtime.
    pub fn admit(&self, direction: Direction, bytes: u64, now: Moment) -> Option<BoxFuture<'_, Duration>> {
        if let Some(waiting) = self.own.enter(SELF, direction, bytes, now) {
            return Some(Box::pin(async move {
                let own = self.wait(waiting).await;
                match self.enter_group(direction, bytes, Moment::now()) {
                    Some(waiting) => own + self.wait(waiting).await,
                    None => own,
                }
            }));
        }
        let waiting = self.enter_group(direction, bytes, now)?;
        Some(Box::pin(self.wait(waiting)))
    }

    /// Other limits, at once: requests that wait are held against the new ones.
    pub fn set_limits(&self, limits: Limits) {
        self.own.set_limits(limits);
    }

    /// The disk's own limits.
    pub fn limits(&self) -> Limits {
        self.own.limits()
    }

    /// Lets everything through, those who wait too, while the guard lives. Other members of the group are not
    /// concerned, and what goes through costs no tokens.
    pub fn lift(&self) -> Lifted {
        let gates: Vec<_> = std::iter::once((self.own.clone(), SELF)).chain(self.group.clone()).collect();
        // Backwards: who waits at the last gate came before those who wait at the first.
        gates.iter().rev().for_each(|(gate, member)| gate.lift(*member));
        Lifted { gates }
    }

    /// Counters for the accounts.
    pub fn status(&self) -> ThrottleStatus {
        let group = self.group.as_ref().map_or(0, |(gate, member)| gate.waiting(Some(*member)));
        ThrottleStatus {
            limits: self.limits(),
            waiting: self.own.waiting(None) + group,
            waited: self.waited.each_ref().map(|total| Duration::from_nanos(total.load(Ordering::Relaxed))),
        }
    }

    fn enter_group(&self, direction: Direction, bytes: u64, now: Moment) -> Option<Waiting> {
        let (gate, member) = self.group.as_ref()?;
        gate.enter(*member, direction, bytes, now)
    }

    async fn wait(&self, waiting: Waiting) -> Duration {
        let (dimension, waited) = waiting.await;
        if let Some(dimension) = dimension {
            self.waited[dimension as usize].fetch_add(waited.as_nanos() as u64, Ordering::Relaxed);
        }
        waited
    }
}

/// What a throttle is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThrottleStatus {
    /// The disk's own limits.
    pub limits: Limits,
    /// Requests of the disk that wait now, for its own limits or its group's.
    pub waiting: usize,
    /// Time that requests of the disk have waited since it was opened, by [`Dimension`] (in the order of
    /// [`Dimension::ALL`]), own limits and group's together. Several requests that wait together all count.
    pub waited: [Duration; 6],
}

/// Throttling is off for one disk while this lives.
#[derive(Debug)]
#[must_use = "throttling is back when this is dropped"]
pub struct Lifted {
    gates: Vec<(Arc<Gate>, Member)>,
}

impl Drop for Lifted {
    fn drop(&mut self) {
        self.gates.iter().for_each(|(gate, member)| gate.restore(*member));
    }
}

/// Limits that several disks share. Members with waiting requests take turns, request by request.
#[derive(Debug)]
pub struct Group {
    gate: Arc<Gate>,
    members: AtomicU64,
}

impl Group {
    /// A group without members; [`Throttle::new`] adds them, and a dropped throttle is gone by itself.
    pub fn new(limits: Limits) -> Self {
        Group { gate: Gate::new(limits, true), members: AtomicU64::new(0) }
    }

    /// Other limits, at once and for all members.
    pub fn set_limits(&self, limits: Limits) {
        self.gate.set_limits(limits);
    }

    /// The limits that the members share.
    pub fn limits(&self) -> Limits {
        self.gate.limits()
    }

    /// Requests of all members that wait now for the group's limits.
    pub fn waiting(&self) -> usize {
        self.gate.waiting(None)
    }

    fn join(&self) -> (Arc<Gate>, Member) {
        (self.gate.clone(), self.members.fetch_add(1, Ordering::Relaxed))
    }
}
