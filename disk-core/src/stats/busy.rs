//! How many requests are in flight, and how long at least one was.
//!
//! Invariant: both live in one word that changes as a whole, so the busy time is the sum of the periods in which the
//! count was not zero, whatever happens at once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Requests in flight take the low bits of the word: a million of them would need more memory than there is.
const COUNT_BITS: u32 = 20;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;

/// Time is counted in units of 2¹⁶ ns = 65.5 µs, so that the high bits last for 36 years. Both ends of a period are
/// rounded down on the same grid: a short period counts as nothing or one unit, and on average as what it was.
const UNIT_LOG2: u32 = 16;

/// The count, and the busy time so far (while the count is zero) or the moment it would have had to begin at (while
/// it is not, negated and modulo 2⁴⁴): time is added when a period ends and subtracted when it starts.
#[derive(Debug)]
pub(super) struct Busy {
    word: AtomicU64,
    origin: Instant,
}

impl Default for Busy {
    fn default() -> Self {
        Busy { word: AtomicU64::new(0), origin: Instant::now() }
    }
}

impl Busy {
    /// One request more, from now on.
    ///
    /// The clock is read only after the word: a moment from before could lie in a period that has ended meanwhile, and
    /// would count it twice.
    pub(super) fn enter(&self) {
        self.change(0, 1, |time| time.wrapping_sub(self.units(Instant::now())));
    }

    /// One request less, from `now` on.
    pub(super) fn leave(&self, now: Instant) {
        self.change(1, u64::MAX, |time| time.wrapping_add(self.units(now)));
    }

    /// Requests in flight now, and the time in which there was one.
    pub(super) fn snapshot(&self) -> (u64, Duration) {
        let word = self.word.load(Ordering::Relaxed);
        let (count, time) = (word & COUNT_MASK, word >> COUNT_BITS);
        let units = if count > 0 {
            time.wrapping_add(self.units(Instant::now())) << COUNT_BITS >> COUNT_BITS
        } else {
            time
        };
        (count, Duration::from_nanos(units << UNIT_LOG2))
    }

    /// Adds `step` to the count; if the count was `edge`, a period starts or ends.
    fn change(&self, edge: u64, step: u64, at_edge: impl Fn(u64) -> u64) {
        let changed = self.word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
            let (count, time) = (word & COUNT_MASK, word >> COUNT_BITS);
            let time = if count == edge { at_edge(time) } else { time };
            Some((time << COUNT_BITS) | (count.wrapping_add(step) & COUNT_MASK))
        });
        changed.expect("the closure never gives up");
    }

    fn units(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.origin).as_nanos() as u64 >> UNIT_LOG2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: Duration = Duration::from_nanos(1 << UNIT_LOG2);

    #[test]
    fn time_counts_once_while_requests_overlap_and_not_at_all_while_there_is_none() {
        let busy = Busy::default();
        let began = Instant::now();
        busy.enter();
        busy.enter();
        std::thread::sleep(Duration::from_millis(5));
        busy.leave(Instant::now());
        let (count, so_far) = busy.snapshot();
        assert_eq!(count, 1);
        assert!(so_far >= Duration::from_millis(5) - UNIT, "{so_far:?}");
        busy.leave(Instant::now());
        let (first, most) = (busy.snapshot().1, began.elapsed());
        assert!(first >= so_far && first <= most + UNIT, "{first:?} of {most:?}");
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(busy.snapshot(), (0, first), "an idle disk is not busy");
    }

    #[test]
    fn many_threads_leave_nothing_in_flight_and_no_time_that_did_not_pass() {
        let busy = Busy::default();
        let began = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        busy.enter();
                        busy.leave(Instant::now());
                    }
                });
            }
        });
        let (count, time) = busy.snapshot();
        assert_eq!(count, 0);
        assert!(time <= began.elapsed() + UNIT, "{time:?} of {:?}", began.elapsed());
    }
}
