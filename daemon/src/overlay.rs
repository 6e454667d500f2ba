//! The private overlay of an ephemeral disk: a differencing image in a file that has no name.
//!
//! Invariant: the file's space is given back when the last handle on it is closed, however this process ends.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use disk_core::format::{self, CreateOptions, Layer, ParentIdentity, Variant};
use disk_core::storage::{self, CacheMode, OpenOptions, Storage};
use disk_core::{Error, Result};
use rustix::fs::{Mode, OFlags};

/// Makes an empty overlay over `parent`; its space comes from the file system that `directory` is on.
///
/// # Errors
/// If the directory cannot be written or its file system has no unnamed files.
pub async fn create(directory: &Path, parent: &dyn Layer) -> Result<Arc<dyn Layer>> {
    let file = unnamed_file(directory)?;
    // The storage opens it a second time by way of the descriptor, which then may go. What vanishes with the process
    // needs no flush.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let options = OpenOptions { cache: CacheMode::Unsafe, ..OpenOptions::read_write() };
    let storage: Arc<dyn Storage> = Arc::new(storage::open(path, &options).await?);
    let vdi = format::find("vdi").expect("the VDI driver is built in");
    let parent = parent.info();
    let options = CreateOptions {
        size: parent.size,
        variant: Variant::Differencing,
        parent: Some(ParentIdentity { uuid: parent.uuid, modification_uuid: parent.modification_uuid }),
        block_size: None,
        uuid: None,
        comment: None,
    };
    vdi.create(storage.clone(), options).await?;
    vdi.open(storage, false).await
}

fn unnamed_file(directory: &Path) -> Result<OwnedFd> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR).map_err(|errno| {
        Error::io(errno.into(), format!("an overlay of an ephemeral disk in {}", directory.display()))
    })
}
