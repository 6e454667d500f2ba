//! Writing a chain: in place where the top layer has the block, by copy-on-write where it has not.
//!
//! ```text
//!   block of the top layer that is not there yet
//!   ├── head ──┼── the write's bytes ──┼── tail ──┤
//!   from below      from the client     from below      written side by side, then committed
//! ```

use std::mem;
use std::sync::atomic::Ordering;

use futures_util::stream::{FuturesUnordered, StreamExt};

use super::{Chain, DetectZeroes, FILL_STEP, Origin, ZeroRequest};
use crate::buf::{Buf, is_zero};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Before, Place, Reservation, Reserved, Space};
use crate::range::ByteRange;
use crate::stats::WriteEffect;
use crate::storage::{Completion, Zero};

/// A write to a chain, as far as it has come.
#[derive(Debug)]
pub struct Writing {
    range: ByteRange,
    step: Step,
}

#[derive(Debug)]
enum Step {
    /// Nothing is done: the image is not known to be marked as changed.
    New(Buf),
    /// The write of all of it, where all has its place together.
    InPlace(Completion<()>),
    /// It is zeroes and is to be noted as such.
    Zeroes,
    /// It has more places than one, or none yet.
    Runs(Buf),
    /// It is written.
    Done(Result<()>),
}

impl Writing {
    /// A write of `data` at the start of `range`, which is as long.
    pub fn new(range: ByteRange, data: Buf) -> Self {
        debug_assert_eq!(range.len(), data.len() as u64);
        Writing { range, step: Step::New(data) }
    }

    /// Begins it, and has its outcome if nothing has to be waited for. `None`: [`Writing::go_on`] does the rest.
    #[inline]
    pub fn begin(&mut self, chain: &Chain) -> Option<Result<WriteEffect>> {
        if !chain.changing.load(Ordering::Acquire) {
            return None;
        }
        self.place(chain);
        match &self.step {
            Step::Done(outcome) => Some(outcome.clone().map(|()| WriteEffect::default())),
            _ => None,
        }
    }

    /// What is left of it.
    ///
    /// # Errors
    /// As [`Chain::write`].
    pub async fn go_on(mut self, chain: &Chain) -> Result<WriteEffect> {
        if let Step::New(_) = self.step {
            chain.begin_changes().await?;
            self.place(chain);
        }
        match self.step {
            Step::Done(outcome) => outcome.map(|()| WriteEffect::default()),
            Step::InPlace(completion) => completion.await.map(|()| WriteEffect::default()),
            Step::Zeroes => {
                let may_free = chain.options.detect_zeroes == DetectZeroes::Unmap;
                let how = ZeroRequest { may_free, fast_only: false };
                Box::pin(chain.zero(self.range, how)).await?;
                Ok(WriteEffect { zeroes: self.range.len(), freed: may_free, ..Default::default() })
            }
            // Boxed, so that the future of the usual write stays small.
            Step::New(data) | Step::Runs(data) => Box::pin(chain.write_runs(self.range, data)).await,
        }
    }

    /// Finds out how it is to be done, and does it where that needs no waiting. The image is marked as changed.
    fn place(&mut self, chain: &Chain) {
        let Step::New(data) = mem::replace(&mut self.step, Step::Done(Ok(()))) else { return };
        if self.range.is_empty() {
            return;
        }
        if chain.options.detect_zeroes != DetectZeroes::Off && data.is_zero() {
            self.step = Step::Zeroes;
            return;
        }
        let first = chain.top().lookup(self.range);
        self.step = match first.place {
            // Nearly every request: all in one place that is there.
            Place::Data(at) if first.len == self.range.len() => {
                let mut completion = chain.top().storage().write(at, data);
                match completion.now() {
                    Some(outcome) => Step::Done(outcome),
                    None => Step::InPlace(completion),
                }
            }
            _ => Step::Runs(data),
        };
    }
}

/// What goes into a part of a block.
pub(super) enum Content {
    Bytes(Buf),
    Zeroes { may_free: bool },
}

impl Chain {
    /// Writes `data` at the start of `range`, which is as long. On return an image that outlives this process has it.
    ///
    /// # Errors
    /// What the storage says. Then each sector of the range is old or new, and all others are untouched.
    pub async fn write(&self, range: ByteRange, data: Buf) -> Result<WriteEffect> {
        let mut writing = Writing::new(range, data);
        match writing.begin(self) {
            Some(outcome) => outcome,
            None => writing.go_on(self).await,
        }
    }

    async fn write_runs(&self, range: ByteRange, data: Buf) -> Result<WriteEffect> {
        let mut in_place: Vec<Completion<()>> = Vec::new();
        let mut steps = FuturesUnordered::new();
        let mut rest = range;
        while !rest.is_empty() {
            let mapping = self.top().lookup(rest);
            let (run, after) = rest.split_at(mapping.len);
            let part = |of: ByteRange| {
                data.slice((of.start() - range.start()) as usize..(of.end() - range.start()) as usize)
            };
            match mapping.place {
                Place::Data(at) => in_place.push(self.top().storage().write(at, part(run))),
                Place::Zero | Place::Absent => {
                    let absent = mapping.place == Place::Absent;
                    for piece in run.blocks(self.top_info().block_size) {
                        steps.push(self.write_new(piece, part(piece), absent));
                    }
                }
            }
            rest = after;
        }
        // Everything that was started is waited for, even after a failure: it must not write after this request's turn.
        let mut outcome = Ok(WriteEffect::default());
        while let Some(step) = steps.next().await {
            outcome = match (outcome, step) {
                (Ok(mut sum), Ok(effect)) => {
                    sum += effect;
                    Ok(sum)
                }
                (Err(error), _) | (_, Err(error)) => Err(error),
            };
        }
        for completion in in_place {
            let written = completion.await;
            outcome = outcome.and_then(|effect| written.map(|()| effect));
        }
        outcome
    }

    /// Writes into a part of one block that has no place yet, unless what is there already will do.
    async fn write_new(&self, piece: ByteRange, data: Buf, absent: bool) -> Result<WriteEffect> {
        if !self.options.honor_zeroes && data.is_zero() {
            self.zero_run(piece, ZeroRequest { may_free: true, fast_only: false }).await?;
            return Ok(WriteEffect { zeroes: piece.len(), ..Default::default() });
        }
        let differencing = absent && self.layers.len() > 1;
        if differencing && !self.options.honor_same && self.reads_below(piece, &data).await? {
            return Ok(WriteEffect { same: piece.len(), ..Default::default() });
        }
        let copied = self.allocate(piece, Content::Bytes(data)).await?;
        Ok(WriteEffect { copied, ..Default::default() })
    }

    /// Whether the layers below read just these bytes.
    async fn reads_below(&self, piece: ByteRange, data: &Buf) -> Result<bool> {
        if self.zero_below(piece) {
            return Ok(data.is_zero());
        }
        let mut rest = piece;
        while !rest.is_empty() {
            let (step, after) = rest.split_at(FILL_STEP);
            let at = (step.start() - piece.start()) as usize;
            let _slot = self.fills.acquire().await.expect("the semaphore is never closed");
            if self.read_flat(self.layers.len() - 1, step).await?[..] != data[at..at + step.len() as usize] {
                return Ok(false);
            }
            rest = after;
        }
        Ok(true)
    }

    /// Gives the block that `piece` lies in a place and fills it. Returns the bytes copied from below.
    pub(super) async fn allocate(&self, piece: ByteRange, content: Content) -> Result<u64> {
        debug_assert_eq!(self.top_info().space, Space::Blocks);
        let reservation = loop {
            if let Place::Data(at) = self.top().lookup(piece).place {
                self.put(at, piece, &content).await?;
                return Ok(0);
            }
            match self.top().reserve(piece).await? {
                Reserved::New(reservation) => break reservation,
                Reserved::Mapped => {}
            }
        };
        let block = reservation.range;
        if !block.contains(&piece) {
            let name = self.top().storage().name();
            return Err(Error::new(ErrorKind::Corrupt, format!("{name}: reserved {block} for {piece}")));
        }
        // Read before anything is written: what the block shows now decides what has to go into it.
        let shows_parent = self.top().lookup(piece).place == Place::Absent;
        let before = if shows_parent && !self.zero_below(block) { Before::Data } else { Before::Zeroes };
        let at = |of: ByteRange| reservation.at + (of.start() - block.start());
        let head = ByteRange::new(block.start(), piece.start());
        let tail = ByteRange::new(piece.end(), block.end());
        let new = self.put_new(at(piece), piece, &content, reservation.zeroed);
        let fills = async {
            let head = self.fill(&reservation, head, before).await?;
            Ok(head + self.fill(&reservation, tail, before).await?)
        };
        // Both are awaited to the end, so that a failed block has no write under way when its place is given back.
        let (new, copied) = futures_util::join!(new, fills);
        new?;
        let copied = copied?;
        self.top().commit(reservation, before).await?;
        Ok(copied)
    }

    /// Puts content where a block is already.
    async fn put(&self, at: u64, piece: ByteRange, content: &Content) -> Result<()> {
        let storage = self.top().storage();
        match content {
            Content::Bytes(data) => storage.write(at, data.clone()).await,
            Content::Zeroes { may_free } => {
                let how = Zero { may_free: *may_free, fast_only: false };
                storage.zero(ByteRange::at(at, piece.len()), how).await
            }
        }
    }

    /// Puts content into a block that nobody sees yet.
    async fn put_new(&self, at: u64, piece: ByteRange, content: &Content, zeroed: bool) -> Result<()> {
        match content {
            Content::Zeroes { may_free: true } if zeroed => Ok(()),
            _ => self.put(at, piece, content).await,
        }
    }

    /// Copies a part of a block up from the layers below, leaving out zeroes where the place has them already.
    async fn fill(&self, reservation: &Reservation, part: ByteRange, before: Before) -> Result<u64> {
        let storage = self.top().storage();
        let at = |of: ByteRange| reservation.at + (of.start() - reservation.range.start());
        let zero = async |of: ByteRange| match reservation.zeroed {
            true => Ok(()),
            false => {
                storage.zero(ByteRange::at(at(of), of.len()), Zero { may_free: true, fast_only: false }).await
            }
        };
        if part.is_empty() {
            return Ok(0);
        }
        if before == Before::Zeroes {
            return zero(part).await.map(|()| 0);
        }
        let below = self.layers.len() - 1;
        let mut copied = 0;
        for extent in self.extents(below, part) {
            if let Origin::Zero { .. } = extent.origin {
                zero(extent.range).await?;
                continue;
            }
            let mut rest = extent.range;
            while !rest.is_empty() {
                let (step, after) = rest.split_at(FILL_STEP);
                let _slot = self.fills.acquire().await.expect("the semaphore is never closed");
                let bytes = self.read_flat(below, step).await?.freeze();
                if !(reservation.zeroed && is_zero(&bytes)) {
                    storage.write(at(step), bytes).await?;
                    copied += step.len();
                }
                rest = after;
            }
        }
        Ok(copied)
    }
}
