//! An opened VDI: looking blocks up, giving them slots, taking slots away.
//!
//! Whatever changes the file runs in tasks of its own (`group`, [`Inner::detached`]), so a request that is dropped
//! half-way leaves nothing half done.
//!
//! Invariant: a map entry names a slot only if counter and length cover it durably, and only if the slot reads, after
//! any power cut, as what the block read before or as what was written into it.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::OnceCell;
use uuid::Uuid;

use super::claim::{Claim, Claims};
use super::entries::{Change, Doubts};
use super::group::Group;
use super::header::{Header, Kind, Shape, Slot};
use super::load::{self, Census, Damage};
use super::map::{Entry, Map};
use super::space::{Space, Vacancy};
use super::tail::Head;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{self, Before, Layer, LayerInfo, Mapping, Place, Reservation, Reserved, Reveal};
use crate::planted::{Bug, planted};
use crate::range::ByteRange;
use crate::storage::{Storage, Zero};

/// Bytes that the file grows by at most at once: one flush for so much new data.
const MAX_GROWTH: u64 = 64 << 20;

/// An opened VDI image.
pub struct VdiLayer {
    pub(super) inner: Arc<Inner>,
}

/// What the tasks of a layer share with it.
pub struct Inner {
    pub(super) info: LayerInfo,
    pub(super) storage: Arc<dyn Storage>,
    pub(super) shape: Shape,
    pub(super) map: Map,
    /// Blocks that are in a slot.
    pub(super) allocated: AtomicU64,
    pub(super) space: Arc<Mutex<Space>>,
    pub(super) claims: Arc<Claims>,
    pub(super) doubts: Mutex<Doubts>,
    /// Held by whoever changes header or length.
    pub(super) head: tokio::sync::Mutex<Head>,
    /// Held by whoever moves blocks: it has two slots for each of them.
    pub(super) moving: tokio::sync::Mutex<()>,
    /// Blocks that were the last ones of the file, some time ago: candidates to be moved.
    pub(super) last: Mutex<Vec<u32>>,
    /// Held by whoever punches slots: meanwhile they are in none of the sets of `space`.
    pub(super) punching: tokio::sync::Mutex<()>,
    /// Counter and length are right, and what was read at opening is durable.
    ready: OnceCell<()>,
    /// The image has its new modification identity.
    begun: OnceCell<()>,
    pub(super) barriers: Group<()>,
    pub(super) entries: Group<Vec<Change>>,
    growth: Group<()>,
}

impl VdiLayer {
    /// Opens an image.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidImage`] if the header is wrong. [`ErrorKind::Corrupt`], for writing only, if two blocks
    /// share a slot or one is past the end of the file.
    pub async fn open(storage: Arc<dyn Storage>, read_only: bool) -> Result<VdiLayer> {
        let (header, head) = load::read_header(&*storage).await?;
        let map = load::read_map(&*storage, &header.shape).await?;
        let mut first: Option<Damage> = None;
        let census = load::census(&map, &header.shape, storage.len(), |damage| {
            first.get_or_insert(damage);
        });
        if let (Some(damage), false) = (first, read_only) {
            return Err(load::corrupt(damage, &map, &header.shape, &*storage));
        }
        let inner = Inner::new(storage, &header, head, map, census, read_only);
        Ok(VdiLayer { inner: Arc::new(inner) })
    }
}

impl Inner {
    /// The layer over a map and what a census found in it.
    pub(super) fn new(
        storage: Arc<dyn Storage>,
        header: &Header,
        head: Vec<u8>,
        map: Map,
        census: Census,
        read_only: bool,
    ) -> Inner {
        let shape = header.shape;
        let whole = header.kind == Kind::Fixed && load::is_full(&map, &shape);
        let space = if whole { format::Space::Preallocated } else { format::Space::Blocks };
        let max_batch = (MAX_GROWTH / shape.block_size).max(1) as u32;
        Inner {
            info: super::info_of(header, space, read_only),
            allocated: AtomicU64::new(census.allocated),
            space: Arc::new(Mutex::new(Space::new(census.end, shape.blocks, census.vacant, max_batch))),
            claims: Arc::default(),
            doubts: Mutex::new(HashMap::new()),
            head: tokio::sync::Mutex::new(Head { bytes: head, counter: Some(header.blocks_allocated) }),
            moving: tokio::sync::Mutex::new(()),
            last: Mutex::default(),
            punching: tokio::sync::Mutex::new(()),
            ready: OnceCell::new(),
            begun: OnceCell::new(),
            barriers: Group::new(),
            entries: Group::new(),
            growth: Group::new(),
            storage,
            shape,
            map,
        }
    }

    pub(super) fn space(&self) -> MutexGuard<'_, Space> {
        self.space.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A round of a group, as [`Group::join`] wants it. Between rounds the group does not keep the layer open.
    pub(super) fn rounds<T: Send + 'static>(
        self: &Arc<Self>,
        round: impl Fn(Arc<Inner>, Vec<T>) -> BoxFuture<'static, Result<()>> + Send + 'static,
    ) -> impl Fn(Vec<T>) -> BoxFuture<'static, Result<()>> + Send + 'static {
        let inner = Arc::downgrade(self);
        move |joined| match inner.upgrade() {
            Some(inner) => round(inner, joined),
            // Whoever joined has gone, and the layer with them.
            None => std::future::ready(Err(Error::new(ErrorKind::Closed, "the image is closed"))).boxed(),
        }
    }

    /// Runs work to its end, even if the caller stops waiting for it.
    pub(super) async fn detached<T, F>(self: &Arc<Self>, work: impl FnOnce(Arc<Self>) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let stopped =
            |_| Err(Error::new(ErrorKind::Fault, format!("{}: its writer stopped", self.storage.name())));
        tokio::spawn(work(Arc::clone(self))).await.unwrap_or_else(stopped)
    }

    /// To be awaited before the file is changed at all.
    pub(super) async fn make_ready(self: &Arc<Self>) -> Result<()> {
        let prepare = || self.detached(|inner| async move { inner.prepare().await });
        self.ready.get_or_try_init(prepare).await.map(|_| ())
    }

    /// To be awaited before what the disk reads is changed.
    pub(super) async fn begin_changes(self: &Arc<Self>) -> Result<()> {
        let begin = || async {
            self.make_ready().await?;
            self.detached(|inner| async move { inner.new_identity(Uuid::new_v4()).await }).await
        };
        self.begun.get_or_try_init(begin).await.map(|_| ())
    }

    fn lookup(&self, range: ByteRange) -> Mapping {
        let block = self.shape.block_at(range.start());
        let end = self.shape.block_at(range.end() - 1) + 1;
        let (entry, blocks) = match self.map.entry(block) {
            // Between blocks with extra bytes there is no contiguous data.
            entry @ Entry::Slot(_) if self.shape.block_extra != 0 => (entry, 1),
            _ => self.map.run(block, end),
        };
        let run_end = u64::from(block + blocks) * self.shape.block_size;
        let place = match entry {
            Entry::Absent => Place::Absent,
            Entry::Zero => Place::Zero,
            Entry::Slot(slot) => {
                Place::Data(self.shape.data_of(slot) + range.start() % self.shape.block_size)
            }
        };
        Mapping { len: run_end.min(range.end()) - range.start(), place }
    }

    async fn reserve(self: &Arc<Self>, range: ByteRange) -> Result<Reserved> {
        self.begin_changes().await?;
        let block = self.shape.block_at(range.start());
        let wanted = || !matches!(self.map.entry(block), Entry::Slot(_));
        let Some(mut claim) = Claim::of(block, &self.claims, &self.space, wanted).await else {
            return Ok(Reserved::Mapped);
        };
        let vacancy = self.fill(&mut claim).await?;
        if planted(Bug::PublishBeforeData) {
            self.publish(block, vacancy.slot).await?;
        }
        let (range, at) = (self.shape.disk_range(block), self.shape.data_of(vacancy.slot));
        if !vacancy.zeroed && range.len() < self.shape.block_size {
            // Nobody writes past the disk's end. If another program moves that end, old bytes must not be there.
            let padding = ByteRange::new(at + range.len(), at + self.shape.block_size);
            let zero = |inner: Arc<Inner>| async move {
                inner.storage.zero(padding, Zero { may_free: true, fast_only: false }).await?;
                Ok(claim)
            };
            claim = self.detached(zero).await?;
        }
        claim.suspend();
        let Vacancy { slot, zeroed } = vacancy;
        let (claims, space) = (Arc::clone(&self.claims), Arc::clone(&self.space));
        let release = Box::new(move || drop(Claim::resume(block, slot, claims, space)));
        Ok(Reserved::New(Reservation { range, at, zeroed, place: slot.0.into(), release: Some(release) }))
    }

    /// Finds a slot for a claim.
    pub(super) async fn fill(self: &Arc<Self>, claim: &mut Claim) -> Result<Vacancy> {
        loop {
            // Taken and held in one step: a slot that nobody holds would be lost.
            let vacancy = self.space().take();
            if let Some(vacancy) = vacancy {
                claim.hold(vacancy.slot);
                return Ok(vacancy);
            }
            self.more_space().await?;
        }
    }

    async fn more_space(self: &Arc<Self>) -> Result<()> {
        let round = |inner: Arc<Inner>, joined: Vec<()>| inner.grow(joined.len()).boxed();
        self.growth.join((), self.rounds(round)).await
    }

    async fn clear(self: &Arc<Self>, range: ByteRange, reveal: Reveal) -> Result<()> {
        self.begin_changes().await?;
        // Zeroes are noted as such even where no parent is known: the entry is right wherever the image stands.
        let entry = match reveal {
            Reveal::Anything if !self.info.differencing => Entry::Absent,
            Reveal::Zeroes if planted(Bug::StaleParentAfterZero) => Entry::Absent,
            Reveal::Anything | Reveal::Zeroes => Entry::Zero,
        };
        let first = self.shape.block_at(range.start());
        let end = self.shape.block_at(range.end() - 1) + 1;
        let changes: Vec<Change> = (first..end)
            .filter(|&block| match self.map.entry(block) {
                Entry::Slot(_) => true,
                before => reveal == Reveal::Zeroes && before != entry,
            })
            .map(|block| Change { block, entry, claim: None })
            .collect();
        if changes.is_empty() { Ok(()) } else { self.write_entries(changes).await }
    }

    pub(super) async fn flush(self: &Arc<Self>) -> Result<()> {
        self.settle_doubts().await?;
        self.barrier().await?;
        if self.ready.initialized() {
            self.detached(|inner| async move {
                inner.punch().await;
                Ok(())
            })
            .await?;
        }
        Ok(())
    }
}

impl fmt::Debug for VdiLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VdiLayer")
            .field("storage", &self.inner.storage)
            .field("info", &self.inner.info)
            .finish()
    }
}

impl Layer for VdiLayer {
    fn info(&self) -> &LayerInfo {
        &self.inner.info
    }

    fn storage(&self) -> &Arc<dyn Storage> {
        &self.inner.storage
    }

    fn lookup(&self, range: ByteRange) -> Mapping {
        self.inner.lookup(range)
    }

    fn begin_changes(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.inner.begin_changes())
    }

    fn reserve(&self, range: ByteRange) -> BoxFuture<'_, Result<Reserved>> {
        Box::pin(self.inner.reserve(range))
    }

    fn commit(&self, mut reservation: Reservation, before: Before) -> BoxFuture<'_, Result<()>> {
        let inner = &self.inner;
        let block = inner.shape.block_at(reservation.range.start());
        let slot = Slot(u32::try_from(reservation.place).expect("the number of a slot"));
        let zeroes = before == Before::Zeroes && reservation.zeroed;
        // From here on the claim sees to the slot.
        reservation.release = None;
        let claim = Claim::resume(block, slot, Arc::clone(&inner.claims), Arc::clone(&inner.space));
        Box::pin(async move {
            // A power cut may keep the map entry and lose the bytes: then the block must still read as before.
            if !zeroes && !planted(Bug::SkipBarrier) {
                inner.barrier().await?;
            }
            inner.write_entries(vec![Change { block, entry: Entry::Slot(slot), claim: Some(claim) }]).await
        })
    }

    fn clear(&self, range: ByteRange, reveal: Reveal) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.inner.clear(range, reveal))
    }

    fn allocated(&self) -> u64 {
        self.inner.allocated.load(Ordering::Relaxed) * self.inner.shape.block_size
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.inner.flush())
    }

    fn compactable(&self) -> Vec<ByteRange> {
        self.inner.compactable()
    }

    fn compact<'a>(&'a self, blocks: &'a [ByteRange]) -> BoxFuture<'a, Result<()>> {
        let blocks = blocks.to_vec();
        Box::pin(self.inner.detached(|inner| async move { inner.compact(&blocks).await }))
    }

    fn settle(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.inner.detached(|inner| async move { inner.settle().await }))
    }
}
