//! Giving space back for good: the last blocks of the file move into holes, and the file becomes shorter.
//!
//! ```text
//!   copy into the hole ‖ map entry ‖ counter, length          ‖ is a flush of the storage
//! ```
//! Invariant: until the entry that names the hole is durable, the slot that was left keeps its bytes.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Arc, PoisonError};

use super::claim::Claim;
use super::entries::Change;
use super::header::{Shape, Slot};
use super::layer::Inner;
use super::map::Entry;
use super::space::Vacancy;
use crate::buf::{Pool, is_zero};
use crate::error::{ErrorKind, Result};
use crate::format::Space as Kind;
use crate::range::ByteRange;
use crate::storage::{Storage, Zero};

/// Blocks that move in one step: they share two flushes.
const MOVES: usize = 16;

/// Blocks that are remembered as the last ones of the file: to find them takes a look at every block of the disk, some
/// milliseconds for each TiB.
const KNOWN: usize = 1024;

/// Bytes that settling moves at most: a moment's work, so that closing an image does not take long.
const SETTLE_COPIES: u64 = 256 << 20;

/// Bytes that are copied at once.
const STEP: u64 = 1 << 20;

impl Inner {
    /// Blocks at the end of the file for which there are holes below, the last ones first. Goes through the whole map
    /// when there are holes and it is not known any more which blocks come last.
    pub fn compactable(&self) -> Vec<ByteRange> {
        // What an image with extra bytes keeps in them is unknown to us: its blocks stay where they are.
        if self.info.read_only || self.info.space != Kind::Blocks || self.shape.block_extra != 0 {
            return Vec::new();
        }
        let holes = self.space().lowest(MOVES);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if holes.is_empty() {
            *last = Vec::new();
            return Vec::new();
        }
        let movable = self.movable(&last, &holes);
        if !movable.is_empty() {
            return movable;
        }
        *last = self.last_blocks();
        self.movable(&last, &holes)
    }

    /// Those of `blocks` that are in higher slots than the holes are, the highest first and one for each hole.
    fn movable(&self, blocks: &[u32], holes: &[Slot]) -> Vec<ByteRange> {
        let in_slot = |&block: &u32| match self.map.entry(block) {
            Entry::Slot(slot) => Some((slot, block)),
            Entry::Absent | Entry::Zero => None,
        };
        let mut blocks: Vec<(Slot, u32)> = blocks.iter().filter_map(in_slot).collect();
        blocks.sort_unstable_by_key(|&place| Reverse(place));
        let pairs = blocks.into_iter().zip(holes);
        pairs
            .filter(|((slot, _), hole)| *hole < slot)
            .map(|((_, block), _)| self.shape.disk_range(block))
            .collect()
    }

    /// The blocks of the disk that are in the highest slots, as many as are known at once.
    fn last_blocks(&self) -> Vec<u32> {
        let mut highest = BinaryHeap::with_capacity(KNOWN + 1);
        for (block, slot) in self.map.allocated().take_while(|(block, _)| *block < self.shape.disk_blocks()) {
            if highest.len() < KNOWN {
                highest.push(Reverse((slot, block)));
            } else if let Some(mut lowest) = highest.peek_mut()
                && lowest.0.0 < slot
            {
                *lowest = Reverse((slot, block));
            }
        }
        highest.into_iter().map(|Reverse((_, block))| block).collect()
    }

    /// Moves those blocks down, as far as that is still possible, and cuts the end of the file off. What the disk reads
    /// stays, so its modification identity does.
    pub async fn compact(self: &Arc<Self>, blocks: &[ByteRange]) -> Result<()> {
        self.make_ready().await?;
        self.move_down(blocks).await?;
        self.trim().await
    }

    async fn move_down(self: &Arc<Self>, blocks: &[ByteRange]) -> Result<()> {
        let _moving = self.moving.lock().await;
        let mut changes = Vec::new();
        for range in blocks {
            let block = self.shape.block_at(range.start());
            let in_slot = || matches!(self.map.entry(block), Entry::Slot(_));
            let Some(mut claim) = Claim::of(block, &self.claims, &self.space, in_slot).await else {
                continue;
            };
            let Entry::Slot(from) = self.map.entry(block) else { continue };
            let Some(hole) = self.space().take_below(from) else { continue };
            claim.hold(hole.slot);
            copy(&*self.storage, &self.shape, from, hole).await?;
            changes.push(Change { block, entry: Entry::Slot(hole.slot), claim: Some(claim) });
        }
        if changes.is_empty() {
            return Ok(());
        }
        self.barrier().await?;
        self.write_entries(changes).await
    }

    /// Leaves counter and length exact and everything durable. Fills the holes, as far as that is soon done: other
    /// programs take an image with holes for a wrong count of its blocks. They stay where the host has no room left.
    pub async fn settle(self: &Arc<Self>) -> Result<()> {
        if self.info.read_only {
            return Ok(());
        }
        self.make_ready().await?;
        self.settle_doubts().await?;
        self.trim().await?;
        let mut left = SETTLE_COPIES / self.shape.block_size;
        // What is moved for nothing would be missing of that: no stale ones.
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clear();
        loop {
            let mut blocks = self.compactable();
            blocks.truncate(left as usize);
            if blocks.is_empty() {
                break;
            }
            left -= blocks.len() as u64;
            match self.compact(&blocks).await {
                // A block that moves is there twice for a moment. Nothing is lost where it cannot move.
                Err(error) if error.kind() == ErrorKind::NoSpace => {
                    tracing::warn!(%error, "the image keeps its holes");
                    break;
                }
                outcome => outcome?,
            }
        }
        self.barrier().await?;
        self.punch().await;
        Ok(())
    }
}

/// Copies a slot, its extra bytes included, into one that no block is in.
pub async fn copy(storage: &dyn Storage, shape: &Shape, from: Slot, to: Vacancy) -> Result<()> {
    let source = shape.slots(from.0, from.0 + 1);
    let mut rest = source;
    while !rest.is_empty() {
        let host = storage.status(rest.split_at(STEP).0).await?;
        let (step, after) = rest.split_at(host.len.clamp(1, STEP));
        let at = shape.end_of(to.slot.0) + (step.start() - source.start());
        // A hole stays a hole.
        let bytes = match host.data {
            true => Some(storage.read(step.start(), Pool::global().take(step.len() as usize)).await?),
            false => None,
        };
        match bytes.filter(|bytes| !is_zero(bytes)) {
            Some(bytes) => storage.write(at, bytes.freeze()).await?,
            None if to.zeroed => {}
            None => {
                let how = Zero { may_free: true, fast_only: false };
                storage.zero(ByteRange::at(at, step.len()), how).await?;
            }
        }
        rest = after;
    }
    Ok(())
}
