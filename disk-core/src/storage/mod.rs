//! Bytes in a file: the trait that every layer does its I/O through, and how a real file or block device is opened.
//!
//! ```text
//!   Layer ──▶ dyn Storage ──▶ FileStorage (file.rs)    at once what needs no waiting, the rest by an engine
//!                  │             ├─ engines              io_uring (uring.rs) | a bounded thread pool (threads.rs)
//!                  │             └─ HostFile (host.rs)   system calls: cache modes, holes, syncs, direct I/O (align.rs)
//!                  │   open.rs makes one: what may be opened, how, under which lock (lock.rs)
//!                  └▶ MemStorage (mem.rs)
//! ```
//! Invariant: nothing here blocks the thread that calls it, and a buffer handed to a storage stays with the
//! engine until the kernel is done with it, whether or not anybody still waits.

mod align;
mod completion;
mod file;
mod host;
mod lock;
mod mem;
mod open;
mod threads;
mod uring;

pub use completion::{Completer, Completion};
pub use file::FileStorage;
pub use mem::MemStorage;
pub use open::{CacheMode, IoEngine, OpenOptions, create, open};

use crate::buf::{Buf, BufMut};
use crate::range::ByteRange;

/// What a storage can do. `fast_zero` and `can_discard` may turn false when the host first refuses; the rest is fixed
/// while it is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Transfers that start and end on this many bytes (a power of two) go through without being bounced.
    pub alignment: u32,
    /// Bytes past the old end read as zero after [`Storage::resize`], and stay so through a power cut: true for
    /// regular files, false for block devices (which cannot grow).
    pub grows_with_zeroes: bool,
    /// [`Storage::zero`] is likely to work without writing the zeroes (the file system or device can do it).
    pub fast_zero: bool,
    /// [`Storage::discard`] gives space back to the host.
    pub can_discard: bool,
    /// Every write and zero returns only when it is durable (`cache = writethrough | directsync`).
    pub write_through: bool,
}

/// How a range is to be zeroed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Zero {
    /// The host may free the space. False: space that is allocated stays so, and a later write cannot run out of it.
    pub may_free: bool,
    /// Fail with [`Unsupported`](crate::ErrorKind::Unsupported) rather than write zeroes one by one.
    pub fast_only: bool,
}

/// What the host knows of the start of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostExtent {
    /// Bytes from the start of the range that are alike; at least 1, at most the range's length.
    pub len: u64,
    /// False: a hole, which reads as zeroes and has no space.
    pub data: bool,
}

/// Bytes in a file, a block device or memory. Offsets and lengths are bytes; any alignment is accepted.
///
/// Every call starts its work at once. The storage owns the buffer until the work is done; dropping the
/// [`Completion`] stops nothing. All errors name the file and the offset. Two operations on overlapping bytes
/// that are under way together may take effect in either order; callers that care wait.
pub trait Storage: Send + Sync + std::fmt::Debug {
    /// What it can do.
    fn limits(&self) -> Limits;
    /// Name for messages: the path it was opened by.
    fn name(&self) -> &str;
    /// Length in bytes.
    fn len(&self) -> u64;
    /// Whether it holds no byte.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Bytes of the host's space that it takes up; for a block device its length.
    fn allocated(&self) -> u64;
    /// Fills `into` from `at`. Reading past the end is an error ([`Io`](crate::ErrorKind::Io)): zeroes in
    /// silence would be made-up data.
    fn read(&self, at: u64, into: BufMut) -> Completion<BufMut>;
    /// Writes all of `from` at `at`; a regular file grows if need be.
    fn write(&self, at: u64, from: Buf) -> Completion<()>;
    /// Makes a range read as zeroes. The part past the end of the file is left out.
    fn zero(&self, range: ByteRange, how: Zero) -> Completion<()>;
    /// Tells the host that the content of a range is not needed: it reads as before or as zeroes afterwards.
    /// Never fails for want of support.
    fn discard(&self, range: ByteRange) -> Completion<()>;
    /// What the host knows of the start of a non-empty `range` inside the file.
    fn status(&self, range: ByteRange) -> Completion<HostExtent>;
    /// Asks the host to have a range in memory soon; only a hint.
    fn prefetch(&self, range: ByteRange);
    /// Makes everything whose completion was ready before this call durable, the length of the file included.
    /// After one failure every later call fails until the file is opened anew: the kernel reports a lost write
    /// once, and a later success would hide it.
    fn flush(&self) -> Completion<()>;
    /// Sets the length of a regular file; new bytes read as zeroes.
    fn resize(&self, len: u64) -> Completion<()>;
    /// Resolves when everybody who does I/O for this storage can take something new: at once where nobody is at work,
    /// never while all of them hang. Goes before what is queued, so a long queue does not count as hanging.
    fn ping(&self) -> Completion<()> {
        Completion::ready(Ok(()))
    }
    /// Name of what does its I/O, for status: `io_uring`, `threads`.
    fn engine(&self) -> &'static str {
        "memory"
    }
}
