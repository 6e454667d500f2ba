//! Byte ranges of a disk or file, checked once when they are made.
//!
//! Invariant: `start <= end`, so lengths and intersections never overflow.

use std::fmt;

/// The bytes `start..end` of a disk or file; may be empty.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ByteRange {
    start: u64,
    end: u64,
}

impl ByteRange {
    /// The bytes `start..end`.
    ///
    /// # Panics
    /// If `end < start`: the caller computed it wrong.
    pub fn new(start: u64, end: u64) -> Self {
        assert!(start <= end, "range {start}..{end} ends before it starts");
        ByteRange { start, end }
    }

    /// `len` bytes from `start`, or `None` if that passes 2⁶⁴: for numbers from outside.
    pub fn checked(start: u64, len: u64) -> Option<Self> {
        Some(ByteRange { start, end: start.checked_add(len)? })
    }

    /// `len` bytes from `start`.
    ///
    /// # Panics
    /// If that passes 2⁶⁴.
    pub fn at(start: u64, len: u64) -> Self {
        Self::checked(start, len).expect("ranges inside a disk do not pass 2^64")
    }

    /// First byte.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// One past the last byte.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Whether it holds no byte.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Whether the two share a byte; an empty range shares none.
    pub fn overlaps(&self, other: &ByteRange) -> bool {
        self.start.max(other.start) < self.end.min(other.end)
    }

    /// Whether every byte of `other` is in `self`.
    pub fn contains(&self, other: &ByteRange) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// The bytes that both hold; empty (at an end of `self`) if none.
    pub fn intersect(&self, other: &ByteRange) -> ByteRange {
        let start = self.start.max(other.start).min(self.end);
        ByteRange { start, end: self.end.min(other.end).max(start) }
    }

    /// The first `len` bytes (all of it if shorter) and the rest.
    pub fn split_at(&self, len: u64) -> (ByteRange, ByteRange) {
        let middle = self.start + len.min(self.len());
        (ByteRange { start: self.start, end: middle }, ByteRange { start: middle, end: self.end })
    }

    /// The smallest range of whole blocks of `block` bytes (a power of two) that contains this one.
    pub fn align_out(&self, block: u64) -> ByteRange {
        debug_assert!(block.is_power_of_two());
        let start = self.start & !(block - 1);
        let end = self.end.checked_next_multiple_of(block).unwrap_or(self.end);
        ByteRange { start, end: if self.is_empty() { start } else { end } }
    }

    /// Whether both ends are multiples of `block` bytes.
    pub fn is_aligned(&self, block: u64) -> bool {
        self.start.is_multiple_of(block) && self.end.is_multiple_of(block)
    }

    /// This range cut into pieces that do not cross multiples of `block` bytes.
    pub fn blocks(&self, block: u64) -> impl Iterator<Item = ByteRange> + use<> {
        let mut rest = *self;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let (piece, after) = rest.split_at(block - rest.start % block);
            rest = after;
            Some(piece)
        })
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.start, self.len())
    }
}

impl fmt::Debug for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pieces_of_a_range_are_adjacent_and_cross_no_block(start in 0u64..1 << 40, len in 0u64..100_000, shift in 9u32..16) {
            let range = ByteRange::at(start, len);
            let mut at = start;
            for piece in range.blocks(1 << shift) {
                prop_assert_eq!(piece.start(), at);
                prop_assert!(!piece.is_empty());
                prop_assert_eq!(piece.start() >> shift, (piece.end() - 1) >> shift);
                at = piece.end();
            }
            prop_assert_eq!(at, range.end());
        }

        #[test]
        fn an_intersection_holds_just_the_shared_bytes(a in 0u64..100, b in 0u64..100, c in 0u64..100, d in 0u64..100) {
            let x = ByteRange::new(a.min(b), a.max(b));
            let y = ByteRange::new(c.min(d), c.max(d));
            let both = x.intersect(&y);
            for byte in 0..100 {
                let in_both = (x.start()..x.end()).contains(&byte) && (y.start()..y.end()).contains(&byte);
                prop_assert_eq!(in_both, (both.start()..both.end()).contains(&byte));
            }
            prop_assert_eq!(x.overlaps(&y), !both.is_empty());
        }
    }

    #[test]
    fn aligning_out_near_the_end_of_the_number_line_does_not_wrap() {
        assert_eq!(ByteRange::new(u64::MAX - 1, u64::MAX).align_out(4096).end(), u64::MAX);
    }
}
