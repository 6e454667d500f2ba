//! Image locks that work against QEMU's.
//!
//! QEMU locks single bytes of the image with open file description locks, always shared ones: byte 100 + n says
//! "I use permission n", byte 200 + n says "nobody else may use permission n", and whoever opens an image looks for
//! bytes that speak against its wishes. Permissions are 0 read, 1 write, 3 resize. The kernel drops the locks with
//! the last descriptor, so they never outlive a process.
//!
//! Invariant: own bytes are locked before foreign ones are looked for, so of two who open at once at most one
//! succeeds.

use std::fmt;
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::error::{Error, ErrorKind, Result};

const READ: u8 = 100;
const WRITE: u8 = 101;
const RESIZE: u8 = 103;
const NO_READ: u8 = 200;
const NO_WRITE: u8 = 201;
const NO_RESIZE: u8 = 203;

/// What the opener of an image wants of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim {
    /// To change it, and nobody else does.
    Exclusive,
    /// To read it, and nobody changes it.
    Shared,
}

impl Claim {
    fn own(self) -> &'static [u8] {
        match self {
            Claim::Exclusive => &[READ, WRITE, RESIZE, NO_WRITE, NO_RESIZE],
            Claim::Shared => &[READ, NO_WRITE, NO_RESIZE],
        }
    }

    /// Bytes whose holders speak against it. QEMU holds no NO_WRITE on a raw image that it writes to, so WRITE itself
    /// is looked at as well.
    fn adverse(self) -> &'static [u8] {
        match self {
            Claim::Exclusive => &[WRITE, RESIZE, NO_READ, NO_WRITE, NO_RESIZE],
            Claim::Shared => &[WRITE, RESIZE, NO_READ],
        }
    }
}

/// Locks `file`, which messages call `name`.
///
/// # Errors
/// [`Locked`](ErrorKind::Locked), naming the holder if it can be known; [`Unsupported`](ErrorKind::Unsupported) if the
/// file system cannot lock. The caller closes the file then, which drops what was locked already.
pub(super) fn take(file: &File, name: &str, claim: Claim) -> Result<()> {
    for &byte in claim.own() {
        match fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&one_byte(libc::F_RDLCK, byte))) {
            Ok(_) => {}
            Err(Errno::EAGAIN | Errno::EACCES) => return Err(refusal(file, name, byte)),
            Err(errno) => return Err(cannot_lock(name, errno)),
        }
    }
    for &byte in claim.adverse() {
        let mut probe = one_byte(libc::F_WRLCK, byte);
        fcntl(file.as_fd(), FcntlArg::F_OFD_GETLK(&mut probe)).map_err(|errno| cannot_lock(name, errno))?;
        if i32::from(probe.l_type) != libc::F_UNLCK {
            return Err(refusal(file, name, byte));
        }
    }
    Ok(())
}

/// Gives the lock up at once, even if a child process still shares the descriptor.
pub(super) fn release(file: &File) {
    let mut all = one_byte(libc::F_UNLCK, READ);
    all.l_len = i64::from(NO_RESIZE - READ) + 1;
    // If it fails, closing the last descriptor does it.
    let _ = fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&all));
}

fn refusal(file: &File, name: &str, byte: u8) -> Error {
    let what = match byte {
        WRITE | RESIZE => "has it open for writing",
        _ => "has it open and lets nobody write to it",
    };
    let message = match holder(file, byte) {
        Some(holder) => format!("{name} is locked: {holder} {what}"),
        None => format!("{name} is locked: another process (not visible from here) {what}"),
    };
    Error::new(ErrorKind::Locked, message)
}

fn one_byte(kind: i32, byte: u8) -> libc::flock {
    libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: i64::from(byte),
        l_len: 1,
        l_pid: 0,
    }
}

fn cannot_lock(name: &str, errno: Errno) -> Error {
    let message = format!(
        "{name} cannot be locked on this file system ({}); `locking = \"off\"` serves it unlocked",
        errno.desc()
    );
    Error::new(ErrorKind::Unsupported, message)
}

/// A process that holds a lock.
struct Holder {
    pid: u32,
    command: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pid == std::process::id() {
            return write!(f, "this process (pid {})", self.pid);
        }
        write!(f, "{} (pid {})", self.command, self.pid)
    }
}

/// Who else holds `byte` of `file`. The kernel does not say who owns an open file description lock, but it shows
/// the locks of every descriptor of the processes that we may look at.
fn holder(file: &File, byte: u8) -> Option<Holder> {
    let inode = file.metadata().ok()?.ino().to_string();
    let own = format!("/proc/{}/fdinfo/{}", std::process::id(), file.as_raw_fd());
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let pid = pids.into_iter().find(|pid| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
        descriptors.map(|entry| entry.path()).filter(|path| path.as_os_str() != own.as_str()).any(|path| {
            let text = fs::read_to_string(path).unwrap_or_default();
            text.lines().any(|line| shows_lock(line, &inode, u64::from(byte)))
        })
    })?;
    let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(Holder { pid, command: command.trim_end().to_owned() })
}

/// Whether a line of fdinfo shows an open file description lock on `byte` of the file with this inode number:
/// `lock:  1: OFDLCK ADVISORY READ -1 08:01:4711 100 101`.
fn shows_lock(line: &str, inode: &str, byte: u64) -> bool {
    let mut words = line.split_whitespace();
    if words.next() != Some("lock:") || words.nth(1) != Some("OFDLCK") {
        return false;
    }
    let Some(file) = words.nth(3) else { return false };
    let (first, last) = (words.next().and_then(|word| word.parse().ok()), words.next());
    let last = last.and_then(|word| if word == "EOF" { Some(u64::MAX) } else { word.parse().ok() });
    file.rsplit(':').next() == Some(inode)
        && matches!((first, last), (Some(first), Some(last)) if (first..=last).contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_line_is_matched_by_inode_and_byte() {
        let line = "lock:\t1: OFDLCK  ADVISORY  READ -1 fe:00:4711 100 101";
        assert!(shows_lock(line, "4711", 100) && shows_lock(line, "4711", 101));
        assert!(!shows_lock(line, "4711", 102) && !shows_lock(line, "471", 100));
        assert!(!shows_lock("lock:\t1: POSIX  ADVISORY  READ 7 fe:00:4711 100 101", "4711", 100));
        assert!(!shows_lock("flags:\t0100002", "4711", 100));
    }
}
