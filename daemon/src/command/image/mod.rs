//! `diskchain image`: commands on image files. They work without a daemon and take the images' locks.

mod check;
mod create;
mod info;

use std::path::Path;

use clap::{Args, Subcommand};
use disk_core::format::{self, Format};
use diskchain_config::units::parse_size;

use super::formats;
use crate::exit::Exit;

/// Arguments of `diskchain image`.
#[derive(Debug, Args)]
pub struct ImageArgs {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// Make an image
    Create(create::CreateArgs),
    /// Show what an image says about itself
    Info(info::InfoArgs),
    /// Look for contradictions in an image's metadata
    Check(check::CheckArgs),
}

/// Runs `diskchain image`.
pub async fn run(args: ImageArgs) -> Exit {
    match args.command {
        ImageCommand::Create(args) => create::run(args).await,
        ImageCommand::Info(args) => info::run(args).await,
        ImageCommand::Check(args) => check::run(args).await,
    }
}

/// A format's name as an argument.
fn parse_format(name: &str) -> Result<&'static dyn Format, String> {
    format::find(name).ok_or_else(|| format!("the formats are {}", formats::names()))
}

/// A size as an argument: `20GiB`, or bytes.
fn parse_bytes(text: &str) -> Result<u64, String> {
    parse_size(text).map_err(|invalid| invalid.to_string())
}

/// How messages and results call a file: as the user did.
fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// A file as a word of a shell command.
fn shell_word(path: &Path) -> String {
    let name = shown(path);
    let plain = |c: char| c.is_alphanumeric() || "/._-+,:@%=".contains(c);
    if name.chars().all(plain) { name } else { format!("'{}'", name.replace('\'', r"'\''")) }
}

/// `1 image`, `2 images`.
fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
