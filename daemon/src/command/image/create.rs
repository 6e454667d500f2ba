//! `diskchain image create`.

use std::path::{Path, PathBuf};

use clap::Args;
use disk_core::ErrorKind;
use disk_core::format::{FORMATS, Format, LayerInfo, Variant};
use disk_core::open::{ImageFile, LayerSpec, NewImage, create_image};
use disk_core::storage::IoEngine;
use diskchain_config::units::format_size;
use serde_json::json;
use uuid::Uuid;

use super::{parse_bytes, parse_format, shell_word, shown};
use crate::command::formats;
use crate::command::output::{fail, print, print_json};
use crate::exit::Exit;

/// Make an image. An existing file is never changed.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// The file to make
    file: PathBuf,
    /// Size of the disk, such as 20GiB; with --parent that of the parent if left out
    #[arg(long, value_parser = parse_bytes, required_unless_present = "parent")]
    size: Option<u64>,
    /// Format of the image; told by the file's name if left out
    #[arg(long, value_parser = parse_format)]
    format: Option<&'static dyn Format>,
    /// dynamic: grows as it is written; fixed: takes all its space at once
    #[arg(long, value_parser = parse_variant)]
    variant: Option<Variant>,
    /// Bytes of a block, such as 1MiB; with --parent those of the parent if left out
    #[arg(long, value_parser = parse_bytes)]
    block_size: Option<u64>,
    /// Make a differencing image over this one
    #[arg(long)]
    parent: Option<PathBuf>,
    /// Format of the parent, if its head does not tell (raw never does)
    #[arg(long, value_parser = parse_format, requires = "parent")]
    parent_format: Option<&'static dyn Format>,
    /// Identity of the image; a random one if left out
    #[arg(long)]
    uuid: Option<Uuid>,
    /// A comment to keep in the image
    #[arg(long)]
    comment: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print nothing but errors
    #[arg(long, conflicts_with = "json")]
    quiet: bool,
}

pub(super) async fn run(args: CreateArgs) -> Exit {
    let Some(format) = args.format.or_else(|| format_by_name(&args.file)) else {
        let text = format!(
            "{}: the name does not tell the format; say --format with one of {}",
            shown(&args.file),
            formats::names()
        );
        return fail(Exit::Usage, text);
    };
    let new = NewImage {
        format,
        variant: args.variant,
        size: args.size,
        block_size: args.block_size,
        uuid: args.uuid,
        comment: args.comment.clone(),
    };
    let parent = args.parent.as_ref().map(|path| LayerSpec::new(path, args.parent_format));
    if let Err(error) = create_image(&args.file, &new, parent.as_ref(), &[], IoEngine::Threads).await {
        let usage = matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::OutOfRange);
        return fail(if usage { Exit::Usage } else { Exit::from(&error) }, error);
    }
    // Read back, so that what is printed is what is there.
    match ImageFile::look(&args.file, Some(format), &[]) {
        Ok(_) if args.quiet => Exit::Ok,
        Ok(image) if args.json => print_json(&to_json(&args.file, &image.info)),
        Ok(image) => print(&to_text(&args.file, &image.info)),
        Err(error) => fail(Exit::from(&error), error),
    }
}

fn parse_variant(name: &str) -> Result<Variant, String> {
    let variants = [Variant::Dynamic, Variant::Fixed, Variant::Differencing];
    let found = variants.into_iter().find(|variant| variant.name() == name);
    found.ok_or_else(|| "the variants are dynamic and fixed, and differencing with --parent".into())
}

/// The format whose images have names that end like this one.
fn format_by_name(file: &Path) -> Option<&'static dyn Format> {
    let end = file.extension()?.to_str()?.to_ascii_lowercase();
    FORMATS.iter().copied().find(|format| format.extensions().contains(&end.as_str()))
}

fn to_json(file: &Path, info: &LayerInfo) -> serde_json::Value {
    json!({
        "filename": shown(file),
        "format": info.format,
        "variant": info.variant,
        "virtual-size": info.size,
        "cluster-size": (info.block_size > 512).then_some(info.block_size),
        "uuid": info.uuid,
        "parent-uuid": info.parent_uuid,
    })
}

fn to_text(file: &Path, info: &LayerInfo) -> String {
    let kind = format!("{} {}", info.variant, info.format);
    let mut text = format!("created   {}   {} {}", shown(file), format_size(info.size), kind.trim_start());
    if info.block_size > 512 {
        text += &format!(", blocks of {}", format_size(info.block_size));
    }
    if let Some(uuid) = info.uuid {
        text += &format!("\n          UUID {uuid}");
    }
    if let Some(parent) = info.parent_uuid {
        text += &format!(", over {parent}");
    }
    let named = if info.format == "raw" { " --format raw" } else { "" };
    text + &format!("\nNext:     diskchain serve {}{named}\n", shell_word(file))
}
