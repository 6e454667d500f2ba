//! Buffers that block I/O moves through: aligned for O_DIRECT, pooled, sliceable without copies.
//!
//! ```text
//!   Pool ── Share ── Arc<Chunk> (one aligned allocation, initialised memory), back to the pool with its last share
//!                │
//!      ┌─────────┴──────────┐
//!    BufMut  BufMut        Buf  Buf      disjoint views while mutable, shared views once frozen
//! ```
//! Of the smallest chunks each thread that takes them keeps some near, without a lock; half of those at a time come from
//! the pool and go there.
//!
//! Invariant: the byte ranges of all live [`BufMut`]s of a chunk are disjoint from each other and from those
//! of all its live [`Buf`]s. Only `take`, `split_to` and `freeze` make views, and each keeps it.

#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::fmt;
use std::ops::{Deref, DerefMut, RangeBounds};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Alignment of every chunk, in bytes: enough for O_DIRECT on 512 and 4096 byte sectors.
pub const ALIGNMENT: usize = 4096;

/// Size classes that are kept for reuse: 4 KiB, 8 KiB … 2 MiB. Larger chunks go back to the allocator, which
/// gives their pages back to the kernel.
const CLASSES: usize = 10;

/// Bytes that are kept for reuse at most, all classes together, besides what threads keep near, so that an idle daemon is a
/// small one: about what four connections at full speed have in use.
const KEPT_MOST: u64 = 8 << 20;

/// Chunks of 4 KiB that a thread keeps near: those of a batch of small requests.
const NEAR_MOST: usize = 64;

thread_local! {
    /// What this thread keeps near. Nothing until it takes a chunk: who only gives back would keep what it has no use
    /// for.
    static NEAR: RefCell<Option<Vec<Arc<Chunk>>>> = const { RefCell::new(None) };
}

/// Where buffers come from and go back to. Cheap to share; chunks outlive it if need be.
#[derive(Default)]
pub struct Pool {
    free: [Mutex<Vec<Arc<Chunk>>>; CLASSES],
    /// Bytes of all chunks that there are.
    allocated: AtomicU64,
    /// Bytes of those that wait in `free`.
    kept: AtomicU64,
    /// Threads keep some of its smallest chunks near. Of one pool only, as a thread has one place for them.
    near: bool,
}

impl Pool {
    /// The pool of the whole process.
    pub fn global() -> &'static Pool {
        static POOL: OnceLock<Pool> = OnceLock::new();
        POOL.get_or_init(|| Pool { near: true, ..Pool::default() })
    }

    /// A buffer of `len` bytes. Its content is initialised but arbitrary (an earlier request's bytes): whoever
    /// takes it fills it before anyone else sees it.
    pub fn take(&'static self, len: usize) -> BufMut {
        let capacity = capacity_for(len);
        let class = class_of(capacity);
        let chunk = if self.near && class == 0 { self.take_near() } else { self.reuse(class) };
        let chunk = chunk.unwrap_or_else(|| Arc::new(Chunk::allocate(capacity, self)));
        BufMut { share: Share(Some(chunk)), start: 0, len }
    }

    fn take_near(&self) -> Option<Arc<Chunk>> {
        let take = |near: &RefCell<Option<Vec<Arc<Chunk>>>>| {
            let mut near = near.borrow_mut();
            let near = near.get_or_insert_with(|| Vec::with_capacity(NEAR_MOST));
            if near.is_empty() {
                let mut free = self.free(0)?;
                let left = free.len().saturating_sub(NEAR_MOST / 2);
                near.extend(free.drain(left..));
                self.kept.fetch_sub((near.len() * ALIGNMENT) as u64, Ordering::Relaxed);
            }
            near.pop()
        };
        // A thread that ends keeps nothing any more.
        NEAR.try_with(take).ok().flatten()
    }

    fn reuse(&self, class: usize) -> Option<Arc<Chunk>> {
        let chunk = self.free(class)?.pop()?;
        self.kept.fetch_sub(chunk.memory.capacity as u64, Ordering::Relaxed);
        Some(chunk)
    }

    /// Keeps a chunk that nobody has a share in.
    fn give_back(&self, chunk: Arc<Chunk>) {
        let class = class_of(chunk.memory.capacity);
        if !self.near || class > 0 {
            return self.keep(class, [chunk]);
        }
        let give = |near: &RefCell<Option<Vec<Arc<Chunk>>>>| match near.borrow_mut().as_mut() {
            Some(near) => {
                if near.len() == NEAR_MOST {
                    self.keep(class, near.drain(NEAR_MOST / 2..));
                }
                near.push(chunk);
            }
            None => self.keep(class, [chunk]),
        };
        // A thread that ends keeps nothing any more.
        let _ = NEAR.try_with(give);
    }

    /// Keeps chunks of one class, in place of others that are not asked for if there are too many.
    fn keep(&self, class: usize, chunks: impl IntoIterator<Item = Arc<Chunk>, IntoIter: ExactSizeIterator>) {
        let chunks = chunks.into_iter();
        let make_room =
            || (0..CLASSES).rev().filter(|&other| other != class).find_map(|other| self.reuse(other));
        let bytes = (chunks.len() * ALIGNMENT) as u64 * (1 << class.min(CLASSES));
        while class < CLASSES && self.kept.load(Ordering::Relaxed) + bytes > KEPT_MOST {
            if make_room().is_none() {
                return;
            }
        }
        if let Some(mut free) = self.free(class) {
            self.kept.fetch_add(bytes, Ordering::Relaxed);
            free.extend(chunks);
        }
    }

    fn free(&self, class: usize) -> Option<MutexGuard<'_, Vec<Arc<Chunk>>>> {
        Some(self.free.get(class)?.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (allocated, kept) = (&self.allocated, &self.kept);
        f.debug_struct("Pool").field("allocated", allocated).field("kept", kept).finish_non_exhaustive()
    }
}

fn capacity_for(len: usize) -> usize {
    let pages = len.max(1).next_multiple_of(ALIGNMENT);
    if pages <= ALIGNMENT << (CLASSES - 1) { pages.next_power_of_two() } else { pages }
}

fn class_of(capacity: usize) -> usize {
    if capacity.is_power_of_two() { (capacity / ALIGNMENT).trailing_zeros() as usize } else { usize::MAX }
}

/// One aligned allocation of initialised memory, owned.
struct Memory {
    start: NonNull<u8>,
    capacity: usize,
}

// SAFETY: `Memory` owns its allocation like a `Box<[u8]>` does; nothing in it is tied to a thread.
unsafe impl Send for Memory {}
// SAFETY: shared access hands out only the pointer's value; `BufMut` and `Buf` decide who may dereference it.
unsafe impl Sync for Memory {}

impl Memory {
    fn allocate(capacity: usize) -> Memory {
        let layout = Self::layout(capacity);
        // SAFETY: the layout's size is not zero, `capacity_for` gives at least one page.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Memory { start, capacity }
    }

    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, ALIGNMENT).expect("a buffer is smaller than half the address space")
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `start` came from `alloc_zeroed` with this very layout and is freed only here.
        unsafe { dealloc(self.start.as_ptr(), Self::layout(self.capacity)) }
    }
}

struct Chunk {
    memory: Memory,
    pool: &'static Pool,
}

impl Chunk {
    fn allocate(capacity: usize, pool: &'static Pool) -> Chunk {
        pool.allocated.fetch_add(capacity as u64, Ordering::Relaxed);
        Chunk { memory: Memory::allocate(capacity), pool }
    }

    fn at(&self, offset: usize) -> *mut u8 {
        debug_assert!(offset <= self.memory.capacity);
        // SAFETY: views never reach past the capacity, so the pointer stays inside the allocation or one past it.
        unsafe { self.memory.start.as_ptr().add(offset) }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.pool.allocated.fetch_sub(self.memory.capacity as u64, Ordering::Relaxed);
    }
}

/// A share in a chunk. The last one gives the chunk back, counter and all: the next buffer allocates nothing.
#[derive(Clone)]
struct Share(Option<Arc<Chunk>>);

impl Share {
    fn chunk(&self) -> &Chunk {
        self.0.as_deref().expect("a share is empty only while it is dropped")
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        // Of two that are dropped at one moment none may be the last: then the chunk is freed and not kept.
        if let Some(mut chunk) = self.0.take()
            && Arc::get_mut(&mut chunk).is_some()
        {
            chunk.pool.give_back(chunk);
        }
    }
}

/// A buffer, or a part of one, that only its owner can see.
pub struct BufMut {
    share: Share,
    start: usize,
    len: usize,
}

impl BufMut {
    /// Takes the first `len` bytes off into a buffer of their own; `self` keeps the rest.
    ///
    /// # Panics
    /// If `len` is more than there is.
    #[must_use]
    pub fn split_to(&mut self, len: usize) -> BufMut {
        assert!(len <= self.len, "cannot split {len} bytes off {}", self.len);
        let front = BufMut { share: self.share.clone(), start: self.start, len };
        self.start += len;
        self.len -= len;
        front
    }

    /// Keeps only the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Ends writing; from now on it can be shared.
    pub fn freeze(self) -> Buf {
        Buf { share: self.share, start: self.start, len: self.len }
    }
}

impl Deref for BufMut {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the range is inside the chunk's initialised memory, which the share keeps alive, and no other
        // view of these bytes exists (the file's invariant).
        unsafe { std::slice::from_raw_parts(self.share.chunk().at(self.start), self.len) }
    }
}

impl DerefMut for BufMut {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` is the only way to these bytes.
        unsafe { std::slice::from_raw_parts_mut(self.share.chunk().at(self.start), self.len) }
    }
}

impl fmt::Debug for BufMut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BufMut({} bytes)", self.len)
    }
}

/// Bytes that no longer change, shared without copies.
#[derive(Clone)]
pub struct Buf {
    share: Share,
    start: usize,
    len: usize,
}

impl Buf {
    /// A part of it, by the same memory.
    ///
    /// # Panics
    /// If the range passes the end.
    #[must_use]
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Buf {
        use std::ops::Bound::*;
        let from = match range.start_bound() {
            Included(&n) => n,
            Excluded(&n) => n + 1,
            Unbounded => 0,
        };
        let to = match range.end_bound() {
            Included(&n) => n + 1,
            Excluded(&n) => n,
            Unbounded => self.len,
        };
        assert!(from <= to && to <= self.len, "slice {from}..{to} of {} bytes", self.len);
        Buf { share: self.share.clone(), start: self.start + from, len: to - from }
    }

    /// A copy of `bytes` in pool memory.
    pub fn copy_from(bytes: &[u8]) -> Buf {
        let mut copy = Pool::global().take(bytes.len());
        copy.copy_from_slice(bytes);
        copy.freeze()
    }

    /// Whether every byte is zero.
    pub fn is_zero(&self) -> bool {
        is_zero(self)
    }
}

impl Deref for Buf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the range is inside the chunk's initialised memory, which the share keeps alive; no `BufMut`
        // covers these bytes any more (the file's invariant), so nobody writes them.
        unsafe { std::slice::from_raw_parts(self.share.chunk().at(self.start), self.len) }
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buf({} bytes)", self.len)
    }
}

/// Whether every byte of `bytes` is zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    // Most buffers that are not zero show it at once; the rest is one pass that the compiler vectorises.
    let (head, rest) = bytes.split_at(bytes.len().min(16));
    head.iter().all(|&b| b == 0)
        && rest.chunks(4096).all(|chunk| chunk.iter().fold(0, |any, &b| any | b) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Pool {
        /// Bytes of all buffers that are in use now or that a thread keeps near, rounded up to their chunks.
        fn outstanding(&self) -> u64 {
            self.allocated.load(Ordering::Relaxed) - self.kept.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn split_parts_write_their_own_bytes_and_freeze_into_one_chunk() {
        let mut rest = Pool::global().take(10_000);
        let mut front = rest.split_to(3);
        front.copy_from_slice(b"abc");
        rest.fill(7);
        let (front, rest) = (front.freeze(), rest.freeze());
        assert_eq!((&front[..], rest.len()), (&b"abc"[..], 9_997));
        assert!(rest.slice(1..).iter().all(|&b| b == 7));
    }

    #[test]
    fn a_dropped_buffer_is_used_again_and_no_longer_counted() {
        let pool: &'static Pool = Box::leak(Box::default());
        let first = pool.take(5000);
        let address = first.as_ptr();
        assert_eq!(pool.outstanding(), 8192);
        let part = first.freeze().slice(10..20);
        assert_eq!(pool.outstanding(), 8192, "a slice keeps the chunk");
        drop(part);
        assert_eq!(pool.outstanding(), 0);
        assert_eq!(pool.take(8192).as_ptr(), address);
    }

    #[test]
    fn buffers_that_nobody_asks_for_any_more_make_room_for_those_that_are_used() {
        let pool: &'static Pool = Box::leak(Box::default());
        // Miri takes long over each of them.
        let size = if cfg!(miri) { 256 << 10 } else { 4096 };
        let small: Vec<_> = (0..2 * KEPT_MOST / size as u64).map(|_| pool.take(size)).collect();
        drop(small);
        assert_eq!(pool.kept.load(Ordering::Relaxed), KEPT_MOST, "as many as are allowed");
        let large = pool.take(2 << 20);
        let address = large.as_ptr();
        drop(large);
        assert_eq!(pool.kept.load(Ordering::Relaxed), KEPT_MOST, "the large one in place of small ones");
        assert_eq!(pool.take(2 << 20).as_ptr(), address);
        assert_eq!(pool.outstanding(), 0);
    }

    #[test]
    fn a_thread_keeps_small_buffers_near_and_half_of_them_at_a_time_come_and_go() {
        let pool: &'static Pool = Box::leak(Box::new(Pool { near: true, ..Pool::default() }));
        let chunks = |chunks: u64| chunks * ALIGNMENT as u64;
        let kept = || pool.kept.load(Ordering::Relaxed);
        let thread = std::thread::spawn(move || {
            let taken: Vec<_> = (0..100).map(|_| pool.take(10)).collect();
            assert_eq!(pool.outstanding(), chunks(100));
            drop(taken);
            assert_eq!((kept(), pool.outstanding()), (chunks(64), chunks(36)), "two halves went");
            let again: Vec<_> = (0..36).map(|_| pool.take(4096)).collect();
            assert_eq!(kept(), chunks(64), "what was near came first");
            let one_more = pool.take(1);
            assert_eq!(kept(), chunks(32), "a half came");
            drop(pool.take(5000));
            assert_eq!(kept(), chunks(34), "larger ones are not kept near");
            (again, one_more)
        });
        let held = thread.join().expect("no panic");
        assert_eq!(pool.outstanding(), chunks(37), "what was near has gone with its thread");
        std::thread::spawn(move || drop(held)).join().expect("no panic");
        assert_eq!(pool.outstanding(), 0, "who never takes keeps nothing");
    }

    #[test]
    fn shares_that_are_dropped_by_many_threads_are_neither_lost_nor_counted_twice() {
        let pool: &'static Pool = Box::leak(Box::default());
        for _ in 0..if cfg!(miri) { 20 } else { 200 } {
            let whole = pool.take(4096).freeze();
            std::thread::scope(|scope| {
                for share in [whole.slice(..1), whole.slice(1..), whole] {
                    scope.spawn(move || drop(share));
                }
            });
            assert_eq!(pool.outstanding(), 0);
        }
    }

    #[test]
    fn every_buffer_starts_on_a_page() {
        for len in [0, 1, 4096, 4097, (1 << 20) + 1, 5 << 20] {
            let buf = Pool::global().take(len);
            assert_eq!((buf.as_ptr() as usize % ALIGNMENT, buf.len()), (0, len));
        }
    }

    #[test]
    fn one_set_bit_anywhere_is_not_zero() {
        let mut bytes = vec![0u8; 9000];
        assert!(is_zero(&bytes));
        for at in [0, 15, 16, 4111, 4112, 8999] {
            bytes[at] = 1;
            assert!(!is_zero(&bytes), "byte {at}");
            bytes[at] = 0;
        }
    }
}
