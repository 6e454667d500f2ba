//! An image file looked at from outside: where it really is, what its head says. Nothing is locked or kept open.
//!
//! Invariant: only regular files and block devices are ever opened, and only inside the directories that were allowed.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::format::{self, Format, HEAD_LEN, LayerInfo};

/// What one file is, as its head and the file system tell.
#[derive(Debug, Clone)]
pub struct ImageFile {
    /// Where it really is: absolute, no symbolic link in it.
    pub path: PathBuf,
    /// Its format.
    pub format: &'static dyn Format,
    /// Nobody named the format and no format knows the file: it is taken for raw, which is safe only for reading.
    pub guessed: bool,
    /// What its head says.
    pub info: LayerInfo,
    /// Length of the file or device, bytes.
    pub len: u64,
    pub(super) id: FileId,
}

/// Tells files apart whatever they are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
}

impl ImageFile {
    /// Looks at a file. With `format` it is taken for that, whatever its content looks like; without, it is recognised
    /// by its head. `dirs` are the only places where it may really be; empty: anywhere. Blocks for a short read.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound), [`PermissionDenied`](ErrorKind::PermissionDenied) outside of `dirs`,
    /// [`InvalidImage`](ErrorKind::InvalidImage) for what is no file, no block device or no image of that format.
    pub fn look(path: &Path, format: Option<&'static dyn Format>, dirs: &[PathBuf]) -> Result<ImageFile> {
        let path = real_path(path, dirs)?;
        let (head, len, id) = read_head(&path)?;
        let known = format.or_else(|| format::probe(&head));
        let format = known.unwrap_or(&format::raw::Raw);
        let info = format.identify(&head, len, &path.display().to_string())?;
        Ok(ImageFile { path, format, guessed: known.is_none(), info, len, id })
    }

    /// Refuses a file that is taken for raw only because nothing is known of it. A chain that is written must not
    /// rest on one: an image of a foreign format, read as a disk, would be filled with nonsense or be destroyed.
    pub(super) fn refuse_guess(&self) -> Result<()> {
        if !self.guessed {
            return Ok(());
        }
        let text = format!(
            "{}: no known format; if it is a raw disk, say so with format = \"raw\" (--format raw, for a parent \
             --parent-format raw): raw is never guessed for a disk that is written",
            self.path.display()
        );
        Err(Error::new(ErrorKind::InvalidImage, text))
    }
}

/// Where a file really is, if that is inside one of `dirs` (empty: anywhere).
///
/// # Errors
/// [`NotFound`](ErrorKind::NotFound), [`PermissionDenied`](ErrorKind::PermissionDenied).
pub(super) fn real_path(path: &Path, dirs: &[PathBuf]) -> Result<PathBuf> {
    let real = fs::canonicalize(path).map_err(|error| Error::io(error, path.display().to_string()))?;
    // A directory that does not exist holds no image, so it is no error here.
    let allowed = |dir: &PathBuf| fs::canonicalize(dir).is_ok_and(|dir| real.starts_with(dir));
    if dirs.is_empty() || dirs.iter().any(allowed) {
        return Ok(real);
    }
    let linked = if real == path { String::new() } else { format!(" is really {} and", real.display()) };
    let dirs: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    let text = format!("{}{linked} lies outside of image_dirs ({})", path.display(), dirs.join(", "));
    Err(Error::new(ErrorKind::PermissionDenied, text))
}

/// The first bytes of a file, its length and its identity.
pub(super) fn read_head(path: &Path) -> Result<(Vec<u8>, u64, FileId)> {
    let failed = |error| Error::io(error, path.display().to_string());
    let kind = fs::metadata(path).map_err(failed)?.file_type();
    let mut file =
        if kind.is_file() || kind.is_block_device() { open_to_look(path) } else { Err(no_image(path)) }?;
    // Asked again of what is really open: the name may have got another meaning meanwhile.
    let metadata = file.metadata().map_err(failed)?;
    let len = match metadata.file_type() {
        kind if kind.is_file() => metadata.len(),
        kind if kind.is_block_device() => file.seek(SeekFrom::End(0)).map_err(failed)?,
        _ => return Err(no_image(path)),
    };
    file.rewind().map_err(failed)?;
    let mut head = Vec::with_capacity(HEAD_LEN);
    file.take(HEAD_LEN as u64).read_to_end(&mut head).map_err(failed)?;
    Ok((head, len, FileId { device: metadata.dev(), inode: metadata.ino() }))
}

/// Opens without waiting for a FIFO's other end, without becoming a terminal's owner, and through no symbolic link that
/// has taken the file's place.
fn open_to_look(path: &Path) -> Result<File> {
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::NOFOLLOW;
    let flags = i32::try_from(flags.bits()).expect("open flags are small");
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
    opened.map_err(|error| Error::io(error, path.display().to_string()))
}

fn no_image(path: &Path) -> Error {
    let text = format!("{} is neither a regular file nor a block device", path.display());
    Error::new(ErrorKind::InvalidImage, text)
}
