//! Writing map entries: all that are wanted at one time together, whole pages of the map, memory last.
//!
//! Invariant: an entry in memory changes after the write that persists it has succeeded. Where a write failed nobody
//! knows what the file says, so that entry is in doubt: its slot is not used again, and no flush succeeds, until the
//! entry has been written as memory has it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::RangeInclusive;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};

use futures_util::FutureExt;

use super::claim::Claim;
use super::header::{Shape, Slot};
use super::layer::Inner;
use super::map::Entry;
use crate::buf::Pool;
use crate::error::Result;
use crate::planted::{Bug, planted};
use crate::range::ByteRange;

/// Unit in which the map is written: a page of the file, the kernel's own unit.
const PAGE: u64 = 4096;

/// Pages that go into one write at most.
const MAX_RUN: u64 = 256;

/// Blocks whose entry in the file may not be the one in memory, with the slots that it may name besides.
pub type Doubts = HashMap<u32, Vec<Slot>>;

/// One entry to be written.
pub struct Change {
    pub block: u32,
    pub entry: Entry,
    /// Of a block that gets a slot: the claim that holds it.
    pub claim: Option<Claim>,
}

impl Inner {
    /// Writes entries, together with those that others want written now. They survive the death of the process when
    /// it returns, and a power cut after the next flush.
    pub async fn write_entries(self: &Arc<Self>, changes: Vec<Change>) -> Result<()> {
        let round = |inner: Arc<Inner>, joined: Vec<Vec<Change>>| {
            async move { inner.write_round(joined.into_iter().flatten().collect()).await }.boxed()
        };
        self.entries.join(changes, self.rounds(round)).await
    }

    /// Writes entries in doubt anew, so that file and memory agree again.
    pub async fn settle_doubts(self: &Arc<Self>) -> Result<()> {
        if self.doubts().is_empty() {
            return Ok(());
        }
        self.write_entries(Vec::new()).await
    }

    async fn write_round(&self, changes: Vec<Change>) -> Result<()> {
        let new: BTreeMap<u32, Entry> = changes.iter().map(|change| (change.block, change.entry)).collect();
        let page = |block: &u32| self.shape.entry_offset(*block) / PAGE;
        let mut pages: BTreeSet<u64> = new.keys().map(page).collect();
        pages.extend(self.doubts().keys().map(page));
        if planted(Bug::AckBeforeEntry) && !changes.is_empty() {
            // In doubt, so that the next flush writes them.
            self.doubts().extend(new.keys().map(|block| (*block, Vec::new())));
            changes.into_iter().for_each(|change| self.apply(change));
            return Ok(());
        }
        let outcome = self.write_pages(&pages, &new).await;
        if planted(Bug::MemoryBeforeDisk) && outcome.is_err() {
            changes.into_iter().for_each(|change| self.apply(change));
            return outcome;
        }
        for change in changes {
            match outcome {
                Ok(()) => self.apply(change),
                Err(_) => self.doubt(change),
            }
        }
        // After a failure the file gets back what memory has, if it can, before anybody builds on that.
        let agree = outcome.is_ok() || self.write_pages(&pages, &BTreeMap::new()).await.is_ok();
        if agree {
            self.end_doubts(&pages);
        }
        outcome
    }

    /// Writes the entry of a block, in the file alone, before its time: a planted bug.
    pub async fn publish(&self, block: u32, slot: Slot) -> Result<()> {
        let pages = BTreeSet::from([self.shape.entry_offset(block) / PAGE]);
        self.write_pages(&pages, &BTreeMap::from([(block, Entry::Slot(slot))])).await
    }

    /// Writes whole pages of the map as they are in memory, but for the entries in `new`.
    async fn write_pages(&self, pages: &BTreeSet<u64>, new: &BTreeMap<u32, Entry>) -> Result<()> {
        let mut writes = Vec::new();
        for run in runs(pages) {
            let bytes =
                ByteRange::new(run.start() * PAGE, (run.end() + 1) * PAGE).intersect(&self.shape.map());
            let first = block_of_entry(&self.shape, bytes.start());
            let mut table = Pool::global().take(bytes.len() as usize);
            for (raw, block) in table.chunks_exact_mut(4).zip(first..) {
                let entry = new.get(&block).copied().unwrap_or_else(|| self.map.entry(block));
                raw.copy_from_slice(&entry.raw().to_le_bytes());
            }
            writes.push(self.storage.write(bytes.start(), table.freeze()));
        }
        let mut outcome = Ok(());
        for write in writes {
            // All are waited for, so that no later round overlaps with what is left of this one.
            outcome = outcome.and(write.await);
        }
        outcome.map_err(|error| error.context("block map"))
    }

    /// The entry is written: now memory says so too.
    fn apply(&self, change: Change) {
        let Change { block, entry, mut claim } = change;
        let before = self.map.entry(block);
        self.map.set(block, entry);
        if let Entry::Slot(slot) = before {
            self.space().unreferenced(slot);
            self.allocated.fetch_sub(1, Ordering::Relaxed);
        }
        if let Entry::Slot(_) = entry {
            self.allocated.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(claim) = &mut claim {
            claim.take_slot();
        }
        // The claim ends here, after the entry has changed: those who waited find the block.
    }

    fn doubt(&self, change: Change) {
        let Change { block, mut claim, .. } = change;
        let slot = claim.as_mut().and_then(Claim::take_slot);
        self.doubts().entry(block).or_default().extend(slot);
    }

    /// What is in these pages of the file is what is in memory. A flush makes that durable; then slots that an entry
    /// may have named are left for good.
    fn end_doubts(&self, pages: &BTreeSet<u64>) {
        let ended = |block: &u32| pages.contains(&(self.shape.entry_offset(*block) / PAGE));
        let mut doubts = self.doubts();
        let left: Vec<Slot> =
            doubts.extract_if(|block, _| ended(block)).flat_map(|(_, slots)| slots).collect();
        drop(doubts);
        let mut space = self.space();
        for slot in left {
            space.unreferenced(slot);
        }
    }

    fn doubts(&self) -> MutexGuard<'_, Doubts> {
        self.doubts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn block_of_entry(shape: &Shape, offset: u64) -> u32 {
    ((offset - shape.map_offset) / 4) as u32
}

/// Neighbours among pages, as runs.
fn runs(pages: &BTreeSet<u64>) -> Vec<RangeInclusive<u64>> {
    let mut runs: Vec<RangeInclusive<u64>> = Vec::new();
    for &page in pages {
        match runs.last_mut() {
            Some(run) if run.end() + 1 == page && page - run.start() < MAX_RUN => *run = *run.start()..=page,
            _ => runs.push(page..=page),
        }
    }
    runs
}
