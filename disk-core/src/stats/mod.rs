//! The accounts of one disk: what was done, what failed, and where the time went, by operation.
//!
//! Invariant: an operation that succeeded is counted once, in its latency histogram; the number of operations is the
//! histogram's sum and cannot contradict it. Recording takes no lock unless the request failed.

mod histogram;

pub use histogram::{Durations, SIZE_BOUNDS, Sizes};

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use histogram::{AtomicDurations, AtomicSizes};

use crate::chain::WriteEffect;
use crate::error::ErrorKind;
use crate::tracker::Op;

/// What became of one request.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// What it did.
    pub op: Op,
    /// Bytes that it was about.
    pub bytes: u64,
    /// One past the last of them on the disk; of writes the highest is noted.
    pub end: u64,
    /// Why it failed, if it did.
    pub error: Option<ErrorKind>,
    /// Time that the throttle held it.
    pub throttled: Duration,
    /// Time that it waited for its turn.
    pub waited: Duration,
    /// All its time; what is left of it without the two above is work.
    pub total: Duration,
}

impl Default for Outcome {
    fn default() -> Self {
        Outcome {
            op: Op::Read,
            bytes: 0,
            end: 0,
            error: None,
            throttled: Duration::ZERO,
            waited: Duration::ZERO,
            total: Duration::ZERO,
        }
    }
}

/// Counts what a disk does, from any thread.
#[derive(Debug, Default)]
pub struct Stats {
    ops: [Counters; Op::ALL.len()],
    highest_written: AtomicU64,
    copied: AtomicU64,
    zeroes: AtomicU64,
    same: AtomicU64,
    /// Failures are rare: a list under a lock, in the order of their first appearance.
    errors: Mutex<Vec<ErrorCount>>,
}

/// What is counted for one operation. Times are nanoseconds.
#[derive(Debug, Default)]
struct Counters {
    latency: AtomicDurations,
    sizes: AtomicSizes,
    bytes: AtomicU64,
    total: AtomicU64,
    failed: AtomicU64,
    throttled: AtomicU64,
    waited: AtomicU64,
}

impl Stats {
    /// Counts a request that has come to its end.
    pub fn record(&self, outcome: &Outcome) {
        let counters = &self.ops[outcome.op as usize];
        let total = nanoseconds(outcome.total);
        if let Some(kind) = outcome.error {
            counters.failed.fetch_add(total, Ordering::Relaxed);
            self.count_error(outcome.op, kind);
        } else {
            counters.latency.record(total);
            counters.sizes.record(outcome.bytes);
            counters.bytes.fetch_add(outcome.bytes, Ordering::Relaxed);
            counters.total.fetch_add(total, Ordering::Relaxed);
            if matches!(outcome.op, Op::Write | Op::WriteZeroes) {
                raise(&self.highest_written, outcome.end);
            }
        }
        add(&counters.throttled, nanoseconds(outcome.throttled));
        add(&counters.waited, nanoseconds(outcome.waited));
    }

    /// Counts what a write turned out to mean.
    pub fn add_effect(&self, effect: WriteEffect) {
        add(&self.copied, effect.copied);
        add(&self.zeroes, effect.zeroes);
        add(&self.same, effect.same);
    }

    /// The accounts now, of requests that have ended. Those that end meanwhile may be in one number and not yet in
    /// another.
    pub fn snapshot(&self) -> DiskStats {
        DiskStats {
            ops: Op::ALL.map(|op| self.ops[op as usize].snapshot(op)),
            errors: self.errors.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            in_flight: 0,
            busy: Duration::ZERO,
            highest_written: self.highest_written.load(Ordering::Relaxed),
            copied: self.copied.load(Ordering::Relaxed),
            zeroes: self.zeroes.load(Ordering::Relaxed),
            same: self.same.load(Ordering::Relaxed),
        }
    }

    fn count_error(&self, op: Op, kind: ErrorKind) {
        let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        match errors.iter_mut().find(|error| (error.op, error.kind) == (op, kind)) {
            Some(error) => error.count += 1,
            None => errors.push(ErrorCount { op, kind, count: 1 }),
        }
    }
}

impl Counters {
    fn snapshot(&self, op: Op) -> OpStats {
        let latency = self.latency.snapshot();
        let time = |counter: &AtomicU64| Duration::from_nanos(counter.load(Ordering::Relaxed));
        OpStats {
            op,
            operations: latency.count(),
            bytes: self.bytes.load(Ordering::Relaxed),
            total: time(&self.total),
            failed: time(&self.failed),
            throttled: time(&self.throttled),
            waited: time(&self.waited),
            latency,
            sizes: self.sizes.snapshot(),
        }
    }
}

fn nanoseconds(time: Duration) -> u64 {
    // 2⁶⁴ nanoseconds are 584 years.
    time.as_nanos() as u64
}

/// Most of what is added is zero, and a look is cheaper than a write.
fn add(counter: &AtomicU64, amount: u64) {
    if amount > 0 {
        counter.fetch_add(amount, Ordering::Relaxed);
    }
}

fn raise(highest: &AtomicU64, to: u64) {
    if highest.load(Ordering::Relaxed) < to {
        highest.fetch_max(to, Ordering::Relaxed);
    }
}

/// The accounts of a disk since it was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskStats {
    /// One for each of [`Op::ALL`], in its order.
    pub ops: [OpStats; Op::ALL.len()],
    /// Failed requests by operation and kind; those that never failed are not listed.
    pub errors: Vec<ErrorCount>,
    /// Requests in flight now.
    pub in_flight: u64,
    /// Time in which at least one request was in flight.
    pub busy: Duration,
    /// One past the highest byte that was ever written or zeroed.
    pub highest_written: u64,
    /// Bytes that copy-on-write copied.
    pub copied: u64,
    /// Bytes of writes that turned out to be zeroes and took no space.
    pub zeroes: u64,
    /// Bytes of writes that were there already and were left out.
    pub same: u64,
}

impl DiskStats {
    /// The accounts of one operation.
    pub fn of(&self, op: Op) -> &OpStats {
        &self.ops[op as usize]
    }

    /// Time of all requests together, two seconds for two that took a second at once; as the kernel counts its
    /// `time_in_queue`.
    pub fn weighted(&self) -> Duration {
        self.ops.iter().filter(|stats| stats.op != Op::Compact).map(|stats| stats.total + stats.failed).sum()
    }
}

/// The accounts of one operation of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpStats {
    /// Which.
    pub op: Op,
    /// Requests that succeeded.
    pub operations: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Their time.
    pub total: Duration,
    /// Time of requests that failed.
    pub failed: Duration,
    /// Time that the throttle held requests, of both.
    pub throttled: Duration,
    /// Time that requests waited for their turn, of both.
    pub waited: Duration,
    /// How long each request took that succeeded.
    pub latency: Durations,
    /// How large each request was that succeeded.
    pub sizes: Sizes,
}

impl OpStats {
    /// Time that requests were worked on, succeeded or not.
    pub fn working(&self) -> Duration {
        (self.total + self.failed).saturating_sub(self.throttled + self.waited)
    }
}

/// How often an operation failed in one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorCount {
    /// What failed.
    pub op: Op,
    /// How.
    pub kind: ErrorKind,
    /// How often.
    pub count: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(end: u64, milliseconds: u64) -> Outcome {
        let total = Duration::from_millis(milliseconds);
        Outcome { op: Op::Write, bytes: 4096, end, total, ..Outcome::default() }
    }

    #[test]
    fn what_succeeded_and_what_failed_is_told_apart() {
        let stats = Stats::default();
        stats.record(&write(8192, 10));
        stats.record(&write(4096, 30));
        stats.record(&Outcome { error: Some(ErrorKind::NoSpace), ..write(1 << 40, 5) });
        stats.record(&Outcome { error: Some(ErrorKind::NoSpace), ..write(1 << 40, 5) });
        stats.record(&Outcome { error: Some(ErrorKind::Io), ..write(1 << 40, 5) });
        let now = stats.snapshot();
        let writes = now.of(Op::Write);
        assert_eq!((writes.operations, writes.bytes), (2, 8192));
        assert_eq!((writes.latency.count(), writes.sizes[3]), (2, 2));
        assert_eq!(writes.total, Duration::from_millis(40));
        assert_eq!(now.weighted(), Duration::from_millis(55), "failed requests took time, too");
        assert_eq!(now.highest_written, 8192, "what failed was not written");
        assert_eq!(
            now.errors,
            [
                ErrorCount { op: Op::Write, kind: ErrorKind::NoSpace, count: 2 },
                ErrorCount { op: Op::Write, kind: ErrorKind::Io, count: 1 }
            ]
        );
        assert_eq!(now.of(Op::Read).operations, 0);
    }

    #[test]
    fn the_times_of_a_request_add_up() {
        let stats = Stats::default();
        let (throttled, waited) = (Duration::from_millis(3), Duration::from_millis(2));
        stats.record(&Outcome { throttled, waited, ..write(512, 10) });
        stats.record(&Outcome { throttled, error: Some(ErrorKind::Io), ..write(512, 4) });
        let now = stats.snapshot();
        let writes = now.of(Op::Write);
        assert_eq!((writes.throttled, writes.waited), (2 * throttled, waited));
        assert_eq!(writes.working(), Duration::from_millis(14 - 6 - 2));
    }

    #[test]
    fn many_threads_lose_no_count() {
        let stats = Stats::default();
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let stats = &stats;
                scope.spawn(move || {
                    for request in 0..10_000 {
                        stats.record(&write(thread * 1_000_000 + request, request % 50));
                    }
                    stats.add_effect(WriteEffect { copied: 1, zeroes: 2, same: 3, freed: false });
                });
            }
        });
        let now = stats.snapshot();
        assert_eq!(now.of(Op::Write).operations, 40_000);
        assert_eq!(now.of(Op::Write).sizes.iter().sum::<u64>(), 40_000);
        assert_eq!(now.of(Op::Write).bytes, 40_000 * 4096);
        assert_eq!(now.highest_written, 3_009_999);
        assert_eq!((now.copied, now.zeroes, now.same), (4, 8, 12));
    }

    /// Costs of the accounts of one request. Run with `--release --ignored --nocapture`.
    #[test]
    #[ignore = "a measurement, not a test"]
    fn what_the_accounts_of_a_request_cost() {
        const REQUESTS: u64 = 2_000_000;
        let stats = Stats::default();
        let time = |what: &str, mut request: Box<dyn FnMut(u64) + '_>| {
            let began = std::time::Instant::now();
            (0..REQUESTS).for_each(&mut request);
            println!("{what}: {:.1} ns", began.elapsed().as_secs_f64() * 1e9 / REQUESTS as f64);
        };
        time("recorded", Box::new(|number| stats.record(&write(number * 4096, number % 64))));
        assert_eq!(stats.snapshot().of(Op::Write).operations, REQUESTS);
    }
}
