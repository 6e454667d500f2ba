//! Reading a chain: one lookup a layer, one read for each run of bytes that lies together.

use smallvec::smallvec;

use super::{Chain, Extent, Origin, Piece, Pieces};
use crate::buf::{BufMut, Pool};
use crate::error::Result;
use crate::range::ByteRange;
use crate::storage::Completion;

/// A read of a chain, as far as it has come.
#[derive(Debug)]
pub struct Reading {
    range: ByteRange,
    /// The read of all of it, where all lies together.
    started: Option<Completion<BufMut>>,
}

impl Reading {
    /// A read of a range of the disk.
    pub fn new(range: ByteRange) -> Self {
        Reading { range, started: None }
    }

    /// Begins it, and has its outcome if nothing has to be waited for. `None`: [`Reading::go_on`] does the rest.
    #[inline]
    pub fn begin(&mut self, chain: &Chain) -> Option<Result<Pieces>> {
        if self.range.is_empty() {
            return Some(Ok(Pieces::new()));
        }
        let first = chain.locate(chain.layers.len(), self.range);
        if first.range != self.range {
            return None;
        }
        // Nearly every request: all in one place.
        match first.origin {
            Origin::Zero { .. } => Some(Ok(smallvec![Piece::Hole(self.range.len())])),
            Origin::Data { .. } => {
                let mut completion = start_read(&first);
                let outcome = completion.now();
                if outcome.is_none() {
                    self.started = Some(completion);
                }
                outcome.map(as_pieces)
            }
        }
    }

    /// What is left of it.
    ///
    /// # Errors
    /// As [`Chain::read`].
    pub async fn go_on(self, chain: &Chain) -> Result<Pieces> {
        match self.started {
            Some(completion) => as_pieces(completion.await),
            // Boxed, so that the future of the usual read stays small.
            None => Box::pin(chain.read_runs(chain.layers.len(), self.range)).await,
        }
    }
}

fn as_pieces(outcome: Result<BufMut>) -> Result<Pieces> {
    Ok(smallvec![Piece::Data(outcome?.freeze())])
}

impl Chain {
    /// Reads a range of the disk. Parts that no layer has data for come as holes, without I/O.
    ///
    /// # Errors
    /// What the storage says; then nothing of the range is returned.
    pub async fn read(&self, range: ByteRange) -> Result<Pieces> {
        let mut reading = Reading::new(range);
        match reading.begin(self) {
            Some(outcome) => outcome,
            None => reading.go_on(self).await,
        }
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
