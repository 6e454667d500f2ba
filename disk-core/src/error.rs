//! The one error of the crate: a kind to act on, a context to read, a source to trace.
//!
//! Invariant: the kind alone decides what a caller does (which errno a client gets, whether an image is
//! refused); the text is for people and always names the file or disk it speaks of.

use std::fmt;
use std::io;

/// A result whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, as far as a caller can act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A file that was named does not exist.
    NotFound,
    /// A file that was to be made exists.
    AlreadyExists,
    /// The operating system or the configuration forbids it.
    PermissionDenied,
    /// Somebody else holds the image.
    Locked,
    /// A write to something that is read-only.
    ReadOnly,
    /// The image is not what it claims to be, or asks for more than the format allows.
    InvalidImage,
    /// The metadata of an opened image contradicts itself; writes to it are refused.
    Corrupt,
    /// A parent is not the one that its child was made over.
    ParentMismatch,
    /// A valid request that this image, file or kernel cannot carry out.
    Unsupported,
    /// An offset or length outside of what the request may touch.
    OutOfRange,
    /// The file system, the quota or the image format has no room left.
    NoSpace,
    /// The device below failed.
    Io,
    /// The device below lost writes that it had taken: some of those since the last good flush may be missing, and every
    /// later flush of the image fails too.
    FlushFailed,
    /// A fault of this program cut work on the image short: nobody knows how far it came.
    Fault,
    /// The client that asked is gone and the request had not started.
    Cancelled,
    /// The disk is closing and takes no more requests.
    Closed,
}

/// An error of the block layer. Cheap to move (one pointer).
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error that starts here. `message` names the file or disk and what would be accepted.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error(Box::new(Inner { kind, message: message.into(), source: None }))
    }

    /// An error of the operating system; its number decides the kind.
    pub fn io(source: io::Error, message: impl Into<String>) -> Self {
        Error(Box::new(Inner {
            kind: kind_of(&source),
            message: message.into(),
            source: Some(Box::new(source)),
        }))
    }

    /// The same error, for callers to act on as a `kind`.
    #[must_use]
    pub fn of_kind(mut self, kind: ErrorKind) -> Self {
        self.0.kind = kind;
        self
    }

    /// The same error with more context in front of its text.
    #[must_use]
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.0.message = format!("{context}: {}", self.0.message);
        self
    }

    /// What a caller acts on.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }
}

impl Clone for Error {
    /// A copy for a second waiter of one outcome (a shared flush): the source becomes text.
    fn clone(&self) -> Self {
        Error::new(self.0.kind, self.to_string())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        match &self.0.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|s| s.as_ref() as _)
    }
}

fn kind_of(error: &io::Error) -> ErrorKind {
    match error.kind() {
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::AlreadyExists => ErrorKind::AlreadyExists,
        io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
        io::ErrorKind::ReadOnlyFilesystem => ErrorKind::ReadOnly,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            ErrorKind::NoSpace
        }
        io::ErrorKind::Unsupported => ErrorKind::Unsupported,
        _ => ErrorKind::Io,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_and_a_full_quota_are_both_no_space() {
        for errno in [28, 122, 27] {
            let error = Error::io(io::Error::from_raw_os_error(errno), "write a.vdi");
            assert_eq!(error.kind(), ErrorKind::NoSpace, "errno {errno}");
        }
    }

    #[test]
    fn the_text_reads_from_the_outermost_context_to_the_cause() {
        let error = Error::io(io::Error::from_raw_os_error(5), "read at 4096").context("a.vdi");
        assert!(error.to_string().starts_with("a.vdi: read at 4096: "), "{error}");
    }
}
