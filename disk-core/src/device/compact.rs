//! Giving the space of discarded blocks back, beside the requests of clients.
//!
//! Invariant: a block moves only while it is nobody else's turn, and compaction waits for no turn.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Device;
use super::life::FreezeOnPanic;
use crate::clock::Moment;
use crate::error::{Error, Result};
use crate::format::Space;
use crate::op::Op;
use crate::range::ByteRange;
use crate::stats::Outcome;

/// Blocks that give their place back in one step of compaction, and bytes of them (but at least one block): requests on
/// them wait until all have moved.
const COMPACT_AT_ONCE: usize = 16;
/// See [`COMPACT_AT_ONCE`].
const COMPACT_BYTES: u64 = 32 << 20;

/// How long nobody has to discard anything before compaction starts, and how long it waits for busy blocks: a file
/// system trims in bursts, and what it frees last should not be moved first.
const COMPACT_PAUSE: Duration = Duration::from_millis(100);

impl Device {
    /// Gives the space of discarded blocks back for as long as the disk is open. To be spawned once a disk.
    pub async fn keep_compact(self: Arc<Self>) {
        if self.read_only() || self.chain.top().info().space != Space::Blocks {
            return;
        }
        let mut failed = false;
        loop {
            let news = self.clearing.notified();
            if self.tracker.is_closed() {
                return;
            }
            if failed || self.chain.top().compactable().is_empty() {
                news.await;
            }
            self.calm().await;
            let outcome = self.compact().await;
            failed = outcome.is_err();
            if let Err(error) = outcome {
                tracing::warn!(diskchain.disk = %self.name, %error, "cannot give freed space back for now");
            }
        }
    }

    pub(super) fn note_clearing(&self) {
        self.cleared.fetch_add(1, Ordering::Relaxed);
        self.clearing.notify_one();
    }

    /// Waits until nobody has discarded anything for a moment.
    async fn calm(&self) {
        loop {
            let before = self.cleared.load(Ordering::Relaxed);
            tokio::time::sleep(COMPACT_PAUSE).await;
            if self.cleared.load(Ordering::Relaxed) == before {
                return;
            }
        }
    }

    /// One step of giving space back: the blocks that are free to move, all at once. Nothing on a closed disk.
    async fn compact(&self) -> Result<()> {
        let began = Moment::now();
        // It is in flight even if no block is free to move: closing waits for it.
        let Some(listed) = self.tracker.try_begin(Op::Compact, ByteRange::new(0, 0), 0) else {
            return Ok(());
        };
        let mut tickets = vec![listed];
        let mut blocks = Vec::new();
        let most = (COMPACT_BYTES / self.chain.top().info().block_size).max(1) as usize;
        for block in self.chain.top().compactable().into_iter().take(most.min(COMPACT_AT_ONCE)) {
            if let Some(ticket) = self.tracker.try_begin(Op::Compact, block, 0) {
                tickets.push(ticket);
                blocks.push(block);
            }
        }
        self.usable()?;
        let outcome = {
            let _watch = FreezeOnPanic(self);
            self.chain.top().compact(&blocks).await
        };
        let bytes = blocks.iter().map(ByteRange::len).sum();
        let error = outcome.as_ref().err().map(Error::kind);
        let total = began.elapsed();
        self.remember(error);
        self.tracker.count(&Outcome { op: Op::Compact, bytes, total, error, ..Outcome::default() });
        outcome
    }
}
