//! Large writes on another core: while a connection receives the next payload, a helper writes the one before.
//!
//! Invariant: every write that was given comes back once, and the connection waits for it before it ends.

use std::collections::VecDeque;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

use crate::helpers::Helpers;
use crate::request::{Going, Started, Write};

/// Writes that wait at a helper at most: with more than one it need not sleep between them, and with many more the
/// connection would have nothing to do.
const WAITING_MOST: usize = 2;

/// What came of a write that was given away.
pub enum Report {
    /// It was started.
    Started(Started),
    /// The client had hung up: whether it is to be done is for the connection to say.
    NotStarted(Write),
    /// A fault of this program cut it short.
    Lost,
}

impl Report {
    /// What is to be awaited of it.
    pub fn going(self) -> Option<Going> {
        match self {
            Report::Started(Started::Going(going)) => Some(going),
            _ => None,
        }
    }
}

/// A write to be done.
pub type Job = Box<dyn FnOnce() -> Report + Send>;

/// The writes of one connection that are done elsewhere.
pub struct Offload {
    shared: Arc<Shared>,
    /// That were given and did not come back.
    out: usize,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Told when one has come back.
    waker: AtomicWaker,
}

#[derive(Default)]
struct State {
    /// A helper is at it.
    helped: bool,
    waiting: VecDeque<Job>,
    reports: Vec<Report>,
}

impl Offload {
    /// None yet.
    pub fn new() -> Self {
        Offload { shared: Arc::default(), out: 0 }
    }

    /// How many are away, or have come back and were not looked at.
    pub fn out(&self) -> usize {
        self.out
    }

    /// Has a helper do it.
    ///
    /// # Errors
    /// It comes back if no helper is free, or the one that is at it has enough to do.
    pub fn give(&mut self, job: Job) -> Result<(), Job> {
        let mut state = self.shared.lock();
        if state.waiting.len() == WAITING_MOST {
            return Err(job);
        }
        state.waiting.push_back(job);
        let had_helper = mem::replace(&mut state.helped, true);
        drop(state);
        // Without the lock, or the first thing that the helper does is to wait for it.
        let shared = Arc::clone(&self.shared);
        if had_helper || Helpers::get().try_start(move || shared.work()) {
            self.out += 1;
            return Ok(());
        }
        let mut state = self.shared.lock();
        state.helped = false;
        Err(state.waiting.pop_back().expect("nobody has taken it"))
    }

    /// Those that are done.
    pub fn reports(&mut self) -> Vec<Report> {
        let reports = mem::take(&mut self.shared.lock().reports);
        self.out -= reports.len();
        reports
    }

    /// Ready when one is done.
    pub fn poll_report(&self, context: &mut Context<'_>) -> Poll<()> {
        self.shared.waker.register(context.waker());
        if self.shared.lock().reports.is_empty() { Poll::Pending } else { Poll::Ready(()) }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A helper's work, until nothing waits.
    fn work(&self) {
        loop {
            let mut state = self.lock();
            let Some(job) = state.waiting.pop_front() else {
                state.helped = false;
                return;
            };
            drop(state);
            // A panic has frozen the disk. The thread is everybody's, and the connection must not wait for ever.
            let report = panic::catch_unwind(AssertUnwindSafe(job)).unwrap_or(Report::Lost);
            self.lock().reports.push(report);
            self.waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn who_is_given_enough_takes_no_more_and_each_comes_back_once_a_fault_too() {
        if Helpers::get().none() {
            return;
        }
        let mut offload = Offload::new();
        let (open, gate) = mpsc::channel::<()>();
        let mut first: Job = Box::new(move || {
            let _ = gate.recv();
            panic!("a fault");
        });
        // Other tests may have the helpers for a moment.
        while let Err(back) = offload.give(first) {
            first = back;
            tokio::task::yield_now().await;
        }
        let mut refused = 0;
        for _ in 0..5 {
            refused += usize::from(offload.give(Box::new(|| Report::Lost)).is_err());
        }
        // The first may be among those that wait, or under way by now.
        assert!((5 - WAITING_MOST..=6 - WAITING_MOST).contains(&refused), "{refused}");
        assert_eq!((offload.out(), offload.reports().len()), (6 - refused, 0));
        open.send(()).expect("it waits");
        while offload.out() > 0 {
            poll_fn(|context| offload.poll_report(context)).await;
            assert!(offload.reports().iter().all(|report| matches!(report, Report::Lost)));
        }
        assert!(offload.reports().is_empty());
    }
}
