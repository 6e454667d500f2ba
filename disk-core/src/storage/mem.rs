//! Bytes in memory: the template of a [`Storage`], for tests, demonstrations and simulations.
//!
//! Invariant: a page that is not in the map reads as zeroes and takes no space, and every byte past the length is
//! zero, so growing reveals nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::buf::{Buf, BufMut};
use crate::error::{Error, ErrorKind, Result};
use crate::range::ByteRange;
use crate::storage::{Completion, HostExtent, Limits, Storage, Zero};

/// Granularity of holes, bytes: that of the usual file systems.
const PAGE: u64 = 4096;

/// A sparse file in memory. It grows with zeroes, frees what is zeroed or discarded and is never slow.
#[derive(Debug)]
pub struct MemStorage {
    name: String,
    limits: Limits,
    content: Mutex<Content>,
}

/// Pages are shared between snapshots until one of them writes.
#[derive(Clone, Default)]
struct Content {
    len: u64,
    pages: BTreeMap<u64, Arc<[u8; PAGE as usize]>>,
}

impl MemStorage {
    /// A hole of `len` bytes.
    pub fn new(len: u64) -> Self {
        let limits = Limits {
            alignment: 1,
            grows_with_zeroes: true,
            fast_zero: true,
            can_discard: true,
            write_through: false,
        };
        MemStorage {
            name: "memory".into(),
            limits,
            content: Mutex::new(Content { len, ..Content::default() }),
        }
    }

    /// A file that holds just `bytes`.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let storage = MemStorage::new(bytes.len() as u64);
        storage.content().write(0, bytes);
        storage
    }

    /// The same with another name in its messages.
    #[must_use]
    pub fn named(self, name: impl Into<String>) -> Self {
        MemStorage { name: name.into(), ..self }
    }

    /// The same, claiming other abilities. Without `grows_with_zeroes` it has a fixed length, like a block device.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        MemStorage { limits, ..self }
    }

    /// A copy of its own with the content of this moment; cheap, pages are shared until one side writes.
    #[must_use]
    pub fn snapshot(&self) -> Self {
        let content = Mutex::new(self.content().clone());
        MemStorage { name: self.name.clone(), limits: self.limits, content }
    }

    /// All its bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        let content = self.content();
        let mut bytes = vec![0; usize::try_from(content.len).expect("a file that fits into memory")];
        content.read(0, &mut bytes);
        bytes
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_write(&self, at: u64, from: &[u8]) -> Result<()> {
        let end = at.checked_add(from.len() as u64);
        let mut content = self.content();
        let Some(end) = end.filter(|&end| end <= content.len || self.limits.grows_with_zeroes) else {
            return Err(Error::new(
                ErrorKind::NoSpace,
                format!("{}: write of {} bytes at {at} passes the end", self.name, from.len()),
            ));
        };
        content.len = content.len.max(end);
        content.write(at, from);
        Ok(())
    }
}

impl Content {
    fn read(&self, at: u64, into: &mut [u8]) {
        let mut rest = into;
        for piece in ByteRange::at(at, rest.len() as u64).blocks(PAGE) {
            let (now, after) = rest.split_at_mut(piece.len() as usize);
            match self.pages.get(&(piece.start() / PAGE)) {
                Some(page) => now.copy_from_slice(&page[(piece.start() % PAGE) as usize..][..now.len()]),
                None => now.fill(0),
            }
            rest = after;
        }
    }

    fn write(&mut self, at: u64, from: &[u8]) {
        let mut rest = from;
        for piece in ByteRange::at(at, from.len() as u64).blocks(PAGE) {
            let (now, after) = rest.split_at(piece.len() as usize);
            let page = self.pages.entry(piece.start() / PAGE).or_insert_with(|| Arc::new([0; PAGE as usize]));
            Arc::make_mut(page)[(piece.start() % PAGE) as usize..][..now.len()].copy_from_slice(now);
            rest = after;
        }
    }

    fn zero(&mut self, range: ByteRange, may_free: bool) {
        let pages: Vec<u64> = self
            .pages
            .range(range.start() / PAGE..range.end().div_ceil(PAGE))
            .map(|(&page, _)| page)
            .collect();
        for page in pages {
            let whole = ByteRange::new(page * PAGE, self.len.min((page + 1) * PAGE));
            let piece = whole.intersect(&range);
            if may_free && piece == whole {
                self.pages.remove(&page);
            } else if let Some(bytes) = self.pages.get_mut(&page) {
                Arc::make_mut(bytes)[(piece.start() % PAGE) as usize..][..piece.len() as usize].fill(0);
            }
        }
    }

    fn extent(&self, range: ByteRange) -> HostExtent {
        let first = range.start() / PAGE;
        let data = self.pages.contains_key(&first);
        let last = range.end().div_ceil(PAGE);
        let change = if data {
            (first..last).find(|page| !self.pages.contains_key(page))
        } else {
            self.pages.range(first..last).next().map(|(&page, _)| page)
        };
        let end = change.map_or(range.end(), |page| page * PAGE);
        HostExtent { len: end - range.start(), data }
    }
}

impl Storage for MemStorage {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.content().len
    }

    fn allocated(&self) -> u64 {
        self.content().pages.len() as u64 * PAGE
    }

    fn read(&self, at: u64, mut into: BufMut) -> Completion<BufMut> {
        let content = self.content();
        let inside = at.checked_add(into.len() as u64).is_some_and(|end| end <= content.len);
        Completion::ready(if inside {
            content.read(at, &mut into);
            Ok(into)
        } else {
            let message = format!("{}: read of {} bytes at {at} passes the end", self.name, into.len());
            Err(Error::new(ErrorKind::Io, message))
        })
    }

    fn write(&self, at: u64, from: Buf) -> Completion<()> {
        Completion::ready(self.try_write(at, &from))
    }

    fn zero(&self, range: ByteRange, how: Zero) -> Completion<()> {
        let mut content = self.content();
        let inside = ByteRange::new(0, content.len).intersect(&range);
        content.zero(inside, how.may_free);
        Completion::ready(Ok(()))
    }

    fn discard(&self, range: ByteRange) -> Completion<()> {
        self.zero(range, Zero { may_free: true, fast_only: true })
    }

    fn status(&self, range: ByteRange) -> Completion<HostExtent> {
        Completion::ready(Ok(self.content().extent(range)))
    }

    fn prefetch(&self, _range: ByteRange) {}

    fn flush(&self) -> Completion<()> {
        Completion::ready(Ok(()))
    }

    fn resize(&self, len: u64) -> Completion<()> {
        if !self.limits.grows_with_zeroes {
            let message = format!("{}: its length is fixed", self.name);
            return Completion::ready(Err(Error::new(ErrorKind::Unsupported, message)));
        }
        let mut content = self.content();
        if len < content.len {
            let cut = ByteRange::new(len, content.len);
            content.zero(cut, true);
            content.pages.split_off(&len.div_ceil(PAGE));
        }
        content.len = len;
        Completion::ready(Ok(()))
    }
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Content").field("len", &self.len).field("pages", &self.pages.len()).finish()
    }
}
