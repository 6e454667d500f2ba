//! Threads that take work off a connection while it goes on with the rest of a batch.
//!
//! Worth it only where a core has nothing else to do: so there are fewer of them than cores, and they help while no more
//! connections are at work than cores are left.
//!
//! Invariant: nothing queues here. A helper that is free takes a job at once; if none is, whoever asks does it himself.

use std::collections::VecDeque;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

/// Helpers that there are at most: with more connections than this that are busy at once, cores have enough to do.
const HELPERS_MOST: usize = 4;

/// Whether a connection is at work, for all of them to know how many are.
#[derive(Debug)]
pub struct Activity {
    counted: bool,
}

static ACTIVE: AtomicUsize = AtomicUsize::new(0);

impl Activity {
    /// Of a connection that is at work.
    pub fn new() -> Self {
        ACTIVE.fetch_add(1, Ordering::Relaxed);
        Activity { counted: true }
    }

    /// The connection is at work from now on, or not.
    pub fn set(&mut self, active: bool) {
        if active != self.counted {
            self.counted = active;
            if active {
                ACTIVE.fetch_add(1, Ordering::Relaxed)
            } else {
                ACTIVE.fetch_sub(1, Ordering::Relaxed)
            };
        }
    }

    /// Whether there is likely a core for a helper.
    pub fn leaves_a_core(&self) -> bool {
        ACTIVE.load(Ordering::Relaxed) <= Helpers::get().most
    }

    /// Whether there are likely cores enough for connections to look for requests instead of sleeping: one for each that
    /// is at work, and one for its client.
    pub fn leaves_cores_to_clients(&self) -> bool {
        2 * ACTIVE.load(Ordering::Relaxed) <= cores()
    }
}

fn cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

impl Drop for Activity {
    fn drop(&mut self) {
        self.set(false);
    }
}

/// The threads that help, for the whole process. They start when they are first wanted.
pub struct Helpers {
    most: usize,
    state: Mutex<Crew>,
    wanted: Condvar,
}

#[derive(Default)]
struct Crew {
    threads: usize,
    idle: usize,
    jobs: VecDeque<Box<dyn FnOnce() + Send>>,
}

impl Helpers {
    /// The ones of this process.
    pub fn get() -> &'static Helpers {
        static HELPERS: OnceLock<Helpers> = OnceLock::new();
        HELPERS.get_or_init(|| Helpers {
            most: (cores() - 1).min(HELPERS_MOST),
            state: Mutex::default(),
            wanted: Condvar::new(),
        })
    }

    /// Whether there never is one.
    #[cfg(test)]
    pub fn none(&self) -> bool {
        self.most == 0
    }

    /// Has a helper do `job`, if one has nothing to do. It must not wait for anything.
    pub fn try_start(&'static self, job: impl FnOnce() + Send + 'static) -> bool {
        let mut crew = self.lock();
        if crew.jobs.len() >= crew.idle {
            if crew.threads == self.most {
                return false;
            }
            let started = std::thread::Builder::new().name("helper".into()).spawn(|| self.work());
            if let Err(error) = started {
                tracing::debug!(%error, "no thread to help");
                return false;
            }
            crew.threads += 1;
            crew.idle += 1;
        }
        crew.jobs.push_back(Box::new(job));
        drop(crew);
        self.wanted.notify_one();
        true
    }

    fn work(&self) {
        let mut crew = self.lock();
        loop {
            let Some(job) = crew.jobs.pop_front() else {
                crew = self.wanted.wait(crew).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            crew.idle -= 1;
            drop(crew);
            // Whoever gave it guards itself against a panic; the thread is everybody's.
            let _ = panic::catch_unwind(AssertUnwindSafe(job));
            crew = self.lock();
            crew.idle += 1;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Crew> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
