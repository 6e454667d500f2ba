//! From the block layer's errors to the few numbers that NBD may carry: the one place where they are narrowed.

use disk_core::ErrorKind;
use nbd_wire::Errno;

/// The number for a client. The error itself is logged by whoever calls this.
pub fn errno(kind: ErrorKind) -> Errno {
    match kind {
        ErrorKind::ReadOnly | ErrorKind::PermissionDenied => Errno::EPERM,
        ErrorKind::NoSpace => Errno::ENOSPC,
        ErrorKind::OutOfRange => Errno::EINVAL,
        ErrorKind::Unsupported => Errno::ENOTSUP,
        ErrorKind::Closed | ErrorKind::Cancelled => Errno::ESHUTDOWN,
        _ => Errno::EIO,
    }
}
