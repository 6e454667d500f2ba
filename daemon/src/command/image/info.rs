//! `diskchain image info`.
//!
//! Invariant: it takes no lock and changes nothing, so it works on an image that is being served.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use disk_core::format::{Description, Format, LayerInfo, Value};
use disk_core::open::{Ancestry, ImageFile, Search, check_link, find_parents};
use disk_core::storage::{self, IoEngine, OpenOptions, Storage};
use disk_core::{Error, Result};
use serde_json::{Map, json};

use super::{count, parse_format, shown};
use crate::command::output::{Table, fail, print, print_json, size_text, warn};
use crate::exit::Exit;

/// Show what an image says about itself. Works on an image in use, and on one whose parent is missing.
#[derive(Debug, Args)]
pub struct InfoArgs {
    /// The image
    file: PathBuf,
    /// Format of the image, if its head does not tell
    #[arg(long, value_parser = parse_format)]
    format: Option<&'static dyn Format>,
    /// Show all images of the chain, the named one first; parents are searched in its directory
    #[arg(long)]
    chain: bool,
    /// Print JSON, with the words of `qemu-img info`
    #[arg(long)]
    json: bool,
}

/// One image of the chain, and what is known of its parent.
struct Shown {
    /// As the user named it, or where it was found.
    name: String,
    /// Length of the file and the host's space that it takes, bytes.
    file_size: u64,
    host_size: u64,
    description: Description,
    parent: Parent,
}

/// What is known of an image's parent.
enum Parent {
    /// It has none.
    None,
    /// This file, and that it fits or why not.
    File { path: PathBuf, format: &'static str, mismatch: Option<Error> },
    /// It was not found.
    Missing(Error),
}

pub(super) async fn run(args: InfoArgs) -> Exit {
    let images = match collect(&args).await {
        Ok(images) => images,
        Err(error) => return fail(Exit::from(&error), error),
    };
    for image in &images {
        match &image.parent {
            Parent::Missing(error) => warn(error),
            Parent::File { mismatch: Some(error), .. } => warn(error),
            _ => {}
        }
    }
    match (args.json, args.chain) {
        (true, true) => print_json(&images.iter().map(Shown::to_json).collect()),
        (true, false) => print_json(&images[0].to_json()),
        (false, _) => {
            let mut text: Vec<_> = images.iter().map(|image| image.to_table().to_string()).collect();
            if args.chain {
                text.push(count(images.len() as u64, "image") + " in the chain\n");
            }
            print(&text.join("\n"))
        }
    }
}

/// The named image, and with `--chain` its ancestors after it, base last.
async fn collect(args: &InfoArgs) -> Result<Vec<Shown>> {
    let top = ImageFile::look(&args.file, args.format, &[])?;
    if top.guessed {
        warn(format!("{}: no known format, shown as a raw disk", shown(&args.file)));
    }
    let ancestry = find_parents(&top, &Search::beside(&top.path))
        .unwrap_or_else(|error| Ancestry { parents: Vec::new(), missing: Some(error) });
    let mut missing = ancestry.missing;
    let mut chain = vec![top];
    chain.extend(ancestry.parents.into_iter().rev());
    let mut images = Vec::new();
    for (at, image) in chain.iter().enumerate() {
        let parent = match chain.get(at + 1) {
            Some(parent) => Parent::File {
                path: parent.path.clone(),
                format: parent.format.name(),
                mismatch: check_link((&image.path, &image.info), (&parent.path, &parent.info)).err(),
            },
            None => missing.take().map_or(Parent::None, Parent::Missing),
        };
        let name = if at == 0 { shown(&args.file) } else { shown(&image.path) };
        images.push(describe(image, name, parent).await?);
        if !args.chain {
            break;
        }
    }
    Ok(images)
}

async fn describe(image: &ImageFile, name: String, parent: Parent) -> Result<Shown> {
    // Without a lock: nothing is written, and what is shown may change while it is read anyway.
    let access = OpenOptions { lock: false, engine: IoEngine::Threads, ..OpenOptions::read_only() };
    let storage = storage::open(&image.path, &access).await?;
    let (file_size, host_size) = (storage.len(), storage.allocated());
    let description = image.format.describe(Arc::new(storage)).await?;
    Ok(Shown { name, file_size, host_size, description, parent })
}

impl Shown {
    fn to_json(&self) -> serde_json::Value {
        let info = &self.description.info;
        let facts: Map<_, _> = self
            .description
            .facts
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value_json(value)))
            .collect();
        let mut object = json!({
            "filename": self.name,
            "format": info.format,
            "virtual-size": info.size,
            "actual-size": self.host_size,
            "dirty-flag": false,
            "format-specific": { "type": info.format, "data": facts },
            "file-size": self.file_size,
        });
        let mut add = |key: &str, value: serde_json::Value| object[key] = value;
        if has_blocks(info) {
            add("cluster-size", json!(info.block_size));
        }
        if !info.variant.is_empty() {
            add("variant", json!(info.variant));
        }
        for (key, uuid) in uuids(info) {
            add(key, json!(uuid));
        }
        match &self.parent {
            Parent::None => {}
            Parent::File { path, format, mismatch } => {
                add("full-backing-filename", json!(shown(path)));
                add("backing-filename-format", json!(format));
                if let Some(error) = mismatch {
                    add("parent-mismatch", json!(error.to_string()));
                }
            }
            Parent::Missing(error) => add("parent-missing", json!(error.to_string())),
        }
        object
    }

    fn to_table(&self) -> Table {
        let info = &self.description.info;
        let mut table = Table::new(&self.name);
        table.row("format", format!("{} {}", info.format, info.variant).trim_end());
        table.row("disk size", size_text(info.size));
        table.row("file size", size_text(self.file_size));
        table.row("host space", size_text(self.host_size));
        if has_blocks(info) {
            table.row("block size", size_text(info.block_size));
        }
        for (key, uuid) in uuids(info) {
            table.row(key.replace('-', " "), uuid);
        }
        match &self.parent {
            Parent::None => {}
            Parent::File { path, mismatch, .. } => {
                let state = if mismatch.is_some() { "  (does not fit)" } else { "" };
                table.row("parent", format!("{}{state}", path.display()));
            }
            Parent::Missing(_) => {
                let uuid = info.parent_uuid.map_or("of unknown UUID".to_owned(), |uuid| uuid.to_string());
                table.row("parent missing", uuid);
            }
        }
        for (key, value) in &self.description.facts {
            table.row(key.replace('-', " "), value_text(value));
        }
        table
    }
}

/// The identities that an image has, by their keys in JSON.
fn uuids(info: &LayerInfo) -> impl Iterator<Item = (&'static str, uuid::Uuid)> {
    let all = [
        ("uuid", info.uuid),
        ("modification-uuid", info.modification_uuid),
        ("parent-uuid", info.parent_uuid),
        ("parent-modification-uuid", info.parent_modification_uuid),
    ];
    all.into_iter().filter_map(|(key, uuid)| Some((key, uuid?)))
}

fn has_blocks(info: &LayerInfo) -> bool {
    info.block_size > 512
}

fn value_json(value: &Value) -> serde_json::Value {
    match value {
        Value::Text(text) => json!(text),
        Value::Bytes(number) | Value::Number(number) => json!(number),
        Value::Flag(flag) => json!(flag),
        Value::Uuid(uuid) => json!(uuid),
    }
}

fn value_text(value: &Value) -> String {
    match value {
        Value::Text(text) => text.clone(),
        Value::Bytes(bytes) => size_text(*bytes),
        Value::Number(number) => number.to_string(),
        Value::Flag(flag) => if *flag { "yes" } else { "no" }.into(),
        Value::Uuid(uuid) => uuid.to_string(),
    }
}
