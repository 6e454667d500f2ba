//! A storage that fails on demand.
//!
//! Invariant: an operation that no fault matches goes through untouched, and every fault that struck is counted, so
//! a test can tell that its scenario took place.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::buf::{Buf, BufMut};
use crate::error::{Error, ErrorKind};
use crate::range::ByteRange;
use crate::storage::{Completion, HostExtent, Limits, Storage, Zero};
use crate::testing::{Op, forward};

/// What goes wrong, and when.
#[derive(Debug, Clone)]
pub struct Fault {
    op: Op,
    nth: u64,
    sticky: bool,
    within: Option<ByteRange>,
    effect: Effect,
}

#[derive(Debug, Clone, Copy)]
enum Effect {
    Fail(ErrorKind),
    Tear { kept: u64, kind: ErrorKind },
    Delay(Duration),
    Panic,
}

impl Fault {
    /// The next such operation fails with `kind` and changes nothing. After a flush has failed, all fail.
    pub fn fail(op: Op, kind: ErrorKind) -> Self {
        Fault { op, nth: 1, sticky: false, within: None, effect: Effect::Fail(kind) }
    }

    /// The next write or zero takes effect on its first `kept` bytes only (all of them if there are fewer) and then
    /// fails with `kind`.
    pub fn tear(op: Op, kept: u64, kind: ErrorKind) -> Self {
        assert!(matches!(op, Op::Write | Op::Zero), "only writes and zeroes have a first part");
        Fault { effect: Effect::Tear { kept, kind }, ..Fault::fail(op, kind) }
    }

    /// The next such operation starts only after `time` (tokio's clock). Needs a tokio runtime.
    pub fn delay(op: Op, time: Duration) -> Self {
        Fault { effect: Effect::Delay(time), ..Fault::fail(op, ErrorKind::Io) }
    }

    /// Whoever asks for the next such operation panics.
    pub fn panic(op: Op) -> Self {
        Fault { effect: Effect::Panic, ..Fault::fail(op, ErrorKind::Io) }
    }

    /// Strikes at the `nth` matching operation after it was injected, counted from 1.
    #[must_use]
    pub fn nth(self, nth: u64) -> Self {
        assert!(nth > 0, "operations are counted from 1");
        Fault { nth, ..self }
    }

    /// Strikes at every later matching operation too.
    #[must_use]
    pub fn sticky(self) -> Self {
        Fault { sticky: true, ..self }
    }

    /// Matches only operations that touch `range`; flushes and resizes touch none.
    #[must_use]
    pub fn within(self, range: ByteRange) -> Self {
        Fault { within: Some(range), ..self }
    }
}

/// A storage around `inner` that fails on demand.
#[derive(Debug)]
pub struct Faults {
    inner: Arc<dyn Storage>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    faults: Vec<Fault>,
    counts: HashMap<Op, u64>,
    struck: Vec<(Op, Option<ByteRange>)>,
    flush_failed: Option<Error>,
}

impl Faults {
    /// Without a fault yet.
    pub fn new(inner: Arc<dyn Storage>) -> Self {
        Faults { inner, state: Mutex::default() }
    }

    /// Arms a fault. Of several that match, the one injected first strikes; the others count the operation.
    pub fn inject(&self, fault: Fault) {
        self.state().faults.push(fault);
    }

    /// Disarms all faults, as if the file were opened anew: flushes work again.
    pub fn heal(&self) {
        let mut state = self.state();
        state.faults.clear();
        state.flush_failed = None;
    }

    /// How often a fault struck.
    pub fn hits(&self) -> u64 {
        self.state().struck.len() as u64
    }

    /// The operations that a fault struck, and where in the file, oldest first.
    pub fn struck(&self) -> Vec<(Op, Option<ByteRange>)> {
        self.state().struck.clone()
    }

    /// Operations of this kind so far, failed ones included: how far to count in "fail the n-th".
    pub fn count(&self, op: Op) -> u64 {
        self.state().counts.get(&op).copied().unwrap_or(0)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the operation and says what is to go wrong with it.
    fn strike(&self, op: Op, range: Option<ByteRange>) -> Option<Effect> {
        let mut state = self.state();
        *state.counts.entry(op).or_default() += 1;
        let mut effect = None;
        state.faults.retain_mut(|fault| {
            let touched =
                fault.within.is_none_or(|within| range.is_some_and(|range| range.overlaps(&within)));
            if fault.op != op || !touched {
                return true;
            }
            fault.nth = fault.nth.saturating_sub(1);
            if fault.nth > 0 || effect.is_some() {
                return true;
            }
            effect = Some(fault.effect);
            fault.sticky
        });
        if effect.is_some() {
            state.struck.push((op, range));
        }
        effect
    }

    fn error(&self, kind: ErrorKind, op: Op, range: Option<ByteRange>) -> Error {
        let place = range.map_or(String::new(), |range| format!(" at {range}"));
        Error::new(kind, format!("{}: injected fault in {op:?}{place}", self.name()))
    }

    /// Runs `work` on the storage below, or what a fault makes of it. `first_part` does the work on the first bytes.
    fn run<T: Send + 'static>(
        &self,
        op: Op,
        range: Option<ByteRange>,
        first_part: impl FnOnce(&dyn Storage, u64) -> Completion<()>,
        work: impl FnOnce(&dyn Storage) -> Completion<T> + Send + 'static,
    ) -> Completion<T> {
        let (completer, completion) = Completion::pending();
        match self.strike(op, range) {
            None => return work(&*self.inner),
            Some(Effect::Panic) => panic!("{}: injected panic in {op:?}", self.name()),
            Some(Effect::Fail(kind)) => {
                let error = self.error(kind, op, range);
                if op == Op::Flush {
                    self.state().flush_failed = Some(error.clone());
                }
                completer.complete(Err(error));
            }
            Some(Effect::Tear { kept, kind }) => {
                let error = self.error(kind, op, range);
                forward(first_part(&*self.inner, kept), completer, |_| Err(error));
            }
            Some(Effect::Delay(time)) => {
                let inner = Arc::clone(&self.inner);
                tokio::spawn(async move {
                    tokio::time::sleep(time).await;
                    completer.complete(work(&*inner).await);
                });
            }
        }
        completion
    }
}

fn whole_only(_: &dyn Storage, _: u64) -> Completion<()> {
    Completion::ready(Ok(()))
}

impl Storage for Faults {
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
        self.run(Op::Read, range, whole_only, move |inner| inner.read(at, into))
    }

    fn write(&self, at: u64, from: Buf) -> Completion<()> {
        let range = ByteRange::checked(at, from.len() as u64);
        let all = from.clone();
        let first =
            move |inner: &dyn Storage, kept: u64| inner.write(at, all.slice(..all.len().min(kept as usize)));
        self.run(Op::Write, range, first, move |inner| inner.write(at, from))
    }

    fn zero(&self, range: ByteRange, how: Zero) -> Completion<()> {
        let first = move |inner: &dyn Storage, kept| inner.zero(range.split_at(kept).0, how);
        self.run(Op::Zero, Some(range), first, move |inner| inner.zero(range, how))
    }

    fn discard(&self, range: ByteRange) -> Completion<()> {
        self.run(Op::Discard, Some(range), whole_only, move |inner| inner.discard(range))
    }

    fn status(&self, range: ByteRange) -> Completion<HostExtent> {
        self.run(Op::Status, Some(range), whole_only, move |inner| inner.status(range))
    }

    fn prefetch(&self, range: ByteRange) {
        self.inner.prefetch(range);
    }

    fn flush(&self) -> Completion<()> {
        if let Some(failure) = &self.state().flush_failed {
            return Completion::ready(Err(failure.clone()));
        }
        self.run(Op::Flush, None, whole_only, |inner| inner.flush())
    }

    fn resize(&self, len: u64) -> Completion<()> {
        self.run(Op::Resize, None, whole_only, move |inner| inner.resize(len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemStorage;

    fn faulty(bytes: &[u8]) -> (Arc<MemStorage>, Faults) {
        let below = Arc::new(MemStorage::from_bytes(bytes));
        (Arc::clone(&below), Faults::new(below))
    }

    #[tokio::test]
    async fn the_third_write_into_a_range_fails_and_changes_nothing() {
        let (below, faults) = faulty(&[0; 100]);
        let range = ByteRange::new(50, 60);
        faults.inject(Fault::fail(Op::Write, ErrorKind::NoSpace).within(range).nth(3));
        for at in [50, 0, 59, 10] {
            faults.write(at, Buf::copy_from(b"a")).await.expect("not yet, or not there");
        }
        let error = faults.write(45, Buf::copy_from(b"bbbbbb")).await.expect_err("the third");
        assert_eq!((error.kind(), faults.hits(), faults.count(Op::Write)), (ErrorKind::NoSpace, 1, 5));
        faults.write(45, Buf::copy_from(b"c")).await.expect("it strikes once");
        assert_eq!(&below.to_vec()[45..51], b"c\0\0\0\0a");
    }

    #[tokio::test]
    async fn a_torn_write_leaves_its_first_bytes() {
        let (below, faults) = faulty(b"........");
        faults.inject(Fault::tear(Op::Write, 3, ErrorKind::Io).sticky());
        for _ in 0..2 {
            faults.write(1, Buf::copy_from(b"abcdef")).await.expect_err("torn");
        }
        assert_eq!((&below.to_vec()[..], faults.hits()), (&b".abc...."[..], 2));
    }

    #[tokio::test]
    async fn a_failed_flush_fails_until_the_file_is_opened_anew() {
        let (_, faults) = faulty(b"");
        faults.inject(Fault::fail(Op::Flush, ErrorKind::Io));
        faults.flush().await.expect_err("injected");
        assert_eq!(faults.flush().await.expect_err("for good").kind(), ErrorKind::Io);
        faults.heal();
        faults.flush().await.expect("anew");
    }

    #[tokio::test(start_paused = true)]
    async fn a_delayed_read_takes_its_time() {
        let (_, faults) = faulty(b"x");
        faults.inject(Fault::delay(Op::Read, Duration::from_secs(3)));
        let start = tokio::time::Instant::now();
        let read = faults.read(0, crate::buf::Pool::global().take(1)).await.expect("late but right");
        assert_eq!((&read[..], start.elapsed().as_secs()), (&b"x"[..], 3));
    }
}
