//! One open file or block device and the system calls on it. Everything here may block, except what says `now` in
//! its name.
//!
//! Invariant: `changes` counts up after the kernel has taken a change and before anybody hears of it, so a sync
//! that starts later covers every change that it has seen counted.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{Advice, AtFlags, FallocateFlags, SeekFrom, StatxFlags};
use rustix::io::{Errno, ReadWriteFlags};

use crate::buf::Pool;
use crate::error::{Error, ErrorKind, Result};
use crate::range::ByteRange;
use crate::storage::align::Direct;
use crate::storage::{HostExtent, Limits, Zero, lock};

/// Largest transfer that is done on the caller's thread when it need not wait: copying more takes longer than
/// handing it over.
const NOW_MAX: usize = 1 << 20;

/// Zeroes are written in pieces of this many bytes where the kernel cannot make them.
const ZERO_PIECE: u64 = 1 << 20;

/// What kind of thing holds the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A regular file; holes come in `block` bytes.
    File { block: u64 },
    /// A block device with sectors of `sector` bytes.
    Device { sector: u64 },
}

/// When a change is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Durable {
    /// After a flush.
    WhenFlushed,
    /// When it completes.
    AtOnce,
    /// When the kernel feels like it; a flush does nothing.
    Never,
}

/// How a file was opened.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) name: String,
    pub(super) file: File,
    /// The lock is held and goes with this.
    pub(super) locked: bool,
    pub(super) kind: Kind,
    pub(super) len: u64,
    pub(super) writable: bool,
    pub(super) durable: Durable,
    /// Set if the file is open for direct I/O; never for a file in memory.
    pub(super) direct: Option<Direct>,
    /// The file lives in memory: no transfer waits for a disk.
    pub(super) in_memory: bool,
    /// Holes and zeroes can be made without writing them, as far as that is known before one is made.
    pub(super) can_zero: bool,
}

/// An open file or block device.
#[derive(Debug)]
pub(super) struct HostFile {
    opened: Opened,
    len: AtomicU64,
    // What the kernel has not refused yet.
    read_nowait: AtomicBool,
    write_nowait: AtomicBool,
    punch: AtomicBool,
    zero_range: AtomicBool,
    changes: AtomicU64,
    synced: AtomicU64,
    sync_failed: OnceLock<Error>,
}

impl HostFile {
    pub(super) fn new(opened: Opened) -> Self {
        let buffered = opened.direct.is_none() && !opened.in_memory;
        HostFile {
            len: AtomicU64::new(opened.len),
            read_nowait: AtomicBool::new(buffered),
            write_nowait: AtomicBool::new(buffered && opened.durable != Durable::AtOnce),
            punch: AtomicBool::new(opened.writable && opened.can_zero),
            zero_range: AtomicBool::new(opened.writable && opened.can_zero),
            // The first flush is never empty: an earlier process may have left changes that are not durable.
            changes: AtomicU64::new(1),
            synced: AtomicU64::new(0),
            sync_failed: OnceLock::new(),
            opened,
        }
    }

    pub(super) fn limits(&self) -> Limits {
        Limits {
            alignment: self.opened.direct.as_ref().map_or(1, |direct| direct.alignment as u32),
            grows_with_zeroes: matches!(self.opened.kind, Kind::File { .. }),
            fast_zero: is(&self.punch) || is(&self.zero_range),
            can_discard: is(&self.punch),
            write_through: self.opened.durable == Durable::AtOnce,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.opened.name
    }

    pub(super) fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    pub(super) fn direct(&self) -> Option<&Direct> {
        self.opened.direct.as_ref()
    }

    pub(super) fn write_through(&self) -> bool {
        self.opened.durable == Durable::AtOnce
    }

    /// Whether the kernel does writes of this file one after the other. The file systems that cannot write without
    /// waiting (RWF_NOWAIT), ext4 above all, hold the inode locked while they copy into the page cache.
    pub(super) fn writes_in_line(&self) -> bool {
        let cached = self.opened.direct.is_none() && !self.write_through();
        cached && matches!(self.opened.kind, Kind::File { .. }) && !is(&self.write_nowait)
    }

    pub(super) fn raw_fd(&self) -> RawFd {
        self.opened.file.as_raw_fd()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.opened.file.as_fd()
    }

    pub(super) fn allocated(&self) -> u64 {
        if let Kind::Device { .. } = self.opened.kind {
            return self.len();
        }
        // What the kernel knows already: asking a file server would wait for the network.
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        rustix::fs::statx(self.fd(), c"", flags, StatxFlags::BLOCKS).map_or(0, |stat| stat.stx_blocks * 512)
    }

    // Checks at the door.

    pub(super) fn check_read(&self, at: u64, len: usize) -> Result<()> {
        match at.checked_add(len as u64) {
            Some(end) if end <= self.len() => Ok(()),
            _ => Err(self.past_end(at, len as u64)),
        }
    }

    pub(super) fn check_write(&self, at: u64, len: usize) -> Result<()> {
        self.check_writable()?;
        let end = at.checked_add(len as u64).filter(|&end| i64::try_from(end).is_ok());
        match (end, self.opened.kind) {
            (Some(_), Kind::File { .. }) => Ok(()),
            (Some(end), Kind::Device { .. }) if end <= self.len() => Ok(()),
            _ => Err(Error::new(
                ErrorKind::NoSpace,
                format!("{}: write of {len} bytes at {at} passes the end of the device", self.name()),
            )),
        }
    }

    pub(super) fn check_writable(&self) -> Result<()> {
        if self.opened.writable {
            return Ok(());
        }
        Err(Error::new(ErrorKind::ReadOnly, format!("{} is open for reading only", self.name())))
    }

    /// The part of `range` that is inside the file.
    pub(super) fn clip(&self, range: ByteRange) -> ByteRange {
        ByteRange::new(0, self.len()).intersect(&range)
    }

    // What need not wait.

    /// Fills the start of `into` with what is in memory; returns how many bytes that were. Errors are left to be met
    /// again by [`read`](Self::read).
    pub(super) fn read_now(&self, at: u64, into: &mut [u8]) -> usize {
        if into.len() > NOW_MAX {
            return 0;
        }
        if self.opened.in_memory {
            return self.read_to_end(at, into, 1).unwrap_or(0);
        }
        if !is(&self.read_nowait) {
            return 0;
        }
        match rustix::io::preadv2(self.fd(), &mut [IoSliceMut::new(into)], at, ReadWriteFlags::NOWAIT) {
            Ok(got) => got,
            Err(Errno::OPNOTSUPP) => {
                self.read_nowait.store(false, Ordering::Relaxed);
                0
            }
            Err(_) => 0,
        }
    }

    /// Writes as much of the start of `from` as goes without waiting for a disk; returns how many bytes that were.
    /// Errors are left to be met again by [`write`](Self::write).
    pub(super) fn write_now(&self, at: u64, from: &[u8]) -> usize {
        if from.len() > NOW_MAX {
            return 0;
        }
        if self.opened.in_memory {
            return self.write_all(at, from).map_or(0, |()| {
                self.written(at + from.len() as u64);
                from.len()
            });
        }
        if !is(&self.write_nowait) {
            return 0;
        }
        match rustix::io::pwritev2(self.fd(), &[IoSlice::new(from)], at, ReadWriteFlags::NOWAIT) {
            Ok(took) => {
                self.written(at + took as u64);
                took
            }
            Err(Errno::OPNOTSUPP) => {
                self.write_nowait.store(false, Ordering::Relaxed);
                0
            }
            Err(_) => 0,
        }
    }

    /// The outcome of a flush that has nothing to wait for.
    pub(super) fn sync_now(&self) -> Option<Result<()>> {
        if self.opened.durable == Durable::Never {
            return Some(Ok(()));
        }
        if let Some(failure) = self.sync_failed.get() {
            return Some(Err(failure.clone()));
        }
        let unchanged = self.synced.load(Ordering::Acquire) == self.changes.load(Ordering::Acquire);
        (unchanged || self.opened.in_memory).then_some(Ok(()))
    }

    // What may wait.

    /// Fills `into` from `at`.
    pub(super) fn read(&self, at: u64, into: &mut [u8]) -> Result<()> {
        if let Some(direct) = self.direct()
            && !direct.fits(at, into)
        {
            return direct.read_bounced(self, at, into);
        }
        let alignment = self.direct().map_or(1, |direct| direct.alignment);
        let got = self.read_to_end(at, into, alignment)?;
        if got < into.len() { Err(self.past_end(at, into.len() as u64)) } else { Ok(()) }
    }

    /// Writes all of `from` at `at`, durably if the file is written through.
    pub(super) fn write(&self, at: u64, from: &[u8]) -> Result<()> {
        let range = ByteRange::at(at, from.len() as u64);
        let _turn = self.direct().map(|direct| direct.turn(|| direct.affected(range, self.len())));
        self.write_in_turn(at, from)
    }

    /// Makes the part of `range` inside the file read as zeroes.
    pub(super) fn zero(&self, range: ByteRange, how: Zero) -> Result<()> {
        let range = self.clip(range);
        if range.is_empty() {
            return Ok(());
        }
        let _turn = self.direct().map(|direct| direct.turn(|| direct.affected(range, self.len())));
        // A device zeroes whole sectors only; the two edges are small enough to be written.
        let unit = if let Kind::Device { sector } = self.opened.kind { sector } else { 1 };
        let inner = align_in(range, unit);
        let outcome = self.zero_inner(inner, how).and_then(|()| {
            let (head, _) = range.split_at(inner.start() - range.start());
            self.write_zeroes(head)?;
            self.write_zeroes(ByteRange::new(inner.end(), range.end()))
        });
        self.changed();
        outcome.and_then(|()| self.settle())
    }

    /// Gives the space of whole blocks in `range` back to the host, if that can be done.
    pub(super) fn discard(&self, range: ByteRange) -> Result<()> {
        let range = self.clip(range);
        if range.is_empty() {
            return Ok(());
        }
        let unit = match self.opened.kind {
            Kind::File { block } => block,
            Kind::Device { sector } => sector,
        };
        // A last block that the end of the file cuts off keeps its space. To free it the kernel must be told to punch
        // past the end, and by then the file may go on there with somebody else's bytes.
        let blocks = align_in(range, unit);
        if blocks.is_empty() || !is(&self.punch) {
            return Ok(());
        }
        let _turn = self.direct().map(|direct| direct.turn(|| direct.affected(blocks, self.len())));
        let done = self.allocate(FallocateFlags::PUNCH_HOLE, blocks, &self.punch);
        self.changed();
        done?;
        self.settle()
    }

    /// What the host knows of the start of `range`.
    pub(super) fn status(&self, range: ByteRange) -> Result<HostExtent> {
        let everything = HostExtent { len: range.len(), data: true };
        if let Kind::Device { .. } = self.opened.kind {
            return Ok(everything);
        }
        let until = |change: u64, data| HostExtent { len: change.min(range.end()) - range.start(), data };
        match rustix::fs::seek(self.fd(), SeekFrom::Data(range.start())) {
            Err(Errno::NXIO) => return Ok(until(range.end(), false)),
            Ok(data) if data > range.start() => return Ok(until(data, false)),
            Ok(_) => {}
            Err(_) => return Ok(everything),
        }
        match rustix::fs::seek(self.fd(), SeekFrom::Hole(range.start())) {
            Ok(hole) if hole > range.start() => Ok(until(hole, true)),
            // It became a hole in between, or the file system does not say: data is never wrong.
            _ => Ok(everything),
        }
    }

    pub(super) fn prefetch(&self, range: ByteRange) {
        if self.direct().is_some() {
            return;
        }
        let range = self.clip(range);
        if let Some(len) = std::num::NonZeroU64::new(range.len()) {
            // A hint that is refused is a hint that was not needed.
            let _ = rustix::fs::fadvise(self.fd(), range.start(), Some(len), Advice::WillNeed);
        }
    }

    /// Sets the length.
    pub(super) fn resize(&self, len: u64) -> Result<()> {
        if let Kind::Device { .. } = self.opened.kind {
            let message = format!("{} is a block device; its size is not ours to change", self.name());
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        let beyond = || ByteRange::new(len.min(self.len()), u64::MAX);
        let _turn = self.direct().map(|direct| direct.turn(beyond));
        let done = self.truncate(len);
        self.changed();
        done?;
        self.len.store(len, Ordering::Release);
        Ok(())
    }

    /// Makes every change that was counted before this call durable. Fails for ever after one failure.
    pub(super) fn sync(&self) -> Result<()> {
        if let Some(failure) = self.sync_failed.get() {
            return Err(failure.clone());
        }
        let covered = self.changes.load(Ordering::Acquire);
        match retry(|| rustix::fs::fdatasync(self.fd())) {
            Ok(()) => {
                self.synced.fetch_max(covered, Ordering::AcqRel);
                Ok(())
            }
            Err(errno) => Err(self.lost_writes(errno)),
        }
    }

    // Steps that several of the above share.

    fn write_in_turn(&self, at: u64, from: &[u8]) -> Result<()> {
        let done = match self.direct() {
            Some(direct) if !direct.fits(at, from) => direct.write_bounced(self, at, from),
            _ => self.write_all(at, from),
        };
        match done {
            Ok(()) => self.written(at + from.len() as u64),
            Err(_) => self.changed(),
        }
        done
    }

    /// Reads until `into` is full or the file ends; returns how many bytes that were. A transfer that is cut off
    /// inside a multiple of `alignment` was cut off by the end of the file.
    pub(super) fn read_to_end(&self, at: u64, into: &mut [u8], alignment: u64) -> Result<usize> {
        let mut got = 0;
        while got < into.len() {
            let here = at + got as u64;
            match retry(|| rustix::io::pread(self.fd(), &mut into[got..], here)) {
                Ok(0) => break,
                Ok(n) => got += n,
                Err(errno) => return Err(self.failed(errno, "read", here, (into.len() - got) as u64)),
            }
            if !(got as u64).is_multiple_of(alignment) {
                break;
            }
        }
        Ok(got)
    }

    /// Writes all of `from` as it is, durably if the file is written through.
    pub(super) fn write_all(&self, at: u64, from: &[u8]) -> Result<()> {
        let write = |rest: &[u8], here| match self.write_through() {
            true => rustix::io::pwritev2(self.fd(), &[IoSlice::new(rest)], here, ReadWriteFlags::DSYNC),
            false => rustix::io::pwrite(self.fd(), rest, here),
        };
        let mut put = 0;
        while put < from.len() {
            let here = at + put as u64;
            let rest = &from[put..];
            match retry(|| write(rest, here)) {
                // A kernel does not say this; a file system in user space may, and would be asked for ever.
                Ok(0) => return Err(self.write_failed(Errno::IO, here, rest.len() as u64)),
                Ok(n) => put += n,
                Err(errno) => return Err(self.write_failed(errno, here, rest.len() as u64)),
            }
        }
        Ok(())
    }

    /// Sets the length in the kernel alone.
    pub(super) fn truncate(&self, len: u64) -> Result<()> {
        retry(|| rustix::fs::ftruncate(self.fd(), len)).map_err(|errno| {
            Error::io(errno.into(), format!("{}: setting its length to {len} bytes", self.name()))
        })?;
        self.settle()
    }

    fn zero_inner(&self, range: ByteRange, how: Zero) -> Result<()> {
        if range.is_empty() || self.make_zeroes(range, how.may_free)? {
            return Ok(());
        }
        if how.fast_only {
            let message = format!("{}: {range} cannot be zeroed without writing zeroes", self.name());
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        self.write_zeroes(range)
    }

    /// Has the kernel zero `range`; false if it cannot.
    fn make_zeroes(&self, range: ByteRange, may_free: bool) -> Result<bool> {
        if may_free && self.allocate(FallocateFlags::PUNCH_HOLE, range, &self.punch)? {
            return Ok(true);
        }
        if self.allocate(FallocateFlags::ZERO_RANGE, range, &self.zero_range)? {
            return Ok(true);
        }
        // File systems in memory can free and allocate, which is the same.
        let is_file = matches!(self.opened.kind, Kind::File { .. });
        Ok(is_file
            && self.allocate(FallocateFlags::PUNCH_HOLE, range, &self.punch)?
            && self.allocate(FallocateFlags::empty(), range, &self.punch)?)
    }

    /// `fallocate` without a change of length. `supported` is what is known of this mode; false if it is not there.
    fn allocate(&self, mode: FallocateFlags, range: ByteRange, supported: &AtomicBool) -> Result<bool> {
        if !is(supported) {
            return Ok(false);
        }
        let mode = mode | FallocateFlags::KEEP_SIZE;
        match retry(|| rustix::fs::fallocate(self.fd(), mode, range.start(), range.len())) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                supported.store(false, Ordering::Relaxed);
                Ok(false)
            }
            Err(errno) => Err(self.failed(errno, "zeroing", range.start(), range.len())),
        }
    }

    fn write_zeroes(&self, range: ByteRange) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let mut zeroes = Pool::global().take(range.len().min(ZERO_PIECE) as usize);
        zeroes.fill(0);
        range
            .blocks(ZERO_PIECE)
            .try_for_each(|piece| self.write_in_turn(piece.start(), &zeroes[..piece.len() as usize]))
    }

    /// Makes a change durable that the kernel did not make so at once.
    fn settle(&self) -> Result<()> {
        if self.write_through() { self.sync() } else { Ok(()) }
    }

    /// Notes a write that has ended at `end`.
    pub(super) fn written(&self, end: u64) {
        self.grown_to(end);
        self.changed();
    }

    pub(super) fn grown_to(&self, end: u64) {
        self.len.fetch_max(end, Ordering::AcqRel);
    }

    pub(super) fn changed(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    // Errors.

    pub(super) fn failed(&self, errno: Errno, what: &str, at: u64, len: u64) -> Error {
        Error::io(errno.into(), format!("{}: {what} of {len} bytes at {at}", self.name()))
    }

    /// The error of a write. If it went through the page cache and was synced at once, the sync may be what failed, and
    /// with it earlier writes to the same pages.
    pub(super) fn write_failed(&self, errno: Errno, at: u64, len: u64) -> Error {
        let error = self.failed(errno, "write", at, len);
        if self.write_through() && self.direct().is_none() && error.kind() == ErrorKind::Io {
            self.lost_writes(errno);
            return error.of_kind(ErrorKind::FlushFailed);
        }
        error
    }

    pub(super) fn past_end(&self, at: u64, len: u64) -> Error {
        let message =
            format!("{}: read of {len} bytes at {at} passes its end at {}", self.name(), self.len());
        Error::new(ErrorKind::Io, message)
    }

    /// Remembers that the kernel has dropped writes: it says so once, and a later success would hide it.
    fn lost_writes(&self, errno: Errno) -> Error {
        let failure = self.sync_failed.get_or_init(|| {
            let error = Error::io(
                errno.into(),
                format!("{}: flush failed, writes may be lost; open it anew and verify it", self.name()),
            )
            .of_kind(ErrorKind::FlushFailed);
            tracing::error!(file = self.name(), %error, "flush failed; every later flush of this file fails too");
            error
        });
        failure.clone()
    }
}

impl Drop for HostFile {
    fn drop(&mut self) {
        if self.opened.locked {
            lock::release(&self.opened.file);
        }
    }
}

fn is(flag: &AtomicBool) -> bool {
    flag.load(Ordering::Relaxed)
}

/// The whole units of `unit` bytes inside `range`; empty at its start if there is none.
fn align_in(range: ByteRange, unit: u64) -> ByteRange {
    let start = range.start().checked_next_multiple_of(unit).unwrap_or(u64::MAX);
    let end = range.end() / unit * unit;
    if start < end { ByteRange::new(start, end) } else { ByteRange::at(range.start(), 0) }
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    rustix::io::retry_on_intr(&mut call)
}
