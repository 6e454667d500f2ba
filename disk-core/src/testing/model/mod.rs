//! What a disk must read: the oracle of every test of raw, VDI, chain and device.
//!
//! ```text
//!   campaign   many cases from one seed
//!   Model      every content that each sector may have       the judge of bytes
//!   request    what can be asked of a disk, drawn at random
//!   target     asking a disk, and judging its answer
//!   images     chains of images, drawn at random, in memory
//!   witness    a reader of image files that shares no code with the drivers   the judge of files
//! ```
//! A sector has one content after a write, and several after what leaves a choice: a discard, a failed write, a power
//! cut. Reading it settles the choice for good. The model knows nothing of blocks, layers or files.
//!
//! Invariant: a sector that is not in the map holds zeroes, and no other content is allowed.

pub mod campaign;
pub mod images;
pub mod request;
pub mod target;
pub mod witness;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use crate::buf::is_zero;
use crate::chain::StatusExtent;
use crate::range::ByteRange;

/// What a disk writes in one piece, bytes: a sector is old or new, never a mixture.
pub const SECTOR: u64 = 512;

type Sector = [u8; SECTOR as usize];

/// Contents of which a sector has one; never empty, no two alike.
type Choice = SmallVec<[Arc<Sector>; 1]>;

/// A disk as it must read.
#[derive(Clone)]
pub struct Model {
    size: u64,
    sectors: BTreeMap<u64, Choice>,
    zeroes: Arc<Sector>,
}

impl Model {
    /// A disk of `size` bytes, a multiple of [`SECTOR`], full of zeroes.
    pub fn new(size: u64) -> Self {
        assert!(size.is_multiple_of(SECTOR), "a disk has whole sectors");
        Model { size, sectors: BTreeMap::new(), zeroes: Arc::new([0; SECTOR as usize]) }
    }

    /// A new differencing image of `size` bytes over this disk: zeroes past the end of a shorter parent.
    #[must_use]
    pub fn child(&self, size: u64) -> Self {
        let mut sectors = self.sectors.clone();
        sectors.split_off(&(size / SECTOR));
        Model { sectors, ..Model::new(size) }
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// `bytes` are at `at` now.
    pub fn write(&mut self, at: u64, bytes: &[u8]) {
        let range = ByteRange::at(at, bytes.len() as u64);
        assert!(range.end() <= self.size, "{range} is past the end of the model");
        let mut rest = bytes;
        for piece in range.blocks(SECTOR) {
            let (part, after) = rest.split_at(piece.len() as usize);
            self.change(piece.start() / SECTOR, (piece.start() % SECTOR) as usize, part);
            rest = after;
        }
    }

    /// The range reads as zeroes now.
    pub fn zero(&mut self, range: ByteRange) {
        assert!(range.end() <= self.size, "{range} is past the end of the model");
        let zeroes = [0; SECTOR as usize];
        for piece in range.blocks(SECTOR) {
            let part = &zeroes[..piece.len() as usize];
            self.change(piece.start() / SECTOR, (piece.start() % SECTOR) as usize, part);
        }
    }

    /// The range was discarded: each sector reads as before or as zeroes.
    pub fn discard(&mut self, range: ByteRange) {
        self.perhaps(range, |model| model.zero(range));
    }

    /// A change to `range` that each sector may or may not have seen: it failed, or the power was cut.
    pub fn perhaps(&mut self, range: ByteRange, change: impl FnOnce(&mut Model)) {
        let whole = range.align_out(SECTOR);
        let numbers = whole.start() / SECTOR..whole.end() / SECTOR;
        let before: Vec<Choice> = numbers.clone().map(|number| self.choice(number)).collect();
        change(self);
        for (number, mut choice) in numbers.zip(before) {
            for content in self.choice(number) {
                if !choice.contains(&content) {
                    choice.push(content);
                }
            }
            self.put(number, choice);
        }
    }

    /// Whether `bytes` may be read at `at`, sector by sector. If so they are what will be read from now on.
    ///
    /// # Errors
    /// The first sector that has no such content.
    pub fn settle(&mut self, at: u64, bytes: &[u8]) -> Result<(), Difference> {
        let range = ByteRange::at(at, bytes.len() as u64);
        assert!(range.end() <= self.size, "{range} is past the end of the model");
        let mut rest = bytes;
        for piece in range.blocks(SECTOR) {
            let (part, after) = rest.split_at(piece.len() as usize);
            let number = piece.start() / SECTOR;
            let from = (piece.start() % SECTOR) as usize;
            let alike = |content: &Arc<Sector>| content[from..from + part.len()] == *part;
            match self.sectors.get_mut(&number) {
                Some(choice) if choice.iter().any(alike) => {
                    if choice.len() > 1 {
                        choice.retain(|content| alike(content));
                        let choice = std::mem::take(choice);
                        self.put(number, choice);
                    }
                }
                None if *part == self.zeroes[from..from + part.len()] => {}
                _ => {
                    return Err(Difference {
                        at: piece.start(),
                        read: part.into(),
                        may: self.choice(number),
                    });
                }
            }
            rest = after;
        }
        Ok(())
    }

    /// What the disk holds in a range; where there is a choice, one of the contents that it may have.
    pub fn bytes(&self, range: ByteRange) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(range.len() as usize);
        for piece in range.blocks(SECTOR) {
            let from = (piece.start() % SECTOR) as usize;
            let content = &self.choice(piece.start() / SECTOR)[0];
            bytes.extend_from_slice(&content[from..from + piece.len() as usize]);
        }
        bytes
    }

    /// Whether the bytes of `range` can be nothing but zeroes, whatever else their sectors may hold.
    pub fn is_zero(&self, range: ByteRange) -> bool {
        let whole = range.align_out(SECTOR);
        self.sectors.range(whole.start() / SECTOR..whole.end() / SECTOR).all(|(number, choice)| {
            let part = ByteRange::at(number * SECTOR, SECTOR).intersect(&range);
            let from = (part.start() % SECTOR) as usize;
            choice.iter().all(|content| is_zero(&content[from..from + part.len() as usize]))
        })
    }

    /// Whether `status`, of the start of `range` in at most `most` extents, contradicts what the disk holds.
    ///
    /// # Errors
    /// In words. To be asked when what a discard left has been read.
    pub fn judge_status(&self, range: ByteRange, most: usize, status: &[StatusExtent]) -> Result<(), String> {
        let mut rest = range;
        for extent in status {
            if extent.len == 0 || extent.len > rest.len() {
                return Err(format!("{extent:?} does not fit into the rest {rest} of {range}"));
            }
            let (found, after) = rest.split_at(extent.len);
            if (extent.zero || !extent.data) && !self.is_zero(found) {
                return Err(format!("{found} is not zero, status says {extent:?}"));
            }
            if !extent.data && !extent.zero {
                return Err(format!("{found}: a hole that does not read as zeroes? {extent:?}"));
            }
            rest = after;
        }
        if status.windows(2).any(|pair| {
            (pair[0].data, pair[0].zero, pair[0].depth) == (pair[1].data, pair[1].zero, pair[1].depth)
        }) {
            return Err(format!("neighbours are alike in {status:?}"));
        }
        match (rest.is_empty(), status.len()) {
            (true, _) => Ok(()),
            (false, extents) if extents == most.max(1) => Ok(()),
            _ => Err(format!(
                "{extents} extents of at most {most} leave {rest} of {range} out",
                extents = status.len()
            )),
        }
    }

    fn choice(&self, number: u64) -> Choice {
        self.sectors.get(&number).cloned().unwrap_or_else(|| smallvec![Arc::clone(&self.zeroes)])
    }

    fn put(&mut self, number: u64, choice: Choice) {
        if choice.len() == 1 && *choice[0] == *self.zeroes {
            self.sectors.remove(&number);
        } else {
            self.sectors.insert(number, choice);
        }
    }

    /// Changes a part of a sector in everything that it may hold.
    fn change(&mut self, number: u64, from: usize, part: &[u8]) {
        if let Ok(whole) = <&Sector>::try_from(part) {
            return self.put(number, smallvec![Arc::new(*whole)]);
        }
        let mut changed = Choice::new();
        for mut content in self.choice(number) {
            Arc::make_mut(&mut content)[from..from + part.len()].copy_from_slice(part);
            if !changed.contains(&content) {
                changed.push(content);
            }
        }
        self.put(number, changed);
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Model({} bytes, {} sectors not zero)", self.size, self.sectors.len())
    }
}

/// A sector that does not hold what it must.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Where on the disk.
    pub at: u64,
    /// What was read there.
    pub read: Vec<u8>,
    may: Choice,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let from = (self.at % SECTOR) as usize;
        let may: Vec<String> =
            self.may.iter().map(|content| describe(&content[from..from + self.read.len()])).collect();
        write!(f, "at {} is {}, must be {}", self.at, describe(&self.read), may.join(" or "))
    }
}

/// Bytes that one write only ever writes, in one place only: `len` bytes for `at`. Serial numbers start from 1.
pub fn stamp(at: u64, len: u64, serial: u32) -> Vec<u8> {
    let whole = ByteRange::at(at, len).align_out(8);
    let mut bytes = Vec::with_capacity(whole.len() as usize);
    for word in whole.start() / 8..whole.end() / 8 {
        bytes.extend_from_slice(&(word << 24 | u64::from(serial)).to_le_bytes());
    }
    bytes.drain(..(at - whole.start()) as usize);
    bytes.truncate(len as usize);
    bytes
}

/// Bytes in words: who wrote them for which place, if they are of a [`stamp`].
fn describe(bytes: &[u8]) -> String {
    if bytes.iter().all(|byte| *byte == 0) {
        return "zeroes".into();
    }
    let kinds: Vec<String> = bytes
        .chunks_exact(8)
        .map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")))
        .map(|word| match word {
            0 => "zeroes".into(),
            _ => format!("write {} for sector {}", word & 0xff_ffff, (word >> 24) / (SECTOR / 8)),
        })
        .collect();
    let mut different = kinds.clone();
    different.dedup();
    match different.len() {
        0 => format!("{bytes:02x?}"),
        1..4 => different.join(", then "),
        _ => format!("{} different words, such as {:02x?}", different.len(), &bytes[..bytes.len().min(16)]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_discarded_sector_is_old_or_zero_and_stays_what_it_was_read_as() {
        let mut model = Model::new(2048);
        model.write(0, &stamp(0, 1536, 1));
        model.discard(ByteRange::new(512, 1536));
        let (old, zero) = (stamp(512, 512, 1), vec![0; 512]);
        model.clone().settle(512, &old).expect("old");
        model.settle(512, &zero).expect("or zero");
        let wrong = model.settle(512, &old).expect_err("settled");
        assert_eq!(wrong.to_string(), "at 512 is write 1 for sector 1, must be zeroes");
        model.settle(1024, &stamp(1024, 512, 1)).expect("each sector on its own");
        assert!(!model.is_zero(ByteRange::new(1000, 1025)) && model.is_zero(ByteRange::new(512, 1024)));
    }

    #[test]
    fn a_byte_that_is_zero_in_all_that_its_sector_may_hold_is_zero() {
        let mut model = Model::new(512);
        model.write(0, &stamp(0, 512, 1));
        model.discard(ByteRange::new(0, 512));
        let (last, extent) =
            (ByteRange::new(511, 512), StatusExtent { len: 1, data: false, zero: true, depth: 1 });
        model.settle(511, &[0]).expect("the last byte of a stamp, too, is zero");
        model.judge_status(last, 1, &[extent]).expect("zero in what was written, and after the discard");
        assert!(!model.is_zero(ByteRange::new(0, 512)), "that byte does not tell which it is");
        assert_eq!(
            model.bytes(ByteRange::new(504, 508)),
            stamp(504, 4, 1),
            "what was written is the first choice"
        );
    }

    #[test]
    fn a_write_into_an_unsettled_sector_keeps_the_choice_for_the_rest() {
        let mut model = Model::new(512);
        model.write(0, &stamp(0, 512, 1));
        model.discard(ByteRange::new(0, 512));
        model.write(100, b"new");
        model.settle(100, b"new").expect("written");
        for mut old in [stamp(0, 512, 1), vec![0; 512]] {
            model.clone().settle(0, &old).expect_err("the write is missing");
            old[100..103].copy_from_slice(b"new");
            model.clone().settle(0, &old).expect("old or zero around it");
        }
        let mut torn = stamp(0, 512, 1);
        torn[100..103].copy_from_slice(b"new");
        torn[300..].fill(0);
        model.settle(0, &torn).expect_err("half a sector");
    }

    #[test]
    fn stamps_tell_place_and_write_at_any_alignment() {
        let whole = stamp(4096, 64, 7);
        assert_eq!(stamp(4099, 13, 7), whole[3..16]);
        assert_ne!(stamp(4096, 64, 8), whole);
        assert_eq!(describe(&whole), "write 7 for sector 8");
    }

    #[test]
    fn a_hole_over_data_and_a_gap_are_told() {
        let mut model = Model::new(1024);
        model.write(512, &[1]);
        let all = ByteRange::new(0, 1024);
        let extent = |len, data| StatusExtent { len, data, zero: !data, depth: 1 };
        model.judge_status(all, 9, &[extent(512, false), extent(512, true)]).expect("right");
        model.judge_status(all, 1, &[extent(512, false)]).expect("as far as asked");
        model.judge_status(all, 9, &[extent(1024, false)]).expect_err("data in a hole");
        model.judge_status(all, 9, &[extent(512, false)]).expect_err("too short");
        model.judge_status(all, 9, &[extent(256, true), extent(768, true)]).expect_err("not joined");
    }
}
