//! Alignment of direct I/O (O_DIRECT): bounce buffers, and read-modify-write of the sectors that a write covers only
//! in part.
//!
//! Invariant: while a sector is read, modified and written back, nobody else writes or zeroes in it, so two
//! neighbours in one sector cannot lose each other's bytes.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::buf::Pool;
use crate::error::Result;
use crate::range::ByteRange;
use crate::storage::host::HostFile;

/// Writes take turns by at least this many bytes: zeroing part of a page goes through the page cache, which the
/// kernel keeps in step with direct writes by whole pages.
const PAGE: u64 = 4096;

/// Bytes that are bounced in one step. A multiple of every alignment.
const BOUNCE: u64 = 256 << 10;

/// What direct I/O asks of a request on one file, and who writes where.
#[derive(Debug)]
pub(super) struct Direct {
    /// Offsets and lengths are multiples of this many bytes (a power of two).
    pub(super) alignment: u64,
    /// Buffers start at addresses that are multiples of this many bytes.
    pub(super) memory: usize,
    turns: Arc<Turns>,
}

/// Ranges that are being written.
#[derive(Debug, Default)]
struct Turns {
    held: Mutex<Vec<ByteRange>>,
    released: Condvar,
}

/// The sole right to write in a range, given back when dropped.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Arc<Turns>,
    range: ByteRange,
}

impl Direct {
    pub(super) fn new(alignment: u64, memory: usize) -> Self {
        Direct { alignment, memory, turns: Arc::default() }
    }

    /// Whether the kernel takes this transfer as it is.
    pub(super) fn fits(&self, at: u64, bytes: &[u8]) -> bool {
        at.is_multiple_of(self.alignment)
            && (bytes.len() as u64).is_multiple_of(self.alignment)
            && (bytes.as_ptr() as usize).is_multiple_of(self.memory)
    }

    /// Waits for the turn to write in `range()`, which is asked anew after each wait.
    pub(super) fn turn(&self, range: impl Fn() -> ByteRange) -> Turn {
        let mut held = self.turns.held.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let wanted = self.widen(range());
            if !held.iter().any(|other| other.overlaps(&wanted)) {
                held.push(wanted);
                return Turn { turns: Arc::clone(&self.turns), range: wanted };
            }
            held = self.turns.released.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The turn to write in `range`, if nobody is there now.
    pub(super) fn try_turn(&self, range: ByteRange) -> Option<Turn> {
        let wanted = self.widen(range);
        let mut held = self.turns.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.iter().any(|other| other.overlaps(&wanted)) {
            return None;
        }
        held.push(wanted);
        Some(Turn { turns: Arc::clone(&self.turns), range: wanted })
    }

    fn widen(&self, range: ByteRange) -> ByteRange {
        range.align_out(PAGE.max(self.alignment))
    }

    /// What a write of `range` into a file of `len` bytes must keep others out of. A file whose last sector is cut
    /// off is written past its end and cut again, so nobody may grow it meanwhile.
    pub(super) fn affected(&self, range: ByteRange, len: u64) -> ByteRange {
        if self.passes_end(range, len) { ByteRange::new(range.start(), u64::MAX) } else { range }
    }

    /// Whether a write of `range` by whole sectors makes a file of `len` bytes longer than it should be.
    pub(super) fn passes_end(&self, range: ByteRange, len: u64) -> bool {
        range.align_out(self.alignment).end() > len.max(range.end())
    }

    /// Reads what the kernel would not take as it is.
    pub(super) fn read_bounced(&self, file: &HostFile, at: u64, into: &mut [u8]) -> Result<()> {
        let mut rest = into;
        for piece in ByteRange::at(at, rest.len() as u64).blocks(BOUNCE) {
            let sectors = piece.align_out(self.alignment);
            let mut bounce = Pool::global().take(sectors.len() as usize);
            let got = file.read_to_end(sectors.start(), &mut bounce, self.alignment)?;
            if sectors.start() + (got as u64) < piece.end() {
                return Err(file.past_end(piece.start(), piece.len()));
            }
            let (now, after) = rest.split_at_mut(piece.len() as usize);
            now.copy_from_slice(&bounce[(piece.start() - sectors.start()) as usize..][..now.len()]);
            rest = after;
        }
        Ok(())
    }

    /// Writes what the kernel would not take as it is. The caller holds the turn of what is [affected](Self::affected).
    pub(super) fn write_bounced(&self, file: &HostFile, at: u64, from: &[u8]) -> Result<()> {
        let mut rest = from;
        for piece in ByteRange::at(at, from.len() as u64).blocks(BOUNCE) {
            let (now, after) = rest.split_at(piece.len() as usize);
            let sectors = piece.align_out(self.alignment);
            let mut bounce = Pool::global().take(sectors.len() as usize);
            if sectors.start() < piece.start() {
                self.fill_sector(file, sectors.start(), &mut bounce[..self.alignment as usize])?;
            }
            let last = sectors.end() - self.alignment;
            if sectors.end() > piece.end() && (last > sectors.start() || sectors.start() == piece.start()) {
                self.fill_sector(file, last, &mut bounce[(last - sectors.start()) as usize..])?;
            }
            bounce[(piece.start() - sectors.start()) as usize..][..now.len()].copy_from_slice(now);
            let len = file.len();
            file.write_all(sectors.start(), &bounce)?;
            if self.passes_end(piece, len) {
                file.truncate(len.max(piece.end()))?;
            }
            file.grown_to(piece.end());
            rest = after;
        }
        Ok(())
    }

    /// The sector at `at` as it is in the file, with zeroes past the file's end.
    fn fill_sector(&self, file: &HostFile, at: u64, sector: &mut [u8]) -> Result<()> {
        let got = if at < file.len() { file.read_to_end(at, sector, self.alignment)? } else { 0 };
        sector[got..].fill(0);
        Ok(())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut held = self.turns.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = held.iter().position(|range| *range == self.range) {
            held.swap_remove(place);
        }
        drop(held);
        self.turns.released.notify_all();
    }
}
