//! Requests that do not start or end on logical blocks: the rest of the block is read and written with them.
//!
//! Invariant: the image is written in whole logical blocks only, but for one that the disk's end cuts off.

use super::Device;
use crate::buf::{Buf, Pool};
use crate::chain::Piece;
use crate::error::Result;
use crate::range::ByteRange;
use crate::stats::WriteEffect;

impl Device {
    pub(super) fn in_logical_blocks(&self, range: ByteRange) -> ByteRange {
        range.align_out(self.options.logical_block_size).intersect(&ByteRange::new(0, self.size()))
    }

    /// A range as the part before its first whole logical block, the whole ones, and the part after. A block that the
    /// disk's end cuts off counts as whole.
    pub(super) fn around_logical_blocks(&self, range: ByteRange) -> (ByteRange, ByteRange, ByteRange) {
        let block = self.options.logical_block_size;
        let start = range.start().next_multiple_of(block);
        let end = if range.end() == self.size() { range.end() } else { range.end() - range.end() % block };
        if start >= end {
            let none = ByteRange::new(range.end(), range.end());
            return (range, none, none);
        }
        (ByteRange::new(range.start(), start), ByteRange::new(start, end), ByteRange::new(end, range.end()))
    }

    /// Writes what does not start or end on logical blocks: the whole ones as they are, the two edges with the rest of
    /// their blocks.
    pub(super) async fn write_unaligned(&self, range: ByteRange, data: Buf) -> Result<WriteEffect> {
        let (head, whole, tail) = self.around_logical_blocks(range);
        let part = |of: ByteRange| {
            data.slice((of.start() - range.start()) as usize..(of.end() - range.start()) as usize)
        };
        let mut effect = self.chain.write(whole, part(whole)).await?;
        for edge in [head, tail].into_iter().filter(|edge| !edge.is_empty()) {
            effect += self.write_edge(edge, &part(edge)).await?;
        }
        Ok(effect)
    }

    /// Writes bytes that cover parts of one or two logical blocks together with the rest of those blocks.
    pub(super) async fn write_edge(&self, range: ByteRange, data: &[u8]) -> Result<WriteEffect> {
        let whole = self.in_logical_blocks(range);
        if whole == range {
            return self.chain.write(range, Buf::copy_from(data)).await;
        }
        let mut merged = Pool::global().take(whole.len() as usize);
        let head = (range.start() - whole.start()) as usize;
        merged[head..head + data.len()].copy_from_slice(data);
        for edge in [ByteRange::new(whole.start(), range.start()), ByteRange::new(range.end(), whole.end())] {
            let mut at = (edge.start() - whole.start()) as usize;
            for piece in self.chain.read(edge).await? {
                let part = &mut merged[at..at + piece.len() as usize];
                match &piece {
                    Piece::Data(bytes) => part.copy_from_slice(bytes),
                    Piece::Hole(_) => part.fill(0),
                }
                at += part.len();
            }
        }
        self.chain.write(whole, merged.freeze()).await
    }
}
