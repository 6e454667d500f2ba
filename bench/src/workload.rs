//! What is asked of a server: operations, where, how large, how many at once.
//!
//! Invariant: the requests of a connection follow from the workload, the connection's number and the generation alone,
//! so that after a run it is known which were sent.

use serde::Serialize;

use crate::content::Random;

/// The kind of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pattern {
    /// Reads of random places.
    Read,
    /// Reads one after the other.
    ReadSequential,
    /// Writes to random places.
    Write,
    /// Writes one after the other.
    WriteSequential,
    /// Seven random reads to three random writes.
    Mixed,
    /// Random writes, and a flush after every 32nd.
    WriteFlush,
    /// Trims of random places.
    Trim,
    /// Once through the disk, one write after the other.
    Fill,
    /// One write to each mebibyte of the disk, in random order: each needs a new block of a VDI.
    Allocate,
}

impl Pattern {
    /// Whether the run ends after a number of requests instead of a time.
    pub fn is_counted(self) -> bool {
        matches!(self, Pattern::Fill | Pattern::Allocate)
    }

    /// Whether anything is changed.
    pub fn changes(self) -> bool {
        !matches!(self, Pattern::Read | Pattern::ReadSequential)
    }
}

/// A load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Workload {
    /// The kind of requests.
    pub pattern: Pattern,
    /// Bytes of a request.
    pub bytes: u64,
    /// Requests in flight on each connection.
    pub depth: usize,
    /// Connections.
    pub connections: usize,
}

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Flushes.
    Flush,
    /// Trims.
    Trim,
}

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// What it does.
    pub op: Op,
    /// First byte of the disk.
    pub offset: u64,
}

/// Unit of [`Pattern::Allocate`]: the block size that every program can read in a VDI.
const ALLOCATION: u64 = 1 << 20;

/// The requests of one connection.
#[derive(Debug, Clone)]
pub struct Steps {
    workload: Workload,
    random: Random,
    /// Requests so far.
    count: u64,
    /// Places on the disk.
    places: u64,
    /// The place of a sequential request.
    next: u64,
}

impl Steps {
    /// The requests of the connection with number `connection` to a disk of `size` bytes.
    pub fn new(workload: Workload, connection: usize, generation: u32, size: u64) -> Self {
        let places = match workload.pattern {
            Pattern::Allocate => size / ALLOCATION,
            _ => size / workload.bytes,
        };
        let share = places / workload.connections as u64;
        let seed = u64::from(generation) << 32 | connection as u64;
        Steps { workload, random: Random::new(seed), count: 0, places, next: share * connection as u64 }
    }

    /// How many there are, if they come to an end.
    pub fn most(&self) -> Option<u64> {
        self.workload.pattern.is_counted().then_some(self.places / self.workload.connections as u64)
    }
}

impl Iterator for Steps {
    type Item = Step;

    #[inline]
    fn next(&mut self) -> Option<Step> {
        self.count += 1;
        let op = match self.workload.pattern {
            Pattern::Read | Pattern::ReadSequential => Op::Read,
            Pattern::Write | Pattern::WriteSequential | Pattern::Fill | Pattern::Allocate => Op::Write,
            Pattern::Mixed if self.random.below(10) < 7 => Op::Read,
            Pattern::Mixed => Op::Write,
            Pattern::WriteFlush if self.count.is_multiple_of(33) => {
                return Some(Step { op: Op::Flush, offset: 0 });
            }
            Pattern::WriteFlush => Op::Write,
            Pattern::Trim => Op::Trim,
        };
        let offset = match self.workload.pattern {
            Pattern::ReadSequential | Pattern::WriteSequential | Pattern::Fill => {
                let place = self.next;
                self.next = (place + 1) % self.places;
                place * self.workload.bytes
            }
            Pattern::Allocate => {
                let place = scattered(self.next, self.places);
                self.next = (self.next + 1) % self.places;
                // Somewhere inside the block, so that there is something to fill before and after it.
                place * ALLOCATION + self.random.below(ALLOCATION / self.workload.bytes) * self.workload.bytes
            }
            _ => self.random.below(self.places) * self.workload.bytes,
        };
        Some(Step { op, offset })
    }
}

/// A one-to-one map of the numbers below `count` that leaves no neighbours together.
fn scattered(number: u64, count: u64) -> u64 {
    // A prime that divides no count of mebibytes used here.
    number * 7919 % count
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn steps(pattern: Pattern, bytes: u64, size: u64) -> Steps {
        Steps::new(Workload { pattern, bytes, depth: 1, connections: 1 }, 0, 1, size)
    }

    #[test]
    fn allocating_touches_every_mebibyte_once() {
        let size = 256 << 20;
        let all = steps(Pattern::Allocate, 4096, size);
        let most = all.most().unwrap();
        assert_eq!(most, 256);
        let touched: HashSet<u64> = all.take(most as usize).map(|step| step.offset >> 20).collect();
        assert_eq!(touched.len(), 256);
    }

    #[test]
    fn a_flush_comes_after_every_32nd_write() {
        let all: Vec<Step> = steps(Pattern::WriteFlush, 4096, 1 << 20).take(330).collect();
        assert_eq!(all.iter().filter(|step| step.op == Op::Flush).count(), 10);
        assert_eq!(all[32].op, Op::Flush);
    }

    #[test]
    fn requests_lie_inside_the_disk_and_on_whole_requests() {
        for pattern in [Pattern::Read, Pattern::Write, Pattern::Mixed, Pattern::ReadSequential, Pattern::Fill]
        {
            for step in steps(pattern, 64 << 10, 3 << 20).take(1000) {
                assert!(step.offset + (64 << 10) <= 3 << 20 && step.offset % (64 << 10) == 0, "{step:?}");
            }
        }
    }
}
