//! Making images: `diskchain image create`, and `create =` in the configuration.
//!
//! Invariant: a file appears under its name complete and durable, or not at all; no file is ever replaced.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use super::image_file::{ImageFile, real_path};
use super::{LayerSpec, OpenOptions, blocking};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Capabilities, CreateOptions, Format, ParentIdentity, Variant};
use crate::storage::{self, IoEngine};

/// An image to be made.
#[derive(Debug, Clone)]
pub struct NewImage {
    /// Its format.
    pub format: &'static dyn Format,
    /// What kind; `None`: differencing over a parent, otherwise the format's default.
    pub variant: Option<Variant>,
    /// Size of the disk, bytes, a multiple of 512; `None`: that of the parent.
    pub size: Option<u64>,
    /// Bytes of a block, a power of two; `None`: that of the parent if the format can have it, otherwise the format's
    /// default.
    pub block_size: Option<u64>,
    /// Its identity; `None`: a random one, if the format has any.
    pub uuid: Option<Uuid>,
    /// A comment to keep in it.
    pub comment: Option<String>,
}

impl NewImage {
    /// A new image of a format, all else as usual.
    pub fn new(format: &'static dyn Format, size: Option<u64>) -> Self {
        NewImage { format, variant: None, size, block_size: None, uuid: None, comment: None }
    }
}

/// Makes an image at `path`, over `parent` if there is one. The parent is locked shared meanwhile: an image made over
/// one that is being written would not fit it any more.
///
/// # Errors
/// [`AlreadyExists`](ErrorKind::AlreadyExists); [`Unsupported`](ErrorKind::Unsupported) and
/// [`OutOfRange`](ErrorKind::OutOfRange), before any file is made, for what the format cannot have;
/// [`Locked`](ErrorKind::Locked) if somebody writes to the parent.
pub async fn create_image(
    path: &Path,
    new: &NewImage,
    parent: Option<&LayerSpec>,
    image_dirs: &[PathBuf],
    engine: IoEngine,
) -> Result<()> {
    let parent = match parent {
        Some(spec) => {
            let (spec, dirs) = (spec.clone(), image_dirs.to_vec());
            let path = blocking(move || real_path(&spec.path, &dirs)).await?;
            let lock =
                storage::open(&path, &storage::OpenOptions { engine, ..storage::OpenOptions::read_only() })
                    .await?;
            let file = blocking(move || ImageFile::look(&path, spec.format, &[])).await?;
            file.refuse_guess()?;
            Some((lock, file))
        }
        None => None,
    };
    let options = options_for(new, parent.as_ref().map(|(_, file)| file))
        .map_err(|error| error.context(path.display()))?;
    let (wanted, dirs) = (path.to_path_buf(), image_dirs.to_vec());
    let unfinished = blocking(move || Unfinished::at(&wanted, &dirs)).await?;
    let storage = storage::create(
        &unfinished.path,
        // Nobody looks for a file of that name, and not every file system can lock.
        &storage::OpenOptions { engine, lock: false, ..storage::OpenOptions::read_write() },
    )
    .await?;
    let made = new.format.create(Arc::new(storage), options).await;
    made.map_err(|error| error.context(path.display()))?;
    blocking(move || unfinished.publish()).await
}

/// Makes the images of a chain that have a `create` and no file.
pub(super) async fn create_missing(specs: &[LayerSpec], options: &OpenOptions) -> Result<()> {
    for (at, spec) in specs.iter().enumerate() {
        let Some(new) = &spec.create else { continue };
        let path = spec.path.clone();
        if blocking(move || Ok(exists(&path))).await? {
            continue;
        }
        let parent = at.checked_sub(1).map(|below| &specs[below]);
        match create_image(&spec.path, new, parent, &options.image_dirs, options.engine).await {
            // Somebody else was faster: there is an image now, which is all that was asked for.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            made => made?,
        }
    }
    Ok(())
}

/// Whether there is anything of that name, a dangling symbolic link included.
fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// What the format is asked to make, once it is sure that it can.
fn options_for(new: &NewImage, parent: Option<&ImageFile>) -> Result<CreateOptions> {
    let can = new.format.capabilities();
    let variant = variant_for(new, &can, parent.is_some())?;
    let size = new.size.or(parent.map(|parent| parent.info.size));
    let size = size.ok_or_else(|| refuse("the size of the disk is missing (--size)"))?;
    if size == 0 || !size.is_multiple_of(512) || size > can.max_size {
        let text = format!(
            "{size} bytes is no disk size for {}: a multiple of 512, not 0, at most {} bytes",
            new.format.name(),
            can.max_size
        );
        return Err(Error::new(ErrorKind::OutOfRange, text));
    }
    let comment_len = new.comment.as_ref().map_or(0, String::len);
    if comment_len > can.comment_len {
        let text = format!(
            "a comment of {comment_len} bytes: {} has room for {} bytes",
            new.format.name(),
            can.comment_len
        );
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    if new.uuid.is_some() && !can.uuid {
        return Err(refuse(format!("{} images have no UUID", new.format.name())));
    }
    Ok(CreateOptions {
        size,
        variant,
        parent: parent.map(|parent| ParentIdentity {
            uuid: parent.info.uuid,
            modification_uuid: parent.info.modification_uuid,
        }),
        block_size: block_size_for(new, &can, parent)?,
        uuid: new.uuid,
        comment: new.comment.clone(),
    })
}

fn variant_for(new: &NewImage, can: &Capabilities, has_parent: bool) -> Result<Variant> {
    let usual = if has_parent { Variant::Differencing } else { can.variants[0] };
    let variant = new.variant.unwrap_or(usual);
    if !can.variants.contains(&variant) {
        let names: Vec<_> = can.variants.iter().map(|variant| variant.name()).collect();
        let text = format!("{} images are {}, not {variant}", new.format.name(), names.join(" or "));
        return Err(refuse(text));
    }
    match (variant == Variant::Differencing, has_parent) {
        (true, false) => Err(refuse("a differencing image needs a parent (--parent)")),
        (false, true) => {
            Err(refuse(format!("variant {variant} and a parent exclude each other: leave one of them out")))
        }
        _ => Ok(variant),
    }
}

fn block_size_for(new: &NewImage, can: &Capabilities, parent: Option<&ImageFile>) -> Result<Option<u64>> {
    let Some(sizes) = can.block_sizes else {
        return match new.block_size {
            Some(_) => Err(refuse(format!("{} images have no blocks", new.format.name()))),
            None => Ok(None),
        };
    };
    let fits = |size: &u64| size.is_power_of_two() && (sizes.min..=sizes.max).contains(size);
    match new.block_size {
        Some(size) if !fits(&size) => {
            let (name, min, max) = (new.format.name(), sizes.min, sizes.max);
            let text = format!("a block of {size} bytes: {name} has powers of two from {min} to {max}");
            Err(Error::new(ErrorKind::OutOfRange, text))
        }
        Some(size) => Ok(Some(size)),
        // Equal blocks make copy-on-write copy least.
        None => Ok(parent.map(|parent| parent.info.block_size).filter(fits)),
    }
}

fn refuse(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::Unsupported, text)
}

/// A file that is being made under another name, and vanishes unless it is published.
#[derive(Debug)]
struct Unfinished {
    path: PathBuf,
    wanted: PathBuf,
}

impl Unfinished {
    /// Chooses the other name.
    fn at(wanted: &Path, dirs: &[PathBuf]) -> Result<Unfinished> {
        let no_name =
            || Error::new(ErrorKind::NotFound, format!("{} is no name for a file", wanted.display()));
        let name = wanted.file_name().ok_or_else(no_name)?;
        let dir = wanted.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let dir = real_path(dir, dirs)?;
        let wanted = dir.join(name);
        if exists(&wanted) {
            return Err(already(&wanted));
        }
        let path = dir.join(format!(".diskchain-{}.partial", Uuid::new_v4().simple()));
        Ok(Unfinished { path, wanted })
    }

    /// Gives the file its name, durably. Its content is durable already.
    fn publish(self) -> Result<()> {
        let failed = |error| Error::io(error, self.wanted.display().to_string());
        // A hard link, unlike a rename, never replaces; a file system that has none gets the rename.
        match fs::hard_link(&self.path, &self.wanted) {
            Ok(()) => fs::remove_file(&self.path).map_err(failed)?,
            Err(_) if exists(&self.wanted) => return Err(already(&self.wanted)),
            Err(_) => fs::rename(&self.path, &self.wanted).map_err(failed)?,
        }
        let dir = self.wanted.parent().expect("a file is in a directory");
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Once published there is nothing left of that name; and if this fails there is nobody to tell.
        let _ = fs::remove_file(&self.path);
    }
}

fn already(path: &Path) -> Error {
    let text = format!("{} exists already, and is left as it is", path.display());
    Error::new(ErrorKind::AlreadyExists, text)
}
