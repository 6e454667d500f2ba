//! A storage that keeps operations waiting, for tests of races.
//!
//! ```text
//!   let hold = Hold::new(inner);
//!   hold.hold(Op::Write);              // from now on writes are not started
//!   let write = tokio::spawn(…);       // reaches its write and waits there
//!   hold.until_held(1).await;          // now it is known to wait there
//!   …                                  // what must, or must not, happen meanwhile
//!   hold.release();                    // it goes on
//! ```
//! Invariant: a held operation has not touched the storage below; released ones start in the order they came.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::buf::{Buf, BufMut};
use crate::range::ByteRange;
use crate::storage::{Completion, HostExtent, Limits, Storage, Zero};
use crate::testing::{Op, forward};

/// A storage around `inner` that keeps chosen operations waiting.
#[derive(Debug)]
pub struct Hold {
    inner: Arc<dyn Storage>,
    state: Mutex<State>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<(Op, Option<ByteRange>)>,
    held: Vec<Held>,
}

struct Held {
    op: Op,
    start: Box<dyn FnOnce() + Send>,
}

impl Hold {
    /// Holds nothing yet.
    pub fn new(inner: Arc<dyn Storage>) -> Self {
        Hold { inner, state: Mutex::default(), arrived: Notify::new() }
    }

    /// From now on, operations of this kind wait.
    pub fn hold(&self, op: Op) {
        self.state().rules.push((op, None));
    }

    /// From now on, operations of this kind that touch `range` wait.
    pub fn hold_within(&self, op: Op, range: ByteRange) {
        self.state().rules.push((op, Some(range)));
    }

    /// Operations of this kind that wait now.
    pub fn held(&self, op: Op) -> usize {
        self.state().held.iter().filter(|held| held.op == op).count()
    }

    /// Waits until `count` operations of any kind wait here.
    pub async fn until_held(&self, count: usize) {
        loop {
            let arrived = self.arrived.notified();
            if self.state().held.len() >= count {
                return;
            }
            arrived.await;
        }
    }

    /// Lets the one that has waited longest go, and keeps holding; false if none waits.
    pub fn release_one(&self) -> bool {
        let first = {
            let mut state = self.state();
            if state.held.is_empty() { None } else { Some(state.held.remove(0)) }
        };
        let any = first.is_some();
        first.into_iter().for_each(|held| (held.start)());
        any
    }

    /// Holds nothing any more and lets all that wait go.
    pub fn release(&self) {
        let held = {
            let mut state = self.state();
            state.rules.clear();
            std::mem::take(&mut state.held)
        };
        held.into_iter().for_each(|held| (held.start)());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run<T: Send + 'static>(
        &self,
        op: Op,
        range: Option<ByteRange>,
        work: impl FnOnce(&dyn Storage) -> Completion<T> + Send + 'static,
    ) -> Completion<T> {
        let mut state = self.state();
        let applies = |within: &Option<ByteRange>| {
            within.is_none_or(|within| range.is_some_and(|range| range.overlaps(&within)))
        };
        if !state.rules.iter().any(|(held, within)| *held == op && applies(within)) {
            drop(state);
            return work(&*self.inner);
        }
        let (completer, completion) = Completion::pending();
        let inner = Arc::clone(&self.inner);
        state
            .held
            .push(Held { op, start: Box::new(move || forward(work(&*inner), completer, |outcome| outcome)) });
        drop(state);
        self.arrived.notify_waiters();
        completion
    }
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.op)
    }
}

impl Storage for Hold {
    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    fn name(&self) -> &str {
        self.inner.name()
    }

    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn allocated(&self) -> u64 {
        self.inner.allocated()
    }

    fn read(&self, at: u64, into: BufMut) -> Completion<BufMut> {
        let range = ByteRange::checked(at, into.len() as u64);
        self.run(Op::Read, range, move |inner| inner.read(at, into))
    }

    fn write(&self, at: u64, from: Buf) -> Completion<()> {
        let range = ByteRange::checked(at, from.len() as u64);
        self.run(Op::Write, range, move |inner| inner.write(at, from))
    }

    fn zero(&self, range: ByteRange, how: Zero) -> Completion<()> {
        self.run(Op::Zero, Some(range), move |inner| inner.zero(range, how))
    }

    fn discard(&self, range: ByteRange) -> Completion<()> {
        self.run(Op::Discard, Some(range), move |inner| inner.discard(range))
    }

    fn status(&self, range: ByteRange) -> Completion<HostExtent> {
        self.run(Op::Status, Some(range), move |inner| inner.status(range))
    }

    fn prefetch(&self, range: ByteRange) {
        self.inner.prefetch(range);
    }

    fn flush(&self) -> Completion<()> {
        self.run(Op::Flush, None, |inner| inner.flush())
    }

    fn resize(&self, len: u64) -> Completion<()> {
        self.run(Op::Resize, None, move |inner| inner.resize(len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemStorage;
    use futures_util::FutureExt;

    #[tokio::test]
    async fn held_writes_touch_nothing_and_go_on_in_order() {
        let below = Arc::new(MemStorage::from_bytes(b"...."));
        let hold = Hold::new(Arc::clone(&below) as Arc<dyn Storage>);
        hold.hold_within(Op::Write, ByteRange::new(0, 2));
        let mut first = hold.write(0, Buf::copy_from(b"ab"));
        let second = hold.write(1, Buf::copy_from(b"cd"));
        hold.write(3, Buf::copy_from(b"z")).await.expect("not in the range");
        hold.until_held(2).await;
        assert_eq!((hold.held(Op::Write), hold.held(Op::Read)), (2, 0));
        assert!((&mut first).now_or_never().is_none() && below.to_vec() == b"...z");

        assert!(hold.release_one());
        first.await.expect("released");
        assert_eq!(below.to_vec(), b"ab.z");
        hold.release();
        second.await.expect("released");
        assert_eq!(below.to_vec(), b"acdz");
        hold.write(0, Buf::copy_from(b"q")).await.expect("nothing is held any more");
    }
}
