//! How a file or block device becomes a [`Storage`](crate::storage::Storage): what may be opened, under which lock,
//! in which cache mode, by which engine.
//!
//! Invariant: nothing but a regular file or a block device is ever read, and a path that names anything else is
//! refused without waiting.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Once;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, SeekFrom, StatxFlags};
use rustix::io::Errno;

use crate::buf::Pool;
use crate::error::{Error, ErrorKind, Result};
use crate::storage::align::Direct;
use crate::storage::file::FileStorage;
use crate::storage::host::{Durable, HostFile, Kind, Opened};
use crate::storage::lock::{self, Claim};
use crate::storage::uring::{self, Ring};

/// How the host's page cache is used. The words and their meaning are QEMU's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheMode {
    /// Through the page cache; a flush makes writes durable.
    #[default]
    Writeback,
    /// Through the page cache; every write is durable when it completes.
    Writethrough,
    /// Past the page cache (O_DIRECT); a flush makes writes durable.
    None,
    /// Past the page cache; every write is durable when it completes.
    Directsync,
    /// Through the page cache; a flush does nothing. For disks that may be lost with the host.
    Unsafe,
}

/// Who carries out what cannot be done at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IoEngine {
    /// io_uring where the kernel allows it, else threads.
    #[default]
    Auto,
    /// io_uring, or opening fails.
    IoUring,
    /// A bounded pool of threads.
    Threads,
}

/// How to open a file or block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenOptions {
    /// For writing and reading (locked against all other users), not only reading (locked against writers).
    pub writable: bool,
    /// Use of the page cache.
    pub cache: CacheMode,
    /// Who does the I/O.
    pub engine: IoEngine,
    /// Whether to lock the image. False only for looking at an image that somebody else is writing.
    pub lock: bool,
    /// Whether the path may lead through symbolic links. False for a path that has been resolved and found to be
    /// allowed: a link in it now was put there since.
    pub follow_links: bool,
}

impl OpenOptions {
    /// Read-only, locked against writers, cached.
    pub fn read_only() -> Self {
        OpenOptions {
            writable: false,
            cache: CacheMode::default(),
            engine: IoEngine::default(),
            lock: true,
            follow_links: true,
        }
    }

    /// For writing, locked against everybody, cached.
    pub fn read_write() -> Self {
        OpenOptions { writable: true, ..OpenOptions::read_only() }
    }
}

/// Opens the regular file or block device at `path`.
///
/// Does its work on a thread of the tokio runtime that it is called in. A block device that is opened for writing is
/// also claimed from the rest of the system (O_EXCL): mounted ones are refused.
///
/// # Errors
/// [`NotFound`](ErrorKind::NotFound), [`PermissionDenied`](ErrorKind::PermissionDenied); [`Locked`](ErrorKind::Locked)
/// with the holder's name and pid where they can be known; [`Unsupported`](ErrorKind::Unsupported) for anything but a
/// regular file or block device, a file system without direct I/O or locks, or an engine that is not to be had.
pub async fn open(path: impl Into<PathBuf>, options: &OpenOptions) -> Result<FileStorage> {
    let (path, options) = (path.into(), options.clone());
    blocking(move || {
        let name = path.display().to_string();
        let file = open_checked(&path, &name, &options, OFlags::empty())?;
        adopt(file, name, &options)
    })
    .await
}

/// Makes an empty regular file at `path`, which must not exist yet, and opens it for writing. When it returns, the
/// file's name survives a power cut; its content does so after a flush.
///
/// # Errors
/// [`Io`](ErrorKind::Io) if the path exists; otherwise as for [`open`].
pub async fn create(path: impl Into<PathBuf>, options: &OpenOptions) -> Result<FileStorage> {
    let (path, options) = (path.into(), OpenOptions { writable: true, ..options.clone() });
    blocking(move || {
        let name = path.display().to_string();
        let file = open_checked(&path, &name, &options, OFlags::CREATE | OFlags::EXCL)?;
        let made = adopt(file, name, &options).and_then(|storage| sync_directory_of(&path).map(|()| storage));
        if made.is_err() {
            // An empty file of ours would be in the way of the next attempt.
            let _ = fs::remove_file(&path);
        }
        made
    })
    .await
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let outcome = tokio::task::spawn_blocking(work).await;
    outcome.unwrap_or_else(|_| Err(Error::new(ErrorKind::Closed, "the program is stopping")))
}

/// Makes a storage of an open file.
fn adopt(file: File, name: String, options: &OpenOptions) -> Result<FileStorage> {
    let wants_direct = matches!(options.cache, CacheMode::None | CacheMode::Directsync);
    let ring = ring_for(options.engine, &name)?;
    let kind = kind_of(&file, &name)?;
    if options.lock {
        lock::take(&file, &name, if options.writable { Claim::Exclusive } else { Claim::Shared })?;
    }
    let in_memory = lives_in_memory(&file, kind);
    let len = rustix::fs::seek(&file, SeekFrom::End(0))
        .map_err(|errno| Error::io(errno.into(), format!("{name}: finding its length")))?;
    let direct = if wants_direct && !in_memory { Some(go_direct(&file, &name, len)?) } else { None };
    let can_zero = can_zero(&file, kind);
    let durable = match options.cache {
        CacheMode::Writeback | CacheMode::None => Durable::WhenFlushed,
        CacheMode::Writethrough | CacheMode::Directsync => Durable::AtOnce,
        CacheMode::Unsafe => Durable::Never,
    };
    let (locked, writable) = (options.lock, options.writable);
    let opened = Opened { name, file, locked, kind, len, writable, durable, direct, in_memory, can_zero };
    Ok(FileStorage::new(HostFile::new(opened), ring))
}

/// A ring, if the engine is to be io_uring.
fn ring_for(engine: IoEngine, name: &str) -> Result<Option<Ring>> {
    static SAID: Once = Once::new();
    if engine == IoEngine::Threads {
        return Ok(None);
    }
    match (engine, uring::available()) {
        (_, Ok(())) => {}
        (IoEngine::IoUring, Err(reason)) => {
            let message =
                format!("{name}: io_uring is not available here ({reason}); `threads` and `auto` are");
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        (_, Err(reason)) => {
            SAID.call_once(|| {
                tracing::info!(reason, "io_uring is not available, files are served by threads")
            });
            return Ok(None);
        }
    }
    let ring = Ring::new().map_err(|error| Error::io(error, format!("{name}: preparing io_uring")))?;
    Ok(Some(ring))
}

/// Opens `path` if it is something that can be served. A fifo or a tape can keep `open` waiting for ever, so what it
/// is is looked at before; O_NONBLOCK covers the case that it changes in between.
fn open_checked(path: &Path, name: &str, options: &OpenOptions, creation: OFlags) -> Result<File> {
    let writable = options.writable;
    let opening = |errno: Errno| Error::io(errno.into(), format!("opening {name}"));
    let mut flags = OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK | creation;
    flags |= if writable { OFlags::RDWR } else { OFlags::RDONLY };
    if creation.is_empty() {
        let found = rustix::fs::stat(path).map_err(opening)?;
        match FileType::from_raw_mode(found.st_mode) {
            FileType::RegularFile => {}
            FileType::BlockDevice if writable => flags |= OFlags::EXCL,
            FileType::BlockDevice => {}
            other => return Err(not_servable(name, other)),
        }
    }
    let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP;
    let open = if options.follow_links { rustix::fs::open } else { open_without_links };
    let fd = open(path, flags, mode).map_err(|errno| match errno {
        Errno::BUSY => {
            Error::new(ErrorKind::Locked, format!("{name} is in use: mounted, or claimed by another process"))
        }
        errno => opening(errno),
    })?;
    // io_uring takes O_NONBLOCK as a wish to fail rather than to wait.
    let flags = rustix::fs::fcntl_getfl(&fd).map_err(opening)?;
    let flags = flags - OFlags::NONBLOCK;
    // Nobody wants to know when a guest last read, and noting it costs a fiftieth of a small read. Only a file's owner
    // may ask for that.
    if rustix::fs::fcntl_setfl(&fd, flags | OFlags::NOATIME).is_err() {
        rustix::fs::fcntl_setfl(&fd, flags).map_err(opening)?;
    }
    Ok(File::from(fd))
}

/// Opens a path that holds no symbolic link. Where the kernel cannot tell (before 5.6, or a filter that does not know
/// the call), only its last part is looked at.
fn open_without_links(path: &Path, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
    let only = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let mode_of_new = if flags.contains(OFlags::CREATE) { mode } else { Mode::empty() };
    match rustix::fs::openat2(CWD, path, flags, mode_of_new, only) {
        Err(Errno::NOSYS | Errno::PERM) => rustix::fs::open(path, flags | OFlags::NOFOLLOW, mode),
        outcome => outcome,
    }
}

fn kind_of(file: &File, name: &str) -> Result<Kind> {
    let unknown = |errno: Errno| Error::io(errno.into(), format!("{name}: finding out what it is"));
    let stat = rustix::fs::fstat(file).map_err(unknown)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {
            // Some file systems call their favourite transfer size a block.
            let block = (stat.st_blksize as u64).clamp(512, 64 << 10);
            Ok(Kind::File { block: if block.is_power_of_two() { block } else { 4096 } })
        }
        FileType::BlockDevice => {
            let sector = rustix::fs::ioctl_blksszget(file).map_err(unknown)?;
            Ok(Kind::Device { sector: sector.into() })
        }
        other => Err(not_servable(name, other)),
    }
}

fn not_servable(name: &str, kind: FileType) -> Error {
    let what = match kind {
        FileType::Directory => "a directory",
        FileType::Fifo => "a fifo",
        FileType::CharacterDevice => "a character device",
        FileType::Socket => "a socket",
        _ => "of an unknown kind",
    };
    Error::new(
        ErrorKind::Unsupported,
        format!("{name} is {what}; only regular files and block devices can be opened"),
    )
}

/// Whether reads and writes of `file` never wait for a disk. The node of a device lives in memory, its bytes do not.
fn lives_in_memory(file: &File, kind: Kind) -> bool {
    const TMPFS: u64 = 0x0102_1994;
    const RAMFS: u64 = 0x8584_58f6;
    let is_file = matches!(kind, Kind::File { .. });
    is_file && rustix::fs::fstatfs(file).is_ok_and(|fs| [TMPFS, RAMFS].contains(&(fs.f_type as u64)))
}

/// Switches `file` to direct I/O and finds out what it asks of transfers.
fn go_direct(file: &File, name: &str, len: u64) -> Result<Direct> {
    let refused = |errno: Errno| {
        let message =
            format!("{name}: no direct I/O on this file system (cache modes none and directsync need it)");
        Error::io(errno.into(), message)
    };
    let unsupported = || Error::new(ErrorKind::Unsupported, refused(Errno::OPNOTSUPP).to_string());
    let flags = rustix::fs::fcntl_getfl(file).map_err(refused)?;
    rustix::fs::fcntl_setfl(file, flags | OFlags::DIRECT).map_err(|errno| match errno {
        Errno::INVAL => unsupported(),
        errno => refused(errno),
    })?;
    let asked = rustix::fs::statx(file.as_fd(), c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN);
    if let Ok(answer) = asked
        && StatxFlags::from_bits_retain(answer.stx_mask).contains(StatxFlags::DIOALIGN)
    {
        let (offset, memory) = (u64::from(answer.stx_dio_offset_align), answer.stx_dio_mem_align as usize);
        if offset == 0 {
            return Err(unsupported());
        }
        return Ok(Direct::new(offset.max(512), memory.max(1)));
    }
    // An empty file cannot be asked by trying.
    let tried = len > 0 && rustix::io::pread(file, &mut Pool::global().take(512)[..], 0).is_ok();
    Ok(if tried { Direct::new(512, 512) } else { Direct::new(4096, 4096) })
}

/// Whether zeroes can be made without writing them, as far as that is known before it is tried. For a device that
/// cannot, the kernel would write them itself where it is asked to keep the space, and never say so.
fn can_zero(file: &File, kind: Kind) -> bool {
    if let Kind::File { .. } = kind {
        return true;
    }
    let Ok(stat) = rustix::fs::fstat(file) else { return false };
    let device = format!("{}:{}", rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    // A partition has no queue of its own; its disk is one directory up.
    let limits = ["queue", "../queue"]
        .map(|queue| fs::read_to_string(format!("/sys/dev/block/{device}/{queue}/write_zeroes_max_bytes")));
    limits.into_iter().flatten().next().is_none_or(|limit| limit.trim() != "0")
}

/// Makes the directory entry of `path` durable.
fn sync_directory_of(path: &Path) -> Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let synced = File::open(directory).and_then(|opened| opened.sync_all());
    synced.map_err(|error| Error::io(error, format!("making {} durable in its directory", path.display())))
}
