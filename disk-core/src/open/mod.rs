//! From names of image files to a chain of opened layers.
//!
//! ```text
//!   LayerSpec… ─▶ make the missing ─▶ look at heads ─▶ find parents ─▶ lock and open ─▶ check links
//!                 create.rs           image_file.rs    parents.rs      storage
//! ```
//! Invariant: a chain that is returned has every image locked (parents shared, a writable top exclusively) unless that
//! is switched off, no file twice, and every image is the one that the image above it was made over.

mod create;
mod image_file;
mod parents;

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result};
use crate::format::{Format, Layer, LayerInfo};
use crate::storage::{self, CacheMode, IoEngine};

pub use create::{NewImage, create_image};
pub use image_file::ImageFile;
pub use parents::{Ancestry, Search, find_parents, layers_lines};

/// One image of a chain, as the user names it.
#[derive(Debug, Clone)]
pub struct LayerSpec {
    /// The file or block device.
    pub path: PathBuf,
    /// Its format; `None` to recognise it by its head. Raw is never recognised.
    pub format: Option<&'static dyn Format>,
    /// What to make if there is no such file.
    pub create: Option<NewImage>,
}

impl LayerSpec {
    /// An image that exists.
    pub fn new(path: impl Into<PathBuf>, format: Option<&'static dyn Format>) -> Self {
        LayerSpec { path: path.into(), format, create: None }
    }
}

/// Where the parents of the first named image come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parents {
    /// The whole chain is named.
    Listed,
    /// They are searched by identity. For a single named image.
    Auto(Search),
    /// It must have none.
    None,
}

/// What happens when the top image cannot be opened for writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnRwFailure {
    /// Opening fails.
    Fail,
    /// The chain is opened read-only.
    ReadOnly,
}

/// How a chain is opened.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// Nothing will be written: the top is locked shared, too.
    pub read_only: bool,
    /// Whether images are locked. Without it nobody notices a second writer.
    pub lock: bool,
    /// What to do if the top image cannot be written.
    pub on_rw_failure: OnRwFailure,
    /// Cache mode of the top; parents are read through the page cache unless it bypasses that.
    pub cache: CacheMode,
    /// Who does the I/O.
    pub engine: IoEngine,
    /// The only places where images may be; empty: anywhere.
    pub image_dirs: Vec<PathBuf>,
    /// Where parents come from.
    pub parents: Parents,
}

/// A layer and the file it is in.
#[derive(Debug, Clone)]
pub struct OpenedLayer {
    /// The layer.
    pub layer: Arc<dyn Layer>,
    /// Its file: absolute, no symbolic link in it.
    pub path: PathBuf,
}

/// A chain of opened images.
#[derive(Debug)]
pub struct OpenedChain {
    /// Base first.
    pub layers: Vec<OpenedLayer>,
    /// Why it is read-only although writing was asked for ([`OnRwFailure::ReadOnly`]); to be told to the user.
    pub not_writable: Option<Error>,
}

/// Opens a chain, `specs` base first. Missing images with a `create` are made before.
///
/// # Errors
/// Each names its file. [`Locked`](ErrorKind::Locked) if somebody else has an image in use that excludes this,
/// [`ParentMismatch`](ErrorKind::ParentMismatch) if images do not belong together, and with a text to paste into the
/// configuration if a parent is not named; [`InvalidImage`](ErrorKind::InvalidImage) for an image of unknown format
/// that is to be written, because a raw image is never guessed.
///
/// # Panics
/// If `specs` is empty.
pub async fn open_chain(specs: Vec<LayerSpec>, options: OpenOptions) -> Result<OpenedChain> {
    assert!(!specs.is_empty(), "a chain has at least one image");
    create::create_missing(&specs, &options).await?;
    let look = options.clone();
    let files = blocking(move || look_at_chain(&specs, &look)).await?;
    let (top, parents) = files.split_last().expect("a chain has at least one image");
    let mut layers = Vec::with_capacity(files.len());
    for parent in parents {
        layers.push(open_layer(parent, true, &options).await?);
    }
    let (top, not_writable) = open_top(top, &options).await?;
    layers.push(top);
    // Asked of what is locked now, not of the heads seen before.
    for pair in layers.windows(2) {
        let [parent, child] = pair else { unreachable!("windows of two") };
        check_link((&child.path, child.layer.info()), (&parent.path, parent.layer.info()))?;
    }
    Ok(OpenedChain { layers, not_writable })
}

/// Checks that `child` was made over `parent`, as that is now.
///
/// # Errors
/// [`ParentMismatch`](ErrorKind::ParentMismatch) with both identities.
pub fn check_link(child: (&Path, &LayerInfo), parent: (&Path, &LayerInfo)) -> Result<()> {
    let ((child_path, child), (parent_path, parent)) = (child, parent);
    let mismatch = |what: String| {
        let text = format!("{}: {what}", child_path.display());
        Err(Error::new(ErrorKind::ParentMismatch, text))
    };
    if !child.differencing {
        let kind = format!("{} {}", child.format, child.variant);
        return mismatch(format!(
            "a {} image has no parent and would hide {}",
            kind.trim_end(),
            parent_path.display()
        ));
    }
    // A format without identities cannot be mistaken by them; whoever named the file vouches for it.
    let Some(uuid) = parent.uuid else { return Ok(()) };
    let wanted = child.parent_modification_uuid;
    let same_state = wanted.is_none() || wanted == parent.modification_uuid;
    if child.parent_uuid == Some(uuid) && same_state {
        return Ok(());
    }
    let reason = match child.parent_uuid == Some(uuid) {
        true => "its parent was changed after it was made",
        false => "it was made over another image",
    };
    mismatch(format!(
        "{reason}: it wants the parent {}, and {} is {}",
        Identity(child.parent_uuid, wanted),
        parent_path.display(),
        Identity(parent.uuid, parent.modification_uuid),
    ))
}

/// A UUID and a modification UUID, in words.
struct Identity(Option<Uuid>, Option<Uuid>);

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |uuid: Option<Uuid>| uuid.map_or("none".to_owned(), |uuid| uuid.to_string());
        write!(f, "UUID {}, modification UUID {}", text(self.0), text(self.1))
    }
}

/// Looks at all images of the chain, base first, those included that nobody named, and refuses what the heads show
/// to be wrong.
fn look_at_chain(specs: &[LayerSpec], options: &OpenOptions) -> Result<Vec<ImageFile>> {
    let look = |spec: &LayerSpec| ImageFile::look(&spec.path, spec.format, &options.image_dirs);
    let named = specs.iter().map(look).collect::<Result<Vec<_>>>()?;
    let mut files = ancestors(&named, options)?;
    files.extend(named);
    let mut seen = HashMap::new();
    for file in &files {
        if let Some(other) = seen.insert(file.id, &file.path) {
            let text =
                format!("{} and {} are one file, twice in a chain", other.display(), file.path.display());
            return Err(Error::new(ErrorKind::InvalidImage, text));
        }
    }
    if !options.read_only {
        files.iter().try_for_each(ImageFile::refuse_guess)?;
    }
    Ok(files)
}

/// The ancestors of the first named image, base first, none if it is a base.
fn ancestors(named: &[ImageFile], options: &OpenOptions) -> Result<Vec<ImageFile>> {
    let first = &named[0];
    if !first.info.differencing {
        return Ok(Vec::new());
    }
    // Also where no search was asked for: then its result is only printed.
    let search = match &options.parents {
        Parents::Auto(search) => search.clone(),
        Parents::Listed | Parents::None => Search::beside(&first.path),
    };
    let ancestry = find_parents(first, &search)?;
    let error = match (&options.parents, &ancestry.missing) {
        (Parents::Auto(_), None) => {
            for parent in &ancestry.parents {
                image_file::real_path(&parent.path, &options.image_dirs)?;
            }
            return Ok(ancestry.parents);
        }
        (Parents::Auto(_), Some(missing)) => missing.clone(),
        (Parents::Listed | Parents::None, _) => {
            let text =
                format!("{} is a differencing image, and its parent is not named", first.path.display());
            Error::new(ErrorKind::ParentMismatch, text)
        }
    };
    let mut help = format!("The whole chain, base first, is named by\n{}", layers_lines(first, &ancestry));
    if !matches!(options.parents, Parents::Auto(_)) {
        help += "\nor its parents are searched inside image_dirs with\nparents = \"auto\"";
    }
    Err(Error::new(error.kind(), format!("{error}. {help}")))
}

/// Opens the top as asked, or read-only if it cannot be written and that will do.
async fn open_top(file: &ImageFile, options: &OpenOptions) -> Result<(OpenedLayer, Option<Error>)> {
    match open_layer(file, options.read_only, options).await {
        Err(error) if !options.read_only && options.on_rw_failure == OnRwFailure::ReadOnly => {
            match open_layer(file, true, options).await {
                Ok(layer) => Ok((layer, Some(error))),
                Err(_) => Err(error),
            }
        }
        outcome => Ok((outcome?, None)),
    }
}

async fn open_layer(file: &ImageFile, read_only: bool, options: &OpenOptions) -> Result<OpenedLayer> {
    let access = storage::OpenOptions {
        writable: !read_only,
        cache: options.cache,
        engine: options.engine,
        lock: options.lock,
        follow_links: false,
    };
    let storage = storage::open(&file.path, &access).await?;
    let layer = file.format.open(Arc::new(storage), read_only).await?;
    Ok(OpenedLayer { layer, path: file.path.clone() })
}

/// Runs what waits for a file system on a thread that may wait.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(failed) => match failed.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(Error::new(ErrorKind::Closed, "the process is stopping")),
        },
    }
}
