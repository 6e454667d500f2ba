//! Zeroing and discarding in a chain: whole blocks by the map, parts of blocks in place.
//!
//! Invariant: after zeroing no layer below shines through, and after a discard no data that was overwritten in the
//! top layer since comes back from below.

use super::write::Content;
use super::{Chain, ZeroRequest};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Mapping, Place, Reveal, Space};
use crate::range::ByteRange;
use crate::storage::Zero;

/// Blocks that a layer is asked to clear at once.
const CLEAR_STEP: u64 = 16 << 10;

impl Chain {
    /// Makes a range read as zeroes.
    ///
    /// # Errors
    /// What the storage says; [`ErrorKind::Unsupported`] if `fast_only` cannot be kept, before anything changed.
    pub async fn zero(&self, range: ByteRange, how: ZeroRequest) -> Result<()> {
        self.begin_changes().await?;
        if how.fast_only && !self.zeroes_fast(range, how) {
            let name = self.top().storage().name();
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("{name}: zeroing {range} would take as long as writing it"),
            ));
        }
        self.zero_run(range, how).await
    }

    pub(super) async fn zero_run(&self, range: ByteRange, how: ZeroRequest) -> Result<()> {
        let mut rest = range;
        while !rest.is_empty() {
            let Mapping { len, place } = self.top().lookup(rest);
            let (run, after) = rest.split_at(len);
            match place {
                Place::Data(at) => self.zero_data(run, at, how).await?,
                Place::Zero if how.may_free => {}
                Place::Absent if how.may_free && self.zero_below(run) => {}
                Place::Zero | Place::Absent if how.may_free => self.hide(run).await?,
                Place::Zero | Place::Absent => self.zero_allocated(run).await?,
            }
            rest = after;
        }
        Ok(())
    }

    /// Gives the space of a range back. It reads as before or as zeroes afterwards.
    ///
    /// # Errors
    /// What the storage says.
    pub async fn discard(&self, range: ByteRange) -> Result<()> {
        self.begin_changes().await?;
        let mut rest = range;
        while !rest.is_empty() {
            let Mapping { len, place } = self.top().lookup(rest);
            let (run, after) = rest.split_at(len);
            if let Place::Data(at) = place {
                self.discard_data(run, at).await?;
            }
            rest = after;
        }
        Ok(())
    }

    /// Whether zeroing a range takes no writing of zeroes and no copying.
    fn zeroes_fast(&self, range: ByteRange, how: ZeroRequest) -> bool {
        let in_place = self.top().storage().limits().fast_zero;
        let mut rest = range;
        while !rest.is_empty() {
            let Mapping { len, place } = self.top().lookup(rest);
            let (run, after) = rest.split_at(len);
            let whole = self.whole_blocks(run) == run;
            let fast = match place {
                Place::Data(_) => {
                    in_place || (how.may_free && whole && self.top_info().space == Space::Blocks)
                }
                Place::Zero => how.may_free || in_place,
                Place::Absent if how.may_free => whole || self.zero_below(run),
                Place::Absent => in_place && (whole || self.zero_below(self.in_blocks(run))),
            };
            if !fast {
                return false;
            }
            rest = after;
        }
        true
    }

    /// Zeroes bytes that the top layer holds at `at`.
    async fn zero_data(&self, run: ByteRange, at: u64, how: ZeroRequest) -> Result<()> {
        let (head, whole, tail) = match self.top_info().space {
            Space::Blocks if how.may_free => self.around_blocks(run),
            Space::Host | Space::Blocks | Space::Preallocated => (run, empty_at(run), empty_at(run)),
        };
        let may_free = how.may_free && self.top_info().space != Space::Preallocated;
        for part in [head, tail].into_iter().filter(|part| !part.is_empty()) {
            let place = ByteRange::at(at + (part.start() - run.start()), part.len());
            self.top().storage().zero(place, Zero { may_free, fast_only: how.fast_only }).await?;
        }
        if !whole.is_empty() {
            self.clear_blocks(whole, Reveal::Zeroes).await?;
        }
        Ok(())
    }

    /// Discards bytes that the top layer holds at `at`.
    async fn discard_data(&self, run: ByteRange, at: u64) -> Result<()> {
        let (head, whole, tail) = match self.top_info().space {
            Space::Blocks => self.around_blocks(run),
            Space::Host => (run, empty_at(run), empty_at(run)),
            Space::Preallocated => return Ok(()),
        };
        for part in [head, tail].into_iter().filter(|part| !part.is_empty()) {
            let place = ByteRange::at(at + (part.start() - run.start()), part.len());
            self.top().storage().discard(place).await?;
        }
        if !whole.is_empty() {
            self.clear_blocks(whole, Reveal::Anything).await?;
        }
        Ok(())
    }

    /// Makes a range that the top layer has no data for read as zeroes, over whatever lies below.
    async fn hide(&self, run: ByteRange) -> Result<()> {
        let (head, whole, tail) = self.around_blocks(run);
        if !whole.is_empty() {
            self.clear_blocks(whole, Reveal::Zeroes).await?;
        }
        for part in [head, tail] {
            for piece in part.blocks(self.top_info().block_size) {
                if !self.zero_below(piece) {
                    self.allocate(piece, Content::Zeroes { may_free: true }).await?;
                }
            }
        }
        Ok(())
    }

    /// Gives every block of a range its space and zeroes the range in it.
    async fn zero_allocated(&self, run: ByteRange) -> Result<()> {
        for piece in run.blocks(self.top_info().block_size) {
            self.allocate(piece, Content::Zeroes { may_free: false }).await?;
        }
        Ok(())
    }

    /// Clears whole blocks, so many at a time that one request over a disk of 100 TiB takes little memory.
    async fn clear_blocks(&self, whole: ByteRange, reveal: Reveal) -> Result<()> {
        let mut rest = whole;
        while !rest.is_empty() {
            let (step, after) = rest.split_at(CLEAR_STEP * self.top_info().block_size);
            self.top().clear(step, reveal).await?;
            rest = after;
        }
        Ok(())
    }

    /// A range as the part before its first whole block, its whole blocks, and the part after. The last block of the
    /// disk is whole if the range reaches the disk's end.
    fn around_blocks(&self, run: ByteRange) -> (ByteRange, ByteRange, ByteRange) {
        let whole = self.whole_blocks(run);
        if whole.is_empty() {
            return (run, whole, empty_at(run));
        }
        (ByteRange::new(run.start(), whole.start()), whole, ByteRange::new(whole.end(), run.end()))
    }

    fn whole_blocks(&self, run: ByteRange) -> ByteRange {
        let block = self.top_info().block_size;
        let start = run.start().next_multiple_of(block);
        let end = if run.end() == self.size() { run.end() } else { run.end() - run.end() % block };
        if start < end { ByteRange::new(start, end) } else { empty_at(run) }
    }

    /// A range with the rest of its first and last block.
    fn in_blocks(&self, run: ByteRange) -> ByteRange {
        run.align_out(self.top_info().block_size).intersect(&ByteRange::new(0, self.size()))
    }
}

fn empty_at(run: ByteRange) -> ByteRange {
    ByteRange::new(run.end(), run.end())
}
