//! What stands on a disk under test: bytes that follow from their place and a generation, and the record of which
//! generation each block has, so that every run can be checked byte by byte afterwards.
//!
//! Invariant: a [`Record`] changes only by what a server has acknowledged.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes in which content is told apart; every request covers whole ones.
pub const BLOCK: u64 = 4096;

/// Blocks after which content repeats: a prime, so that no power of two of blocks is a whole number of periods.
const PERIOD: u64 = 251;

/// Largest request, bytes.
pub const REQUEST_MOST: usize = 1 << 20;

/// Random bytes from which all content is cut, in one piece for requests of any size.
pub struct Content(Vec<u8>);

impl Content {
    /// The bytes; the same in every process.
    pub fn new() -> Self {
        let period = PERIOD as usize * BLOCK as usize;
        let mut bytes = Vec::with_capacity(period + REQUEST_MOST);
        let mut random = Random::new(0x5eed);
        while bytes.len() < period {
            bytes.extend_from_slice(&random.next().to_le_bytes());
        }
        bytes.truncate(period);
        while bytes.len() < period + REQUEST_MOST {
            let more = (period + REQUEST_MOST - bytes.len()).min(period);
            bytes.extend_from_within(..more);
        }
        Content(bytes)
    }

    /// The bytes of generation `generation` at `offset`, a multiple of [`BLOCK`]; at most [`REQUEST_MOST`].
    pub fn at(&self, generation: u32, offset: u64, len: usize) -> &[u8] {
        let start = (offset / BLOCK + u64::from(generation) * 17) % PERIOD * BLOCK;
        &self.0[start as usize..][..len]
    }

    /// Writes generation 0 over the whole of a new file of `size` bytes.
    ///
    /// # Errors
    /// What the file system says.
    pub fn fill(&self, path: &Path, size: u64) -> io::Result<()> {
        let file = File::create(path)?;
        for at in (0..size).step_by(REQUEST_MOST) {
            let len = REQUEST_MOST.min((size - at) as usize);
            file.write_all_at(self.at(0, at, len), at)?;
        }
        file.sync_all()
    }
}

/// What a block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Generation(u32),
    /// Trimmed: as before, or zeroes.
    Trimmed(u32),
    Zero,
}

/// What each block of an image holds.
#[derive(Debug, Clone)]
pub struct Record {
    blocks: Vec<State>,
    last: u32,
}

impl Record {
    /// A disk of `size` bytes that is full of generation 0.
    pub fn full(size: u64) -> Self {
        Record { blocks: vec![State::Generation(0); (size / BLOCK) as usize], last: 0 }
    }

    /// A disk of `size` bytes that reads as zeroes.
    pub fn empty(size: u64) -> Self {
        Record { blocks: vec![State::Zero; (size / BLOCK) as usize], last: 0 }
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.blocks.len() as u64 * BLOCK
    }

    /// A generation that no block has.
    pub fn next_generation(&mut self) -> u32 {
        self.last += 1;
        self.last
    }

    /// A range was written.
    pub fn written(&mut self, offset: u64, len: u64, generation: u32) {
        self.range(offset, len).fill(State::Generation(generation));
    }

    /// A range was trimmed.
    pub fn trimmed(&mut self, offset: u64, len: u64) {
        for state in self.range(offset, len) {
            if let State::Generation(generation) = *state {
                *state = State::Trimmed(generation);
            }
        }
    }

    /// Whether `data` is what stands at `offset`. What a trim left is known better afterwards.
    pub fn check(&mut self, content: &Content, offset: u64, data: &[u8]) -> bool {
        let blocks = data.chunks_exact(BLOCK as usize).zip(self.range(offset, data.len() as u64));
        let mut at = offset;
        let mut right = true;
        for (bytes, state) in blocks {
            let holds = |generation| bytes == content.at(generation, at, bytes.len());
            let zero = || bytes.iter().all(|&byte| byte == 0);
            match *state {
                State::Generation(generation) => right &= holds(generation),
                State::Zero => right &= zero(),
                State::Trimmed(generation) if holds(generation) => *state = State::Generation(generation),
                State::Trimmed(_) if zero() => *state = State::Zero,
                State::Trimmed(_) => right = false,
            }
            at += BLOCK;
        }
        right
    }

    fn range(&mut self, offset: u64, len: u64) -> &mut [State] {
        &mut self.blocks[(offset / BLOCK) as usize..][..(len / BLOCK) as usize]
    }
}

/// Random numbers that are the same in every run (SplitMix64).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A sequence of its own for each `seed`.
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The next number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_of_any_size_holds_what_its_blocks_hold_alone() {
        let content = Content::new();
        for offset in [0, BLOCK, 250 * BLOCK, 77_777 * BLOCK] {
            let whole = content.at(3, offset, REQUEST_MOST);
            for (index, block) in whole.chunks_exact(BLOCK as usize).enumerate() {
                assert_eq!(block, content.at(3, offset + index as u64 * BLOCK, BLOCK as usize));
            }
        }
    }

    #[test]
    fn a_wrong_block_is_seen() {
        let content = Content::new();
        let mut record = Record::full(8 * BLOCK);
        let mut disk = content.at(0, 0, 8 * BLOCK as usize).to_vec();
        assert!(record.check(&content, 0, &disk));
        let generation = record.next_generation();
        record.written(2 * BLOCK, BLOCK, generation);
        assert!(!record.check(&content, 0, &disk), "a lost write");
        let at = 2 * BLOCK as usize;
        disk[at..][..BLOCK as usize].copy_from_slice(content.at(generation, 2 * BLOCK, BLOCK as usize));
        assert!(record.check(&content, 0, &disk));
        disk[5 * BLOCK as usize] ^= 1;
        assert!(!record.check(&content, 0, &disk), "a foreign byte");
    }

    #[test]
    fn a_trimmed_block_is_old_or_zero_and_then_stays_so() {
        let content = Content::new();
        let mut record = Record::full(2 * BLOCK);
        record.trimmed(0, BLOCK);
        let old = content.at(0, 0, BLOCK as usize).to_vec();
        let zero = vec![0; BLOCK as usize];
        assert!(record.clone().check(&content, 0, &old));
        assert!(record.check(&content, 0, &zero));
        assert!(!record.check(&content, 0, &old), "it does not come back");
    }
}
