//! The accounts of one disk: what was done, what failed, and where the time went, by operation.
//!
//! They lie with the list of requests, under its lock: who leaves the list is counted in the same step.
//!
//! Invariant: an operation that succeeded is counted once, in each of its numbers; one that failed is counted among the
//! errors and in no histogram.

mod histogram;

pub use histogram::{Durations, SIZE_BOUNDS, Sizes};

use std::time::Duration;

use histogram::size_index;

use crate::error::ErrorKind;
use crate::op::Op;

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

/// What a write did besides being carried out, for the accounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WriteEffect {
    /// Bytes copied up from the layers below.
    pub copied: u64,
    /// Bytes that were zeroes and took no space.
    pub zeroes: u64,
    /// Bytes that a differencing image read already and that were left out.
    pub same: u64,
    /// Blocks may have lost their place.
    pub freed: bool,
}

impl WriteEffect {
    /// Whether there is anything in it to be counted, which is rare.
    pub fn counts(self) -> bool {
        self.copied | self.zeroes | self.same > 0
    }
}

impl std::ops::AddAssign for WriteEffect {
    fn add_assign(&mut self, other: Self) {
        self.copied += other.copied;
        self.zeroes += other.zeroes;
        self.same += other.same;
        self.freed |= other.freed;
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

impl Default for DiskStats {
    fn default() -> Self {
        DiskStats {
            ops: Op::ALL.map(OpStats::new),
            errors: Vec::new(),
            in_flight: 0,
            busy: Duration::ZERO,
            highest_written: 0,
            copied: 0,
            zeroes: 0,
            same: 0,
        }
    }
}

impl DiskStats {
    /// Counts a request that has come to its end.
    pub fn record(&mut self, outcome: &Outcome) {
        let stats = &mut self.ops[outcome.op as usize];
        stats.throttled += outcome.throttled;
        stats.waited += outcome.waited;
        if let Some(kind) = outcome.error {
            stats.failed += outcome.total;
            self.count_error(outcome.op, kind);
            return;
        }
        stats.operations += 1;
        // Around, as all counters do at their end: four requests about a whole disk of 4 EiB get there.
        stats.bytes = stats.bytes.wrapping_add(outcome.bytes);
        stats.total += outcome.total;
        stats.latency.record(outcome.total);
        stats.sizes[size_index(outcome.bytes)] += 1;
        if matches!(outcome.op, Op::Write | Op::WriteZeroes) {
            self.highest_written = self.highest_written.max(outcome.end);
        }
    }

    /// Counts what a write turned out to mean.
    pub fn add_effect(&mut self, effect: WriteEffect) {
        self.copied += effect.copied;
        self.zeroes += effect.zeroes;
        self.same += effect.same;
    }

    fn count_error(&mut self, op: Op, kind: ErrorKind) {
        match self.errors.iter_mut().find(|error| (error.op, error.kind) == (op, kind)) {
            Some(error) => error.count += 1,
            None => self.errors.push(ErrorCount { op, kind, count: 1 }),
        }
    }

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
    fn new(op: Op) -> Self {
        OpStats {
            op,
            operations: 0,
            bytes: 0,
            total: Duration::ZERO,
            failed: Duration::ZERO,
            throttled: Duration::ZERO,
            waited: Duration::ZERO,
            latency: Durations::default(),
            sizes: Sizes::default(),
        }
    }

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
        let mut stats = DiskStats::default();
        stats.record(&write(8192, 10));
        stats.record(&write(4096, 30));
        stats.record(&Outcome { error: Some(ErrorKind::NoSpace), ..write(1 << 40, 5) });
        stats.record(&Outcome { error: Some(ErrorKind::NoSpace), ..write(1 << 40, 5) });
        stats.record(&Outcome { error: Some(ErrorKind::Io), ..write(1 << 40, 5) });
        let writes = stats.of(Op::Write);
        assert_eq!((writes.operations, writes.bytes), (2, 8192));
        assert_eq!((writes.latency.count(), writes.sizes[3]), (2, 2));
        assert_eq!(writes.total, Duration::from_millis(40));
        assert_eq!(stats.weighted(), Duration::from_millis(55), "failed requests took time, too");
        assert_eq!(stats.highest_written, 8192, "what failed was not written");
        assert_eq!(
            stats.errors,
            [
                ErrorCount { op: Op::Write, kind: ErrorKind::NoSpace, count: 2 },
                ErrorCount { op: Op::Write, kind: ErrorKind::Io, count: 1 }
            ]
        );
        assert_eq!(stats.of(Op::Read).operations, 0);
    }

    #[test]
    fn bytes_beyond_all_bounds_begin_again_and_break_nothing() {
        let mut stats = DiskStats::default();
        for _ in 0..3 {
            stats.record(&Outcome { op: Op::Cache, bytes: u64::MAX / 2, ..Outcome::default() });
        }
        assert_eq!((stats.of(Op::Cache).operations, stats.of(Op::Cache).bytes), (3, u64::MAX / 2 - 2));
    }

    #[test]
    fn the_times_of_a_request_add_up() {
        let mut stats = DiskStats::default();
        let (throttled, waited) = (Duration::from_millis(3), Duration::from_millis(2));
        stats.record(&Outcome { throttled, waited, ..write(512, 10) });
        stats.record(&Outcome { throttled, error: Some(ErrorKind::Io), ..write(512, 4) });
        let writes = stats.of(Op::Write);
        assert_eq!((writes.throttled, writes.waited), (2 * throttled, waited));
        assert_eq!(writes.working(), Duration::from_millis(14 - 6 - 2));
    }
}
