//! A bounded pool of threads for system calls that may block, of one storage.
//!
//! A disk that hangs fills its own pool only. Threads start when there is work that nobody is free to take and
//! leave after a while without any, so an idle storage has none.
//!
//! Invariant: while a job waits, a thread is on its way to it or all of them are at work.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::error::Result;
use crate::storage::Completion;

/// How long a thread stays without work: longer than the pauses within a load, shorter than anybody watches.
const LINGER: Duration = Duration::from_secs(5);

type Job = Box<dyn FnOnce() + Send>;

/// The pool. Dropping it lets the queued jobs finish and then ends its threads; it waits for neither.
pub(super) struct Threads {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
    most: usize,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    /// A thread was woken or started and has not reached the queue yet; it will see to the next one.
    coming: bool,
    closing: bool,
}

impl Threads {
    /// A pool of up to `most` threads, none of them started yet.
    pub(super) fn new(most: usize) -> Self {
        Threads { shared: Arc::new(Shared { state: Mutex::default(), work: Condvar::new(), most }) }
    }

    /// Runs `work` on a thread of the pool. What it captured is dropped before the outcome is delivered.
    pub(super) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Completion<T> {
        let (completer, completion) = Completion::pending();
        self.spawn(move || completer.complete(work()));
        completion
    }

    /// Runs `job` on a thread of the pool.
    pub(super) fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        let mut state = self.shared.state();
        state.jobs.push_back(Box::new(job));
        Shared::call_for_help(&self.shared, &mut state);
    }

    /// Runs `answer`, which must be short, as soon as the pool can take something new: here and now if nobody is at
    /// work, otherwise before what is queued.
    pub(super) fn ping(&self, answer: impl FnOnce() + Send + 'static) {
        let mut state = self.shared.state();
        if state.jobs.is_empty() && state.idle == state.threads {
            drop(state);
            return answer();
        }
        state.jobs.push_front(Box::new(answer));
        Shared::call_for_help(&self.shared, &mut state);
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.state().closing = true;
        self.shared.work.notify_all();
    }
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.state();
        f.debug_struct("Threads").field("running", &state.threads).field("queued", &state.jobs.len()).finish()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees to it that somebody comes for a waiting job. One at a time: who comes calls the next.
    fn call_for_help(shared: &Arc<Shared>, state: &mut State) {
        if state.jobs.is_empty() || state.coming {
            return;
        }
        if state.idle > 0 {
            state.coming = true;
            shared.work.notify_one();
        } else if state.threads < shared.most {
            let worker = Arc::clone(shared);
            match thread::Builder::new().name("disk-io".into()).spawn(move || Self::work(&worker)) {
                Ok(_) => {
                    state.coming = true;
                    state.threads += 1;
                }
                Err(error) if state.threads == 0 => {
                    tracing::error!(%error, "no thread for disk I/O can be started");
                    // Their completions resolve to an error; nobody would ever run them.
                    state.jobs.clear();
                }
                Err(_) => {}
            }
        }
    }

    fn work(shared: &Arc<Shared>) {
        let mut state = shared.state();
        state.coming = false;
        loop {
            if let Some(job) = state.jobs.pop_front() {
                Self::call_for_help(shared, &mut state);
                drop(state);
                // A job that panics has dropped its completer, which is its answer; the thread lives on.
                let _ = panic::catch_unwind(AssertUnwindSafe(job));
                state = shared.state();
                continue;
            }
            if state.closing {
                break;
            }
            state.idle += 1;
            let (woken, waited) =
                shared.work.wait_timeout(state, LINGER).unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.idle -= 1;
            state.coming = false;
            if waited.timed_out() && state.jobs.is_empty() {
                break;
            }
        }
        state.threads -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn jobs_that_block_do_not_keep_others_waiting_until_all_threads_are_taken() {
        let pool = Threads::new(4);
        let (open, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        for _ in 1..4 {
            let gate = Arc::clone(&gate);
            pool.spawn(move || {
                let _ = gate.lock().unwrap_or_else(PoisonError::into_inner).recv();
            });
        }
        let (done, finished) = mpsc::channel();
        pool.spawn(move || done.send(()).expect("the test waits for it"));
        finished.recv_timeout(Duration::from_secs(10)).expect("the last thread takes it");
        assert_eq!(pool.shared.state().threads, 4);
        drop(open);
    }

    #[test]
    fn a_dropped_pool_finishes_what_was_queued() {
        let pool = Threads::new(4);
        let (done, finished) = mpsc::channel();
        for n in 0..100 {
            let done = done.clone();
            pool.spawn(move || done.send(n).expect("the test waits for it"));
        }
        drop((pool, done));
        let mut seen: Vec<i32> = finished.iter().collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn a_job_that_panics_takes_no_thread_with_it() {
        let pool = Threads::new(4);
        for _ in 0..2 * 4 {
            pool.spawn(|| panic!("on purpose"));
        }
        let (done, finished) = mpsc::channel();
        pool.spawn(move || done.send(()).expect("the test waits for it"));
        finished.recv_timeout(Duration::from_secs(10)).expect("a thread is left");
    }

    #[test]
    fn a_ping_is_answered_at_once_by_an_idle_pool_before_the_queue_by_a_busy_one_and_never_by_a_stuck_one() {
        let pool = Threads::new(1);
        let (say, heard) = mpsc::channel();
        let ping = |word| {
            let say = say.clone();
            pool.ping(move || say.send(word).expect("the test waits for it"));
        };
        ping("idle");
        assert_eq!(heard.try_recv(), Ok("idle"), "nobody was at work");
        let (open, gate) = mpsc::channel::<()>();
        let started = say.clone();
        pool.spawn(move || {
            started.send("stuck").expect("the test waits for it");
            let _ = gate.recv();
        });
        assert_eq!(heard.recv(), Ok("stuck"));
        let queued = say.clone();
        pool.spawn(move || queued.send("queued").expect("the test waits for it"));
        ping("busy");
        assert!(heard.recv_timeout(Duration::from_millis(100)).is_err(), "the only thread is stuck");
        drop(open);
        assert_eq!([heard.recv(), heard.recv()], [Ok("busy"), Ok("queued")]);
    }

    #[test]
    fn a_pool_without_work_has_no_thread() {
        let pool = Threads::new(4);
        assert_eq!(pool.shared.state().threads, 0);
    }
}
