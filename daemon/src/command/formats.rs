//! `diskchain formats`: the image formats and what can be done with them.

use clap::Args;
use disk_core::format::{self, BlockSizes, Capabilities, FORMATS, Format};
use diskchain_config::units::format_size;
use serde_json::{Value, json};

use super::output::{Table, fail, print, print_json, size_text};
use crate::exit::Exit;

/// List the image formats and what they can do
#[derive(Debug, Args)]
pub struct FormatsArgs {
    /// Show only this format
    name: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs `diskchain formats`.
pub fn run(args: FormatsArgs) -> Exit {
    let formats = match &args.name {
        None => FORMATS.to_vec(),
        Some(name) => match format::find(name) {
            Some(format) => vec![format],
            None => {
                return fail(
                    Exit::NotFound,
                    format!("no image format is called `{name}`; the formats are {}", names()),
                );
            }
        },
    };
    if args.json {
        return print_json(&formats.iter().map(|format| to_json(*format)).collect());
    }
    let sections: Vec<String> = formats.iter().map(|format| to_text(*format)).collect();
    print(&sections.join("\n"))
}

/// The names of all formats, as a phrase.
pub fn names() -> String {
    FORMATS.iter().map(|format| format.name()).collect::<Vec<_>>().join(" and ")
}

fn to_json(format: &dyn Format) -> Value {
    let can = format.capabilities();
    json!({
        "name": format.name(),
        "title": format.title(),
        "extensions": format.extensions(),
        "variants": can.variants.iter().map(|variant| variant.name()).collect::<Vec<_>>(),
        "max-size": can.max_size,
        "block-sizes": can.block_sizes.map(|BlockSizes { min, max, default }| json!({
            "min": min, "max": max, "default": default,
        })),
        "uuid": can.uuid,
        "comment-length": can.comment_len,
        "check": can.check,
        "repair": can.repair,
        "frees": can.can_free,
        "recognised": !is_raw(format),
    })
}

fn to_text(format: &dyn Format) -> String {
    let can = format.capabilities();
    let mut table = Table::new(format.name());
    table.row("name", format.title());
    table.row(
        "file names",
        format.extensions().iter().map(|end| format!("*.{end}")).collect::<Vec<_>>().join(" "),
    );
    table.row(
        "recognised",
        if is_raw(format) {
            "never: any bytes can be a raw disk, so it has to be named"
        } else {
            "by its head"
        },
    );
    table.row("variants", can.variants.iter().map(|variant| variant.name()).collect::<Vec<_>>().join(", "));
    table.row("block size", block_sizes(&can));
    table.row("largest disk", size_text(can.max_size));
    table.row("identity", if can.uuid { "UUIDs of the image, its state and its parent" } else { "none" });
    if can.comment_len > 0 {
        table.row("comment", format!("up to {} bytes", can.comment_len));
    }
    table.row(
        "check",
        match (can.check, can.repair) {
            (false, _) => "no metadata to check",
            (true, false) => "yes",
            (true, true) => "yes, with repair",
        },
    );
    table.row("trim", if can.can_free { "gives space back" } else { "has no effect" });
    table.to_string()
}

fn block_sizes(can: &Capabilities) -> String {
    match can.block_sizes {
        None => "no blocks".into(),
        Some(BlockSizes { min, max, default }) => {
            format!("{} to {}, usually {}", format_size(min), format_size(max), format_size(default))
        }
    }
}

/// The format that content never shows.
fn is_raw(format: &dyn Format) -> bool {
    format.name() == format::raw::Raw.name()
}
