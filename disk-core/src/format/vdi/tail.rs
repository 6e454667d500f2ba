//! The end of the file and the header that speaks of it: growing, cutting off, and the marks of the first change.
//!
//! ```text
//!   grow:   length, counter ‖ slots are handed out          ‖ is a flush of the storage
//!   cut:    map entries ‖ counter, length
//! ```
//! Invariant: on disk, whatever a power cut leaves, counter and length cover every slot that the map names.

use std::mem;
use std::ops::Range;
use std::sync::Arc;

use futures_util::FutureExt;
use tokio::sync::MutexGuard;
use uuid::Uuid;

use super::layer::Inner;
use super::layout;
use super::space::Flushing;
use crate::buf::Buf;
use crate::error::{Error, ErrorKind, Result};
use crate::planted::{Bug, planted};
use crate::storage::Zero;

/// Runs of slots that one flush punches at most, so that it stays short after a large discard.
const PUNCHES_PER_FLUSH: usize = 64;

/// The header's bytes as they were last written.
#[derive(Debug)]
pub struct Head {
    /// The header area, from the start of the file.
    pub bytes: Vec<u8>,
    /// Its counter. `None`: a write failed, so nobody knows what the file says.
    pub counter: Option<u32>,
}

/// Whether the file had to be changed.
enum Changed {
    Yes,
    No,
}

/// A flush that slots wait for. If a fault cuts it short, nothing is durable by it, and nobody goes on waiting.
struct FlushUnderWay<'a> {
    inner: &'a Inner,
    flushing: Flushing,
    durable: bool,
}

impl Drop for FlushUnderWay<'_> {
    fn drop(&mut self) {
        self.inner.space().after_flush(mem::take(&mut self.flushing), self.durable);
    }
}

/// Slots that are being punched, until it is known what they read as. If a fault cuts that short, nobody gets them: the
/// punch may still come.
struct PunchUnderWay<'a> {
    inner: &'a Inner,
    slots: Option<Range<u32>>,
}

impl PunchUnderWay<'_> {
    fn end(&mut self, zeroes: bool) {
        if let Some(slots) = self.slots.take() {
            self.inner.space().punched(slots, zeroes);
        }
    }
}

impl Drop for PunchUnderWay<'_> {
    fn drop(&mut self) {
        if self.slots.is_some() {
            self.inner.space().punch_lost();
        }
    }
}

impl Inner {
    /// Makes everything that completed before durable; those who ask at one time share one flush. Slots that were
    /// left or punched before it come one step further.
    pub async fn barrier(self: &Arc<Self>) -> Result<()> {
        let round = |inner: Arc<Inner>, _joined: Vec<()>| async move { inner.flush_storage().await }.boxed();
        self.barriers.join((), self.rounds(round)).await
    }

    async fn flush_storage(&self) -> Result<()> {
        let mut under_way =
            FlushUnderWay { inner: self, flushing: self.space().before_flush(), durable: false };
        let outcome = self.storage.flush().await;
        under_way.durable = outcome.is_ok();
        outcome
    }

    /// Gives the host the space of slots that no block is in, durably. What it cannot do is noted, not an error.
    pub async fn punch(&self) {
        let _punching = self.punching.lock().await;
        for _ in 0..PUNCHES_PER_FLUSH {
            let Some(slots) = self.space().take_detached() else { return };
            let mut under_way = PunchUnderWay { inner: self, slots: Some(slots.clone()) };
            if planted(Bug::PunchAfterReuse) {
                under_way.end(false);
            }
            let how = Zero { may_free: true, fast_only: true };
            let outcome = self.storage.zero(self.shape.slots(slots.start, slots.end), how).await;
            if let Err(error) = &outcome
                && error.kind() != ErrorKind::Unsupported
            {
                tracing::debug!(%error, "free blocks keep their space");
            }
            under_way.end(outcome.is_ok());
        }
    }

    /// Puts counter and length right after opening, and makes what was read then durable.
    pub async fn prepare(self: &Arc<Self>) -> Result<()> {
        if self.info.read_only {
            let name = self.storage.name();
            return Err(Error::new(ErrorKind::ReadOnly, format!("{name} is open for reading only")));
        }
        // What was read may be in the page cache only. Once it is durable, what it does not name is free.
        self.barrier().await?;
        let mut head = self.head.lock().await;
        let end = self.space().end();
        match self.set_end(&mut head, end).await? {
            Changed::Yes => self.barrier().await,
            Changed::No => Ok(()),
        }
    }

    /// Gives the image a new modification identity, durably.
    pub async fn new_identity(self: &Arc<Self>, identity: Uuid) -> Result<()> {
        let mut head = self.head.lock().await;
        *layout::changing(&mut head.bytes).uuid_modify = layout::raw_uuid(Some(identity));
        head.counter = None;
        let end = self.space().end();
        self.set_end(&mut head, end).await?;
        self.barrier().await
    }

    /// Room for at least one more block, for all `wanting` ones if there is. Others may be quicker to take it: who finds
    /// none comes again.
    pub async fn grow(self: Arc<Self>, wanting: usize) -> Result<()> {
        let mut head = self.head.lock().await;
        if self.space().has_room() {
            return Ok(());
        }
        let outcome = self.extend(&mut head, wanting).await;
        // Where other threads may take the room that was made: a test sees to it that they do.
        #[cfg(test)]
        tokio::task::yield_now().await;
        if matches!(outcome, Ok(Changed::Yes)) || self.space().has_room() {
            return Ok(());
        }
        // No more slots, or no more file: what waits to be punched will do, once nobody else has hold of it.
        let _moving = self.moving.lock().await;
        let _punching = self.punching.lock().await;
        self.settle_doubts().await?;
        loop {
            self.barrier().await?;
            let mut space = self.space();
            space.use_as_they_are();
            if space.has_room() {
                return Ok(());
            }
            // The last slots may be those that another flush or a punch is about: then its end is worth waiting for.
            if !space.awaits_slots() {
                break;
            }
        }
        let name = self.storage.name();
        let full =
            Error::new(ErrorKind::NoSpace, format!("{name}: no slot is left of {}", self.shape.blocks));
        outcome.and(Err(full))
    }

    /// Lengthens the file by a batch of slots, if it is not at the limit.
    async fn extend(self: &Arc<Self>, head: &mut MutexGuard<'_, Head>, wanting: usize) -> Result<Changed> {
        let mut batch = self.space().next_batch(u32::try_from(wanting).unwrap_or(u32::MAX));
        let grows = self.storage.limits().grows_with_zeroes;
        if grows && !batch.is_empty() {
            // Bytes past the end, left by a cut that failed, would not be zeroes.
            let end = self.shape.end_of(batch.start);
            if self.storage.len() > end {
                self.resize(end).await?;
            }
        } else {
            batch.end = batch.end.min(self.shape.slots_in(self.storage.len()));
        }
        if batch.is_empty() {
            return Ok(Changed::No);
        }
        if !planted(Bug::CounterAfterMap) {
            self.set_end(head, batch.end).await?;
        } else if grows {
            self.resize(self.shape.end_of(batch.end)).await?;
        }
        self.barrier().await?;
        self.space().grown(batch.end, grows);
        Ok(Changed::Yes)
    }

    /// Cuts the unused end off the file. The slots of blocks that moved or were cleared before are cut off too.
    pub async fn trim(self: &Arc<Self>) -> Result<()> {
        let mut head = self.head.lock().await;
        self.barrier().await?;
        let end = self.space().trim();
        self.set_end(&mut head, end).await.map(|_| ())
    }

    /// Writes the counter and sets the length for an image of `end` slots, where they are not so already.
    async fn set_end(&self, head: &mut MutexGuard<'_, Head>, end: u32) -> Result<Changed> {
        let len = self.shape.end_of(end);
        let mut changed = Changed::No;
        if self.storage.limits().grows_with_zeroes && self.storage.len() != len {
            self.resize(len).await?;
            changed = Changed::Yes;
        }
        if head.counter != Some(end) {
            head.counter = None;
            layout::changing(&mut head.bytes).blocks_allocated.set(end);
            let header = self.storage.write(0, Buf::copy_from(&head.bytes));
            header.await.map_err(|error| error.context("header"))?;
            head.counter = Some(end);
            changed = Changed::Yes;
        }
        Ok(changed)
    }

    async fn resize(&self, len: u64) -> Result<()> {
        let name = self.storage.name();
        self.storage
            .resize(len)
            .await
            .map_err(|error| error.context(format!("{name}: setting its length to {len}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::vdi::Vdi;
    use crate::format::vdi::layer::VdiLayer;
    use crate::format::{CreateOptions, Format, Layer, Reserved, Variant};
    use crate::range::ByteRange;
    use crate::storage::MemStorage;
    use crate::testing::{Hold, Op};

    const MIB: u64 = 1 << 20;

    #[tokio::test]
    async fn who_finds_the_room_that_was_made_for_it_taken_by_others_gets_more() {
        let storage = Arc::new(MemStorage::new(0).named("made.vdi"));
        let (size, variant) = (8 * MIB, Variant::Dynamic);
        let options =
            CreateOptions { size, variant, parent: None, block_size: None, uuid: None, comment: None };
        Vdi.create(storage.clone(), options).await.expect("the options are good");
        let hold = Arc::new(Hold::new(storage));
        let layer = VdiLayer::open(hold.clone(), false).await.expect("it opens");
        layer.begin_changes().await.expect("it can be changed");
        hold.hold(Op::Flush);
        let quicker = async {
            hold.until_held(1).await;
            hold.release();
            while !layer.inner.space().has_room() {
                tokio::task::yield_now().await;
            }
            layer.reserve(ByteRange::at(MIB, 1)).now_or_never().expect("there is room")
        };
        let (slower, quicker) = futures_util::join!(layer.reserve(ByteRange::at(0, 1)), quicker);
        let place = |reserved| match reserved {
            Ok(Reserved::New(reservation)) => reservation.place,
            Ok(Reserved::Mapped) => panic!("no block is there yet"),
            Err(error) => panic!("an image without a block is not full: {error}"),
        };
        assert_eq!(place(quicker), 0, "the scenario: it has the slot that was made for the other");
        assert_eq!(place(slower), 1);
    }
}
