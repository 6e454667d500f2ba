//! Reading a chain: one lookup a layer, one read for each run of bytes that lies together.

use smallvec::smallvec;

use super::{Chain, Extent, Origin, Piece, Pieces};
use crate::buf::{BufMut, Pool};
use crate::error::Result;
use crate::range::ByteRange;
use crate::storage::Completion;

impl Chain {
    /// Reads a range of the disk. Parts that no layer has data for come as holes, without I/O.
    ///
    /// # Errors
    /// What the storage says; then nothing of the range is returned.
    pub async fn read(&self, range: ByteRange) -> Result<Pieces> {
        if range.is_empty() {
            return Ok(Pieces::new());
        }
        let height = self.layers.len();
        let first = self.locate(height, range);
        if first.range == range {
            // Nearly every request: all in one place.
            return Ok(smallvec![match first.origin {
                Origin::Data { .. } => Piece::Data(start_read(&first).await?.freeze()),
                Origin::Zero { .. } => Piece::Hole(range.len()),
            }]);
        }
        // Boxed, so that the future of the usual read stays small.
        Box::pin(self.read_runs(height, range)).await
    }

    /// Reads a range as the lowest `height` layers have it.
    pub(super) async fn read_runs(&self, height: usize, range: ByteRange) -> Result<Pieces> {
        enum Run {
            Hole(u64),
            Data(Completion<BufMut>),
        }
        // All reads are started before the first is waited for.
        let mut runs = Vec::new();
        let mut pending: Option<Extent<'_>> = None;
        for extent in self.extents(height, range) {
            match pending.as_mut().and_then(|before| join(before, &extent)) {
                Some(joined) => pending = Some(joined),
                None => {
                    runs.extend(pending.replace(extent));
                }
            }
        }
        runs.extend(pending);
        let started: Vec<Run> = runs
            .iter()
            .map(|extent| match extent.origin {
                Origin::Data { .. } => Run::Data(start_read(extent)),
                Origin::Zero { .. } => Run::Hole(extent.range.len()),
            })
            .collect();
        let mut pieces = Pieces::new();
        for run in started {
            pieces.push(match run {
                Run::Data(completion) => Piece::Data(completion.await?.freeze()),
                Run::Hole(len) => Piece::Hole(len),
            });
        }
        Ok(pieces)
    }

    /// Reads a range as the lowest `height` layers have it, into one buffer with its zeroes written out.
    pub(super) async fn read_flat(&self, height: usize, range: ByteRange) -> Result<BufMut> {
        let mut flat = Pool::global().take(range.len() as usize);
        let mut at = 0;
        for piece in self.read_runs(height, range).await? {
            let end = at + piece.len() as usize;
            match piece {
                Piece::Data(bytes) => flat[at..end].copy_from_slice(&bytes),
                Piece::Hole(_) => flat[at..end].fill(0),
            }
            at = end;
        }
        Ok(flat)
    }
}

fn start_read(extent: &Extent<'_>) -> Completion<BufMut> {
    match extent.origin {
        Origin::Data { storage, at, .. } => {
            storage.read(at, Pool::global().take(extent.range.len() as usize))
        }
        Origin::Zero { .. } => unreachable!("zeroes are not read"),
    }
}

/// Two neighbours on the disk as one, if they are neighbours in the same storage too, or both zeroes.
fn join<'a>(before: &Extent<'a>, after: &Extent<'a>) -> Option<Extent<'a>> {
    let together = match (before.origin, after.origin) {
        (Origin::Zero { .. }, Origin::Zero { .. }) => true,
        (Origin::Data { at: a, index: i, .. }, Origin::Data { at: b, index: j, .. }) => {
            i == j && a + before.range.len() == b
        }
        _ => false,
    };
    let range = ByteRange::new(before.range.start(), after.range.end());
    together.then_some(Extent { range, origin: before.origin })
}
