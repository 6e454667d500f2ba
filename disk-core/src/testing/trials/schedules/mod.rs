//! Threads in the tracker and the throttle. A scheduler chooses which one goes on at every lock, unlock and look at an
//! atomic (`src/sync`), and what they see is judged by an oracle that knows nothing but the definition.
//!
//! ```text
//!   turns     threads that ask for turns, wait, leave, give up, close and drain
//!   throttle  threads that ask for tokens, wait and give up, while limits change and time passes
//! ```
//! Half of the schedules are uniformly random, half of them of PCT, which runs the thread of the highest priority but at a
//! few moments. Nobody can go on: a wake-up was lost, and the scheduler says so.
//!
//! Invariant: the oracle's own lock is no moment at which others may go on, so what it notes happens at once.

pub mod throttle;
pub mod turns;

use std::cell::Cell;
use std::ops::Add;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, FailurePersistence, Runner};

use crate::sync::explored::time;
use crate::testing::model::campaign::Figures;

/// Schedules of a case by each of the two schedulers.
const EACH: usize = 40;

/// PCT's depth: how many orders of two events a bug may need, one more than there are changes of priority.
const DEPTH: usize = 3;

/// Runs the threads that `execution` starts in many orders. Returns how many those were, and what was reached in all of
/// them.
///
/// # Errors
/// The words of the panic that a thread ended in, or the scheduler's own if nobody can go on.
fn explore<R>(seed: u64, execution: impl Fn() -> R + Send + Sync + 'static) -> Result<(u64, R), String>
where
    R: Copy + Default + Add<Output = R> + Send + 'static,
{
    let sum = Arc::new(Mutex::new(R::default()));
    let add_up = {
        let (sum, execution) = (Arc::clone(&sum), Arc::new(execution));
        move || {
            let more = execution();
            let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
            *sum = *sum + more;
        }
    };
    let random = run(RandomScheduler::new_from_seed(seed, EACH), add_up.clone())?;
    let pct = run(PctScheduler::new_from_seed(seed, DEPTH, EACH), add_up)?;
    let sum = *sum.lock().unwrap_or_else(PoisonError::into_inner);
    Ok((random + pct, sum))
}

fn run(
    scheduler: impl Scheduler + 'static,
    execution: impl Fn() + Send + Sync + 'static,
) -> Result<u64, String> {
    let mut config = Config::new();
    // Seed and case give the schedule again.
    config.failure_persistence = FailurePersistence::None;
    config.silence_warnings = true;
    config.ungraceful_shutdown_config.immediately_return_on_panic = true;
    let execution = move || {
        time::reset();
        execution();
    };
    catch_unwind(AssertUnwindSafe(|| Runner::new(scheduler, config).run(execution)))
        .map(|schedules| schedules as u64)
        .map_err(|panic| match panic.downcast::<String>() {
            Ok(words) => *words,
            Err(panic) => panic.downcast_ref::<&str>().unwrap_or(&"panicked").to_string(),
        })
}

/// A few moments at which others may go on.
fn pause(moments: u8) {
    (0..moments).for_each(|_| shuttle::thread::yield_now());
}

/// Adds to a sum that all cases of a campaign share.
fn add<T: Copy + Add<Output = T>>(sum: &Cell<T>, more: T) {
    sum.set(sum.get() + more);
}

fn figures(schedules: u64, operations: u64) -> Figures {
    Figures { operations, schedules, ..Figures::default() }
}
