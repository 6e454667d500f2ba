//! Finding the parents of a differencing image by their identity, and the configuration lines that name them.
//!
//! Invariant: no name that an image contains is ever followed. A search reads heads of regular files inside the
//! directories it was given, through no symbolic link, up to a fixed depth and number.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::image_file::{FileId, ImageFile, read_head};
use crate::error::{Error, ErrorKind, Result};
use crate::format;

/// Levels of folders below a search directory: image stores are flat, and a wrong directory must not cost minutes.
const MAX_DEPTH: usize = 8;

/// Files whose head one search reads.
const MAX_FILES: usize = 20_000;

/// Images of one chain. Each costs a lookup for every request.
pub(super) const MAX_LAYERS: usize = 256;

/// Where parents are searched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Search {
    dirs: Vec<PathBuf>,
    depth: usize,
}

impl Search {
    /// In these directories and all folders in them: `image_dirs`.
    pub fn below(dirs: &[PathBuf]) -> Search {
        Search { dirs: dirs.to_vec(), depth: MAX_DEPTH }
    }

    /// In the directory where a file really is, and not below.
    pub fn beside(file: &Path) -> Search {
        let real = fs::canonicalize(file).unwrap_or_else(|_| file.to_path_buf());
        Search { dirs: real.parent().map(Path::to_path_buf).into_iter().collect(), depth: 0 }
    }
}

/// What a search found.
#[derive(Debug)]
pub struct Ancestry {
    /// The ancestors, base first; without the image whose they are.
    pub parents: Vec<ImageFile>,
    /// Why the first of them still lacks a parent; `None` if the chain is complete.
    pub missing: Option<Error>,
}

/// Follows the parents of `child` down to the base. Blocks for many short reads.
///
/// # Errors
/// More files than a search reads. That a parent is missing is no error here, so that an image can be described
/// without it.
pub fn find_parents(child: &ImageFile, search: &Search) -> Result<Ancestry> {
    let mut ancestry = Ancestry { parents: Vec::new(), missing: None };
    if !child.info.differencing {
        return Ok(ancestry);
    }
    let index = Index::scan(search)?;
    let mut seen = HashSet::from([child.id]);
    let mut youngest = child;
    while youngest.info.differencing {
        let step = index.parent_of(youngest).and_then(|parent| match seen.insert(parent.id) {
            true if seen.len() <= MAX_LAYERS => Ok(parent),
            true => Err(broken(youngest, format!("the chain has more than {MAX_LAYERS} images"))),
            false => Err(broken(youngest, format!("its parent {} is its child too", parent.path.display()))),
        });
        match step {
            Ok(parent) => {
                ancestry.parents.push(parent.clone());
                youngest = parent;
            }
            Err(error) => {
                ancestry.missing = Some(error);
                break;
            }
        }
    }
    ancestry.parents.reverse();
    Ok(ancestry)
}

/// The lines that spell a chain out in the configuration. A parent that was not found is a comment in its place.
pub fn layers_lines(child: &ImageFile, ancestry: &Ancestry) -> String {
    let mut lines = String::from("layers = [\n");
    if ancestry.missing.is_some() {
        let oldest = ancestry.parents.first().unwrap_or(child);
        let wanted = match oldest.info.parent_uuid {
            Some(uuid) => format!("the image with UUID {uuid}"),
            None => format!("the image that {} was made over", oldest.path.display()),
        };
        let _ = writeln!(lines, "  # {{ file = \"…\", format = \"…\" }},  {wanted}");
    }
    for image in ancestry.parents.iter().chain([child]) {
        let file = toml_string(&image.path.display().to_string());
        let _ = writeln!(lines, "  {{ file = {file}, format = \"{}\" }},", image.format.name());
    }
    lines.push(']');
    lines
}

/// `text` as a basic string of TOML.
fn toml_string(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

fn broken(image: &ImageFile, what: String) -> Error {
    Error::new(ErrorKind::ParentMismatch, format!("{}: {what}", image.path.display()))
}

/// The images with an identity in the searched directories.
struct Index {
    images: HashMap<Uuid, Vec<ImageFile>>,
    /// The directories, for messages.
    places: String,
}

impl Index {
    fn scan(search: &Search) -> Result<Index> {
        let places: Vec<_> = search.dirs.iter().map(|dir| dir.display().to_string()).collect();
        let mut index = Index { images: HashMap::new(), places: places.join(", ") };
        let mut seen = HashSet::new();
        let mut dirs: Vec<(PathBuf, usize)> =
            search.dirs.iter().filter_map(|dir| Some((fs::canonicalize(dir).ok()?, 0))).collect();
        while let Some((dir, depth)) = dirs.pop() {
            // What cannot be read is passed over, lost+found in the first place: no image can be served from there.
            let Ok(entries) = fs::read_dir(&dir) else { continue };
            for entry in entries.flatten() {
                match entry.file_type() {
                    Ok(kind) if kind.is_file() => index.look_at(&entry.path(), &mut seen)?,
                    Ok(kind) if kind.is_dir() && depth < search.depth => dirs.push((entry.path(), depth + 1)),
                    _ => {}
                }
            }
        }
        Ok(index)
    }

    fn look_at(&mut self, path: &Path, seen: &mut HashSet<FileId>) -> Result<()> {
        let Ok((head, len, id)) = read_head(path) else { return Ok(()) };
        if !seen.insert(id) {
            return Ok(());
        }
        if seen.len() > MAX_FILES {
            let text = format!("more than {MAX_FILES} files in {}: name the parents instead", self.places);
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        let Some(format) = format::probe(&head) else { return Ok(()) };
        let Ok(info) = format.identify(&head, len, &path.display().to_string()) else { return Ok(()) };
        if let Some(uuid) = info.uuid {
            let image = ImageFile { path: path.to_path_buf(), format, guessed: false, info, len, id };
            self.images.entry(uuid).or_default().push(image);
        }
        Ok(())
    }

    /// The one image that `child` was made over.
    fn parent_of(&self, child: &ImageFile) -> Result<&ImageFile> {
        let Some(uuid) = child.info.parent_uuid else {
            return Err(broken(child, "it does not say which image it was made over".into()));
        };
        let same_uuid = self.images.get(&uuid).map_or(&[][..], Vec::as_slice);
        let state = child.info.parent_modification_uuid;
        // A copy of the parent that was changed since has its UUID, but not its state.
        let exact: Vec<_> = same_uuid.iter().filter(|image| image.info.modification_uuid == state).collect();
        let candidates = if exact.is_empty() { same_uuid.iter().collect() } else { exact };
        match candidates[..] {
            [parent] => Ok(parent),
            [] => {
                let text = format!(
                    "{}: parent missing: no image in {} has UUID {uuid}",
                    child.path.display(),
                    self.places
                );
                Err(Error::new(ErrorKind::NotFound, text))
            }
            _ => {
                let mut paths: Vec<_> =
                    candidates.iter().map(|image| image.path.display().to_string()).collect();
                paths.sort();
                let text =
                    format!("more than one image has the UUID {uuid} of its parent: {}", paths.join(", "));
                Err(broken(child, text))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::toml_string;

    #[test]
    fn a_path_with_quotes_and_control_characters_stays_one_toml_string() {
        assert_eq!(toml_string("/a \"b\"\\\n"), r#""/a \"b\"\\\u000A""#);
    }
}
