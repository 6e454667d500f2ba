//! A power-cut simulator: a file in memory that remembers what was not flushed, and builds the files that a power
//! cut could have left.
//!
//! ```text
//!   let disk = Arc::new(CrashStorage::new(MemStorage::new(0)));
//!   … run the code under test on `disk`, noting disk.position() after each step that the test cares about …
//!   for cut in 0..=disk.position() {
//!       for state in disk.states(cut, seed).take(20) {
//!           … open the image on Arc::new(state): what was flushed before `cut` is there, the rest is old or new
//! ```
//! The model. Since the last flush before the cut, every sector of 512 bytes has, on its own, stopped at some moment:
//! it holds what it held then. So writes are lost, torn and reordered freely, but a sector never goes back to before
//! the flush and never mixes two writes in a way that it did not have. The length and truncations are metadata with a
//! journal of their own: they have stopped at one moment for the whole file, and what was written behind a
//! truncation that did not happen is lost. New length without its bytes reads as zeroes.
//!
//! A killed process, other than a power cut, loses nothing that was written: [`CrashStorage::killed`].
//!
//! Invariant: the same operations and the same seed give the same states.

use std::sync::{Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;

use crate::buf::{Buf, BufMut};
use crate::error::Result;
use crate::range::ByteRange;
use crate::storage::{Completion, HostExtent, Limits, MemStorage, Storage, Zero};
use crate::testing::mix;

/// What a disk writes in one piece, bytes.
const SECTOR: u64 = 512;

/// A file in memory whose power can be cut, at every moment of its past.
#[derive(Debug)]
pub struct CrashStorage {
    live: MemStorage,
    log: Mutex<Log>,
}

#[derive(Debug)]
struct Log {
    events: Vec<Event>,
    /// The file as it was when everything before this event had been flushed, in order of the events.
    durable: Vec<(usize, MemStorage)>,
}

#[derive(Debug, Clone)]
enum Event {
    Write { at: u64, bytes: Buf },
    Zero(ByteRange),
    Resize(u64),
    Flush,
}

/// At which moment each sector, and the metadata, have stopped. Moments are numbers of events after the last flush.
#[derive(Debug, Clone, Copy)]
enum Stop {
    /// All at the same.
    Together(usize),
    /// The sectors that this event touches after it, all others before everything.
    Only { event: usize, metadata: usize },
    /// The sectors that this event touches before it, all others after everything.
    AllBut { event: usize, metadata: usize },
    /// Every sector at one of its own, half of them at the very beginning or end.
    Scattered { seed: u64, metadata: usize },
}

impl CrashStorage {
    /// Starts from `content`, which is durable.
    pub fn new(content: MemStorage) -> Self {
        let log = Log { events: Vec::new(), durable: vec![(0, content.snapshot())] };
        CrashStorage { live: content, log: Mutex::new(log) }
    }

    /// Changes and flushes so far: a moment at which the power can be cut.
    pub fn position(&self) -> usize {
        self.log().events.len()
    }

    /// What a killed process leaves at moment `cut`: everything that was written.
    pub fn killed(&self, cut: usize) -> MemStorage {
        let (base, pending) = self.since_flush(cut);
        build(&base, &pending, Stop::Together(pending.len())).named(format!("killed after {cut} operations"))
    }

    /// What a power cut at moment `cut` may leave: nothing and everything since the last flush, then states chosen by
    /// `seed`, without end. Just one if everything was flushed.
    ///
    /// # Panics
    /// If `cut` is later than now.
    pub fn states(&self, cut: usize, seed: u64) -> impl Iterator<Item = MemStorage> + use<> {
        let (base, pending) = self.since_flush(cut);
        let count = pending.len();
        let stops = (0u64..).map(move |number| match number {
            0 => Stop::Together(0),
            1 => Stop::Together(count),
            _ => choose(mix(seed, number), count),
        });
        let most = if count == 0 { 1 } else { usize::MAX };
        stops.take(most).map(move |stop| {
            build(&base, &pending, stop)
                .named(format!("power cut after {cut} operations, seed {seed}, {stop:?}"))
        })
    }

    /// The orderly states of a power cut at moment `cut`: stopped at each moment since the flush, one event alone, all
    /// but one event.
    ///
    /// # Panics
    /// If `cut` is later than now.
    pub fn corner_states(&self, cut: usize) -> impl Iterator<Item = MemStorage> + use<> {
        let (base, pending) = self.since_flush(cut);
        let count = pending.len();
        let together = (0..=count).map(Stop::Together);
        let alone = (0..count).flat_map(move |event| {
            [0, count]
                .into_iter()
                .flat_map(move |metadata| [Stop::Only { event, metadata }, Stop::AllBut { event, metadata }])
        });
        together.chain(alone).map(move |stop| {
            build(&base, &pending, stop).named(format!("power cut after {cut} operations, {stop:?}"))
        })
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The durable file before `cut`, and what came after it.
    fn since_flush(&self, cut: usize) -> (MemStorage, Vec<Event>) {
        let log = self.log();
        assert!(cut <= log.events.len(), "the power cannot be cut in the future");
        let (from, base) = log.durable.iter().rfind(|(from, _)| *from <= cut).expect("the first one is at 0");
        (base.snapshot(), log.events[*from..cut].to_vec())
    }

    /// Does `change` to the live file and, if it succeeds, remembers it as `event`.
    fn record(&self, event: Event, change: impl FnOnce(&MemStorage) -> Completion<()>) -> Completion<()> {
        let mut log = self.log();
        let outcome = at_once(change(&self.live));
        if outcome.is_ok() {
            log.events.push(event);
            if matches!(log.events.last(), Some(Event::Flush)) || self.live.limits().write_through {
                let durable = (log.events.len(), self.live.snapshot());
                log.durable.push(durable);
            }
        }
        Completion::ready(outcome)
    }
}

/// The file after `pending`, each part of it stopped where `stop` says.
fn build(base: &MemStorage, pending: &[Event], stop: Stop) -> MemStorage {
    let file = base.snapshot();
    let metadata = stop.metadata();
    let mut len = file.len();
    // What lies behind a truncation that did not happen has no place any more.
    let mut reach = u64::MAX;
    for (number, event) in pending.iter().enumerate() {
        let happened = number < metadata;
        match event {
            Event::Write { at, bytes } => {
                let range = ByteRange::at(*at, bytes.len() as u64);
                if happened {
                    len = len.max(range.end());
                }
                for piece in kept(pending, stop, number, range, reach) {
                    let part = bytes.slice((piece.start() - at) as usize..(piece.end() - at) as usize);
                    at_once(file.write(piece.start(), part)).expect("a write that succeeded once");
                }
            }
            Event::Zero(range) => {
                for piece in kept(pending, stop, number, *range, reach) {
                    at_once(file.discard(piece)).expect("zeroes in memory");
                }
            }
            Event::Resize(to) if happened => {
                len = *to;
                at_once(file.resize(*to)).expect("a resize that succeeded once");
            }
            Event::Resize(to) => reach = reach.min(*to),
            Event::Flush => {}
        }
    }
    if file.len() != len {
        at_once(file.resize(len)).expect("a file that grew can be cut");
    }
    file
}

/// The parts of an event's range that have been reached: whole sectors, neighbours joined.
fn kept(pending: &[Event], stop: Stop, number: usize, range: ByteRange, reach: u64) -> Vec<ByteRange> {
    let inside = ByteRange::new(0, reach).intersect(&range);
    let mut parts: Vec<ByteRange> = Vec::new();
    for piece in inside.blocks(SECTOR).filter(|piece| number < stop.moment(pending, *piece)) {
        match parts.last_mut() {
            Some(last) if last.end() == piece.start() => *last = ByteRange::new(last.start(), piece.end()),
            _ => parts.push(piece),
        }
    }
    parts
}

impl Stop {
    /// The number of events whose changes to the length have happened.
    fn metadata(self) -> usize {
        match self {
            Stop::Together(moment) => moment,
            Stop::Only { metadata, .. } | Stop::AllBut { metadata, .. } => metadata,
            Stop::Scattered { metadata, .. } => metadata,
        }
    }

    /// The number of events that the sector of `piece` has seen.
    fn moment(self, pending: &[Event], piece: ByteRange) -> usize {
        let sector = piece.align_out(SECTOR);
        let touches = |event: usize| match &pending[event] {
            Event::Write { at, bytes } => ByteRange::at(*at, bytes.len() as u64).overlaps(&sector),
            Event::Zero(range) => range.overlaps(&sector),
            Event::Resize(_) | Event::Flush => false,
        };
        match self {
            Stop::Together(moment) => moment,
            Stop::Only { event, .. } => {
                if touches(event) {
                    event + 1
                } else {
                    0
                }
            }
            Stop::AllBut { event, .. } => {
                if touches(event) {
                    event
                } else {
                    pending.len()
                }
            }
            Stop::Scattered { seed, .. } => {
                let dice = mix(seed, sector.start());
                match dice % 4 {
                    0 => 0,
                    1 => pending.len(),
                    _ => (dice >> 8) as usize % (pending.len() + 1),
                }
            }
        }
    }
}

fn choose(dice: u64, count: usize) -> Stop {
    let below = |salt, limit: usize| mix(dice, salt) as usize % limit;
    let metadata = below(1, count + 1);
    match dice % 8 {
        0 => Stop::Together(metadata),
        1 => Stop::Only { event: below(2, count), metadata },
        2 => Stop::AllBut { event: below(2, count), metadata },
        _ => Stop::Scattered { seed: mix(dice, 3), metadata },
    }
}

fn at_once(completion: Completion<()>) -> Result<()> {
    completion.now_or_never().expect("memory never waits")
}

impl Storage for CrashStorage {
    fn limits(&self) -> Limits {
        self.live.limits()
    }

    fn name(&self) -> &str {
        self.live.name()
    }

    fn len(&self) -> u64 {
        self.live.len()
    }

    fn allocated(&self) -> u64 {
        self.live.allocated()
    }

    fn read(&self, at: u64, into: BufMut) -> Completion<BufMut> {
        self.live.read(at, into)
    }

    fn write(&self, at: u64, from: Buf) -> Completion<()> {
        self.record(Event::Write { at, bytes: from.clone() }, |live| live.write(at, from))
    }

    fn zero(&self, range: ByteRange, how: Zero) -> Completion<()> {
        let inside = ByteRange::new(0, self.len()).intersect(&range);
        self.record(Event::Zero(inside), |live| live.zero(range, how))
    }

    fn discard(&self, range: ByteRange) -> Completion<()> {
        let inside = ByteRange::new(0, self.len()).intersect(&range);
        self.record(Event::Zero(inside), |live| live.discard(range))
    }

    fn status(&self, range: ByteRange) -> Completion<HostExtent> {
        self.live.status(range)
    }

    fn prefetch(&self, range: ByteRange) {
        self.live.prefetch(range);
    }

    fn flush(&self) -> Completion<()> {
        self.record(Event::Flush, |live| live.flush())
    }

    fn resize(&self, len: u64) -> Completion<()> {
        self.record(Event::Resize(len), |live| live.resize(len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const FREE: Zero = Zero { may_free: true, fast_only: false };

    fn write(disk: &CrashStorage, at: u64, fill: u8, len: usize) {
        at_once(disk.write(at, Buf::copy_from(&vec![fill; len]))).expect("write");
    }

    fn flush(disk: &CrashStorage) {
        at_once(disk.flush()).expect("flush");
    }

    /// One letter a sector.
    fn sectors(file: &MemStorage) -> String {
        file.to_vec().chunks(SECTOR as usize).map(|sector| char::from(sector[0].max(b'.'))).collect()
    }

    fn seen(disk: &CrashStorage, cut: usize) -> BTreeSet<String> {
        disk.states(cut, 1).take(400).chain(disk.corner_states(cut)).map(|state| sectors(&state)).collect()
    }

    fn set(states: &[&str]) -> BTreeSet<String> {
        states.iter().map(|&state| state.to_owned()).collect()
    }

    #[test]
    fn what_was_flushed_stays_and_what_was_not_may_be_there_in_any_part() {
        let disk = CrashStorage::new(MemStorage::new(1536));
        write(&disk, 0, b'a', 512);
        flush(&disk);
        write(&disk, 512, b'b', 1024);
        assert_eq!(seen(&disk, 3), set(&["a..", "ab.", "a.b", "abb"]));
        assert_eq!(seen(&disk, 2), set(&["a.."]), "before the write");
        assert_eq!(seen(&disk, 1), set(&["...", "a.."]), "before the flush");
        flush(&disk);
        assert_eq!(disk.states(4, 1).count(), 1);
        assert_eq!(seen(&disk, 4), set(&["abb"]));
        assert_eq!(sectors(&disk.killed(3)), "abb");
    }

    #[test]
    fn a_sector_shows_one_of_its_contents_since_the_flush() {
        let disk = CrashStorage::new(MemStorage::from_bytes(&[b'o'; 1024]));
        write(&disk, 0, b'a', 1024);
        write(&disk, 0, b'b', 512);
        at_once(disk.zero(ByteRange::new(512, 1024), FREE)).expect("zero");
        let all: BTreeSet<String> =
            "oab".chars().flat_map(|x| "oa.".chars().map(move |y| format!("{x}{y}"))).collect();
        assert_eq!(seen(&disk, 3), all);
    }

    #[test]
    fn later_bytes_of_a_sector_never_come_without_earlier_ones() {
        let disk = CrashStorage::new(MemStorage::new(512));
        write(&disk, 0, b'a', 4);
        write(&disk, 4, b'b', 4);
        for state in disk.states(2, 5).take(100) {
            let bytes = state.to_vec();
            assert!(bytes[4] != b'b' || bytes[0] == b'a', "{}", state.name());
        }
    }

    #[test]
    fn a_file_may_be_longer_without_its_bytes_and_shorter_than_them() {
        let disk = CrashStorage::new(MemStorage::new(512));
        write(&disk, 512, b'a', 512);
        write(&disk, 1024, b'b', 512);
        assert_eq!(seen(&disk, 2), set(&[".", "..", ".a", "...", ".a.", "..b", ".ab"]));
    }

    #[test]
    fn bytes_behind_a_truncation_that_did_not_happen_are_lost_and_old_ones_never_come_back() {
        let disk = CrashStorage::new(MemStorage::from_bytes(&[b'o'; 1024]));
        at_once(disk.resize(512)).expect("cut");
        at_once(disk.resize(1024)).expect("grow");
        write(&disk, 512, b'n', 512);
        assert_eq!(seen(&disk, 3), set(&["oo", "o", "o.", "on"]));
    }

    #[test]
    fn one_seed_gives_one_sequence_of_states() {
        let states = |seed| {
            let disk = CrashStorage::new(MemStorage::new(0));
            (0..20).for_each(|n| write(&disk, n * 300, b'a' + n as u8, 700));
            disk.states(20, seed).take(30).map(|state| state.to_vec()).collect::<Vec<_>>()
        };
        assert_eq!(states(7), states(7));
        assert_ne!(states(7), states(8));
    }

    #[test]
    fn a_file_that_is_written_through_loses_nothing() {
        let through = Limits { write_through: true, ..MemStorage::new(0).limits() };
        let disk = CrashStorage::new(MemStorage::new(512).with_limits(through));
        write(&disk, 0, b'a', 512);
        assert_eq!(seen(&disk, 1), set(&["a"]));
    }
}
